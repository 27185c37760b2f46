"""Foreign weights for PSANet: checkpoints of the authors' PyTorch code, and ImageNet ResNets."""

import math
import re

import torch

from . import model
from .resnet import load_imagenet

LAYERS = {6: "resnet50", 23: "resnet101", 36: "resnet152"}  # blocks in layer3 -> preset
COMPACT = (900, 2025)  # rows of a compact table for the crops 465 and 705
OF_PSA = (  # options that say something about the PSA module only
    "psa_type", "compact", "shrink_factor", "crop_size", "mask_size", "normalization_factor",
    "psa_softmax",
)
# Official names, and ours. The stem is a Sequential there; reduce_p and attention_p belong to the
# second direction.
RENAMED = (
    (r"layer0\.(0|3|6)\.", lambda m: f"backbone.conv{int(m[1]) // 3 + 1}."),
    (r"layer0\.(1|4|7)\.", lambda m: f"backbone.bn{int(m[1]) // 3 + 1}."),
    (r"layer([1-4])\.", lambda m: f"backbone.layer{m[1]}."),
    (r"psa\.reduce(_p)?\.", lambda m: f"psa.branches.{int(bool(m[1]))}.reduce."),
    (r"psa\.attention(_p)?\.3\.weight$", lambda m: f"psa.branches.{int(bool(m[1]))}.table"),
    (r"psa\.attention(_p)?\.", lambda m: f"psa.branches.{int(bool(m[1]))}.query."),
    (r"psa\.proj\.", lambda m: "psa.project."),
    (r"cls\.", lambda m: "classifier."),
    (r"aux\.", lambda m: "aux_head."),
)


def unwrap(state_dict):
    """The tensors of a file, without the dict around them and the "module." in their names."""
    state_dict = state_dict.get("state_dict", state_dict)
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def rename(name):
    """Our name for an official one, or None."""
    for pattern, ours in RENAMED:
        renamed, count = re.subn("^" + pattern, ours, name)
        if count:
            return renamed
    return None


def convert(state_dict, **options):
    """The official checkpoint under the names here, ready for `build(**build_arguments(...))`.

    state_dict: the file's content, bare or under "state_dict", names with or without "module.".
    options: of `model.build`, for what a file does not tell: see `build_arguments`. The 1x1
    convolution [offsets, C, 1, 1] becomes the table [offsets, C]; nothing else changes its shape.
    Raises ValueError that lists what is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        wanted = model.build(**build_arguments(state_dict, **options)).state_dict()
    converted, unexpected = {}, []
    for name, value in unwrap(state_dict).items():
        ours = rename(name)
        if ours not in wanted:
            unexpected.append(name)
            continue
        converted[ours] = value.flatten(1) if ours.endswith("table") else value
    problems = {
        "missing": [name for name in wanted if name not in converted],
        "unexpected": unexpected,
        "of another shape": [n for n in converted if converted[n].shape != wanted[n].shape],
    }
    if any(problems.values()):
        told = "".join(f", {name}={value}" for name, value in options.items())
        raise ValueError(f"this is no complete PSANet checkpoint{told}: " + "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for kind, names in problems.items() if names
        ))
    return converted


def build_arguments(state_dict, **options):
    """The arguments of `model.build` for an official checkpoint: num_classes, preset and options.

    options: of `model.build`, for what a file does not tell. They are taken as they are, and
    refused where they contradict the file. These load in silence, right or wrong:
    psa_type      a file of one direction has the same names for either. "collect" is assumed.
    mask_size     only the number of its entries is told. A square is assumed, and refused where the
                  number is none. (21, 17) and (17, 21) fit the same file: rows come first.
    compact       assumed where the mask has an even side, which offsets never have, and for the 900
                  and 2025 entries of the usual crops. Else the entries are taken for offsets.
    shrink_factor, psa_softmax, normalization_factor, zoom_factor
                  have no weights. 2, True, 1.0 and 8 are assumed, as in every released
                  configuration. With crop_size, mask_size follows from shrink_factor as in the
                  training, and a pair that does not fit the file is refused.
    Raises ValueError for another file.
    """
    state = unwrap(state_dict)
    blocks = len({name.split(".")[1] for name in state if name.startswith("layer3.")})
    if "cls.4.weight" not in state or blocks not in LAYERS:
        raise ValueError(
            "no checkpoint of the official PSANet: " + (
                "it has no cls.4.weight" if "cls.4.weight" not in state else
                f"its layer3 has {blocks} blocks, not {' or '.join(map(str, LAYERS))}")
        )
    arguments = {"num_classes": len(state["cls.4.weight"]), "preset": LAYERS[blocks]}
    if "aux.4.weight" not in state:
        arguments["aux"] = False
    if "psa.attention.3.weight" not in state:
        useless = [name for name in OF_PSA if name in options]
        if useless:
            raise ValueError(f"this file has no PSA module, to which {useless[0]} could apply")
        return {**arguments, "context": False, **options}
    two = "psa.attention_p.3.weight" in state
    arguments["psa_type"] = "bidirection" if two else "collect"
    return {**arguments, **options, **mask_of(len(state["psa.attention.3.weight"]), options)}


def mask_of(rows, options):
    """mask_size and compact of a table with so many rows, from the options where they tell."""
    mask, compact = options.get("mask_size"), options.get("compact", rows in COMPACT)
    if mask is None and "crop_size" in options:
        o = {**model.DEFAULTS, **options}
        told = o["crop_size"], o["shrink_factor"]
        compact = options.get("compact", rows == math.prod(model.full_mask(*told, True)))
        mask = model.full_mask(*told, compact)
        source = f"crop_size={told[0]} with shrink_factor={told[1]}"
    elif mask is None:
        mask, source = (math.isqrt(rows),) * 2, "a square"
        if math.prod(mask) != rows:
            raise ValueError(
                f"the mask has {rows} entries, which is no square: say mask_size=(rows, columns)"
            )
    else:
        source = f"mask_size={mask}"
    mask = tuple(mask)
    if math.prod(mask) != rows:
        raise ValueError(
            f"{source} means a mask of {math.prod(mask)} entries, but that of the file has {rows}"
        )
    if any(side % 2 == 0 for side in mask):
        compact = options.get("compact", True)
        if not compact:
            raise ValueError(
                f"a mask of {mask[0]} x {mask[1]} has an even side, which offsets never have: it "
                "is one of positions, compact=True"
            )
    return {"mask_size": mask, "compact": compact}


def load_backbone(network, state_dict):
    """Copy ImageNet weights into network.backbone, see `resnet.load_imagenet`. The authors' files
    have the deep stem and fit completely; torchvision's have a plain one."""
    return load_imagenet(network.backbone, state_dict)
