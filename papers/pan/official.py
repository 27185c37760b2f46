"""Foreign weights for PAN. Its authors released none; two other projects have layouts of their own:

smp  segmentation_models.pytorch, class PAN on a ResNet: "encoder.", "decoder.fpa." ...
jw   JaveyWang/Pyramid-Attention-Networks-pytorch: "convnet.", "pan.fpa.", "pan.gau_block1." ...,
     either as one flat dictionary or, as that project writes it, a dictionary of dictionaries.

A file is recognised by its names. Both are strict: whatever is missing or unexpected is listed.
"""

import torch

from . import model
from .resnet import load_imagenet

WRAPPERS = ("state_dict", "model_state_dict", "model")

# Modules here -> modules there. A name here is translated by the first row that it begins with.
SMP = {
    "backbone.": "encoder.",
    "head.": "segmentation_head.0.",
    "fpa.master.": "decoder.fpa.mid.0.",
    "fpa.pooled.": "decoder.fpa.branch1.1.",
    "fpa.down1.": "decoder.fpa.down1.1.",
    "fpa.down2.": "decoder.fpa.down2.1.",
    "fpa.down3.": "decoder.fpa.down3.1.",
    "fpa.side3.": "decoder.fpa.down3.2.",
    "fpa.side2.": "decoder.fpa.conv2.",
    "fpa.side1.": "decoder.fpa.conv1.",
    **{f"gaus.{i}.channel.": f"decoder.gau{3 - i}.conv1.1." for i in range(3)},
    **{f"gaus.{i}.low.": f"decoder.gau{3 - i}.conv2." for i in range(3)},
}
# jw keeps convolutions and norms side by side under names of their own.
JW = {
    "backbone.": "convnet.model.",
    "head.": "mask_classifier.mask_conv.",
}
for _here, _convolution, _norm in [
    ("fpa.master", "fpa.conv_master", "fpa.bn_master"),
    ("fpa.pooled", "fpa.conv_gpb", "fpa.bn_gpb"),
    ("fpa.down1", "fpa.conv7x7_1", "fpa.bn1_1"),
    ("fpa.down2", "fpa.conv5x5_1", "fpa.bn2_1"),
    ("fpa.down3", "fpa.conv3x3_1", "fpa.bn3_1"),
    ("fpa.side1", "fpa.conv7x7_2", "fpa.bn1_2"),
    ("fpa.side2", "fpa.conv5x5_2", "fpa.bn2_2"),
    ("fpa.side3", "fpa.conv3x3_2", "fpa.bn3_2"),
    *((f"fpa.up{i}", f"fpa.conv_upsample_{i}", f"fpa.bn_upsample_{i}") for i in (1, 2, 3)),
    ("gaus.0.low", "gau_block1.conv3x3", "gau_block1.bn_low"),
    ("gaus.1.low", "gau_block2.conv3x3", "gau_block2.bn_low"),
    ("gaus.2.low", "gau_block3.conv3x3", "gau_block3.bn_low"),
    ("gaus.0.channel", "gau_block1.conv1x1", "gau_block1.bn_high"),
    ("gaus.1.channel", "gau_block2.conv1x1", "gau_block2.bn_high"),
    ("gaus.2.channel", "gau_block3.conv1x1", "gau_block3.bn_high"),
    ("gaus.0.up", "gau_block1.conv_reduction", "gau_block1.bn_reduction"),
    ("gaus.1.up", "gau_block2.conv_upsample", "gau_block2.bn_upsample"),
    ("gaus.2.up", "gau_block3.conv_upsample", "gau_block3.bn_upsample"),
]:
    JW[f"{_here}.conv."] = f"pan.{_convolution}."
    JW[f"{_here}.bn."] = f"pan.{_norm}."

# Classifiers of whole images, which no pixel depends on.
LEFT_ASIDE = ("classification_head.", "convnet.model.fc.", "classifier.")


def convert(state_dict, **options):
    """Names of an smp or jw checkpoint -> names here, ready for `build(**build_arguments(...))`.

    options: of `model.build`, for what a file does not tell. smp's convolutions have biases in
    front of BatchNorm; they move into the running means, where they mean the same: BN(Wx + b) with
    mean m is BN(Wx) with mean m - b. Raises ValueError that lists what is missing, unexpected or of
    another shape.
    """
    layout, found = recognise(state_dict)
    table = SMP if layout == "smp" else JW
    with torch.device("meta"):
        wanted = model.build(**build_arguments(state_dict, **options)).state_dict()
    needed = {translate(name, table): value.shape for name, value in wanted.items()}
    if layout == "smp":
        biases = {bias_of(source): shape for source, shape in needed.items() if bias_of(source)}
        needed = {**needed, **biases}
    for source in needed:
        if source.endswith("num_batches_tracked"):  # files older than PyTorch 0.4.1 have none
            found.setdefault(source, torch.tensor(0))
    complain(
        f"this is no complete {layout} checkpoint of PAN",
        missing=[name for name in needed if name not in found],
        unexpected=[n for n in found if n not in needed and not n.startswith(LEFT_ASIDE)],
        misshapen=[
            f"{name} {tuple(found[name].shape)} instead of {tuple(shape)}"
            for name, shape in needed.items() if name in found and found[name].shape != shape
        ],
    )
    converted = {name: found[translate(name, table)] for name in wanted}
    if layout == "smp":
        for name in wanted:
            bias = bias_of(translate(name, table))
            if bias:
                converted[name] = converted[name] - found[bias]
    return converted


def bias_of(source):
    """The bias in front of the norm whose running mean smp calls `source`; None for other names."""
    mean = ".bn.running_mean"
    is_here = source.startswith("decoder.") and source.endswith(mean)
    return source.removesuffix(mean) + ".conv.bias" if is_here else None


def build_arguments(state_dict, **options):
    """The arguments of `model.build` read off a checkpoint, in one dictionary, and the `options`.

    What names and shapes do not tell is left at the default of that project: output stride 16.
    Raises ValueError if the checkpoint is of neither project or lacks what is needed to tell.
    """
    layout, found = recognise(state_dict)
    table = SMP if layout == "smp" else JW

    def shape(name):
        source = translate(name, table)
        if source not in found:
            complain(f"this is no complete {layout} checkpoint of PAN", [source], [], [])
        return found[source].shape

    classes = shape("head.weight")[0]
    if layout == "jw":
        return {"num_classes": classes, "preset": "jw_resnet50", **options}
    blocks = len({name.split(".")[2] for name in found if name.startswith("encoder.layer3.")})
    bottleneck = "encoder.layer1.0.conv3.weight" in found
    names = {
        (2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50",
        (23, True): "resnet101",
    }
    if (blocks, bottleneck) not in names:
        raise ValueError(
            f"the encoder of this smp checkpoint is none of {', '.join(names.values())}: {blocks} "
            f"{'bottlenecks' if bottleneck else 'basic blocks'} in encoder.layer3"
        )
    return {
        "num_classes": classes, "preset": "smp_resnet34", "backbone": names[blocks, bottleneck],
        "decoder_channels": shape("fpa.master.conv.weight")[0], **options,
    }


def recognise(state_dict):
    """("smp" or "jw", flat dictionary without wrappers and prefixes), else a ValueError."""
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    found = {}
    for name, value in state_dict.items():
        if isinstance(value, dict) and name in ("convnet", "pan", "classifier", "mask_classifier"):
            for inner, tensor in value.items():
                found[f"{name}.{inner.removeprefix('module.')}"] = tensor
        elif isinstance(value, torch.Tensor):
            found[name.removeprefix("module.").removeprefix("model.")] = value
    for layout, mark in (("smp", "decoder.fpa."), ("jw", "pan.fpa.")):
        if any(name.startswith(mark) for name in found):
            return layout, found
    raise ValueError(
        "neither a checkpoint of segmentation_models.pytorch's PAN (names like "
        "decoder.fpa.mid.0.conv.weight) nor of JaveyWang's (pan.fpa.conv_master.weight); its "
        f"{len(found)} tensors begin with {', '.join(list(found)[:3])}"
    )


def translate(name, table):
    """A name here -> the name there."""
    here = next(prefix for prefix in table if name.startswith(prefix))
    return table[here] + name.removeprefix(here)


def complain(what, missing, unexpected, misshapen):
    """Raise a ValueError if any of the lists holds something."""
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    if missing or unexpected or misshapen:
        raise ValueError(f"{what}: " + "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for kind, names in lists if names
        ))


def load_backbone(model, state_dict):
    """Copy ImageNet weights into model.backbone, see `resnet.load_imagenet`."""
    return load_imagenet(model.backbone, state_dict)
