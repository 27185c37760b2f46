"""LRFormer: Low-Resolution Self-Attention for Semantic Segmentation (Wu et al., arXiv 2310.05026; TPAMI 2025).

Read from top to bottom beside paper.md: the equations, the attention module, the block, the decoder, the network.
naive.py says the same with loops.

Shapes: B images, C channels, an H x W map; m query cells (a grid of a x b), n key/value tokens (four smaller grids).
Pooling to a grid is linear and separable, so it is two thin matrix products, P X P'^T; enlarging from it is the same
backwards. All that is not linear happens on m x n numbers, whatever H and W are.

Maps are [B, C, H, W] everywhere and lie in memory as [B, H, W, C] ("channels last"): then a position is one
contiguous vector for LayerNorm and for linear layers, and no step of the network has to copy a map into another order.
"""

import inspect

import torch
import torch.nn.functional as F
from torch import nn

PYRAMID = (11, 8, 6, 4)  # sides of the key/value grids beside a query grid of side 16
IGNORE = 255  # label of pixels that do not count


# ------------------------------------------------------------------------------------------ the equations


def grid(size, side):
    """Eq. (1): rows and columns of the grid whose short side has `side` cells, in the map's aspect ratio.

    size: (H, W) of the map -> (a, b). The 0.001 makes exact halves go up; Python's round alone would send 16.5 to 16.
    """
    height, width = size
    if width >= height:
        return side, round(width * side / height + 0.001)  # Eq. (1)
    return round(height * side / width + 0.001), side


def pyramid(side):
    """Eq. (2): sides of the four key/value grids that belong to a query grid of this side."""
    return tuple(round(t * side / 16 + 0.001) for t in PYRAMID)  # Eq. (2)


def pooling_matrix(size, cells):
    """P [sum(cells), size], the pooling matrices of several grids on top of each other.

    size: pixels along this axis. cells: cells of each grid. Row i of a grid of n cells averages the pixels
    floor(i * size / n) to ceil((i + 1) * size / n), so bins may overlap, and repeat where n > size.
    """
    i = torch.cat([torch.arange(n) for n in cells])
    n = torch.cat([torch.full((side,), side) for side in cells])
    start, end = i * size // n, -(-(i + 1) * size // n)
    pixel = torch.arange(size)
    inside = (pixel >= start[:, None]) & (pixel < end[:, None])
    return inside / (end - start)[:, None].double()


def pool(x, cells):
    """Eq. (3): the mean of the pixels of each cell. x: [B, C, H, W], cells (a, b) -> [B, C, a, b]."""
    return pool_all(x, [cells])[0]


def pool_all(x, grids):
    """Eq. (3) for several grids, reading the big map once: all row matrices stacked, then one thin product each.

    x: [B, C, H, W], grids [(a, b), ...] -> [[B, C, a, b], ...].
    """
    x = x.permute(0, 2, 3, 1)  # [B, H, W, C]
    height, width, channels = x.shape[1:]
    heights, widths = zip(*grids)
    rows, columns = pooling_matrix(height, heights).to(x), pooling_matrix(width, widths).to(x)
    bands = (rows @ x.flatten(2)).unflatten(2, (width, channels))  # [B, sum of a, W, C]
    pooled = [p @ band for p, band in zip(columns.split(widths), bands.split(heights, dim=1))]  # Eq. (3)
    return [cells.permute(0, 3, 1, 2) for cells in pooled]  # [B, C, a, b] each


def queries(cells, attention):
    """Eq. (4): one query per cell. cells: [B, C, a, b] -> [B, m, C] with m = a * b."""
    return attention.query(cells.flatten(2).transpose(1, 2))  # Eq. (4)


def keys_values(maps, attention, convs=()):
    """Eq. (5): the tokens of all pyramid levels, normalised, as keys and values.

    maps: [[B, C, a_k, b_k], ...], convs: one depth-wise convolution per level, or none -> two [B, n, C].
    """
    if convs:
        maps = [z + conv(z) for z, conv in zip(maps, convs)]
    tokens = torch.cat([z.flatten(2) for z in maps], dim=2).transpose(1, 2)  # [B, n, C]
    return attention.key_value(attention.norm(tokens)).chunk(2, dim=-1)  # Eq. (5)


def attend(q, k, v, heads):
    """Eq. (6) without its output projection. q: [B, m, C], k, v: [B, n, C] -> [B, m, C]."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, heads, m or n, d]
    mixed = F.scaled_dot_product_attention(q, k, v)  # Eq. (6)
    return mixed.transpose(1, 2).flatten(2)  # [B, m, C]


def enlarge(o, size):
    """Eq. (7): bilinear interpolation, align_corners False. o: [B, C, a, b] -> [B, C, H, W] with (H, W) = size."""
    return F.interpolate(o, size, mode="bilinear", align_corners=False)  # Eq. (7)


def lrsa(x, attention, convs=(), scale=None):
    """Low-resolution self-attention, Eq. (4) to (7). x: [B, C, H, W] -> [B, C, H, W], any H, W >= 1.

    attention: an `Attention`. convs: see `keys_values`. scale: [C], layer scale, or None; a factor per channel may
    as well be applied to the few cells before they are enlarged.
    """
    size = x.shape[-2:]
    cells = grid(size, attention.side)
    if cells[0] % size[0] == 0 and cells[1] % size[1] == 0:
        # The grid repeats every pixel a whole number of times, so equal queries give equal answers and enlarging
        # averages equal cells: the map's own pixels do as queries, exactly.
        cells = size
        maps = [x] + pool_all(x, [grid(size, side) for side in attention.sides])
    else:
        maps = pool_all(x, [cells] + [grid(size, side) for side in attention.sides])
    o = attend(queries(maps[0], attention), *keys_values(maps[1:], attention, convs), attention.heads)
    o = attention.output(o)  # [B, m, C]
    if scale is not None:
        o = scale * o
    o = o.transpose(1, 2).unflatten(2, tuple(cells))  # [B, C, a, b]
    return o if cells == size else enlarge(o, size)


# ------------------------------------------------------------------------------------------ the block


class Attention(nn.Module):
    """The weights of one low-resolution self-attention; see `lrsa`.

    channels: C. heads: must divide C. side: cells on the short side of the query grid, at least 2.
    forward: [B, C, H, W] -> [B, C, H, W].
    """

    def __init__(self, channels, heads, side):
        super().__init__()
        if channels % heads:
            raise ValueError(f"num_heads: {heads} heads do not divide {channels} channels")
        self.heads, self.side, self.sides = heads, side, pyramid(side)
        if min(self.sides) < 1:
            raise ValueError(f"pool sizes must be at least 2, not {side}: the coarsest key grid would have no cell")
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.norm = nn.LayerNorm(channels, eps=1e-5)  # of the tokens; the block's norms have 1e-6
        self.output = nn.Linear(channels, channels)

    def forward(self, x, convs=(), scale=None):
        return lrsa(x, self, convs, scale)


class FeedForward(nn.Module):
    """Eq. (9): widen by `ratio`, GELU, depth-wise 3x3 with a residual, narrow. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels, ratio):
        super().__init__()
        self.widen = nn.Linear(channels, ratio * channels)
        self.conv = depthwise(ratio * channels)
        self.narrow = nn.Linear(ratio * channels, channels)

    def forward(self, x, scale=None):
        strips = x.device.type == "cpu" and not torch.is_grad_enabled()
        return (feed_forward_in_strips if strips else feed_forward)(x, self, scale)


def feed_forward(x, ffn, scale=None):
    """Eq. (9), position by position but for one depth-wise convolution. [B, C, H, W] -> [B, C, H, W].

    ffn: a `FeedForward`. scale: [C], layer scale, or None; it goes into the last weights, not over the map.
    """
    u = F.gelu(at_each_position(ffn.widen, x))  # [B, rC, H, W]
    weight, bias = ffn.narrow.weight, ffn.narrow.bias
    if scale is not None:
        weight, bias = scale[:, None] * weight, scale * bias
    u = add_depthwise(u, ffn.conv)
    return F.linear(u.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)  # Eq. (9)  [B, C, H, W]


def feed_forward_in_strips(x, ffn, scale=None, numbers=2**21):
    """Eq. (9) strip by strip: rows with one more on either side, because of the 3x3 convolution, which are cut off.

    Exact. The hidden map is r times the size of x and by far the largest of the network; a strip of about `numbers`
    numbers stays in a processor's cache. For inference: with gradients all hidden numbers must be kept anyway.
    """
    height = x.shape[2]
    rows = max(8, numbers * height // (x.numel() * ffn.widen.out_features // x.shape[1]))
    if rows >= height:
        return feed_forward(x, ffn, scale)
    strips = []
    for first in range(0, height, rows):
        above = min(first, 1)
        y = feed_forward(x[:, :, first - above : first + rows + 1], ffn, scale)
        strips.append(y[:, :, above : above + rows])
    return torch.cat(strips, dim=2)


def add_depthwise(u, conv):
    """u + conv(u) for a depth-wise 3x3 convolution, in one pass: the identity is a kernel with 1 in its middle."""
    if u.dtype != conv.weight.dtype:  # mixed precision: beside that 1 the digits of the middle weight would be lost
        return u + conv(u)
    middle = torch.zeros_like(conv.weight)
    middle[:, :, 1, 1] = 1
    return F.conv2d(u, conv.weight + middle, conv.bias, padding=1, groups=u.shape[1])


def at_each_position(layer, x):
    """A layer that works on the last axis, applied to the channels of a map. [B, C, H, W] -> [B, D, H, W]."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def depthwise(channels):
    """A 3x3 convolution that keeps channels apart and the size of the map."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return at_each_position(super().forward, x)


class Block(nn.Module):
    """Eq. (8): position encoding, low-resolution self-attention, feed-forward; each adds to the stream.

    channels, heads, side: see `Attention`. ratio: of the feed-forward part. norm: class of the two norms.
    layer_scale: start value of the two learned factors per channel, None for no such factors. drop_path: share of
    the samples that skip a branch in training. pre_norm: BatchNorm on the stream itself (LRFormer-XL).
    context: False leaves out the attention with its norm and factor.

    forward: x [B, C, H, W], convs: see `keys_values` -> [B, C, H, W].
    """

    def __init__(self, channels, heads, side, ratio, norm, layer_scale, drop_path=0.0, pre_norm=False, context=True):
        super().__init__()

        def factor():
            """A layer scale [C], or None without."""
            return None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale)))

        self.drop_path = drop_path
        self.pre_norm = nn.BatchNorm2d(channels) if pre_norm else None
        self.position = depthwise(channels)
        self.norm1 = norm(channels) if context else None
        self.attention = Attention(channels, heads, side) if context else None
        self.scale1 = factor() if context else None
        self.norm2 = norm(channels)
        self.feed_forward = FeedForward(channels, ratio)
        self.scale2 = factor()

    def forward(self, x, convs=()):
        return block(x, self, convs)


def block(x, module, convs=()):
    """Eq. (8), and with BatchNorm as `norm1` and `norm2` Eq. (11). module: a `Block`. [B, C, H, W], same shape."""
    if module.pre_norm is not None:
        x = module.pre_norm(x)
    x = x + module.position(x)
    if module.attention is not None:
        x = x + drop_path(module.attention(module.norm1(x), convs, module.scale1), module)
    return x + drop_path(module.feed_forward(module.norm2(x), module.scale2), module)  # Eq. (8)


def drop_path(y, module):
    """Stochastic depth: in training each sample's branch y is left out with probability `module.drop_path`."""
    if not module.training or not module.drop_path:
        return y
    keep = 1 - module.drop_path
    return y * (torch.rand(len(y), 1, 1, 1, device=y.device) < keep).to(y.dtype) / keep


# ------------------------------------------------------------------------------------------ the decoder


class Decoder(nn.Module):
    """Eq. (10): fuse the maps of the last three stages at stride 8, attend twice, classify.

    widths: channels of c2, c3, c4. channels: D. side: of the query grid, as in `Attention`.
    forward: (c2, c3, c4) -> [B, num_classes, H/8, W/8].
    """

    def __init__(self, widths, num_classes, channels, side, layer_scale, context):
        super().__init__()
        self.squeeze1 = nn.Conv2d(sum(widths), channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.squeeze2 = nn.Conv2d(channels + widths[-1], channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        # Eq. (11): the encoder's block with BatchNorm, 8 heads, ratio 4, no convolutions on the key/value grids
        options = dict(heads=8, side=side, ratio=4, norm=nn.BatchNorm2d, layer_scale=layer_scale, context=context)
        self.fuse1 = Block(channels, **options)  # Eq. (11)
        self.fuse2 = Block(channels, **options)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features):
        return decode(features, self)


def decode(features, decoder):
    """Eq. (10). features: (c2, c3, c4) -> [B, K, H/8, W/8].

    A 1x1 convolution and bilinear enlarging commute. So every map is squeezed where it is small and then enlarged
    and added; the concatenation of the enlarged maps is never formed.
    """
    c2, c3, c4 = features
    size = c2.shape[-2:]
    widths = [c.shape[1] for c in features]
    first = decoder.squeeze1.weight.split(widths, dim=1)
    second = decoder.squeeze2.weight.split([decoder.bn1.num_features, widths[-1]], dim=1)
    p = F.conv2d(c2, first[0])  # [B, D, H/8, W/8]
    for c, weight in ((c3, first[1]), (c4, first[2])):
        p = p + enlarge(F.conv2d(c, weight), size)
    p = decoder.fuse1(decoder.bn1(p).relu())
    p = F.conv2d(p, second[0]) + enlarge(F.conv2d(c4, second[1]), size)
    p = decoder.fuse2(decoder.bn2(p).relu())
    return decoder.classifier(decoder.dropout(p))  # Eq. (10)


# ------------------------------------------------------------------------------------------ the network


class Stage(nn.Module):
    """Halve the map (the first stage: quarter it), then blocks. [B, C', H, W] -> [B, C, H/2, W/2], rounded up."""

    def __init__(self, embed, channels, blocks, context):
        super().__init__()
        self.embed = embed
        self.norm = ChannelNorm(channels)
        # One depth-wise convolution per pyramid level, shared by all blocks of the stage.
        self.convs = nn.ModuleList(depthwise(channels) for _ in PYRAMID if context)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.norm(self.embed(x))
        for block in self.blocks:
            x = block(x, self.convs)
        return x


class Encoder(nn.Module):
    """Four stages at strides 4, 8, 16, 32. images [B, 3, H, W] -> (c1, c2, c3, c4), sides rounded up."""

    def __init__(self, embed_dims, depths, num_heads, mlp_ratios, pool_sizes, drop_path, layer_scale, context):
        super().__init__()
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()  # grows with the depth, from 0
        self.stages = nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(embed_dims, depths)):
            if i == 0:
                half = channels // 2
                embed = nn.Sequential(
                    nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU(),
                    nn.Conv2d(half, half, 3, 1, 1), nn.BatchNorm2d(half), nn.GELU(),
                    nn.Conv2d(half, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.GELU(),
                    nn.Conv2d(channels, channels, 3, 1, 1),
                )
            else:
                embed = nn.Conv2d(embed_dims[i - 1], channels, 3, 2, 1)
            blocks = [
                Block(
                    channels, num_heads[i], pool_sizes[i], mlp_ratios[i], ChannelNorm,
                    layer_scale if i >= 2 else None, rates[sum(depths[:i]) + j],
                    pre_norm=i == 2 and depth > 20 and j in (7, 15), context=context,
                )
                for j in range(depth)
            ]
            self.stages.append(Stage(embed, channels, blocks, context))

    def forward(self, images):
        x = images.contiguous(memory_format=torch.channels_last)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs)


def initialise(model, std):
    """Linear layers of the attentions: normal, cut at 2, bias 0. Squeezes: Kaiming normal, fan-out.
    Classifier: normal, std 0.01, bias 0. The rest keeps PyTorch's defaults."""
    for module in model.modules():
        if isinstance(module, Attention):
            for linear in (module.query, module.key_value, module.output):
                nn.init.trunc_normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
    head = model.head
    for fuse in (head.fuse1, head.fuse2):
        if fuse.attention is not None:  # a 1x1 convolution in the official code, with a convolution's initial weights
            fuse.attention.query.reset_parameters()
    for conv in (head.squeeze1, head.squeeze2):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    nn.init.zeros_(head.classifier.bias)


class LRFormer(nn.Module):
    """A segmentation network: encoder, decoder, bilinear enlargement of the scores.

    embed_dims, depths, num_heads, mlp_ratios, pool_sizes: channels, blocks, heads, feed-forward ratio and side of the
        query grid of each of the four stages. head_channels, head_pool_size: D and the grid of the decoder, which
        has 8 heads. drop_path: stochastic depth of the last block; it grows linearly from 0 in the first.
    layer_scale: start value of the factors per channel in stages 3 and 4 and in the decoder.
    init_std: of the initial weights of the attentions; 0.02 suits hundreds of channels.
    loss_pixels: "valid": the loss is the mean over valid pixels; "all": the official code's division by all pixels,
        ignored ones included.
    context: False leaves out every low-resolution self-attention.

    forward: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}.
    """

    def __init__(
        self, num_classes, embed_dims=(48, 96, 240, 384), depths=(2, 2, 6, 3), num_heads=(2, 4, 10, 16),
        mlp_ratios=(8, 8, 4, 4), pool_sizes=(16, 16, 16, 16), head_channels=256, head_pool_size=32, drop_path=0.1,
        layer_scale=1e-6, init_std=0.02, loss_pixels="valid", context=True,
    ):
        super().__init__()
        for option, value in dict(
            embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios, pool_sizes=pool_sizes
        ).items():
            if len(value) != 4:
                raise ValueError(f"{option} needs one number for each of the four stages, not {value!r}")
        check("loss_pixels", loss_pixels, ("valid", "all"))
        self.loss_pixels = loss_pixels
        self.backbone = Encoder(
            embed_dims, depths, num_heads, mlp_ratios, pool_sizes, drop_path, layer_scale, context
        )
        self.head = Decoder(embed_dims[1:], num_classes, head_channels, head_pool_size, layer_scale, context)
        initialise(self, init_std)

    def scores(self, images):
        """Class scores where the decoder ends: [B, 3, H, W] -> [B, num_classes, H/8, W/8], sides rounded up."""
        return self.head(self.backbone(images)[1:])

    def forward(self, images):
        size = images.shape[-2:]
        return {"out": enlarge(self.scores(images), size)}

    def loss(self, outputs, label, cross_entropy):
        """Pixel cross-entropy. label: int64 [B, H, W], 255 = ignore. cross_entropy(scores, label): the mean over the
        valid pixels, used unless loss_pixels is "all"."""
        if self.loss_pixels == "valid":
            return cross_entropy(outputs["out"], label)
        total = F.cross_entropy(outputs["out"].float(), label, ignore_index=IGNORE, reduction="sum")
        return total / label.numel()


class Classifier(nn.Module):
    """The encoder as an ImageNet classifier: mean over the positions of stage 4, one linear layer.

    options: those of `LRFormer` but the decoder's. forward: images [B, 3, H, W] -> [B, num_classes].
    """

    def __init__(self, num_classes=1000, preset="t", **options):
        super().__init__()
        model = build(1, preset, **options)
        self.backbone = model.backbone
        self.head = nn.Linear(self.backbone.stages[-1].norm.normalized_shape[0], num_classes)

    def forward(self, images):
        return self.head(self.backbone(images)[-1].mean((2, 3)))


def check(option, value, valid):
    """Raise a ValueError that names the valid choices."""
    if value not in valid:
        raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(valid)}")


PRESETS = {
    "tiny": dict(
        embed_dims=(32, 48, 64, 96), depths=(1, 1, 1, 1), num_heads=(2, 3, 4, 6), mlp_ratios=(4, 4, 4, 4),
        pool_sizes=(8, 8, 4, 4), head_channels=96, head_pool_size=8, drop_path=0.0, layer_scale=1.0, init_std=0.1,
    ),
    "t": dict(embed_dims=(48, 96, 240, 384), depths=(2, 2, 6, 3), head_channels=256, drop_path=0.1),
    "s": dict(embed_dims=(64, 128, 320, 512), depths=(3, 3, 12, 3), head_channels=384, drop_path=0.2),
    "b": dict(embed_dims=(80, 160, 400, 512), depths=(4, 4, 15, 8), head_channels=512, drop_path=0.4),
    "l": dict(embed_dims=(96, 192, 480, 640), depths=(4, 6, 18, 8), head_channels=640, drop_path=0.6),
    # Published with another decoder only; the channels of this one are our continuation of the series.
    "xl": dict(embed_dims=(128, 256, 640, 768), depths=(4, 8, 22, 8), head_channels=768, drop_path=0.4),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any option of `LRFormer` overridden.

    Raises ValueError for an unknown preset or option, naming the valid ones.
    """
    check("preset", preset, tuple(PRESETS))
    valid = tuple(inspect.signature(LRFormer).parameters)[1:]
    for name in options:
        check("option", name, valid)
    return LRFormer(num_classes, **{**PRESETS[preset], **options})
