"""Foreign weights for PAN. Its authors released none; two other projects have layouts of their own:

smp  segmentation_models.pytorch, class PAN on a ResNet: "encoder.", "decoder.fpa.", "decoder.gau3." ...
jw   JaveyWang/Pyramid-Attention-Networks-pytorch: "convnet.", "pan.fpa.", "pan.gau_block1." ..., either as one
     flat dictionary or, as that project writes its files, a dictionary of dictionaries.

A file is recognised by its names. Both are strict: whatever is missing or unexpected is listed.
"""

import torch

from . import model

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
    *((f"gaus.{i}.low", f"gau_block{i + 1}.conv3x3", f"gau_block{i + 1}.bn_low") for i in range(3)),
    *((f"gaus.{i}.channel", f"gau_block{i + 1}.conv1x1", f"gau_block{i + 1}.bn_high") for i in range(3)),
    ("gaus.0.up", "gau_block1.conv_reduction", "gau_block1.bn_reduction"),
    *((f"gaus.{i}.up", f"gau_block{i + 1}.conv_upsample", f"gau_block{i + 1}.bn_upsample") for i in (1, 2)),
]:
    JW[f"{_here}.conv."] = f"pan.{_convolution}."
    JW[f"{_here}.bn."] = f"pan.{_norm}."

# Classifiers of whole images, which no pixel depends on.
LEFT_ASIDE = ("classification_head.", "convnet.model.fc.", "classifier.")


def convert(state_dict):
    """Names of an smp or jw checkpoint -> names here, ready for `build(**build_arguments(state_dict))`.

    smp's convolutions have biases in front of BatchNorm; they move into the running means, where they mean the
    same: BN(Wx + b) with mean m is BN(Wx) with mean m - b.
    Raises ValueError that lists what is missing, unexpected or of another shape.
    """
    layout, found = recognise(state_dict)
    table = SMP if layout == "smp" else JW
    with torch.device("meta"):
        wanted = model.build(**build_arguments(state_dict)).state_dict()
    converted, used, missing, misshapen = {}, set(), [], []
    for name, value in wanted.items():
        source = translate(name, table)
        used.add(source)
        if source not in found and name.endswith("num_batches_tracked"):  # files older than PyTorch 0.4.1
            converted[name] = torch.tensor(0)
        elif source not in found:
            missing.append(source)
        elif found[source].shape != value.shape:
            misshapen.append(f"{source} {tuple(found[source].shape)} instead of {tuple(value.shape)}")
        else:
            converted[name] = found[source]
        if layout == "smp" and name.endswith(".bn.running_mean"):
            bias = source.replace(".bn.running_mean", ".conv.bias")
            used.add(bias)
            if bias not in found:
                missing.append(bias)
            elif found[bias].shape != value.shape:
                misshapen.append(f"{bias} {tuple(found[bias].shape)} instead of {tuple(value.shape)}")
            elif name in converted:
                converted[name] = converted[name] - found[bias]
    unexpected = [name for name in found if name not in used and not name.startswith(LEFT_ASIDE)]
    complain(f"this is no complete {layout} checkpoint of PAN", missing, unexpected, misshapen)
    return converted


def build_arguments(state_dict):
    """The arguments of `model.build` read off a checkpoint: num_classes, preset and options in one dictionary.

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
        return {"num_classes": classes, "preset": "jw_resnet50"}
    blocks = len({name.split(".")[2] for name in found if name.startswith("encoder.layer3.")})
    bottleneck = "encoder.layer1.0.conv3.weight" in found
    names = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
    if (blocks, bottleneck) not in names:
        raise ValueError(
            f"the encoder of this smp checkpoint is none of {', '.join(names.values())}: {blocks} "
            f"{'bottlenecks' if bottleneck else 'basic blocks'} in encoder.layer3"
        )
    return {
        "num_classes": classes, "preset": "smp_resnet34", "backbone": names[blocks, bottleneck],
        "decoder_channels": shape("fpa.master.conv.weight")[0],
    }


def recognise(state_dict):
    """("smp" or "jw", flat dictionary without wrappers and prefixes). Raises ValueError for anything else."""
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    found = {}
    for name, value in state_dict.items():
        if isinstance(value, dict) and name in ("convnet", "pan", "classifier", "mask_classifier"):
            found.update({f"{name}.{inner.removeprefix('module.')}": tensor for inner, tensor in value.items()})
        elif isinstance(value, torch.Tensor):
            found[name.removeprefix("module.").removeprefix("model.")] = value
    for layout, mark in (("smp", "decoder.fpa."), ("jw", "pan.fpa.")):
        if any(name.startswith(mark) for name in found):
            return layout, found
    raise ValueError(
        "neither a checkpoint of segmentation_models.pytorch's PAN (names like decoder.fpa.mid.0.conv.weight) nor of "
        f"JaveyWang's (pan.fpa.conv_master.weight); its {len(found)} tensors begin with {', '.join(list(found)[:3])}"
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
    """Copy the ImageNet weights of a ResNet (torchvision's names; deep stems: conv1..conv3) into model.backbone.

    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module." or
    "backbone."; its classifier is left aside. Returns a sentence that says what was loaded. Raises ValueError
    that lists missing, unexpected and misshapen weights; the model is then left as it was.
    """
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    found = {}
    for name, value in state_dict.items():
        for prefix in ("module.", "backbone."):
            name = name.removeprefix(prefix)
        if not name.startswith("fc."):
            found[name] = value
    wanted = model.backbone.state_dict()
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    hint = ""
    if "conv2.weight" in missing:
        hint = " (this network has a deep stem of three 3x3 convolutions; --set stem=\"()\" gives the plain one)"
    complain(f"these weights are of another backbone{hint}", missing, unexpected, misshapen)
    model.backbone.load_state_dict({**wanted, **found})
    return f"loaded {len(found)} tensors into the backbone"
