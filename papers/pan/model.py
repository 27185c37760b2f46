"""PAN: Pyramid Attention Network for Semantic Segmentation (Li, Xiong, An, Wang; BMVC 2018).

Read from top to bottom beside paper.md: FPA, GAU, the network. The letters are those of paper.md.
naive.py says the same with loops. readings.py holds what other people made of the paper, and the
weaker forms of its ablation: read it later or never.

Shapes: B images, C channels and H x W pixels of whichever map is meant, D channels of the decoder,
K channels of the attention map. Sizes in comments are those of an image of 512 x 512.
"""

import torch.nn.functional as F
from torch import nn

from .checks import check, check_classes, check_images
from .resnet import ResNet


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation: the C_k of the equations, k its kernel.

    activation: a module, ReLU by default. [B, inputs, H, W] -> [B, outputs, H / stride,
    W / stride], rounded up. Raises ValueError in training if there is a single value per channel to
    normalise.
    """

    def __init__(self, inputs, outputs, kernel=1, stride=1, activation=None):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activation = activation or nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x):
        return self.activation(normalise(self.conv(x), self.bn))


class FPA(nn.Module):
    """Feature Pyramid Attention: a small pyramid weighs every pixel, the mean of the map is added.

        X1 = C7(P X),  X2 = C5(P X1),  X3 = C3(P X2)         down: 1/2, 1/4, 1/8        (A)
        A3 = C3(X3)                                          each level once more       (B)
        A2 = C5(X2) + up(A3),  A1 = C7(X1) + up(A2),  A = up(A1)                        (C)
        M = C1(X)                                            the features themselves    (D)
        g = C1(mean(X))                                      one vector for all pixels  (E)
        F = M * A + g                                                                   (F)

    where every C_k is a ConvNorm of its own, X [B, C, H, W] is the last map of the backbone, P
    `pool`, up `enlarge` to the size of the map it meets, M and F [B, D, H, W], g [B, D, 1, 1], and
    A [B, K, H, W] is one map for all channels (K = 1, the default) or one for each (K = D). A is
    neither squashed nor normalised: after a ReLU it is anything from 0 up. The paper does not state
    K: see paper.md.

    kernels: 7, 5 and 3, finest level first. reduction: "avg", or "max" for `pool`.
    """

    def __init__(self, inputs, outputs, pyramid_channels=1, kernels=(7, 5, 3), reduction="avg"):
        super().__init__()
        self.reduction = reduction
        self.master = ConvNorm(inputs, outputs)
        self.pooled = ConvNorm(inputs, outputs)
        self.make_pyramid(inputs, pyramid_channels, kernels)

    def make_pyramid(self, inputs, channels, kernels):
        """The six convolutions of (A) to (C)."""
        k1, k2, k3 = kernels
        self.down1 = ConvNorm(inputs, channels, k1)
        self.down2 = ConvNorm(channels, channels, k2)
        self.down3 = ConvNorm(channels, channels, k3)
        self.side3 = ConvNorm(channels, channels, k3)
        self.side2 = ConvNorm(channels, channels, k2)
        self.side1 = ConvNorm(channels, channels, k1)

    def forward(self, x):                                       # [B, C, 32, 32]
        a = self.pyramid(x)                                     # (A) to (C)  [B, K, 32, 32]
        m = self.master(x)                                      # (D)  [B, D, 32, 32]
        g = self.pooled(x.mean((2, 3), keepdim=True))           # (E)  [B, D, 1, 1]
        return m * a + g                                        # (F)  [B, D, 32, 32]

    def pyramid(self, x):
        """The attention map. [B, C, H, W] -> [B, K, H, W]."""
        x1 = self.down1(pool(x, self.reduction))                # (A)  [B, K, 16, 16]
        x2 = self.down2(pool(x1, self.reduction))               # (A)  [B, K, 8, 8]
        x3 = self.down3(pool(x2, self.reduction))               # (A)  [B, K, 4, 4]
        a3 = self.side3(x3)                                     # (B)  [B, K, 4, 4]
        a2 = self.side2(x2) + enlarge(a3, x2.shape[-2:])        # (C)  [B, K, 8, 8]
        a1 = self.side1(x1) + enlarge(a2, x1.shape[-2:])        # (C)  [B, K, 16, 16]
        return enlarge(a1, x.shape[-2:])                        # (C)  [B, K, 32, 32]


class GAU(nn.Module):
    """Global Attention Upsample: the mean of the coarse map chooses channels of the fine map.

        w = ReLU(BN(V mean(Y)))              one weight per channel, no softmax, no sigmoid  (G)
        L' = C3(L)                           fine map, reduced to D channels                 (H)
        GAU(Y, L) = up(Y) + w * L'                                                           (I)

    where Y [B, D, h, w] is the coarse map, L [B, C, H, W] the fine one, w [B, D, 1, 1].

    inputs: C. outputs: D. kernel: of (H), 3, or 1 for a row of the paper's ablation.
    activation: of (G), a module; ReLU in the paper.
    """

    def __init__(self, inputs, outputs, kernel=3, activation=None):
        super().__init__()
        self.low = ConvNorm(inputs, outputs, kernel)
        self.channel = ConvNorm(outputs, outputs, activation=activation)

    def forward(self, y, low):                                  # [B, D, h, w], [B, C, H, W]
        w = self.channel(y.mean((2, 3), keepdim=True))          # (G)  [B, D, 1, 1]
        detail = self.low(low)                                  # (H)  [B, D, H, W]
        return enlarge(y, low.shape[-2:]) + w * detail          # (I)  [B, D, H, W]


class PAN(nn.Module):
    """ResNet at 1/16, FPA on its last map, one GAU per earlier map, a 3x3 classifier.

        Y4 = GAU(F, res4),  Y3 = GAU(Y4, res3),  Y2 = GAU(Y3, res2)                          (J)
        scores = up(Conv3x3(Y2))                                                             (K)

    where F is the FPA of res5, and Y4, Y3, Y2 have the sizes of res4, res3, res2.

    fpa(inputs, outputs) and gau(inputs, outputs) make the blocks; the other arguments: see `build`.
    forward: images [B, 3, H, W], any H, W >= 32 -> {"out": [B, num_classes, H, W]}.
    In training B >= 2, since (E) and (G) normalise maps of one pixel.
    """

    def __init__(self, num_classes, backbone, stem, dilation, output_stride, decoder_channels,
                 fpa=FPA, gau=GAU):
        super().__init__()
        self.backbone = dilated_resnet(backbone, stem, dilation, output_stride)
        *lows, last = self.backbone.channels
        self.fpa = fpa(last, decoder_channels)
        self.gaus = nn.ModuleList(gau(low, decoder_channels) for low in lows[::-1])
        self.head = classifier(decoder_channels, num_classes)

    def forward(self, images):                                  # [B, 3, 512, 512]
        check_images(images)
        y = self.decode(self.backbone(images))                  # (J)  [B, D, 128, 128]
        scores = self.head(y)                                   # (K)  [B, classes, 128, 128]
        return {"out": enlarge(scores, images.shape[-2:])}      # (K)  [B, classes, 512, 512]

    def decode(self, features):
        """Maps of the backbone, finest first -> [B, D, H, W] of the size of the finest."""
        *lows, last = features                                  # 128, 64, 32 and 32 pixels a side
        y = self.fpa(last)                                      # [B, D, 32, 32]
        for gau, low in zip(self.gaus, lows[::-1], strict=True):
            y = gau(y, low)                                     # (J)  32, 64, 128 pixels a side
        return y


def pool(x, reduction="avg"):
    """P: half the size. [B, C, H, W] -> [B, C, H // 2, W // 2], but a side of 1 stays 1."""
    window = [min(2, side) for side in x.shape[-2:]]
    return F.max_pool2d(x, window) if reduction == "max" else F.avg_pool2d(x, window)


def enlarge(x, size):
    """up: bilinear, corners onto corners. [B, C, h, w] -> [B, C, H, W] with (H, W) = size.

    Always to the size of the finer map, never by a factor: 17 -> 8 -> 4 has to come back as 4 -> 8
    -> 17.
    """
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def normalise(x, bn):
    """bn(x), or in training a ValueError where a channel has one value, which has no variance."""
    single = x.shape[0] * x.shape[2] * x.shape[3] == 1
    if single and bn.training and isinstance(bn, nn.BatchNorm2d):
        raise ValueError(
            "PAN normalises maps of one pixel (global pooling, the bottom of the pyramid), which "
            "one image alone cannot train: use a batch of at least 2 images per process, or "
            "synchronised BatchNorm"
        )
    return bn(x)


def classifier(inputs, num_classes):
    """The 3x3 convolution of (K)."""
    head = nn.Conv2d(inputs, num_classes, 3, padding=1)
    nn.init.kaiming_normal_(head.weight, nonlinearity="relu")
    nn.init.zeros_(head.bias)
    return head


def dilated_resnet(name, stem, dilation, output_stride):
    """The backbone: res2 to res5 at 1/4, 1/8, 1/16, 1/16; "tiny": three maps at 1/4, 1/8, 1/8."""
    finest = 8 if name == "tiny" else 16
    check("output_stride", output_stride or finest, (finest, 2 * finest))
    dilated = output_stride in (None, finest)
    last_stride = 1 if dilated else 2
    if name == "tiny":
        return ResNet(name, stem, (2, 2, last_stride), contract=dilation == "torchvision")
    blocks = {"torchvision": 2, "all": 2, "growing": (1, 2, 4)}[dilation] if dilated else 1
    strides, dilations = (1, 2, 2, last_stride), (1, 1, 1, blocks)
    return ResNet(name, stem, strides, dilations, contract=dilation == "torchvision")


DEFAULTS = dict(
    variant="paper", backbone="resnet101", stem=(64, 64, 128), dilation="torchvision",
    output_stride=None, decoder_channels=256, pyramid_channels=1, kernels=(7, 5, 3), pool="avg",
    attention="pyramid", global_pool=True, gate="channel", gate_activation="relu", low_kernel=3,
    context=True,
)

PRESETS = {
    "tiny": dict(backbone="tiny", stem=(), decoder_channels=64),
    "resnet50": dict(backbone="resnet50"),
    "resnet101": dict(backbone="resnet101"),
    "smp_resnet34": dict(variant="smp"),
    "jw_resnet50": dict(variant="jw"),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any of these options overridden.

    variant: "paper", "smp" (segmentation_models.pytorch), "jw" (JaveyWang) or "note" (a reader's
        sketch): whose reading of the paper; it sets what neither the preset nor an option sets. See
        readings.py.
    backbone: "resnet18", "resnet34", "resnet50", "resnet101" or "tiny". smp's files come with all.
    stem: () for the 7x7 stem, or the widths of a deep one. The paper's is deep; most files are not.
    dilation: in res5 at output stride 16. "torchvision" keeps the first block at 1, the rest at 2
        (paper); "all" gives every block 2 (smp); "growing" gives 1, 2, 4 (jw).
    output_stride: image pixels per pixel of the last map, 16 (default) or 32, which smp has too;
        "tiny": 8 (default) or 16.
    decoder_channels: D. pyramid_channels: K, 1 or D.
    kernels, pool, attention, global_pool: of FPA; the paper's ablation has (3, 3, 3), "max", "se"
        (squeeze-and-excitation in place of the pyramid) or "none", and no global branch. pool="max"
        is smp's.
    gate: of GAU, "channel" or "none" (ablation); "spatial" and "both" go beyond the paper.
    gate_activation: "relu", or "sigmoid" (smp). low_kernel: 3, or 1 (ablation).
    context: False leaves the master branch of FPA and plain skip connections, nothing else.

    Returns a module: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}. Raises ValueError for
    an unknown preset or option, naming the valid ones.
    """
    from . import readings  # which builds on the modules above

    check_classes(num_classes)
    check("preset", preset, tuple(PRESETS))
    for name in options:
        check("option", name, tuple(DEFAULTS))
    return readings.assemble(num_classes, PRESETS[preset], options)
