"""PySA: Pyramid Self-Attention for Semantic Segmentation (Qi, Wang, Hu, Tang, Liu; PRCV 2021).

Read from top to bottom beside paper.md: one level, levels in series, levels in parallel, the
network. The letters are those of paper.md. naive.py says the same with loops; fast.py is a shorter
way to the result of Series: read it later or never.

Shapes: B images, C channels of the attention, an H x W map; R x R regions of G x G cells each, so
N = R * G cells along a side; d is the width of queries and keys. Sizes in comments are those of an
image of 512 x 512, C = 512, with R = 4 and G = 2.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from . import fast
from .checks import check, check_classes, check_images
from .resnet import ResNet


class PySALevel(nn.Module):
    """One level: a mean for every cell, attention among the cells of a region, back to pixels.

        T = reduce(pool(X))                    one mean for every cell                   (A)
        Q, K, V = query(T), key(T), value(T)   the same three maps for every cell        (B)
        A = softmax(Q K^T / sqrt(d))           inside each region                        (C)
        O = A V                                                                          (D)
        Y = U_H O U_W^T                        bilinear, inside each region              (E)

    where X is [B, inputs, H, W], T and O are [B, C, N, N], Y is [B, C, H, W]. In (C) and (D) every
    region stands by itself: its G * G cells are the rows of Q and K [G*G, d] and of V [G*G, C], and
    each row of A [G*G, G*G] sums to 1. U_H [H, N] and U_W [W, N] are `enlarging_matrix`. Where N
    does not divide H or W, neighbouring cells share a row or a column of pixels. reduce is a 1x1
    convolution with BatchNorm and ReLU where X has not C channels yet (Parallel), else nothing.

    The figures fix R, G, one feature per cell, attention inside a region, each region enlarged by
    itself. Chosen, with reasons in paper.md: the mean, 1x1 maps, d = C / 8, sqrt(d), bilinear.

    channels: C. regions: R. cells: G. inputs: channels of X, None for C.
    forward: [B, inputs, H, W] -> [B, C, H, W], any H, W >= 1.
    """

    def __init__(self, channels, regions, cells=2, inputs=None):
        super().__init__()
        self.regions, self.cells, self.grid = regions, cells, regions * cells  # R, G, N
        reduces = inputs is not None and inputs != channels
        self.reduce = conv_norm(inputs, channels, 1) if reduces else nn.Identity()
        self.query = nn.Conv2d(channels, max(channels // 8, 1), 1)
        self.key = nn.Conv2d(channels, max(channels // 8, 1), 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, x):                                           # [B, inputs, 64, 64]
        t = self.reduce(F.adaptive_avg_pool2d(x, self.grid))        # (A)  [B, C, 8, 8]
        o = self.attend(t)                                          # (B) to (D)  [B, C, 8, 8]
        u_h, u_w = (self.enlarging(n).to(x) for n in x.shape[-2:])  #      [64, 8], [64, 8]
        return u_h @ (o @ u_w.mT)                                   # (E)  [B, C, 64, 64]

    def attend(self, t):
        """Self-attention inside every region. [B, C, N, N] -> [B, C, N, N]."""
        q = by_region(self.query(t), self.regions)                  # (B)  [B, 16, 4, d]
        k = by_region(self.key(t), self.regions)                    # (B)  [B, 16, 4, d]
        v = by_region(self.value(t), self.regions)                  # (B)  [B, 16, 4, C]
        a = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)    # (C)  [B, 16, 4, 4]
        return as_map(a @ v, self.regions, self.cells)              # (D)  [B, C, 8, 8]

    def enlarging(self, size):
        """U [size, N] of (E) for a side of `size` pixels."""
        return enlarging_matrix(size, self.regions, self.cells)


class SeriesHead(nn.Module):
    """PySA-Series: the levels one after another, the largest regions first.

        X_0 = reduce(Z),  X_s = X_{s-1} + level_s(X_{s-1})                               (F)
        scores = classify([X_S; Z])                                                      (G)

    where Z [B, inputs, H, W] is the last map of the backbone, X_s [B, C, H, W], and [;] puts
    channels side by side. Z itself is concatenated, not its reduction. reduce is a 3x3 convolution
    with BatchNorm and ReLU; classify a 3x3 bottleneck, then 1x1.

    The figure fixes the order R = 1, 2, 4, 8, the additions, 2048 and 512 channels, and what is
    concatenated. Chosen: reduce and classify, which CCNet has.

    regions: the R of the levels, in order; () leaves the levels out. level: makes one. fast: take
    the shorter way to X_S. forward: [B, inputs, H, W] -> [B, num_classes, H, W].
    """

    def __init__(self, inputs, num_classes, channels, regions, cells, level=PySALevel, fast=True):
        super().__init__()
        self.fast = fast
        self.reduce = conv_norm(inputs, channels, 3)
        self.levels = nn.ModuleList(level(channels, r, cells) for r in regions)
        self.bottleneck = bottleneck(channels + inputs, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise(self)

    def forward(self, features):                                    # [B, 2048, 64, 64]
        x = self.reduce(features)                                   # (F)  [B, C, 64, 64]
        if self.fast:
            x = fast.series(x, self.levels)                         # the loop below, up to rounding
        else:
            for level in self.levels:
                x = x + level(x)                                    # (F)  [B, C, 64, 64]
        joined = torch.cat([x, features], dim=1)                    # (G)  [B, C + 2048, 64, 64]
        return self.classifier(self.bottleneck(joined))             # (G)  [B, classes, 64, 64]


class ParallelHead(nn.Module):
    """PySA-Parallel: every level reads the backbone's map; the results stand side by side.

        scores = classify([Z; level_1(Z); ...; level_S(Z)])                              (H)

    where Z [B, inputs, H, W] is the last map of the backbone, [;] and classify are as in Series.
    A level first reduces its cells, not the pixels, from `inputs` to C channels: see (A).

    The figure fixes the concatenation and that nothing is added; C = 512 is measured in it, since
    the slabs are as wide as those labelled 512 in Series. Chosen: that the cells are reduced.

    The arguments and forward: see SeriesHead.
    """

    def __init__(self, inputs, num_classes, channels, regions, cells, level=PySALevel):
        super().__init__()
        self.levels = nn.ModuleList(level(channels, r, cells, inputs) for r in regions)
        self.bottleneck = bottleneck(inputs + channels * len(regions), channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise(self)

    def forward(self, features):                                    # [B, 2048, 64, 64]
        context = [level(features) for level in self.levels]        # (H)  S of [B, C, 64, 64]
        joined = torch.cat([features, *context], dim=1)             # (H)  [B, 2048 + S * C, 64, 64]
        return self.classifier(self.bottleneck(joined))             # (H)  [B, classes, 64, 64]


class PySA(nn.Module):
    """ResNet at 1/8, one of the heads, bilinear enlargement of its scores.

    head(inputs, num_classes) makes the head; backbone: see `build`. An auxiliary head on the last
    map but one is trained along and runs only in training.

    forward: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, in training also "aux" of that
    shape.
    """

    def __init__(self, num_classes, backbone, head):
        super().__init__()
        self.backbone = dilated_resnet(backbone)
        *_, middle, last = self.backbone.channels
        self.head = head(last, num_classes)
        self.aux_head = auxiliary_head(middle, num_classes)

    def forward(self, images):                                      # [B, 3, 512, 512]
        check_images(images)
        *_, middle, last = self.backbone(images)                    # 1024 and 2048 channels, 64, 64
        scores = {"out": self.head(last)}                           # [B, classes, 64, 64]
        if self.training:
            scores["aux"] = self.aux_head(middle)                   # [B, classes, 64, 64]
        size = images.shape[-2:]
        return {                                                    # [B, classes, 512, 512]
            name: F.interpolate(s, size, mode="bilinear", align_corners=False)
            for name, s in scores.items()
        }


def by_region(z, regions):
    """Cells as rows, region by region: [B, c, N, N] -> [B, R*R, G*G, c]."""
    # Along each side N is (R, G): regions and cells alternate. To view N*N as (R*R, G*G) at once
    # has the right shape, too, and mixes regions.
    z = z.unflatten(3, (regions, -1)).unflatten(2, (regions, -1))   # [B, c, R, G, R, G]
    return z.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)  # [B, R*R, G*G, c]


def as_map(z, regions, cells):
    """The way back: [B, R*R, G*G, c] -> [B, c, N, N]."""
    z = z.unflatten(2, (cells, cells)).unflatten(1, (regions, regions))  # [B, R, R, G, G, c]
    return z.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [B, c, N, N]


def enlarging_matrix(size, regions, cells):
    """U [size, N], float64: row y holds the weights of the cells, at most two, that pixel y reads.

    They are those of bilinear interpolation, but pixel y reads only cells of its own region: what
    would lie outside is replaced by the region's outermost cell.
    """
    # The centre of pixel y lies at (y + 1/2) / size of the side: in units of cells, with 0 at the
    # centre of the first one, at (y + 1/2) * N / size - 1/2. Integers decide between neighbours, so
    # that ties fall alike on every machine.
    y, n = torch.arange(size), regions * cells
    first = (2 * y + 1) * regions // (2 * size) * cells             # cell of the pixel's region
    place = (2 * y + 1) * n - size                                  # times 1 / (2 * size)
    below = place.div(2 * size, rounding_mode="floor")
    share = (place - below * 2 * size).double() / (2 * size)        # of the cell above
    u = torch.zeros(size, n, dtype=torch.float64)
    for cell, weight in ((below, 1 - share), (below + 1, share)):
        u.index_put_((y, cell.clamp(first, first + cells - 1)), weight, accumulate=True)
    return u


def conv_norm(inputs, outputs, kernel):
    """Convolution without bias, BatchNorm, ReLU; keeps the size of the map."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def bottleneck(inputs, outputs):
    """The 3x3 convolution in front of the classifier, with dropout of whole channels."""
    return nn.Sequential(*conv_norm(inputs, outputs, 3), nn.Dropout2d(0.1))


def auxiliary_head(inputs, num_classes):
    """[B, inputs, H, W] -> [B, num_classes, H, W]."""
    width = inputs // 2
    head = nn.Sequential(*conv_norm(inputs, width, 3), nn.Conv2d(width, num_classes, 1))
    initialise(head)
    return head


def initialise(head):
    """Kaiming normal for convolutions, zero for their biases; BatchNorm keeps 1 and 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def dilated_resnet(name):
    """The backbone at 1/8: layers 3 and 4 keep the size, dilated by 2 and 4; "tiny" needs none."""
    if name == "tiny":
        return ResNet(name, strides=(2, 2, 1))
    return ResNet(name, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


DEFAULTS = dict(
    variant="series", backbone="resnet50", channels=512, regions=(1, 2, 4, 8), cells=2,
    position=False, context=True, fast=True,
)

PRESETS = {
    "tiny": dict(backbone="tiny", channels=64),
    "resnet50": dict(backbone="resnet50"),
    "resnet101": dict(backbone="resnet101"),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any of these options overridden.

    variant: "series" or "parallel", the paper's two.
    backbone: "resnet18", "resnet34", "resnet50", "resnet101" or "tiny"; the presets need three.
    channels: C; 512 in the figure, 64 in "tiny".
    regions: the R of the levels, in order; (1, 2, 4, 8) in the figure. One level or another order
        shows what a level is for.
    cells: G, 2 in the figure; 1 leaves pyramid pooling, without attention.
    position: True adds a learned score per relative position of two cells, see readings.py. Not in
        the paper; a row of docs/choosing.md needs it.
    context: False leaves the levels out, and nothing else.
    fast: False runs Series level by level, as it reads, and not by fast.py. Parallel has one form.

    Returns a module: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, in training also
    "aux". Raises ValueError for an unknown preset or option, naming the valid ones.
    """
    from . import readings  # which builds on the modules above

    check_classes(num_classes)
    check("preset", preset, tuple(PRESETS))
    for name in options:
        check("option", name, tuple(DEFAULTS))
    o = {**DEFAULTS, **PRESETS[preset], **options}
    check("variant", o["variant"], ("series", "parallel"))
    if not o["regions"] or min(*o["regions"], o["cells"]) < 1:
        raise ValueError(
            f"regions and cells must be positive, not regions={o['regions']}, cells={o['cells']}"
        )
    parts = dict(
        channels=o["channels"], regions=o["regions"] if o["context"] else (), cells=o["cells"],
        level=readings.PositionedLevel if o["position"] else PySALevel,
    )
    if o["variant"] == "series":
        head = functools.partial(SeriesHead, **parts, fast=o["fast"])
    else:
        head = functools.partial(ParallelHead, **parts)
    return PySA(num_classes, o["backbone"], head)
