"""Foreign weights for PSANet: the checkpoints of the authors' PyTorch code, and ImageNet ResNets."""

import math
import re

import torch

from .model import build

LAYERS = {6: "resnet50", 23: "resnet101", 36: "resnet152"}  # blocks in layer3 -> preset
COMPACT = (900, 2025)  # rows of a compact table for the crops 465 and 705
# Official names, and ours. The stem is a Sequential there; reduce_p and attention_p belong to the second direction.
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
    """The tensors of a file, without the dict around them and the "module." in front of their names."""
    state_dict = state_dict.get("state_dict", state_dict)
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def rename(name):
    """Our name for an official one, or None."""
    for pattern, ours in RENAMED:
        renamed, count = re.subn("^" + pattern, ours, name)
        if count:
            return renamed
    return None


def listed(kind, names):
    """A few of these names as text."""
    return f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"


def convert(state_dict):
    """The official checkpoint under the names of this model, for `build(**build_arguments(state_dict))`.

    state_dict: the file's content, bare or under "state_dict", names with or without "module.". The 1x1 convolution
    [offsets, C, 1, 1] becomes the table [offsets, C]; nothing else changes its shape. Raises ValueError that lists
    what is missing, unexpected or of another shape.
    """
    arguments = build_arguments(state_dict)
    with torch.device("meta"):
        wanted = build(**arguments).state_dict()
    converted, unexpected = {}, []
    for name, value in unwrap(state_dict).items():
        ours = rename(name)
        if ours not in wanted:
            unexpected.append(name)
            continue
        converted[ours] = value.flatten(1) if ours.endswith("table") else value
    missing = [name for name in wanted if name not in converted]
    misshapen = [name for name in converted if converted[name].shape != wanted[name].shape]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    if any(names for _, names in problems):
        raise ValueError(
            "this is no complete PSANet checkpoint: "
            + "; ".join(listed(kind, names) for kind, names in problems if names)
        )
    return converted


def build_arguments(state_dict):
    """The arguments of `model.build` for an official checkpoint: a dict with num_classes, preset and options.

    Names and shapes do not tell everything. A checkpoint of one direction has the same names for either: it is
    taken for "collect"; build with psa_type="distribute" where it is the other. The table's number of rows is taken
    for a square mask, odd for offsets, even for the positions of a compact model; 900 and 2025 rows are compact.
    Raises ValueError where that is impossible.
    """
    state = unwrap(state_dict)
    blocks = len({name.split(".")[1] for name in state if name.startswith("layer3.")})
    if "cls.4.weight" not in state or blocks not in LAYERS:
        raise ValueError(
            "no checkpoint of the official PSANet: it has no cls.4.weight, or its layer3 has not "
            f"{', '.join(map(str, LAYERS))} blocks but {blocks}"
        )
    arguments = {"num_classes": len(state["cls.4.weight"]), "preset": LAYERS[blocks]}
    if "aux.4.weight" not in state:
        arguments["aux"] = False
    if "psa.attention.3.weight" not in state:
        return {**arguments, "context": False}
    rows = len(state["psa.attention.3.weight"])
    side = math.isqrt(rows)
    if side * side != rows:
        raise ValueError(f"the mask has {rows} entries, which is no square; build the model with mask_size=(h, w)")
    arguments["psa_type"] = "bidirection" if "psa.attention_p.3.weight" in state else "collect"
    return {**arguments, "mask_size": (side, side), "compact": side % 2 == 0 or rows in COMPACT}


def load_backbone(model, state_dict):
    """Copy the ImageNet weights of a ResNet into model.backbone.

    The authors' files have the deep stem (conv1, conv2, conv3) and fit completely. torchvision's have another stem
    and narrower inputs of layer1; the rest of them fits, and those parts keep their initial weights.
    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module." or "backbone.";
    its classifier is left aside. Returns a sentence that says what was loaded. Raises ValueError that lists
    missing, unexpected and misshapen weights; the model is then left as it was.
    """
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    found = {}
    for name, value in state_dict.items():
        for prefix in ("module.", "backbone."):
            name = name.removeprefix(prefix)
        if not name.startswith("fc."):
            found[name] = value
    wanted = model.backbone.state_dict()
    left_out = []
    if "conv2.weight" in wanted and "conv1.weight" in found and "conv2.weight" not in found:  # another stem
        stem = ("conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.", "layer1.0.conv1.", "layer1.0.downsample.0.")
        left_out = [name for name in wanted if name.startswith(stem) and not name.endswith("num_batches_tracked")]
        found = {name: value for name, value in found.items() if not name.startswith(stem)}
    missing = [n for n in wanted if n not in found and n not in left_out and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    problems = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    if any(names for _, names in problems):
        raise ValueError(
            "these weights are of another backbone: "
            + "; ".join(listed(kind, names) for kind, names in problems if names)
        )
    model.backbone.load_state_dict({**wanted, **found})
    rest = f"; {listed('keep their initial values', left_out)}: the file has another stem" if left_out else ""
    return f"loaded {len(found)} tensors into the backbone{rest}"
