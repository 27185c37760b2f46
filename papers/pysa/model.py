"""PySA: Pyramid Self-Attention for Semantic Segmentation (Qi, Wang, Hu, Tang, Liu; PRCV 2021).

Read from top to bottom beside paper.md: the equations, one level, the two ways to stand levels together,
the network. naive.py says the same with loops.

Shapes: B images, C channels, an H x W map; R x R regions of G x G cells, so N = R * G cells per side.
Pooling and enlarging are linear and separable, so both are two thin matrix products, T = P X P'^T and
Y = U O U'^T, with P and U of size N x H and H x N. All that is not linear happens on at most 16 x 16 cells.
"""

import inspect
import math

import torch
import torch.nn.functional as F
from torch import nn

from .resnet import ResNet

# ------------------------------------------------------------------------------------------ the equations


def pooling_matrix(size, cells):
    """P [N, size]: row i averages the pixels of cell i. The bins are those of adaptive average pooling:
    floor(i * size / N) to ceil((i + 1) * size / N), so they exist for every size >= 1."""
    i = torch.arange(cells)
    start, end = i * size // cells, -(-(i + 1) * size // cells)
    pixel = torch.arange(size)
    inside = (pixel >= start[:, None]) & (pixel < end[:, None])
    return inside / (end - start)[:, None].double()


def enlarging_matrix(size, regions, cells, scope="region", interpolation="bilinear"):
    """U [size, R * G]: row y holds the weights of the cells that pixel y reads (at most two).

    scope "region": bilinear inside each region, which keeps regions independent; "merged": bilinear over
    the whole grid, so no seams. interpolation "nearest" reads one cell and makes the two scopes coincide.
    """
    grid = regions * cells
    y = torch.arange(size)
    # Integers decide who belongs where, so that ties cannot fall differently on another machine.
    region = ((2 * y + 1) * regions // (2 * size)).clamp(max=regions - 1)  # of the pixel's centre
    low, high = (region * cells, region * cells + cells - 1) if scope == "region" else (0 * y, 0 * y + grid - 1)
    u = torch.zeros(size, grid, dtype=torch.float64)
    if interpolation == "nearest":
        nearest = ((2 * y + 1) * grid // (2 * size)).clamp(low, high)
        return u.index_put_((y, nearest), torch.ones(size, dtype=torch.float64))
    numerator = (2 * y + 1) * grid - size  # the position among the cells is numerator / (2 * size)
    floor = numerator.div(2 * size, rounding_mode="floor")
    fraction = (numerator - floor * 2 * size).double() / (2 * size)
    u.index_put_((y, floor.clamp(low, high)), 1 - fraction, accumulate=True)
    return u.index_put_((y, (floor + 1).clamp(low, high)), fraction, accumulate=True)


def pool(x, cells, reduction="avg"):
    """Eq. (1): one feature per grid cell. x: [B, C, H, W], reduction "avg" or "max" -> [B, C, N, N]."""
    if reduction == "max":
        return F.adaptive_max_pool2d(x, cells)
    rows, columns = (pooling_matrix(size, cells).to(x) for size in x.shape[-2:])
    return rows @ (x @ columns.T)  # Eq. (1)


def project(t, weight, bias):
    """Eq. (2): one linear map, the same for every cell. t: [B, C, N, N], weight [D, C] -> [B, D, N, N]."""
    return F.conv2d(t, weight.flatten(1)[:, :, None, None], bias)  # Eq. (2)


def attend(q, k, v, regions, heads=1, scaled=True, position=None):
    """Eq. (3) and (4): self-attention among the G * G cells of each region.

    q, k: [B, d, N, N], v: [B, C, N, N], N a multiple of `regions` = R. heads: channel groups that attend
    separately. scaled: divide the scores by sqrt(d per head). position: [heads, 2G-1, 2G-1] scores to add by
    relative position, or None. Returns [B, C, N, N].
    """
    batch, _, cells, _ = q.shape
    side = cells // regions

    def split(t):
        """Cells by region and head: [B, heads * c, N, N] -> [B, R, R, heads, G*G, c]."""
        # Regions and cells are interleaved along each axis: N = (R, G). Viewing N*N as (R*R, G*G) at once
        # would mix pixels of different regions.
        t = t.reshape(batch, heads, -1, regions, side, regions, side)
        return t.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5)

    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(-1, -2)  # [B, R, R, heads, G*G, G*G]
    if scaled:
        scores = scores / math.sqrt(q.shape[-1])
    if position is not None:
        i = torch.arange(side, device=q.device)
        offset = i[None, :] - i[:, None] + side - 1  # [G, G]: of cell n seen from cell j
        scores = scores + position[:, offset[:, None, :, None], offset[None, :, None, :]].flatten(3, 4).flatten(1, 2)
    weights = scores.softmax(-1)  # Eq. (3)
    mixed = weights @ v  # Eq. (4)  [B, R, R, heads, G*G, c]
    mixed = mixed.unflatten(4, (side, side)).permute(0, 3, 6, 1, 4, 2, 5)  # [B, heads, c, R, G, R, G]
    return mixed.reshape(batch, -1, cells, cells)


def enlarge(o, size, regions, scope="region", interpolation="bilinear"):
    """Eq. (5): from cells back to pixels. o: [B, C, N, N] -> [B, C, H, W] with (H, W) = size."""
    side = o.shape[-1] // regions
    rows, columns = (enlarging_matrix(n, regions, side, scope, interpolation).to(o) for n in size)
    return rows @ (o @ columns.T)  # Eq. (5)


# ------------------------------------------------------------------------------------------ one level


class PySALevel(nn.Module):
    """PySA_{R,G}, Eq. (6): pool to R*G x R*G cells, attend inside each of the R x R regions, enlarge.

    channels: C of the attention. regions: R. cells: G. inputs: channels of the map; where they differ from
        `channels`, the cells (not the pixels: that is cheaper) are first reduced by 1x1, BatchNorm, ReLU.
    key_channels: d, width of queries and keys; None for C / 8. heads: attention heads.
    pool: "avg" or "max", the feature of a cell. scope, interpolation: see `enlarging_matrix`.
    scaled: divide scores by sqrt(d). position: learn one score per relative position of two cells.
    project: a 1x1 convolution behind the attention. gain: a learned factor that starts at 0.

    forward: [B, inputs, H, W] -> [B, C, H, W], any H, W >= 1.
    """

    def __init__(
        self, channels, regions, cells=2, inputs=None, key_channels=None, heads=1, pool="avg", scope="region",
        interpolation="bilinear", scaled=True, position=False, project=False, gain=False,
    ):
        super().__init__()
        key_channels = key_channels or max(channels // 8, heads)
        if channels % heads or key_channels % heads:
            raise ValueError(f"heads={heads} must divide channels={channels} and key_channels={key_channels}")
        self.regions, self.cells, self.heads = regions, cells, heads
        self.pool, self.scope, self.interpolation, self.scaled = pool, scope, interpolation, scaled
        reduces = inputs is not None and inputs != channels
        self.reduce = conv_bn_relu(inputs, channels, 1) if reduces else None
        self.query = nn.Conv2d(channels, key_channels, 1)
        self.key = nn.Conv2d(channels, key_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1) if project else None
        self.position = nn.Parameter(torch.zeros(heads, 2 * cells - 1, 2 * cells - 1)) if position else None
        self.gain = nn.Parameter(torch.zeros(())) if gain else None

    def mix(self, t):
        """Everything that happens on the cells. t: [B, inputs, N, N] -> [B, C, N, N]."""
        if self.reduce is not None:
            t = self.reduce(t)
        q, k, v = (project(t, p.weight, p.bias) for p in (self.query, self.key, self.value))
        o = attend(q, k, v, self.regions, self.heads, self.scaled, self.position)
        if self.output is not None:
            o = self.output(o)
        return o if self.gain is None else self.gain * o

    def forward(self, x):
        return pysa(x, self)


def pysa(x, level):
    """Eq. (6): one level. x: [B, inputs, H, W] -> [B, C, H, W]."""
    o = level.mix(pool(x, level.regions * level.cells, level.pool))
    return enlarge(o, x.shape[-2:], level.regions, level.scope, level.interpolation)  # Eq. (6)


# ------------------------------------------------------------------------------------------ several levels


def series(x, levels):
    """Eq. (7), level by level: the form to read. x: [B, C, H, W] -> [B, C, H, W]."""
    for level in levels:
        x = x + pysa(x, level)  # Eq. (7)
    return x


def series_in_cell_space(x, levels):
    """Eq. (7) again, without ever forming the maps between the levels: the form to run.

    A level reads its input only through pooling and adds only an enlargement. Both are linear, so level s
    needs no map, only cells: T_s = P_s X P_s'^T + sum over t < s of (P_s U_t) O_t (P_s' U_t')^T.
    The big map is read once (all pooling matrices stacked) and written once (all enlargements stacked).
    Exact up to rounding; needs average pooling, because a maximum is not linear.
    """
    grids = [level.regions * level.cells for level in levels]
    pools, enlargements = [], []  # one list per axis
    for size in x.shape[-2:]:
        pools.append([pooling_matrix(size, n) for n in grids])
        enlargements.append(
            [enlarging_matrix(size, level.regions, level.cells, level.scope, level.interpolation) for level in levels]
        )
    read = (torch.cat(pools[0]).to(x) @ x).split(grids, dim=-2)  # per level [B, C, N_s, W]
    mixed = []
    for s, level in enumerate(levels):
        t = read[s] @ pools[1][s].T.to(x)  # [B, C, N_s, N_s]
        for earlier, o in enumerate(mixed):
            rows, columns = ((pools[axis][s] @ enlargements[axis][earlier]).to(x) for axis in (0, 1))
            t = t + rows @ (o @ columns.T)
        mixed.append(level.mix(t))
    written = torch.cat([o @ u.T.to(x) for o, u in zip(mixed, enlargements[1])], dim=-2)  # [B, C, sum N_s, W]
    return x + torch.cat(enlargements[0], dim=1).to(x) @ written


def parallel(features, x, levels):
    """Eq. (8): every level reads the same map x; the results stand side by side behind the features
    (x itself, unless its channels were reduced before).
    features: [B, F, H, W], x: [B, inputs, H, W] -> [B, F + C * len(levels), H, W]."""
    return torch.cat([features] + [pysa(x, level) for level in levels], dim=1)  # Eq. (8)


# ------------------------------------------------------------------------------------------ the network


def conv_bn_relu(inputs, outputs, kernel):
    """Convolution without bias, BatchNorm, ReLU; keeps the size of the map."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class PySAHead(nn.Module):
    """From backbone features to class scores. [B, inputs, H, W] -> [B, num_classes, H, W].

    Series:   X = reduce(F); the levels one after another on X; classify [X; F].
    Parallel: the levels side by side on F (or on reduce(F) with reduce="shared"); classify [F; Y_1; ...].
    `context=False` leaves out the levels and nothing else.
    """

    def __init__(self, inputs, num_classes, variant, channels, regions, reduce, share_levels, context, **options):
        super().__init__()
        self.variant = variant
        self.reduce = None
        if variant == "series" or (reduce == "shared" and context):
            self.reduce = conv_bn_relu(inputs, channels, 3)
        level_inputs = inputs if variant == "parallel" and reduce == "cells" else channels
        self.levels = nn.ModuleList(
            PySALevel(channels, r, inputs=level_inputs, **options) for r in (regions if context else ())
        )
        if share_levels:  # one set of weights; a level keeps its own R
            for level in self.levels[1:]:
                for name, module in self.levels[0].named_children():
                    setattr(level, name, module)
                level.position, level.gain = self.levels[0].position, self.levels[0].gain
        concatenated = inputs + channels * (1 if variant == "series" else len(self.levels))
        self.bottleneck = nn.Sequential(*conv_bn_relu(concatenated, channels, 3), nn.Dropout2d(0.1))
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise(self)

    def forward(self, features):
        x = features if self.reduce is None else self.reduce(features)  # [B, C, H, W]
        if self.variant == "series":
            linear = all(level.pool == "avg" for level in self.levels)
            if self.levels:
                x = series_in_cell_space(x, self.levels) if linear else series(x, self.levels)
            x = torch.cat([x, features], dim=1)  # the backbone's features, not the reduced ones
        else:
            x = parallel(features, x, self.levels)
        return self.classifier(self.bottleneck(x))


def initialise(head):
    """Kaiming normal for convolutions, zero for their biases; BatchNorm keeps 1 and 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PySA(nn.Module):
    """A segmentation network: ResNet, PySA head, bilinear enlargement of the scores.

    variant: "series" or "parallel". backbone: "resnet18", "resnet34", "resnet50", "resnet101" or "tiny";
        output at 1/8 of the input (layers 3 and 4 dilated by 2 and 4; `tiny` needs no dilation).
    stem: () for the 7x7 stem or three widths for a deep one, e.g. (64, 64, 128).
    channels: C of the attention. cells: G. regions: the list of R, in order.
    reduce ("parallel" only): "cells" reduces channels on the pooled cells, "shared" by one 3x3 convolution.
    share_levels: one set of attention weights for all levels. aux: auxiliary head on the last but one stage.
    The rest: see PySALevel.

    forward: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, in training also "aux" of that shape.
    """

    def __init__(
        self, num_classes, variant="series", backbone="resnet50", stem=(), channels=512, cells=2,
        regions=(1, 2, 4, 8), key_channels=None, heads=1, pool="avg", scope="region", interpolation="bilinear",
        scaled=True, position=False, project=False, gain=False, reduce="cells", share_levels=False, aux=True,
        context=True,
    ):
        super().__init__()
        check("variant", variant, ("series", "parallel"))
        check("pool", pool, ("avg", "max"))
        check("scope", scope, ("region", "merged"))
        check("interpolation", interpolation, ("bilinear", "nearest"))
        check("reduce", reduce, ("cells", "shared"))
        if not regions or min(regions) < 1 or cells < 1:
            raise ValueError(f"regions and cells must be positive, not regions={regions}, cells={cells}")
        if backbone == "tiny":
            self.backbone = ResNet(backbone, stem, strides=(2, 2, 1))
        else:
            self.backbone = ResNet(backbone, stem, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
        *_, middle, last = self.backbone.channels
        self.head = PySAHead(
            last, num_classes, variant, channels, regions, reduce, share_levels, context,
            cells=cells, key_channels=key_channels, heads=heads, pool=pool, scope=scope,
            interpolation=interpolation, scaled=scaled, position=position, project=project, gain=gain,
        )
        self.aux_head = None
        if aux:
            width = middle // 2
            self.aux_head = nn.Sequential(*conv_bn_relu(middle, width, 3), nn.Conv2d(width, num_classes, 1))
            initialise(self.aux_head)

    def forward(self, images):
        *_, middle, last = self.backbone(images)  # [B, 1024, H/8, W/8], [B, 2048, H/8, W/8]
        scores = {"out": self.head(last)}
        if self.training and self.aux_head is not None:
            scores["aux"] = self.aux_head(middle)
        size = images.shape[-2:]
        return {name: F.interpolate(s, size, mode="bilinear", align_corners=False) for name, s in scores.items()}


def check(option, value, valid):
    """Raise a ValueError that names the valid choices."""
    if value not in valid:
        raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(valid)}")


PRESETS = {
    "tiny": dict(backbone="tiny", channels=64),
    "resnet50": dict(backbone="resnet50"),
    "resnet101": dict(backbone="resnet101"),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any option of `PySA` overridden.

    Raises ValueError for an unknown preset or option, naming the valid ones.
    """
    check("preset", preset, tuple(PRESETS))
    valid = tuple(inspect.signature(PySA).parameters)[1:]
    for name in options:
        check("option", name, valid)
    return PySA(num_classes, **{**PRESETS[preset], **options})
