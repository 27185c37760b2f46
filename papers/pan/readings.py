"""What else people made of PAN: the weaker forms of its ablation, a gate per position, two
third-party networks whose checkpoints load here, and a reader's sketch. The paper itself is
model.py.

smp  segmentation_models.pytorch, the best known: max pooling, D = 32, gates by sigmoid.
jw   JaveyWang's literal and heavy one: nothing is reduced to a common width, strided and transposed
     convolutions in place of pooling and interpolation, ReLU after the sums.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .checks import check, check_images
from .model import (
    DEFAULTS,
    FPA,
    GAU,
    PAN,
    ConvNorm,
    classifier,
    dilated_resnet,
    enlarge,
    normalise,
)

VARIANTS = {  # what differs from model.DEFAULTS; jw's modules are its own
    "paper": {},
    "smp": dict(
        backbone="resnet34", stem=(), dilation="all", pool="max", decoder_channels=32,
        gate_activation="sigmoid",
    ),
    "jw": dict(backbone="resnet50", stem=(), dilation="growing"),
    "note": dict(gate="spatial"),
}
OPTIONS = {"jw": ("variant", "backbone", "stem", "dilation", "output_stride", "context")}
OPTIONS["note"] = (*OPTIONS["jw"], "decoder_channels", "gate", "gate_activation", "low_kernel")
CHOICES = dict(
    dilation=("torchvision", "all", "growing"), pool=("avg", "max"),
    attention=("pyramid", "se", "none"), gate=("channel", "none", "spatial", "both"),
    gate_activation=("relu", "sigmoid"), low_kernel=(3, 1),
)


def assemble(num_classes, preset, options):
    """The network of `options` where given, else of `preset`, of its variant, of model.DEFAULTS.

    options, preset: some of the keys of model.DEFAULTS. Raises ValueError.
    """
    variant = {"variant": "paper", **preset, **options}["variant"]
    check("variant", variant, tuple(VARIANTS))
    for name in options:
        check(f"option of variant {variant}", name, OPTIONS.get(variant, tuple(DEFAULTS)))
    o = {**DEFAULTS, **VARIANTS[variant], **preset, **options}
    for name, valid in CHOICES.items():
        check(name, o[name], valid)
    if len(o["kernels"]) != 3 or any(kernel < 1 or kernel % 2 == 0 for kernel in o["kernels"]):
        raise ValueError(f"kernels must be three odd numbers, not {o['kernels']!r}")
    width, channels = o["decoder_channels"], o["pyramid_channels"]
    if channels not in (1, width):
        raise ValueError(f"pyramid_channels must be 1 or the width {width}, not {channels}")
    network = num_classes, o["backbone"], o["stem"], o["dilation"], o["output_stride"]
    if variant == "jw":
        return JwPAN(*network, o["context"])
    pyramid = dict(pyramid_channels=channels, kernels=o["kernels"], reduction=o["pool"])
    skip = dict(
        kernel=o["low_kernel"],
        activation=nn.Sigmoid() if o["gate_activation"] == "sigmoid" else nn.ReLU(),
    )
    fpa, gau = functools.partial(FPA, **pyramid), functools.partial(GAU, **skip)
    if not o["context"]:
        o.update(attention="none", global_pool=False, gate="none")
    if variant == "note":
        fpa = functools.partial(NoteFPA, context=o["context"])
    elif (o["attention"], o["global_pool"]) != ("pyramid", True):
        fpa = functools.partial(PartialFPA, o["attention"], o["global_pool"], **pyramid)
    if o["gate"] != "channel":
        gau = functools.partial(GatedGAU, o["gate"], **skip)
    return PAN(*network, width, fpa, gau)


# ------------------------------------------------------------- the ablation, and beyond the paper


class PartialFPA(FPA):
    """FPA without one of its branches, or with squeeze-and-excitation in place of the pyramid.

        M * sigmoid(W2 ReLU(W1 mean(M)))        one factor per channel, D / 16 hidden ones      (M)

    attention: "pyramid", "se" or "none". global_pool: the branch (E). The rest: see FPA.
    """

    def __init__(self, attention, global_pool, inputs, outputs, pyramid_channels, kernels,
                 reduction):
        nn.Module.__init__(self)
        self.reduction = reduction
        self.master = ConvNorm(inputs, outputs)
        self.pooled = ConvNorm(inputs, outputs) if global_pool else None
        self.attention = attention
        if attention == "pyramid":
            self.make_pyramid(inputs, pyramid_channels, kernels)
        elif attention == "se":
            self.squeeze = nn.Linear(outputs, max(1, outputs // 16))
            self.excite = nn.Linear(max(1, outputs // 16), outputs)

    def forward(self, x):                                       # [B, C, H, W]
        f = self.master(x)                                      # (D)  [B, D, H, W]
        if self.attention == "pyramid":
            f = f * self.pyramid(x)                             # (A) to (C)
        elif self.attention == "se":
            f = f * self.factors(f)
        if self.pooled is not None:
            f = f + self.pooled(x.mean((2, 3), keepdim=True))   # (E)
        return f

    def factors(self, m):
        """Squeeze-and-excitation. M [B, D, H, W] -> [B, D, 1, 1]."""
        hidden = torch.relu(self.squeeze(m.mean((2, 3))))       # [B, D / 16]
        return torch.sigmoid(self.excite(hidden))[:, :, None, None]     # (M)


class GatedGAU(GAU):
    """GAU with another gate than the paper's, or none.

        s = sigmoid(up(u^T Y + b))               one weight per position, 1/2 to begin with     (L)
        GAU(Y, L) = up(Y) + s * L'   or, with both gates,   up(Y) + w * s * L'

    gate: "spatial", "both" or "none". The rest: see GAU. s is [B, 1, H, W].
    """

    def __init__(self, gate, inputs, outputs, kernel, activation):
        nn.Module.__init__(self)
        self.low = ConvNorm(inputs, outputs, kernel)
        self.channel = ConvNorm(outputs, outputs, activation=activation) if gate == "both" else None
        self.spatial = None
        if gate != "none":
            self.spatial = nn.Conv2d(outputs, 1, 1)
            nn.init.zeros_(self.spatial.weight)
            nn.init.zeros_(self.spatial.bias)

    def forward(self, y, low):                                  # [B, D, h, w], [B, C, H, W]
        detail = self.low(low)                                  # (H)  [B, D, H, W]
        if self.spatial is not None:
            detail = self.positions(y, low.shape[-2:]) * detail
        if self.channel is not None:
            detail = self.channel(y.mean((2, 3), keepdim=True)) * detail    # (G)
        return enlarge(y, low.shape[-2:]) + detail              # [B, D, H, W]

    def positions(self, y, size):
        """The gate s. Y [B, D, h, w] -> [B, 1, H, W] with (H, W) = size."""
        # Interpolation weights sum to 1, so the 1x1 convolution may run on the smaller map.
        return torch.sigmoid(enlarge(self.spatial(y), size))    # (L)


# ----------------------------------------------------------------------------------- jw's reading


class TransposedConvNorm(ConvNorm):
    """Transposed convolution 4x4 with stride 2, BatchNorm, activation: learned enlargement.

    forward(x, size): [B, inputs, h, w] -> [B, outputs, *size]. It doubles; a row or column that the
    finer map has more is painted too, what it has less is cut.
    """

    def __init__(self, inputs, outputs, activation=None):
        nn.Module.__init__(self)
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activation = activation or nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x, size):
        painted = [max(n, 2 * side) for n, side in zip(size, x.shape[-2:], strict=True)]
        y = normalise(self.conv(x, output_size=painted), self.bn)
        return self.activation(y)[:, :, : size[0], : size[1]]


class JwFPA(nn.Module):
    """jw's FPA: strided convolutions down, transposed ones up, ReLU after the sums, K = C / 4.

    inputs: C, also the number of channels that come out. channels: K. global_pool: the branch (E).
    attention: whether there is a pyramid. [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, inputs, channels, attention=True, global_pool=True):
        super().__init__()
        plain = nn.Identity()
        self.master = ConvNorm(inputs, inputs, activation=plain)
        self.pooled = ConvNorm(inputs, inputs, activation=plain) if global_pool else None
        self.attention = attention
        if attention:
            self.down1 = ConvNorm(inputs, channels, 7, stride=2)
            self.down2 = ConvNorm(channels, channels, 5, stride=2)
            self.down3 = ConvNorm(channels, channels, 3, stride=2)
            self.side3 = ConvNorm(channels, channels, 3, activation=plain)
            self.side2 = ConvNorm(channels, channels, 5, activation=plain)
            self.side1 = ConvNorm(channels, channels, 7, activation=plain)
            self.up3 = TransposedConvNorm(channels, channels)
            self.up2 = TransposedConvNorm(channels, channels)
            self.up1 = TransposedConvNorm(channels, inputs)

    def forward(self, x):                                       # [B, C, H, W]
        f = self.master(x)                                      # [B, C, H, W]
        if self.attention:
            f = f * self.pyramid(x)
        if self.pooled is not None:
            f = f + self.pooled(x.mean((2, 3), keepdim=True))
        return torch.relu(f)

    def pyramid(self, x):
        """The attention maps. [B, C, H, W] -> [B, C, H, W]."""
        x1 = self.down1(x)                                      # [B, K, H/2, W/2]
        x2 = self.down2(x1)                                     # [B, K, H/4, W/4]
        a3 = self.side3(self.down3(x2))                         # [B, K, H/8, W/8]
        a2 = torch.relu(self.side2(x2) + self.up3(a3, x2.shape[-2:]))
        a1 = torch.relu(self.side1(x1) + self.up2(a2, x1.shape[-2:]))
        return self.up1(a1, x.shape[-2:])                       # [B, C, H, W]


class JwGAU(nn.Module):
    """jw's GAU: the enlargement is learned, the ReLU stands after the sum.

    high, low: channels of the two inputs; `low` come out. enlarges: whether the second is larger.
    [B, high, h, w], [B, low, H, W] -> [B, low, H, W].
    """

    def __init__(self, high, low, enlarges=True, gate=True):
        super().__init__()
        plain = nn.Identity()
        self.low = ConvNorm(low, low, 3, activation=plain)
        self.up = (TransposedConvNorm if enlarges else ConvNorm)(high, low, activation=plain)
        self.channel = ConvNorm(high, low) if gate else None
        self.enlarges = enlarges

    def forward(self, y, low):
        up = self.up(y, low.shape[-2:]) if self.enlarges else self.up(y)
        detail = self.low(low)
        if self.channel is not None:
            detail = self.channel(y.mean((2, 3), keepdim=True)) * detail
        return torch.relu(up + detail)


class JwPAN(PAN):
    """jw's network: maps keep the width of their ResNet stage, scores take the nearest pixel."""

    def __init__(self, num_classes, backbone, stem, dilation, output_stride, context):
        nn.Module.__init__(self)
        self.backbone = dilated_resnet(backbone, stem, dilation, output_stride)
        *lows, last = self.backbone.channels
        self.fpa = JwFPA(last, last // 4, attention=context, global_pool=context)
        self.gaus = nn.ModuleList()
        finest = 8 if backbone == "tiny" else 16
        for low, high in zip(lows[::-1], [last, *lows[:0:-1]], strict=True):
            enlarges = len(self.gaus) > 0 or output_stride == 2 * finest
            self.gaus.append(JwGAU(high, low, enlarges, gate=context))
        self.head = classifier(lows[0], num_classes)

    def forward(self, images):                                  # [B, 3, H, W]
        check_images(images)
        scores = self.head(self.decode(self.backbone(images)))  # [B, classes, H/4, W/4]
        return {"out": F.interpolate(scores, images.shape[-2:], mode="nearest")}


# -------------------------------------------------------------------------------- a reader's note


class NoteFPA(nn.Module):
    """The sketch of FPA in a public reader's note: two levels, ELU, a global branch without a norm.

        A = up(C5'(X1) + up(C3'(X2)))   with   X1 = C5(X), X2 = C3(X1) of stride 2               (N)
        F = C1(X) * A + W mean(X)

    where every C ends in ELU, X1 and X2 keep the C channels of X, and A [B, D, H, W] is a sum of
    two ELUs: anything from -2 up. The sketch doubles sizes, 4 to 8 to 16; here each map takes the
    size of the one it meets, which at 16 x 16 is the same.

    context: False leaves C1(X). [B, C, H, W] -> [B, D, H, W].
    """

    def __init__(self, inputs, outputs, context=True):
        super().__init__()
        self.context = context
        self.master = ConvNorm(inputs, outputs, activation=nn.ELU())
        if context:
            self.pooled = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.down1 = ConvNorm(inputs, inputs, 5, stride=2, activation=nn.ELU())
            self.down2 = ConvNorm(inputs, inputs, 3, stride=2, activation=nn.ELU())
            self.side2 = ConvNorm(inputs, outputs, 3, activation=nn.ELU())
            self.side1 = ConvNorm(inputs, outputs, 5, activation=nn.ELU())

    def forward(self, x):                                       # [B, C, 16, 16]
        m = self.master(x)                                      # [B, D, 16, 16]
        if not self.context:
            return m
        return m * self.pyramid(x) + self.pooled(x.mean((2, 3), keepdim=True))

    def pyramid(self, x):
        """The attention maps. [B, C, H, W] -> [B, D, H, W], all above -2."""
        x1 = self.down1(x)                                      # [B, C, 8, 8]
        a2 = self.side2(self.down2(x1))                         # [B, D, 4, 4]
        a1 = self.side1(x1) + enlarge(a2, x1.shape[-2:])        # [B, D, 8, 8]
        return enlarge(a1, x.shape[-2:])                        # (N)  [B, D, 16, 16]
