"""Foreign weights for UN-EPT: checkpoints of the released training code, and ImageNet files for the backbones.

No trained UN-EPT was ever published, so `convert` is for those who trained one with the released code.
"""

import re

import torch

from .model import PRESETS, build
from .vit import resize_position

HEADS = 8  # of every released configuration; a checkpoint does not say

# Names of the released code -> names here, by regular expressions that are tried one after the other.
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
    (r"^spatial_branch\.convblock(\d\.\w+)\.", lambda match: f"spatial_branch.{BRANCH.get(match[1], match[1])}."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.\1.attention."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm1\.", r"encoder.\1.norm_attention."),
    (r"^context_branch\.encoder\.layers\.(\d+)\.norm2\.", r"encoder.\1.norm_ffn."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.cross_attn\.", r"decoder.\1.cross_attention."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.self_attn\.in_proj_", r"decoder.\1.self_attention.projection."),
    (r"^context_branch\.decoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"decoder.\1.self_attention.output."),
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
    """The tensors themselves: out of "state_dict" or "model", and without "module." before their names."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def build_arguments(state_dict):
    """The arguments of model.build that fit a checkpoint of the released code: num_classes, preset and options,
    read off names and shapes. Raises ValueError for files of anything else."""
    state = {rename(name): value for name, value in unwrap(state_dict).items()}
    wanted = (
        "classifier.weight", "query_embed", "level_embed", "encoder.0.attention.attention_weights.weight",
        "encoder.0.ffn.0.weight",
    )
    missing = [name for name in wanted if name not in state]
    if missing:
        raise ValueError(f"not a checkpoint of the UN-EPT training code: it lacks {', '.join(missing)}")
    classifier, query_embed, level_embed, weights, ffn = (state[name] for name in wanted)
    img_size = 8 * round(len(query_embed) ** 0.5)
    preset = "resnet50"
    if "backbone.pos_embed" in state:
        preset = "deit_cityscapes" if img_size == PRESETS["deit_cityscapes"]["img_size"] else "deit"
    return {
        "num_classes": len(classifier), "preset": preset, "img_size": img_size, "channels": classifier.shape[1],
        "heads": HEADS, "levels": len(level_embed), "points": len(weights) // (HEADS * len(level_embed)),
        "depth": len({name.split(".")[1] for name in state if name.startswith("encoder.")}), "hidden": len(ffn),
        "boundary": any(name.startswith("mask_head.") for name in state),  # an older model class had no such heads
    }


def convert(state_dict):
    """A checkpoint of the released training code under the names of this model, for build(**build_arguments(...)).

    Raises ValueError that lists what is missing, unexpected or of another shape.
    """
    found = {rename(name): value for name, value in unwrap(state_dict).items()}
    with torch.device("meta"):
        wanted = build(**build_arguments(state_dict)).state_dict()
    complain("this is no complete UN-EPT checkpoint", wanted, found)
    return found


def load_backbone(model, state_dict):
    """Copy ImageNet weights into model.backbone: for "resnet50" a ResNet-50 with the (32, 32, 64) deep stem (names
    `stem.0` .. `stem.7`, or conv1 .. conv3 and bn1 .. bn3), for "deit" DeiT-base, distilled, at any resolution.

    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module." or "backbone.";
    its classifier and last norm are left aside. Returns a sentence that says what was loaded. Raises ValueError
    that lists missing, unexpected and misshapen weights; the model is then left as it was.
    """
    found = {}
    for name, value in unwrap(state_dict).items():
        name = rename("backbone." + name.removeprefix("backbone.")).removeprefix("backbone.")
        if not name.startswith(("fc.", "head.", "head_dist.", "norm.")):
            found[name] = value
    wanted = model.backbone.state_dict()
    if "pos_embed" in found and "pos_embed" in wanted:
        side = round((wanted["pos_embed"].shape[1] - 2) ** 0.5)
        found["pos_embed"] = resize_position(found["pos_embed"], (side, side))
    complain("these weights are of another backbone", wanted, found)
    model.backbone.load_state_dict({**wanted, **found})
    return f"loaded {len(found)} tensors into the backbone"


def complain(what, wanted, found):
    """Raise a ValueError that lists how two state dicts differ, if they do. Batch counters may be missing."""
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{what}: "
            + "; ".join(
                f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                for kind, names in (("missing", missing), ("unexpected", unexpected), ("of other shape", misshapen))
                if names
            )
        )
