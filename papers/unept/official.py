"""Foreign weights for UN-EPT: checkpoints of the released training code, and ImageNet files for the
backbones.

No trained UN-EPT was ever published, so `convert` is for those who trained one with that code.
"""

import re

import torch

from . import resnet, vit
from .model import PRESETS, build

HEADS = 8  # of every released configuration; a checkpoint does not say

# Names of the released code -> names here, by regular expressions that are tried one after the
# other.
STEM = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
BRANCH = {"1.conv1": 0, "1.bn": 1, "2.conv1": 3, "2.bn": 4, "3.conv1": 6, "3.bn": 7}
RENAMES = [
    (r"^transformer\.", "context_branch."),  # of an older copy of the code
    (r"^context_path\.", "spatial_branch."),  # likewise
    (r"^backbone\.stem\.(\d)\.", lambda match: f"backbone.{STEM.get(int(match[1]), 'stem')}."),
    (r"^layers\.", "pyramid."),
    (r"^cls\.", "classifier."),
    (r"^query_embed\.weight$", "query_embed"),
    (r"^dir_head\.", "direction_head."),
    (r"^spatial_branch\.convblock(\d\.\w+)\.",
     lambda match: f"spatial_branch.{BRANCH.get(match[1], match[1])}."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.\1.attention."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm1\.", r"encoder.\1.norm_attention."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm2\.", r"encoder.\1.norm_ffn."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.cross_attn\.", r"decoder.\1.cross_attention."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.self_attn\.in_proj_",
     r"decoder.\1.self_attention.projection."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.self_attn\.out_proj\.",
     r"decoder.\1.self_attention.output."),
    # Numbered by when they were written down there, not by when they are used.
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm2\.", r"decoder.\1.norm_self."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm1\.", r"decoder.\1.norm_cross."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.norm3\.", r"decoder.\1.norm_ffn."),
    (r"^context_branch\.(encoder|decoder)\.layers\.(\d+)\.linear1\.", r"\1.\2.ffn.0."),
    (r"^context_branch\.(encoder|decoder)\.layers\.(\d+)\.linear2\.", r"\1.\2.ffn.3."),
    (r"^context_branch\.level_embed$", "level_embed"),
]


def rename(name):
    """The name here of a parameter of the released code."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def unwrap(state_dict):
    """The tensors themselves: out of "state_dict" or "model", and without "module." before their
    names."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def build_arguments(state_dict, **options):
    """The arguments of `model.build` read off a checkpoint of the released code, and the `options`.

    Names and shapes tell neither `heads` (8 in every released configuration), on which the number
    of points depends, nor `decoder_mixing`, `dropout` and `refine`. Raises ValueError for files of
    anything else, and for heads that do not fit.
    """
    state = {rename(name): value for name, value in unwrap(state_dict).items()}
    first = "context_branch.encoder.layers.0"
    released = (
        "cls.weight", "query_embed.weight", "context_branch.level_embed",
        f"{first}.self_attn.attention_weights.weight", f"{first}.linear1.weight",
    )
    wanted = [rename(name) for name in released]
    missing = [name for name in released if rename(name) not in state]
    if missing:
        raise ValueError(
            f"not a checkpoint of the UN-EPT training code: it lacks {', '.join(missing)}"
        )
    classifier, query_embed, level_embed, weights, ffn = (state[name] for name in wanted)
    levels, heads = len(level_embed), options.get("heads", HEADS)
    if len(weights) % (heads * levels):
        raise ValueError(
            f"heads={heads} does not fit: the checkpoint has {len(weights)} weights per query on "
            f"{levels} levels"
        )
    img_size = 8 * round(len(query_embed) ** 0.5)
    preset = "resnet50"
    if "backbone.pos_embed" in state:
        large = img_size == PRESETS["deit_cityscapes"]["img_size"]
        preset = "deit_cityscapes" if large else "deit"
    return {
        "num_classes": len(classifier), "preset": preset, "img_size": img_size,
        "channels": classifier.shape[1], "heads": heads, "levels": levels,
        "points": len(weights) // (heads * levels),
        "depth": len({name.split(".")[1] for name in state if name.startswith("encoder.")}),
        "hidden": len(ffn),
        # An older model class had no such heads.
        "boundary": any(name.startswith("mask_head.") for name in state),
        **options,
    }


def convert(state_dict, **options):
    """A checkpoint of the released training code under the names of this model, ready for
    `build(**build_arguments(state_dict, **options))`.

    options: of `model.build`, for what a file does not tell. Raises ValueError that lists what is
    missing, unexpected or of another shape.
    """
    found = {rename(name): value for name, value in unwrap(state_dict).items()}
    with torch.device("meta"):
        wanted = build(**build_arguments(state_dict, **options)).state_dict()
    complain("this is no complete UN-EPT checkpoint", wanted, found)
    return found


def load_backbone(model, state_dict):
    """Copy ImageNet weights into model.backbone, see `resnet.load_imagenet`, `vit.load_imagenet`.

    The deep stem may have mmsegmentation's names, stem.0 to stem.7. Raises ValueError.
    """
    if isinstance(model.backbone, vit.VisionTransformer):
        return vit.load_imagenet(model.backbone, state_dict)
    named = {
        rename("backbone." + name.removeprefix("backbone.")): value
        for name, value in unwrap(state_dict).items()
    }
    return resnet.load_imagenet(model.backbone, named)


def complain(what, wanted, found):
    """Raise a ValueError that lists how two state dicts differ. Batch counters may be missing."""
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    problems = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [n for n in wanted if n in found and found[n].shape != wanted[n].shape],
    }
    if any(problems.values()):
        raise ValueError(f"{what}: " + "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in problems.items() if names
        ))
