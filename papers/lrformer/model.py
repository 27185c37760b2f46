"""LRFormer: Low-Resolution Self-Attention for Semantic Segmentation (Wu et al., arXiv 2310.05026;
TPAMI 2025).

Read from top to bottom beside paper.md: the attention, the block, the decoder, the encoder. The
letters are those of paper.md. naive.py says the same with loops. fast.py holds exact shortcuts,
taken where `fast` is True: read it later or never.

Shapes: B images, C channels, a map of H x W positions; m = a * b query cells, n key/value tokens,
h heads of d = C / h channels. Sizes in comments are those of LRFormer-T on 512 x 512 pixels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from . import fast
from .checks import check, check_classes, check_images

PYRAMID = (11, 8, 6, 4)  # sides of the key/value grids beside a query grid of side 16
IGNORE = 255  # label of pixels that do not count

# Blocks of stage 3, counted from 0, that begin with a BatchNorm, where the stage has more than 20
# blocks: only LRFormer-XL. No norm follows a stage, so each block makes the stream larger; the
# authors' reason is that float16 overflows.
NORMED_BLOCKS = (7, 15)


class Attention(nn.Module):
    """Low-Resolution Self-Attention (LRSA): cells of a small grid ask, cells of four smaller ones
    answer, and the answers are enlarged to the map.

        g(s) = the grid whose short side has s cells, in the map's aspect ratio              (A)
        s_1, ..., s_4 = s (11, 8, 6, 4) / 16, rounded                                        (B)
        pool_g(x) = the mean of each cell of grid g                                          (C)
        Q = query(pool_g(s)(x))                                                              (D)
        z_k = pool_g(s_k)(x),  z_k = z_k + DW_k(z_k),                                        (E)
        [K, V] = key_value(norm(z_1, ..., z_4 as one list of tokens))                        (E)
        A = softmax(Q K^T / sqrt(d)) in each head,  O = output(A V)                          (F)
        y = O enlarged to H x W, bilinear                                                    (G)

    where x and y are [B, C, H, W], s is `side`, g(s) has a x b = m cells, Q and O are [B, m, C];
    K and V are [B, n, C] with n the cells of the four smaller grids; A is [B, h, m, n]: each cell's
    weights over the n tokens sum to 1. DW_k are four 3x3 depth-wise convolutions, which belong to
    the stage: all its blocks share them, and the decoder has none. norm is over C.
    The abstract speaks of a fixed low-resolution space; in the official code only the short side is
    fixed. m and n do not depend on the resolution, and grow with the aspect ratio.

    channels: C. heads: h, must divide C. side: s, at least 2. fast: see fast.attention.
    """

    def __init__(self, channels, heads, side, fast=True):
        super().__init__()
        if channels % heads:
            raise ValueError(f"num_heads: {heads} heads do not divide {channels} channels")
        self.heads, self.side, self.sides, self.fast = heads, side, pyramid(side), fast
        if min(self.sides) < 1:
            raise ValueError(f"pool sizes must be at least 2, not {side}: a key grid has no cell")
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.norm = nn.LayerNorm(channels, eps=1e-5)  # of the tokens; the block's norms have 1e-6
        self.output = nn.Linear(channels, channels)

    def forward(self, x, convs=()):                                 # [B, C, 128, 128]
        if self.fast:
            return fast.attention(x, self, convs)
        size = x.shape[-2:]
        cells, *grids = (grid(size, s) for s in (self.side, *self.sides))           # (A)
        q = self.query(as_tokens(pool(x, cells)))                   # (D)  [B, 256, C]
        k, v = self.keys_values([pool(x, g) for g in grids], convs)  # (E)  [B, 237, C]
        q, k, v = (by_head(t, self.heads) for t in (q, k, v))       # [B, h, 256 or 237, d]
        a = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)    # (F)  [B, h, 256, 237]
        o = self.output((a @ v).transpose(1, 2).flatten(2))         # (F)  [B, 256, C]
        return enlarge(as_map(o, cells), size)                      # (G)  [B, C, 128, 128]

    def keys_values(self, levels, convs=()):
        """Keys and values of the pyramid. levels: [[B, C, a_k, b_k], ...], convs: one convolution
        for each, or none -> two [B, n, C]."""
        if convs:
            levels = [z + conv(z) for z, conv in zip(levels, convs, strict=True)]   # (E)
        tokens = torch.cat([as_tokens(z) for z in levels], dim=1)   # (E)  [B, 237, C]
        return self.key_value(self.norm(tokens)).chunk(2, dim=-1)   # (E)  [B, 237, C] each


class FeedForward(nn.Module):
    """What every position does by itself, and with its eight neighbours.

        u = GELU(widen(x)),  u = u + DW(u),  y = narrow(u)                                   (I)

    where x and y are [B, C, H, W], u is [B, r C, H, W]; widen and narrow are the same linear maps
    at every position, DW is a 3x3 depth-wise convolution. No activation follows DW.

    channels: C. ratio: r, 8 in stages 1 and 2, otherwise 4. fast: see fast.feed_forward.
    """

    def __init__(self, channels, ratio, fast=True):
        super().__init__()
        self.ratio, self.fast = ratio, fast
        self.widen = nn.Linear(channels, ratio * channels)
        self.conv = depthwise(ratio * channels)
        self.narrow = nn.Linear(ratio * channels, channels)

    def forward(self, x):                                           # [B, C, 128, 128]
        if self.fast:
            return fast.feed_forward(x, self)
        u = F.gelu(at_each_position(self.widen, x))                 # (I)  [B, 8 C, 128, 128]
        u = u + self.conv(u)                                        # (I)  [B, 8 C, 128, 128]
        return at_each_position(self.narrow, u)                     # (I)  [B, C, 128, 128]


class Block(nn.Module):
    """Position encoding, attention, feed-forward: each is added to the stream x.

        x = x + DW(x)                                                                        (H)
        x = x + drop(gamma_1 * LRSA(norm1(x)))                                               (H)
        x = x + drop(gamma_2 * FFN(norm2(x)))                                                (H)

    where x is [B, C, H, W], DW a 3x3 depth-wise convolution, gamma_1 and gamma_2 are [C] (scale1,
    scale2; None stands for 1), norms are over C, and drop is stochastic depth.

    channels, heads, side: see `Attention`. ratio: see `FeedForward`. norm: class of the two norms.
    layer_scale: start value of gamma, None for no gamma. drop_path: share of the samples that skip
    a branch in training. pre_norm: BatchNorm on the stream itself, see NORMED_BLOCKS.
    context: False leaves out the attention with its norm and gamma_1. fast: see fast.py.

    forward: x [B, C, H, W], convs: see `Attention` -> [B, C, H, W].
    """

    def __init__(self, channels, heads, side, ratio, norm, layer_scale, drop_path=0.0,
                 pre_norm=False, context=True, fast=True):
        super().__init__()
        self.fast = fast
        self.pre_norm = nn.BatchNorm2d(channels) if pre_norm else None
        self.position = depthwise(channels)
        self.norm1 = norm(channels) if context else None
        self.attention = Attention(channels, heads, side, fast) if context else None
        self.scale1 = gamma(channels, layer_scale) if context else None
        self.norm2 = norm(channels)
        self.feed_forward = FeedForward(channels, ratio, fast)
        self.scale2 = gamma(channels, layer_scale)
        self.drop = DropPath(drop_path)

    def forward(self, x, convs=()):                                 # [B, C, 128, 128]
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = fast.plus(x, self.position) if self.fast else x + self.position(x)      # (H)
        if self.attention is not None:
            y = self.attention(self.norm1(x), convs)                # (A) to (G)
            x = x + self.drop(scaled(y, self.scale1))               # (H)
        y = self.feed_forward(self.norm2(x))                        # (I)
        return x + self.drop(scaled(y, self.scale2))                # (H)  [B, C, 128, 128]


class Decoder(nn.Module):
    """Two blocks at stride 8 on the maps of the last three stages, then a 1x1 classifier.

        p = ReLU(BN_1(squeeze1(c2, up(c3), up(c4))))                                         (J)
        p = Block_1(p),  p = ReLU(BN_2(squeeze2(p, up(c4)))),  p = Block_2(p)                (J)
        scores = classifier(dropout(p))                                                      (J)
        Block_1, Block_2: (H) with BatchNorm, 8 heads, r = 4, no DW_k                        (K)

    where c2, c3, c4 are [B, C_i, H/8, W/8] to [B, C_i, H/32, W/32], up is `enlarge` to the size of
    c2, squeeze1 and squeeze2 are 1x1 convolutions of the maps side by side, and p is
    [B, D, H/8, W/8].

    widths: channels of c2, c3, c4. channels: D. side: see `Attention`. layer_scale, context: see
    `Block`. fast: see fast.squeeze. forward: (c2, c3, c4) -> [B, num_classes, H/8, W/8].
    """

    def __init__(self, widths, num_classes, channels, side, layer_scale, context=True, fast=True):
        super().__init__()
        self.fast = fast
        self.squeeze1 = nn.Conv2d(sum(widths), channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.squeeze2 = nn.Conv2d(channels + widths[-1], channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        options = dict(heads=8, side=side, ratio=4, norm=nn.BatchNorm2d,            # (K)
                       layer_scale=layer_scale, context=context, fast=fast)
        self.fuse1 = Block(channels, **options)
        self.fuse2 = Block(channels, **options)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features):                                    # 64, 32 and 16 pixels a side
        c2, c3, c4 = features
        squeeze = fast.squeeze if self.fast else enlarge_and_squeeze
        p = self.bn1(squeeze((c2, c3, c4), self.squeeze1)).relu()   # (J)  [B, D, 64, 64]
        p = self.fuse1(p)                                           # (J)  [B, D, 64, 64]
        p = self.bn2(squeeze((p, c4), self.squeeze2)).relu()        # (J)  [B, D, 64, 64]
        p = self.fuse2(p)                                           # (J)  [B, D, 64, 64]
        return self.classifier(self.dropout(p))                     # (J)  [B, classes, 64, 64]


class Stage(nn.Module):
    """Halve the map (the first stage: quarter it), then blocks.

    embed: a module that does so. blocks: modules that take a map and the stage's convolutions.
    [B, C', H, W] -> [B, C, H/2, W/2], rounded up.
    """

    def __init__(self, embed, channels, blocks, context=True):
        super().__init__()
        self.embed = embed
        self.norm = ChannelNorm(channels)
        self.convs = nn.ModuleList(depthwise(channels) for _ in PYRAMID if context)  # DW_k of (E)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.norm(self.embed(x))
        for block in self.blocks:
            x = block(x, self.convs)
        return x


class Encoder(nn.Module):
    """Four stages. images [B, 3, H, W] -> (c1, c2, c3, c4) at strides 4, 8, 16, 32, rounded up.

    The arguments are options of `build`.
    """

    def __init__(self, embed_dims, depths, num_heads, mlp_ratios, pool_sizes, drop_path,
                 layer_scale, context=True, fast=True):
        super().__init__()
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()  # from 0, deeper
        self.stages = nn.ModuleList()
        for i, (channels, depth) in enumerate(zip(embed_dims, depths, strict=True)):
            inputs = embed_dims[i - 1]
            embed = nn.Conv2d(inputs, channels, 3, 2, 1) if i else stem(channels)
            normed = NORMED_BLOCKS if i == 2 and depth > 20 else ()
            blocks = [
                Block(
                    channels, num_heads[i], pool_sizes[i], mlp_ratios[i], ChannelNorm,
                    layer_scale if i >= 2 else None, rates[sum(depths[:i]) + j],
                    pre_norm=j in normed, context=context, fast=fast,
                )
                for j in range(depth)
            ]
            self.stages.append(Stage(embed, channels, blocks, context))

    def forward(self, images):
        # In memory [B, H, W, C] from here on: a position is one contiguous vector for norms and
        # linear layers, and no step has to copy a map into another order.
        x = images.contiguous(memory_format=torch.channels_last)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs)


class LRFormer(nn.Module):
    """Encoder, decoder on the last three of its maps, bilinear enlargement of the scores.

    The arguments are options of `build`. forward: images [B, 3, H, W], any H, W >= 32 ->
    {"out": [B, num_classes, H, W]}.
    """

    def __init__(self, num_classes, embed_dims, depths, num_heads, mlp_ratios, pool_sizes,
                 head_channels, head_pool_size, drop_path, layer_scale, init_std, loss_pixels,
                 context, fast):
        super().__init__()
        self.loss_pixels = loss_pixels
        self.backbone = Encoder(
            embed_dims, depths, num_heads, mlp_ratios, pool_sizes, drop_path, layer_scale, context,
            fast,
        )
        self.head = Decoder(
            embed_dims[1:], num_classes, head_channels, head_pool_size, layer_scale, context, fast
        )
        initialise(self, init_std)

    def scores(self, images):
        """[B, 3, H, W] -> [B, num_classes, H/8, W/8], sides rounded up: what the decoder gives."""
        return self.head(self.backbone(images)[1:])

    def forward(self, images):
        check_images(images, traceable=False)
        return {"out": enlarge(self.scores(images), images.shape[-2:])}

    def loss(self, outputs, label, cross_entropy):
        """Pixel cross-entropy. label: int64 [B, H, W], 255 = ignore. cross_entropy(scores, label):
        the mean over the valid pixels, used unless loss_pixels is "all"."""
        if self.loss_pixels == "valid":
            return cross_entropy(outputs["out"], label)
        scores = outputs["out"].float()
        total = F.cross_entropy(scores, label, ignore_index=IGNORE, reduction="sum")
        return total / label.numel()


def grid(size, side):
    """g(s): rows and columns of the grid whose short side has `side` cells. (H, W) -> (a, b).

    The 0.001 makes exact halves go up; Python's round alone would send 16.5 to the even 16.
    """
    height, width = size
    if width >= height:
        return side, round(width * side / height + 0.001)           # (A)
    return round(height * side / width + 0.001), side


def pyramid(side):
    """Sides of the four key/value grids beside a query grid of this side: 16 -> 11, 8, 6, 4."""
    return tuple(round(t * side / 16 + 0.001) for t in PYRAMID)     # (B)


def pool(x, cells):
    """The mean of each cell. x: [B, C, H, W], cells (a, b) -> [B, C, a, b].

    Row i of the cells covers pixels floor(i H / a) to ceil((i + 1) H / a) - 1: cells may overlap by
    a pixel, and repeat pixels where the map is smaller than the grid.
    """
    return F.adaptive_avg_pool2d(x, cells)                          # (C)


def enlarge(o, size):
    """Bilinear, align_corners False. o: [B, C, a, b] -> [B, C, H, W] with (H, W) = size."""
    return F.interpolate(o, size, mode="bilinear", align_corners=False)             # (G)


def enlarge_and_squeeze(maps, conv):
    """A 1x1 convolution of maps side by side, in the size of the first. -> [B, D, H, W]."""
    size = maps[0].shape[-2:]
    return conv(torch.cat([maps[0], *(enlarge(c, size) for c in maps[1:])], dim=1))


def as_tokens(z):
    """A map as a list of its cells, row after row. [B, C, a, b] -> [B, a * b, C]."""
    return z.flatten(2).mT


def as_map(t, cells):
    """The way back. t: [B, a * b, C], cells (a, b) -> [B, C, a, b]."""
    return t.mT.unflatten(2, tuple(cells))


def by_head(t, heads):
    """Channels cut into heads, side by side. [B, n, h * d] -> [B, h, n, d]."""
    return t.unflatten(2, (heads, -1)).transpose(1, 2)


def at_each_position(layer, x):
    """A layer of the last axis, applied to the channels of a map. [B, C, H, W] -> [B, D, H, W]."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of a map. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-6)

    def forward(self, x):
        return at_each_position(super().forward, x)


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is 0 with probability `rate`, else larger by
    1 / (1 - rate), so that the mean stays. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, y):
        if not self.training or not self.rate:
            return y
        keep = 1 - self.rate
        return y * (torch.rand(len(y), 1, 1, 1, device=y.device) < keep).to(y.dtype) / keep


def scaled(y, gamma):
    """gamma * y, channel by channel; y where gamma is None. y: [B, C, H, W], gamma: [C]."""
    return y if gamma is None else gamma[:, None, None] * y


def gamma(channels, start):
    """A learned factor per channel, or None without a start value."""
    return None if start is None else nn.Parameter(torch.full((channels,), float(start)))


def depthwise(channels):
    """DW: a 3x3 convolution that keeps channels apart and the size of the map."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def stem(channels):
    """The embedding of the first stage. [B, 3, H, W] -> [B, C, H/4, W/4], rounded up."""
    half = channels // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 3, 2, 1), nn.BatchNorm2d(half), nn.GELU(),
        nn.Conv2d(half, half, 3, 1, 1), nn.BatchNorm2d(half), nn.GELU(),
        nn.Conv2d(half, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.GELU(),
        nn.Conv2d(channels, channels, 3, 1, 1),
    )


def initialise(model, std):
    """Linear layers of the attentions: normal, cut at 2, bias 0. Squeezes: Kaiming normal, fan-out.
    Classifier: normal, std 0.01, bias 0. The rest keeps PyTorch's defaults."""
    for module in model.modules():
        if isinstance(module, Attention):
            for linear in (module.query, module.key_value, module.output):
                nn.init.trunc_normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
    head = model.head
    for block in (head.fuse1, head.fuse2):
        if block.attention is not None:  # a 1x1 convolution in the official code, with its weights
            block.attention.query.reset_parameters()
    for conv in (head.squeeze1, head.squeeze2):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    nn.init.zeros_(head.classifier.bias)


DEFAULTS = dict(
    embed_dims=(48, 96, 240, 384), depths=(2, 2, 6, 3), num_heads=(2, 4, 10, 16),
    mlp_ratios=(8, 8, 4, 4), pool_sizes=(16, 16, 16, 16), head_channels=256, head_pool_size=32,
    drop_path=0.1, layer_scale=1e-6, init_std=0.02, loss_pixels="valid", context=True, fast=True,
)

PRESETS = {
    "tiny": dict(
        embed_dims=(32, 48, 64, 96), depths=(1, 1, 1, 1), num_heads=(2, 3, 4, 6),
        mlp_ratios=(4, 4, 4, 4), pool_sizes=(8, 8, 4, 4), head_channels=96, head_pool_size=8,
        drop_path=0.0, layer_scale=1.0, init_std=0.1,
    ),
    "t": dict(embed_dims=(48, 96, 240, 384), depths=(2, 2, 6, 3), head_channels=256, drop_path=0.1),
    "s": dict(
        embed_dims=(64, 128, 320, 512), depths=(3, 3, 12, 3), head_channels=384, drop_path=0.2
    ),
    "b": dict(
        embed_dims=(80, 160, 400, 512), depths=(4, 4, 15, 8), head_channels=512, drop_path=0.4
    ),
    "l": dict(
        embed_dims=(96, 192, 480, 640), depths=(4, 6, 18, 8), head_channels=640, drop_path=0.6
    ),
    # Published as LRFormer-XL+ only, with a query decoder that is not part of this project. This
    # decoder, 768 channels wide, is our continuation of the series: no official weights fit it.
    "xl": dict(
        embed_dims=(128, 256, 640, 768), depths=(4, 8, 22, 8), head_channels=768, drop_path=0.4
    ),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any of these options overridden. Four numbers are one a stage.

    embed_dims, depths: channels and blocks, four each (the sizes T to XL; tiny).
    num_heads: four; must divide the channels (all sizes 2, 4, 10, 16; tiny).
    mlp_ratios: r of the feed-forward parts, four (all sizes 8, 8, 4, 4; tiny).
    pool_sizes: short side of the query grid, four, each at least 2 (all sizes 16; tiny).
    head_channels, head_pool_size: D and the query grid of the decoder (the sizes; 32; tiny).
    drop_path: stochastic depth of the last block, 0 to 1, growing linearly from 0 in the first (the
        released recipes).
    layer_scale: start value of gamma in stages 3 and 4 and in the decoder (released: 1e-6; tiny).
    init_std: of the initial weights of the attentions (released: 0.02; tiny: 0.1).
    loss_pixels: "valid", the mean over valid pixels, or "all", which divides by all pixels, ignored
        ones included (the released training).
    context: False leaves out every low-resolution self-attention (the rows without context).
    fast: True takes the exact shortcuts of fast.py, False is this file alone.

    Returns a module: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}. Raises ValueError for
    an unknown preset or option, naming the valid ones.
    """
    check_classes(num_classes)
    check("preset", preset, tuple(PRESETS))
    for name in options:
        check("option", name, tuple(DEFAULTS))
    options = {**DEFAULTS, **PRESETS[preset], **options}
    for name in ("embed_dims", "depths", "num_heads", "mlp_ratios", "pool_sizes"):
        if len(options[name]) != 4:
            raise ValueError(
                f"{name} needs one number for each of the four stages, not {options[name]!r}"
            )
    check("loss_pixels", options["loss_pixels"], ("valid", "all"))
    return LRFormer(num_classes, **options)
