"""Residual networks for dense prediction (He et al., CVPR 2016): plain or deep stem, dilation.

Parameter names are torchvision's, so its ImageNet files load unchanged (`load_imagenet`); with a
deep stem the three convolutions are called conv1, conv2, conv3 and their norms bn1, bn2, bn3.
Input  [B, 3, H, W], any H and W.
Output a tuple with the map of every stage, finest first: for ResNet-50 with strides (1, 2, 1, 1)
[B, 256, H/4, W/4], [B, 512, H/8, W/8], [B, 1024, H/8, W/8], [B, 2048, H/8, W/8], rounded up.

This file is the same in every paper folder that uses it: a folder is meant to be read
and taken alone.
"""

from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the stride sits on the 3x3, as in torchvision (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs, outputs, stride):
    """The 1x1 projection where a block changes channels or resolution; None where it does not."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


# name -> (block, blocks per stage, width of the first stage)
ARCHITECTURES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 64),
    "tiny": (BasicBlock, (1, 1, 1, 1, 1), 32),  # for a laptop: 3x3 stem, no max pooling
}


class ResNet(nn.Module):
    """The first len(strides) stages of a ResNet.

    name: a key of ARCHITECTURES.
    stem: () for the 7x7 convolution of the paper, or three widths for the "deep stem" of three 3x3
        convolutions: (64, 64, 128) as in PSPNet and PSANet, (32, 32, 64) as in "ResNet-v1c".
    strides, dilations: one per stage, dilation 1 where none is given. The usual strides give 1/32
        of the input; (1, 2, 1, 1) with dilations (1, 1, 2, 4) gives 1/8, (1, 2, 2, 1) with
        (1, 1, 1, 2) gives 1/16. Instead of one dilation a stage may list one per block.
    contract: whether the first block of a dilated stage keeps the dilation of the stage before.
        True is torchvision's rule and mmseg's `contract_dilation`; False dilates every block alike.
        Both load the same files and give different outputs.
    """

    def __init__(self, name, stem=(), strides=(1, 2, 2, 2), dilations=None, contract=False):
        super().__init__()
        if name not in ARCHITECTURES:
            raise ValueError(f"unknown backbone {name!r}; valid: {', '.join(ARCHITECTURES)}")
        if len(stem) not in (0, 3):
            raise ValueError(f"stem must be () or three widths, not {stem!r}")
        block, depths, width = ARCHITECTURES[name]
        dilations = dilations or (1,) * len(strides)
        self.relu = nn.ReLU(inplace=True)
        if stem:
            self.conv1 = nn.Conv2d(3, stem[0], 3, 2, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(stem[0])
            self.conv2 = nn.Conv2d(stem[0], stem[1], 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(stem[1])
            self.conv3 = nn.Conv2d(stem[1], stem[2], 3, 1, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(stem[2])
        else:
            kernel = 3 if name == "tiny" else 7
            self.conv1 = nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if name == "tiny" else nn.MaxPool2d(3, 2, 1)

        inputs, before = stem[-1] if stem else width, 1
        self.channels = []  # of each stage's output
        for stage, (stride, dilation) in enumerate(zip(strides, dilations, strict=True)):
            per_block = [dilation] * depths[stage] if isinstance(dilation, int) else list(dilation)
            if contract:
                per_block[0] = before
            before, blocks = per_block[-1], []
            for dilation in per_block[: depths[stage]]:
                blocks.append(block(inputs, width << stage, 1 if blocks else stride, dilation))
                inputs = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            self.channels.append(inputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))  # [B, 64, H/2, W/2]
        if hasattr(self, "conv2"):
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        x = self.maxpool(x)  # [B, 64, H/4, W/4]
        outputs = []
        for stage in range(len(self.channels)):
            x = getattr(self, f"layer{stage + 1}")(x)
            outputs.append(x)
        return tuple(outputs)


PLAIN_STEM = (  # what another stem changes, the inputs of the first stage among them
    "conv1.", "bn1.", "conv2.", "bn2.", "conv3.", "bn3.",
    "layer1.0.conv1.", "layer1.0.downsample.0.",
)


def load_imagenet(backbone, state_dict):
    """Copy ImageNet weights, in torchvision's names, into a ResNet.

    The file may be bare or wrapped in "state_dict" or "model", its names may start with "module."
    or "backbone."; its classifier is left aside. Where the network has a deep stem and the file a
    plain one, the rest is taken and the stem keeps its initial weights. Returns a sentence that
    says what was loaded. Raises ValueError that lists what is missing, unexpected or of another
    shape; the backbone is then left as it was.
    """
    for wrapper in ("state_dict", "model"):
        state_dict = state_dict.get(wrapper, state_dict)
    found = {}
    for name, value in state_dict.items():
        name = name.removeprefix("module.").removeprefix("backbone.")
        if not name.startswith("fc."):
            found[name] = value
    wanted, new = backbone.state_dict(), ()
    if "conv2.weight" in wanted and "conv1.weight" in found and "conv2.weight" not in found:
        new = PLAIN_STEM
        found = {name: value for name, value in found.items() if not name.startswith(new)}
    needed = [n for n in wanted if not n.endswith("num_batches_tracked") and not n.startswith(new)]
    problems = {
        "missing": [name for name in needed if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [n for n in wanted if n in found and found[n].shape != wanted[n].shape],
    }
    if any(problems.values()):
        raise ValueError("these weights are of another backbone: " + "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in problems.items() if names
        ))
    backbone.load_state_dict({**wanted, **found})
    stem = "; its deep stem keeps its initial weights, the file has a plain one" if new else ""
    return f"loaded {len(found)} tensors into the backbone{stem}"
