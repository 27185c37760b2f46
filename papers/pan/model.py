"""PAN: Pyramid Attention Network for Semantic Segmentation (Li, Xiong, An, Wang; BMVC 2018).

Read from top to bottom beside paper.md: the building blocks of the equations, Feature Pyramid Attention (FPA),
Global Attention Upsample (GAU), the network, and a table of three readings of the paper. naive.py says the same
with loops.

Shapes: B images, C channels of the last backbone map X, H x W pixels of whichever map is meant, D channels of the
decoder, K channels of the attention map. The sizes in the comments are those of an image of 512 x 512.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import ResNet

ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "none": lambda x: x}

# ------------------------------------------------------------------------------------------ building blocks


class ConvNorm(nn.Module):
    """C_k of the equations: convolution without bias, BatchNorm, activation.

    kernel, stride: of the convolution; odd kernels are padded so that stride 1 keeps the size.
    activation: "relu", "sigmoid" or "none". transposed: the weights of a transposed convolution instead, 4x4 with
        stride 2 and padding 1, which doubles the size, for `enlarge`; `kernel` and `stride` then play no part.

    forward: [B, inputs, H, W] -> [B, outputs, H / stride, W / stride], rounded up.
    """

    def __init__(self, inputs, outputs, kernel=1, stride=1, activation="relu", transposed=False):
        super().__init__()
        if transposed:
            self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        else:
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activation = activation
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x):
        return convolve(x, self)


def normalise(x, block):
    """BatchNorm and activation of a block. x: [B, D, H, W] -> the same shape.

    Raises ValueError in training if there is a single value per channel: its variance does not exist.
    """
    single = x.shape[0] * x.shape[2] * x.shape[3] == 1
    if single and block.bn.training and isinstance(block.bn, nn.BatchNorm2d):
        raise ValueError(
            "PAN normalises maps of one pixel (global pooling, the bottom of the pyramid), which one image alone "
            "cannot train: use a batch of at least 2 images per process, or synchronised BatchNorm"
        )
    return ACTIVATIONS[block.activation](block.bn(x))


def convolve(x, block):
    """Convolution, BatchNorm, activation. x: [B, C, H, W] -> [B, D, H / stride, W / stride], rounded up."""
    return normalise(block.conv(x), block)


def pool(x, reduction="avg"):
    """P: half the size. x: [B, C, H, W] -> [B, C, H // 2, W // 2], but a side of 1 stays 1.

    reduction: "avg", "max", or "stride" for nothing at all: the next convolution then has stride 2.
    """
    if reduction == "stride":
        return x
    window = [min(2, side) for side in x.shape[-2:]]
    return (F.max_pool2d if reduction == "max" else F.avg_pool2d)(x, window)


def enlarge(x, size, block=None):
    """To the size of a finer map. x: [B, C, h, w] -> [B, C, H, W] with (H, W) = size.

    Without a block bilinear, corner pixels onto corner pixels. With one, learned: [B, D, H, W]; a transposed
    convolution doubles, and whatever the finer map has more or less than that at its end is painted or cut.
    """
    if block is not None and isinstance(block.conv, nn.ConvTranspose2d):
        more = [max(0, wanted - 2 * side) for wanted, side in zip(size, x.shape[-2:])]  # 0 or 1
        y = F.conv_transpose2d(x, block.conv.weight, None, stride=2, padding=1, output_padding=more)
        return normalise(y, block)[:, :, : size[0], : size[1]]  # [B, D, H, W]
    if block is not None:
        return convolve(x, block)  # [B, D, H, W]
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def project_mean(x, block):
    """Global average pooling, then a 1x1 block. x: [B, C, H, W] -> [B, D, 1, 1].

    A convolution of a map of one pixel is a matrix times a vector, and is computed as such.
    """
    y = F.linear(x.mean((2, 3)), block.conv.weight.flatten(1))  # [B, D]
    return normalise(y[:, :, None, None], block)  # [B, D, 1, 1]


# ------------------------------------------------------------------------------------------ FPA


def pyramid(x, block):
    """Eq. (1) to (3): the attention map A. x: [B, C, H, W] -> [B, K, H, W], neither squashed nor normalised.

    Every level is enlarged to the explicit size of the level above, never by a factor: 17 -> 8 -> 4 -> 2 has to
    come back as 2 -> 4 -> 8 -> 17.
    """
    d1 = convolve(pool(x, block.pool), block.down1)  # [B, K, 16, 16]
    d2 = convolve(pool(d1, block.pool), block.down2)  # [B, K, 8, 8]
    d3 = convolve(pool(d2, block.pool), block.down3)  # Eq. (1)  [B, K, 4, 4]
    a3 = convolve(d3, block.side3)  # Eq. (2)
    a2 = after_sum(convolve(d2, block.side2) + enlarge(a3, d2.shape[-2:], block.up3), block)  # [B, K, 8, 8]
    a1 = after_sum(convolve(d1, block.side1) + enlarge(a2, d1.shape[-2:], block.up2), block)  # [B, K, 16, 16]
    return enlarge(a1, x.shape[-2:], block.up1)  # Eq. (3)  [B, K, 32, 32]


def after_sum(x, block):
    """The place of the ReLU: behind every convolution (then nothing happens here) or behind the sums."""
    return torch.relu(x) if block.relu == "sums" else x


def squeeze_excite(m, block):
    """Eq. (13): the paper's rival of the pyramid, one factor per channel. m: [B, D, H, W] -> the same shape."""
    hidden = torch.relu(block.squeeze(m.mean((2, 3))))  # [B, D / 16]
    return m * torch.sigmoid(block.excite(hidden))[:, :, None, None]  # Eq. (13)


def fpa(x, block):
    """Eq. (4) to (6): Feature Pyramid Attention. x: [B, C, H, W] -> [B, D, H, W]."""
    f = convolve(x, block.master)  # Eq. (4)  [B, D, 32, 32]
    if block.attention == "pyramid":
        f = f * pyramid(x, block)
    elif block.attention == "se":
        f = squeeze_excite(f, block)
    if block.pooled is not None:
        g = project_mean(x, block.pooled)  # Eq. (5)  [B, D, 1, 1]
        f = f + g  # Eq. (6)
    return after_sum(f, block)


class FPA(nn.Module):
    """Feature Pyramid Attention, Eq. (6).

    inputs: C. outputs: D. pyramid_channels: K, 1 (one map for all channels) or D (one map per channel).
    kernels: of the three levels of the pyramid, finest first. pool: "avg", "max" or "stride".
    up: "bilinear", or "transposed" for learned enlargement, which allows any K and makes D maps of it.
    relu: "each" for a ReLU behind every convolution, "sums" for one behind every sum.
    attention: "pyramid", "se" for squeeze-and-excitation in its place, "none". global_pool: the branch of Eq. (5).

    forward: [B, inputs, H, W] -> [B, outputs, H, W], any H, W >= 1.
    """

    def __init__(
        self, inputs, outputs, pyramid_channels=1, kernels=(7, 5, 3), pool="avg", up="bilinear", relu="each",
        attention="pyramid", global_pool=True,
    ):
        super().__init__()
        self.pool, self.relu, self.attention = pool, relu, attention
        activation = "relu" if relu == "each" else "none"
        self.master = ConvNorm(inputs, outputs, activation=activation)
        self.pooled = ConvNorm(inputs, outputs, activation=activation) if global_pool else None
        if attention == "pyramid":
            if up == "bilinear" and pyramid_channels not in (1, outputs):
                raise ValueError(f"pyramid_channels must be 1 or the width {outputs}, not {pyramid_channels}")
            stride = 2 if pool == "stride" else 1
            k1, k2, k3 = kernels
            self.down1 = ConvNorm(inputs, pyramid_channels, k1, stride)
            self.down2 = ConvNorm(pyramid_channels, pyramid_channels, k2, stride)
            self.down3 = ConvNorm(pyramid_channels, pyramid_channels, k3, stride)
            self.side3 = ConvNorm(pyramid_channels, pyramid_channels, k3, activation=activation)
            self.side2 = ConvNorm(pyramid_channels, pyramid_channels, k2, activation=activation)
            self.side1 = ConvNorm(pyramid_channels, pyramid_channels, k1, activation=activation)
            learned = up == "transposed"
            self.up3 = ConvNorm(pyramid_channels, pyramid_channels, transposed=True) if learned else None
            self.up2 = ConvNorm(pyramid_channels, pyramid_channels, transposed=True) if learned else None
            self.up1 = ConvNorm(pyramid_channels, outputs, transposed=True) if learned else None
        elif attention == "se":
            self.squeeze = nn.Linear(outputs, max(1, outputs // 16))
            self.excite = nn.Linear(max(1, outputs // 16), outputs)

    def forward(self, x):
        return fpa(x, self)


# ------------------------------------------------------------------------------------------ GAU


def channel_gate(high, block):
    """Eq. (7): one weight per channel. high: [B, D, h, w] -> w [B, D, 1, 1]."""
    return project_mean(high, block.channel)  # Eq. (7)


def spatial_gate(high, size, block):
    """Eq. (12): one weight per position. high: [B, D, h, w] -> s [B, 1, H, W] with (H, W) = size.

    The 1x1 convolution runs before the enlargement, on a quarter of the positions: interpolation weights sum
    to 1, so the two commute, bias included.
    """
    return torch.sigmoid(enlarge(block.spatial(high), size))  # Eq. (12)


def gau(high, low, block):
    """Eq. (8) and (9): Global Attention Upsample. high: Y [B, D, h, w], low: L [B, C, H, W] -> [B, D, H, W]."""
    size = low.shape[-2:]
    detail = convolve(low, block.low)  # Eq. (8)  [B, D, H, W]
    up = enlarge(high, size, block.up)  # [B, D, H, W]
    if block.spatial is not None:
        detail = spatial_gate(high, size, block) * detail
    # addcmul: the gated map is never stored beside the sum.
    up = up + detail if block.channel is None else torch.addcmul(up, channel_gate(high, block), detail)  # Eq. (9)
    return after_sum(up, block)


class GAU(nn.Module):
    """Global Attention Upsample, Eq. (9).

    high, low: channels of the two inputs. outputs: D; equal to `high` unless up is "transposed".
    gate: "channel" (the paper), "none", "spatial", "both". activation: of the channel gate, "relu" or "sigmoid".
    kernel: of the convolution on the low-level map, 3 or 1.
    up: "bilinear", or "transposed" for learned enlargement; then `enlarges` says whether low is larger at all:
        where it is not, a 1x1 convolution takes the place of the transposed one.
    relu: "each" for a ReLU behind the low-level convolution, "sums" for one behind the sum.

    forward: [B, high, h, w], [B, low, H, W] -> [B, outputs, H, W], any sizes >= 1.
    """

    def __init__(
        self, high, low, outputs, gate="channel", activation="relu", kernel=3, up="bilinear", relu="each",
        enlarges=True,
    ):
        super().__init__()
        self.relu = relu
        self.low = ConvNorm(low, outputs, kernel, activation="relu" if relu == "each" else "none")
        self.up = None
        if up == "transposed":
            self.up = ConvNorm(high, outputs, activation="none", transposed=enlarges)
        self.channel = ConvNorm(high, outputs, activation=activation) if gate in ("channel", "both") else None
        self.spatial = nn.Conv2d(high, 1, 1) if gate in ("spatial", "both") else None
        if self.spatial is not None:  # s = 1/2 everywhere to begin with
            nn.init.zeros_(self.spatial.weight)
            nn.init.zeros_(self.spatial.bias)

    def forward(self, high, low):
        return gau(high, low, self)


# ------------------------------------------------------------------------------------------ the network


def decode(features, fpa_block, gau_blocks):
    """Eq. (10): from the deepest map upwards. features: (res2, ..., res5), finest first; gau_blocks: coarsest
    first. Returns [B, D, H, W] of the size of res2."""
    y = fpa(features[-1], fpa_block)  # [B, D, 32, 32]
    for low, block in zip(features[-2::-1], gau_blocks):
        y = gau(y, low, block)  # Eq. (10)  [B, D, 32, 32], [B, D, 64, 64], [B, D, 128, 128]
    return y


def classify(y, head, size, interpolation="bilinear"):
    """Eq. (11): scores at a quarter of the size, enlarged last. y: [B, D, h, w] -> [B, classes, H, W].

    interpolation: "bilinear" (corners on corners) or "nearest".
    """
    scores = head(y)  # [B, classes, 128, 128]
    if interpolation == "nearest":
        return F.interpolate(scores, size, mode="nearest")  # [B, classes, 512, 512]
    return enlarge(scores, size)  # Eq. (11)  [B, classes, 512, 512]


class PAN(nn.Module):
    """A segmentation network: ResNet, FPA on its last map, one GAU per earlier map, a 3x3 classifier.

    backbone: "resnet18", "resnet34", "resnet50", "resnet101" or "tiny" (three stages instead of four).
    stem: () for the 7x7 stem or three widths for a deep one, e.g. (64, 64, 128).
    output_stride: image pixels per pixel of the last map, 16 (the default) or 32; for "tiny" 8 (the default) or 16.
    dilation: of the blocks of res5 at output stride 16: "torchvision" keeps the first block at 1 and gives the
        rest 2, "all" gives every block 2, "growing" gives 1, 2, 4. The same weights fit all three.
        "tiny" and output stride 32 have no dilation.
    decoder_channels: D; None for the width of each ResNet stage, which needs decoder_up="transposed".
    pyramid_channels: K; None for a quarter of the last map's channels. kernels, pool, attention, global_pool,
        pyramid_up, relu: see FPA (`up` there). gate, gate_activation, low_kernel, decoder_up: see GAU.
    final: how the scores are enlarged, "bilinear" or "nearest".
    context: False leaves the master branch of the FPA and the plain skip connections of the GAUs, nothing else.

    forward: images [B, 3, H, W], any H, W >= 32 -> {"out": [B, num_classes, H, W]}. In training B >= 2, see
    `normalise`.
    """

    def __init__(
        self, num_classes, *, backbone, stem, dilation, pool, pyramid_channels, pyramid_up, relu, decoder_channels,
        gate_activation, decoder_up, final, output_stride=None, kernels=(7, 5, 3), attention="pyramid",
        global_pool=True, gate="channel", low_kernel=3, context=True,
    ):
        super().__init__()
        check("dilation", dilation, ("torchvision", "all", "growing"))
        check("pool", pool, ("avg", "max", "stride"))
        check("pyramid_up", pyramid_up, ("bilinear", "transposed"))
        check("relu", relu, ("each", "sums"))
        check("gate", gate, ("channel", "none", "spatial", "both"))
        check("gate_activation", gate_activation, ("relu", "sigmoid"))
        check("low_kernel", low_kernel, (3, 1))
        check("decoder_up", decoder_up, ("bilinear", "transposed"))
        check("final", final, ("bilinear", "nearest"))
        check("attention", attention, ("pyramid", "se", "none"))
        finest = 8 if backbone == "tiny" else 16
        output_stride = output_stride or finest
        check("output_stride", output_stride, (finest, 2 * finest))
        if len(kernels) != 3 or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels must be three odd numbers, not {kernels!r}")
        if decoder_channels is None and decoder_up != "transposed":
            raise ValueError("decoder_channels=None (the widths of the ResNet) needs decoder_up=\"transposed\"")
        if not context:
            attention, global_pool, gate = "none", False, "none"

        last_stride = output_stride // finest
        if backbone == "tiny":
            strides, dilations = (2, 2, last_stride), None
        else:
            blocks = {"torchvision": 2, "all": 2, "growing": (1, 2, 4)}[dilation]
            strides, dilations = (1, 2, 2, last_stride), (1, 1, 1, blocks if last_stride == 1 else 1)
        self.backbone = ResNet(backbone, stem, strides, dilations, contract=dilation == "torchvision")
        *lows, last = self.backbone.channels
        outputs = decoder_channels or last
        self.fpa = FPA(
            last, outputs, last // 4 if pyramid_channels is None else pyramid_channels, kernels, pool, pyramid_up,
            relu, attention, global_pool,
        )
        self.gaus = nn.ModuleList()  # coarsest first
        for low, stride in zip(lows[::-1], strides[::-1]):
            high, outputs = outputs, decoder_channels or low
            self.gaus.append(
                GAU(high, low, outputs, gate, gate_activation, low_kernel, decoder_up, relu, enlarges=stride > 1)
            )
        self.head = nn.Conv2d(outputs, num_classes, 3, padding=1)
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.bias)
        self.final = final

    def forward(self, images):
        features = self.backbone(images)  # [B, 256, 128, 128], [B, 512, 64, 64], [B, 1024, 32, 32], [B, 2048, 32, 32]
        y = decode(features, self.fpa, self.gaus)  # [B, D, 128, 128]
        return {"out": classify(y, self.head, images.shape[-2:], self.final)}

    def gates(self, images):
        """What the mechanism decides with, for looking at. images: [B, 3, H, W] -> dictionary with
        "attention" [B, K, h, w] (if there is a pyramid) and, per GAU from the coarsest on, "channel0" [B, D, 1, 1]
        and "spatial0" [B, 1, h, w], "channel1" ..., as far as its `gate` has them."""
        features = self.backbone(images)
        found = {"attention": pyramid(features[-1], self.fpa)} if self.fpa.attention == "pyramid" else {}
        y = fpa(features[-1], self.fpa)
        for number, (low, block) in enumerate(zip(features[-2::-1], self.gaus)):
            if block.channel is not None:
                found[f"channel{number}"] = channel_gate(y, block)
            if block.spatial is not None:
                found[f"spatial{number}"] = spatial_gate(y, low.shape[-2:], block)
            y = gau(y, low, block)
        return found


def check(option, value, valid):
    """Raise a ValueError that names the valid choices."""
    if value not in valid:
        raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(map(str, valid))}")


# Three readings of one paper, point by point. The paper released no code; "smp" is the best known third-party
# network, "jw" the literal and heavy one. Whatever is not listed here they have in common.
VARIANTS = {
    "paper": dict(
        backbone="resnet101", stem=(64, 64, 128), dilation="torchvision", pool="avg", pyramid_channels=1,
        pyramid_up="bilinear", relu="each", decoder_channels=256, gate_activation="relu", decoder_up="bilinear",
        final="bilinear",
    ),
    "smp": dict(
        backbone="resnet34", stem=(), dilation="all", pool="max", pyramid_channels=1, pyramid_up="bilinear",
        relu="each", decoder_channels=32, gate_activation="sigmoid", decoder_up="bilinear", final="bilinear",
    ),
    "jw": dict(
        backbone="resnet50", stem=(), dilation="growing", pool="stride", pyramid_channels=None,
        pyramid_up="transposed", relu="sums", decoder_channels=None, gate_activation="relu",
        decoder_up="transposed", final="nearest",
    ),
}

PRESETS = {
    "tiny": dict(backbone="tiny", stem=(), decoder_channels=64),
    "resnet50": dict(backbone="resnet50"),
    "resnet101": dict(backbone="resnet101"),
    "smp_resnet34": dict(variant="smp"),
    "jw_resnet50": dict(variant="jw"),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any option of `PAN` overridden. `variant` "paper" (the default), "smp" or
    "jw" sets what neither the preset nor an option sets.

    Raises ValueError for an unknown preset or option, naming the valid ones.
    """
    check("preset", preset, tuple(PRESETS))
    valid = ("variant", *tuple(inspect.signature(PAN).parameters)[1:])
    for name in options:
        check("option", name, valid)
    options = {"variant": "paper", **PRESETS[preset], **options}
    variant = options.pop("variant")
    check("variant", variant, tuple(VARIANTS))
    return PAN(num_classes, **{**VARIANTS[variant], **options})
