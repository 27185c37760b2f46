"""Official LRFormer weights: released segmentors and ImageNet encoders, renamed into this model's
names. Of LRFormer+ the encoder loads; its query decoder is not part of this project.

Files of the official toolbox also hold its own objects (logs, messages), which an ordinary load
would rebuild by running the toolbox's code. `load` reads such files without: every foreign object
on an explicit list is replaced by an empty stand-in, and anything else is refused.
"""

import pickle
import re
import warnings

import torch

from .model import DEFAULTS, PRESETS, build

# What mmengine writes beside the weights. None of it is needed, so none of it is rebuilt.
STAND_INS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "mmengine.config.config.ConfigDict",
    "builtins.getattr",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)


class StandIn:
    """Takes the place of a foreign object: accepts whatever the file says about it and keeps
    nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        pass

    def __hash__(self):
        return 0


def load(path):
    """Read an official file onto the CPU without running any code of it. Returns its dictionary.

    Raises ValueError for a file that is damaged or holds an object that is neither tensor, plain
    value nor in STAND_INS; the message names the object.
    """
    stand_ins = torch.serialization.safe_globals([(StandIn, name) for name in STAND_INS])
    try:
        with stand_ins, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise ValueError(f"{path} is damaged or not a PyTorch file") from None
        raise ValueError(
            f"{path} holds a foreign object, {found[1]}, that could run code when loaded, so "
            "nothing was loaded; the objects that are known and skipped are listed in "
            "official.STAND_INS"
        ) from None
    except (RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged or not a PyTorch file") from None


# official beginning of a name -> beginning of the name here; the first that fits counts
ENCODER = [(r"patch_embed1\.conv1\.", "stages.0.embed.")]
for stage in range(4):
    ENCODER += [
        (rf"patch_embed{stage + 1}\.proj\.", f"stages.{stage}.embed."),
        (rf"patch_embed{stage + 1}\.norm\.", f"stages.{stage}.norm."),
        (rf"d_convs{stage + 1}\.", f"stages.{stage}.convs."),
        (rf"block{stage + 1}\.", f"stages.{stage}.blocks."),
    ]
DECODER = [
    (r"squeeze(\d)\.conv\.", r"squeeze\1."),
    (r"squeeze(\d)\.bn\.", r"bn\1."),
    (r"fuse_block(\d)\.", r"fuse\1."),
    (r"conv_seg\.", "classifier."),
]
BLOCK = [  # anywhere in the name, all of them
    (r"\.cpe\.", ".position."),
    (r"\.attn\.q\.(0\.)?", ".attention.query."),
    (r"\.attn\.kv\.(0\.)?", ".attention.key_value."),
    (r"\.attn\.proj\.", ".attention.output."),
    (r"\.attn\.norm\.", ".attention.norm."),
    (r"\.mlp\.fc1\.", ".feed_forward.widen."),
    (r"\.mlp\.conv\.", ".feed_forward.conv."),
    (r"\.mlp\.fc2\.", ".feed_forward.narrow."),
    (r"\.layer_scale_(\d)$", r".scale\1"),
]
# Linear layers here, partly 1x1 convolutions there.
LINEAR = re.compile(r"(attention\.query|feed_forward\.(widen|narrow))\.weight$")


def unwrap(state_dict):
    """The weights inside a file's "state_dict" or "model", without the "module." of a parallel
    wrapper."""
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def rename(name, beginnings):
    """Name here of an official name; a name that nothing fits is left as it is and found out
    later."""
    for pattern, target in beginnings:
        if re.match(pattern, name):
            name = re.sub(pattern, target, name, count=1)
            break
    for pattern, target in BLOCK:
        name = re.sub(pattern, target, name)
    return name


def as_linear(name, value):
    """The 1x1 kernels [D, C, 1, 1] of layers that are linear here, as [D, C]."""
    return value.flatten(1) if LINEAR.search(name) else value


def require(found, wanted, kind):
    """Raise a ValueError that lists missing, unexpected and misshapen weights, if there are any."""
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    groups = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [
            name for name in needed if name in found and found[name].shape != wanted[name].shape
        ],
    }
    if any(groups.values()):
        raise ValueError(f"these weights are of another {kind}: " + "; ".join(
            f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for word, names in groups.items() if names
        ))


def segmentor(state_dict):
    """The weights of an official segmentor under the names here, not yet checked."""
    found = {}
    for name, value in unwrap(state_dict).items():
        if name.startswith("backbone."):
            name = "backbone." + rename(name.removeprefix("backbone."), ENCODER)
        elif name.startswith("decode_head."):
            name = "head." + rename(name.removeprefix("decode_head."), DECODER)
        found[name] = as_linear(name, value)
    return found


def encoder(state_dict):
    """The encoder's weights of an official file (prefix "backbone." or none). A classifier `head`
    and any decoder are left aside."""
    found = {}
    for name, value in unwrap(state_dict).items():
        name = name.removeprefix("backbone.")
        if not name.startswith(("head.", "decode_head.")):
            name = rename(name, ENCODER)
            found[name] = as_linear(name, value)
    return found


def read_sizes(weights):
    """embed_dims, depths and mlp_ratios of an encoder, off names and shapes; None without one."""
    stages = {}
    pattern = r"backbone\.stages\.(\d)\.(?:norm|blocks\.(\d+)\.feed_forward\.widen)\.weight"
    for name, value in weights.items():
        match = re.match(pattern, name)
        if match:
            width, blocks, ratio = stages.get(int(match[1]), (0, 0, 0))
            if match[2] is None:
                width = value.shape[0]
            else:
                blocks, ratio = max(blocks, int(match[2]) + 1), value.shape[0] // value.shape[1]
            stages[int(match[1])] = width, blocks, ratio
    if sorted(stages) != [0, 1, 2, 3]:
        return None
    widths, depths, ratios = zip(*(stages[i] for i in range(4)), strict=True)
    return dict(embed_dims=widths, depths=depths, mlp_ratios=ratios)


def build_arguments(state_dict, **options):
    """The arguments of `build` for an official segmentor, read off its names and shapes, in one
    dictionary, and the `options`.

    Heads and grids leave no trace in a file. Those of every released model are the default; others
    have to be given: num_heads, pool_sizes, head_pool_size. Raises ValueError.
    """
    weights = segmentor(state_dict)
    sizes = read_sizes(weights)
    if sizes is None:
        raise ValueError(
            "no LRFormer in this file: wanted names like backbone.block1.0.attn.q.0.weight"
        )
    presets = {name: {**DEFAULTS, **preset} for name, preset in PRESETS.items()}
    fits = [name for name in presets if all(presets[name][key] == sizes[key] for key in sizes)]
    if "head.classifier.weight" not in weights:
        raise ValueError(other_decoder(weights, "xl" in fits))
    classes, channels = weights["head.classifier.weight"].shape[:2]
    read = {"num_classes": classes, "preset": fits[0]} if fits else {
        "num_classes": classes, "preset": "t", **sizes
    }
    if presets[read["preset"]]["head_channels"] != channels:
        read["head_channels"] = channels
    return {**read, **options}


def other_decoder(weights, is_xl):
    """What to say of a file with an encoder and without the decoder of LRFormer."""
    text = "this file holds an encoder only"
    if any("decode_head" in name or name.startswith("head.") for name in weights):
        text = (
            "this file holds another decoder, the query decoder of LRFormer+ if it is official, "
            "which is not part of this project; only its encoder can be used"
        )
    text += ": give it to train.py as --weights"
    if is_xl:
        text += (
            ". LRFormer-XL was published with that query decoder only: the decoder of preset xl is "
            "this project's continuation, and no official weights fit it"
        )
    return text


def convert(state_dict, **options):
    """The weights of an official segmentor under the names here: a state dict for
    `build(**build_arguments(...))`.

    options: of `build`, for what a file does not tell. The file may be bare or wrapped in
    "state_dict" or "model". Raises ValueError that lists what is missing or unexpected.
    """
    with torch.device("meta"):
        wanted = build(**build_arguments(state_dict, **options)).state_dict()
    found = segmentor(state_dict)
    require(found, wanted, "network")
    return {**counters(wanted), **found}


def load_backbone(model, state_dict):
    """Copy the weights of an official ImageNet encoder, or of the encoder of an LRFormer or
    LRFormer+ segmentor, into model.backbone.

    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module."
    or "backbone."; a classifier or a decoder is left aside. Returns a sentence that says what was
    loaded. Raises ValueError that lists missing, unexpected and misshapen weights; the model is
    then left as it was.
    """
    found = encoder(state_dict)
    wanted = model.backbone.state_dict()
    require(found, wanted, "encoder")
    model.backbone.load_state_dict({**counters(wanted), **found})
    return f"loaded {len(found)} tensors into the encoder"


def counters(wanted):
    """BatchNorm's step counters, which some files lack and nothing here reads."""
    names = (name for name in wanted if name.endswith("num_batches_tracked"))
    return {name: torch.zeros((), dtype=torch.long) for name in names}
