"""UN-EPT: A Unified Efficient Pyramid Transformer for Semantic Segmentation (Zhu, Zhu, Zhang, Wu,
Fu, Li; ICCV 2021 workshop).

Read from top to bottom beside paper.md: full attention, sparse attention, the layers, the network.
The letters are those of paper.md. naive.py says the same with loops. boundary.py holds what happens
at class boundaries, fast.py a quicker way to do what `deformable_attention` does: read it later.

Shapes: B images, Q queries, S source pixels (all levels one after the other, each row by row),
C channels, M heads of D = C / M channels, L levels, N points per level and head. Sizes are (H, W),
points are (x, y). Sizes in comments are those of an image of 480 x 480 (preset "resnet50").
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from . import fast
from .boundary import boundary_head, boundary_loss, enlarge, refine, total_loss
from .checks import check, check_classes, check_images
from .resnet import ResNet
from .vit import VisionTransformer

# ----------------------------------------------------------------------------------- the attention


def full_attention(q, k, v, dropout_p=0.0):
    """What sparse attention replaces: every query is compared with every source and reads them all.

        A = softmax(Q K^T / sqrt(d))                                                        (A)
        Attn = A V                                                                          (B)

    q: [B, M, Q, d], k: [B, M, S, d], v: [B, M, S, D] -> [B, M, Q, D], where here d = D = C / M. The
    authors' talk divides by the root of the whole width C; their code, like everybody, by that of
    d.
    """
    a = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)      # (A)  [B, M, Q, S]
    return F.dropout(a, dropout_p) @ v                                      # (B)  [B, M, Q, D]


class DeformableAttention(nn.Module):
    """Attention that is predicted, not compared: each query names a few places and reads those.

        V = X W^V + b^V                         the source, for M heads                     (C)
        Delta = z W^off + b^off                 where to look, in pixels of the level       (D)
        a = softmax over l, n of (z W^att + b^att)     with what weight                     (E)
        p = r + Delta / (W_l, H_l)              the points, 0 .. 1 on every level           (F)
        bil(V; p) = sum over i, j of (1 - |y - i|) (1 - |x - j|) V_ij,                      (G)
            in pixels: (x, y) = p * (W_l, H_l) - 1/2
        Attn_q = sum over l, n of a bil(V^l; p)                                             (H)
        out = [Attn of head 1, .., Attn of head M] W^O + b^O                                (J)

    where z, `query` [B, Q, C], are a pixel's features; r, `reference` [B, Q, 2], is its place, (x,
    y) in 0 .. 1; X, `source` [B, S, C], are all levels; `shapes` are their L sizes (H_l, W_l); V is
    [B, S, M, D], Delta and p are [B, Q, M, L, N, 2], a is [B, Q, M, L, N]; i, j run over the four
    pixels around p, and V_ij is 0 outside the map. There is no key: no query is compared with
    anything. How the authors' talk writes (D), (E) and (H) is in paper.md.

    fast: whether to take (G) and (H) from fast.py. -> [B, Q, C].
    """

    def __init__(self, channels, heads, levels, points, fast=True):
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads={heads} must divide channels={channels}")
        self.heads, self.levels, self.points, self.fast = heads, levels, points, fast
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.initialise()

    def forward(self, query, reference, source, shapes):    # [B, 3600, C], .., [B, 10800, C], ..
        attend = fast.deformable_attention if self.fast else deformable_attention
        v = self.value_proj(source).unflatten(2, (self.heads, -1))          # (C)  [B, S, M, D]
        delta, a = self.predict(query)                                      # (D), (E)
        p = sampling_locations(reference, delta, shapes)                    # (F)
        x = attend(v, shapes, p, a)                                         # (G), (H)  [B, Q, C]
        return self.output_proj(x)                                          # (J)  [B, Q, C]

    def predict(self, query):
        """Delta and a, linear in the query alone. [B, Q, C] -> [B, Q, M, L, N, 2], [B, Q, M, L, N].

        One softmax over all levels: they compete, so a query may leave a level out.
        """
        sizes = (self.heads, self.levels, self.points)
        delta = self.sampling_offsets(query).unflatten(2, (*sizes, 2))      # (D)
        scores = self.attention_weights(query).unflatten(2, (self.heads, -1))
        return delta, scores.softmax(-1).unflatten(3, sizes[1:])            # (E)

    def initialise(self):
        """All points count the same; head m looks into compass direction m, point n lies n + 1
        pixels away."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        compass = torch.stack([angle.cos(), angle.sin()], dim=-1)           # [M, 2]
        compass = compass / compass.abs().amax(-1, keepdim=True)            # on a square
        bias = compass[:, None, None] * torch.arange(1, self.points + 1)[:, None]   # [M, 1, N, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)


def sampling_locations(reference, offsets, shapes):
    """The points, so that every map spans 0 .. 1 along both axes whatever its resolution.

    reference [B, Q, 2], offsets [B, Q, M, L, N, 2], shapes L pairs (H, W) -> [B, Q, M, L, N, 2].
    """
    parts = [torch.stack([moved[..., 0] / width, moved[..., 1] / height], dim=-1)
             for moved, (height, width) in zip(offsets.unbind(3), shapes, strict=True)]
    return reference[:, :, None, None, None] + torch.stack(parts, dim=3)    # (F)


def deformable_attention(value, shapes, locations, weights):
    """(G) and (H): every head of every query reads N points on each of L levels and adds them up.

    value [B, S, M, D], shapes L pairs (H, W), locations [B, Q, M, L, N, 2], (x, y) in 0 .. 1,
    weights [B, Q, M, L, N] -> [B, Q, M * D]. Stores C * Q * N numbers per level.
    """
    # Half precision cannot tell the pixels of a big map apart.
    kind, full = value.dtype, torch.promote_types(locations.dtype, torch.float32)
    p, a = (t.to(full).transpose(1, 2).flatten(0, 1) for t in (locations, weights))  # [B*M, Q, ..]
    out = 0
    for level, part in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        maps = part.to(full).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shapes[level])
        # maps [B*M, D, H, W]. grid_sample counts from -1 to 1; align_corners=False is (G)'s -1/2.
        grid = 2 * p[:, :, level] - 1                                       # [B*M, Q, N, 2]
        read = F.grid_sample(maps, grid, align_corners=False)               # (G)  [B*M, D, Q, N]
        out = out + (read * a[:, None, :, level]).sum(-1)                   # (H)  [B*M, D, Q]
    out = out.unflatten(0, (value.shape[0], -1)).permute(0, 3, 1, 2)        # [B, Q, M, D]
    return out.flatten(2).to(kind)                                          # [B, Q, M*D]


def attention_matrix(shapes, locations, weights):
    """The A of `Attn = A V` for sparse attention, to stand beside that of (A) and (B).

        A[q, s] = what query q reads of a source that is 1 at pixel s and 0 elsewhere       (I)

    [B, M, Q, S]. At most 4 L N entries of a row are not zero, and no row sums to more than 1.
    """
    batch, _, heads = locations.shape[:3]
    sources = sum(height * width for height, width in shapes)
    ones = torch.eye(sources).to(weights)[:, None].expand(batch, sources, heads, sources)
    a = deformable_attention(ones, shapes, locations, weights)              # (I)  [B, Q, M*S]
    return a.unflatten(2, (heads, sources)).transpose(1, 2)


# ----------------------------------------------------------------------------- encoder and decoder


@fast.kept
def pixel_centres(height, width, like):
    """Centres (x, y) of the pixels of a map that spans 0 .. 1. [H*W, 2], in float32 at least."""
    y, x = ((torch.arange(size, dtype=torch.float64) + 0.5) / size for size in (height, width))
    centres = torch.cartesian_prod(y, x).flip(1)                            # [H*W, 2], x first
    return centres.to(like.device, torch.promote_types(like.dtype, torch.float32))


@fast.kept
def sine_position(height, width, channels, like):
    """Fixed position embedding [H*W, C]: the first half of the channels from y, the rest from x."""
    frequency = 10000 ** -(torch.arange(0, channels, 4, dtype=torch.float64) / channels)    # [C/4]
    halves = []
    for size in (height, width):
        u = 2 * math.pi * torch.arange(1, size + 1, dtype=torch.float64) / (size + 1e-6)
        phase = u[:, None] * frequency                                      # [size, C/4]
        halves.append(torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1))   # [size, C/2]
    y, x = halves[0][:, None].expand(-1, width, -1), halves[1].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1).to(like)


class SelfAttention(nn.Module):
    """(A) and (B) among the queries of the decoder. There are three readings of which queries.

    mixing "none": a query attends to itself alone; the softmax of one score is 1.
    "batch": to the queries at its position in all images of the batch, as the released code does
    while training. "pixels": to all queries of its image, as was probably meant.
    All three have the same parameters. [B, Q, C] -> [B, Q, C].
    """

    def __init__(self, channels, heads, mixing, dropout, fast=True):
        super().__init__()
        self.heads, self.mixing, self.dropout, self.fast = heads, mixing, dropout, fast
        self.projection = nn.Linear(channels, 3 * channels)     # rows: queries, keys, values
        self.output = nn.Linear(channels, channels)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, x):
        attend = F.scaled_dot_product_attention if self.fast else full_attention
        dropout = self.dropout if self.training else 0.0
        x = x.transpose(0, 1) if self.mixing == "batch" else x      # then the batch is the sequence
        # q, k and v are [B, M, Q, D] each; with "batch" B and Q have changed places
        q, k, v = self.projection(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.mixing == "none":  # q and k do nothing: A is 1, which dropout may set to 0
            x = v * F.dropout(torch.ones_like(v[..., :1]), dropout)         # (B)  [B, M, Q, D]
        else:
            x = attend(q, k, v, dropout_p=dropout)                          # (A), (B)
        x = self.output(x.transpose(1, 2).flatten(2))                       # [B, Q, C]
        return x.transpose(0, 1) if self.mixing == "batch" else x


def feed_forward(channels, hidden, dropout):
    """Linear, ReLU, linear, each followed by dropout."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Dropout(dropout),
                         nn.Linear(hidden, channels), nn.Dropout(dropout))


class EncoderLayer(nn.Module):
    """Every pixel of the pyramid looks at the pyramid. [B, S, C] -> [B, S, C].

        X <- norm(X + attention(X + position, r, X)),  X <- norm(X + FFN(X))

    where attention is `DeformableAttention` and r are the pixels' own places. `position` is added
    to the queries alone: it helps to decide where to look, and is not part of what is read. It is
    `sine_position` plus one learned vector per level.
    """

    def __init__(self, channels, heads, levels, points, hidden, dropout, fast):
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points, fast)
        self.norm_attention = nn.LayerNorm(channels)
        self.ffn = feed_forward(channels, hidden, dropout)
        self.norm_ffn = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, position, reference, shapes):
        y = self.attention(x + position, reference, x, shapes)              # [B, S, C]
        x = self.norm_attention(x + self.dropout(y))
        return self.norm_ffn(x + self.ffn(x))


class DecoderLayer(nn.Module):
    """Every output pixel mixes with other queries, then looks at the pyramid. [B, Q, C] -> same.

        z <- norm(z + SelfAttention(z)),  z <- norm(z + attention(z, r, memory)),
        z <- norm(z + FFN(z))

    where attention is `DeformableAttention` and `memory` is what the encoder returns.
    """

    def __init__(self, channels, heads, levels, points, hidden, dropout, fast, mixing):
        super().__init__()
        self.self_attention = SelfAttention(channels, heads, mixing, dropout, fast)
        self.norm_self = nn.LayerNorm(channels)
        self.cross_attention = DeformableAttention(channels, heads, levels, points, fast)
        self.norm_cross = nn.LayerNorm(channels)
        self.ffn = feed_forward(channels, hidden, dropout)
        self.norm_ffn = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, reference, memory, shapes):
        x = self.norm_self(x + self.dropout(self.self_attention(x)))
        x = self.norm_cross(x + self.dropout(self.cross_attention(x, reference, memory, shapes)))
        return self.norm_ffn(x + self.ffn(x))


# ------------------------------------------------------------------------------------- the network


class SpatialBranch(nn.Sequential):
    """Three strided convolutions. [B, 3, H, W] -> [B, C, H/8, W/8], rounded up.

    No ReLU follows the third: queries have both signs.
    """

    def __init__(self, channels):
        layers, inputs = [], 3
        for outputs in (channels // 4, channels // 2, channels):
            convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        super().__init__(*layers[:-1])

    def forward(self, images):
        detail = super().forward(images)
        if detail.requires_grad:
            # For one image the gradient comes back transposed, with strides that PyTorch's
            # BatchNorm takes for contiguous on the CPU: its own gradient would be wrong, silently.
            detail.register_hook(torch.Tensor.contiguous)
        return detail


class UNEPT(nn.Module):
    """Backbone, context branch (encoder and decoder), spatial branch, boundary heads.

        z = spatial(image) + e            dynamic, learnable queries, one per output pixel  (K)

    where z [B, Q, C], spatial(image) differs from image to image, and e, `query_embed` [Q, C], is
    learned, one vector per position. Arguments: see `build`.

    forward: images [B, 3, H, W], any H, W >= 32 -> {"out": [B, num_classes, H, W]}, with boundary
    heads also "mask" [B, 2, h, w] and "direction" [B, 8, h, w], h = ceil(H / 8), w = ceil(W / 8).
    All are scores before the softmax.
    """

    def __init__(self, num_classes, backbone, img_size, channels, heads, levels, points, depth,
                 hidden, dropout, decoder_mixing, spatial, boundary, refine, context, fast):
        super().__init__()
        self.refine, self.context, self.side = refine, context, img_size // 8
        self.backbone = make_backbone(backbone, img_size, context)
        self.multiple = getattr(self.backbone, "patch", 1)      # of which image sides must be one
        inputs = self.backbone.channels[-(levels if context else 1):]
        self.pyramid = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        if not context:
            return
        sizes = (channels, heads, levels, points, hidden, dropout, fast)
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes, decoder_mixing) for _ in range(depth))
        self.query_embed = nn.Parameter(torch.randn(self.side**2, channels))
        self.spatial_branch = SpatialBranch(channels) if spatial else None
        self.mask_head = boundary_head(channels, 2) if boundary else None
        self.direction_head = boundary_head(channels, 8) if boundary else None
        initialise(self.encoder)
        initialise(self.decoder)

    def forward(self, images):                                              # [B, 3, 480, 480]
        check_images(images, traceable=False)
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        size = images.shape[-2:]
        grid = [math.ceil(side / 8) for side in size]                       # 60 x 60
        maps = self.backbone(images)[-len(self.pyramid):]
        maps = [project(x) for project, x in zip(self.pyramid, maps, strict=True)]  # [B, C, 60, 60]
        if self.context:
            x, outputs = self.decode(images, maps, grid)                    # [B, C, 60, 60]
        else:
            x, outputs = F.interpolate(maps[0], grid, mode="bilinear"), {}
        # What was padded is cut off again. scores: [B, classes, 480, 480]
        scores = F.interpolate(self.classifier(x), size, mode="bilinear")[..., :height, :width]
        grid = [math.ceil(side / 8) for side in (height, width)]
        outputs = {name: x[..., : grid[0], : grid[1]] for name, x in outputs.items()}
        if self.refine and not self.training:
            scores = refine(scores, *enlarge(outputs, (height, width)))
        return {"out": scores, **outputs}

    def decode(self, images, maps, grid):
        """What every output pixel has read, and the boundary scores.

        images [B, 3, H, W], L maps [B, C, H_l, W_l] -> [B, C, *grid], {name: [B, 2 or 8, *grid]}.
        """
        memory, shapes = self.encode(maps)                                  # [B, 10800, C]
        queries, outputs = self.query_embedding(grid).expand(images.shape[0], -1, -1), {}
        if self.spatial_branch is not None:
            detail = self.spatial_branch(images)                            # [B, C, 60, 60]
            queries = queries + detail.flatten(2).transpose(1, 2)           # (K)  [B, 3600, C]
        if self.mask_head is not None:
            outputs = {"mask": self.mask_head(detail), "direction": self.direction_head(detail)}
        reference = pixel_centres(*grid, queries).expand(images.shape[0], -1, -1)   # [B, 3600, 2]
        for layer in self.decoder:
            queries = layer(queries, reference, memory, shapes)
        return queries.transpose(1, 2).unflatten(2, grid), outputs

    def encode(self, maps):
        """The pyramid as one sequence that has looked at itself. -> [B, S, C], L pairs (H, W)."""
        shapes = [tuple(x.shape[-2:]) for x in maps]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # [B, S, C]
        positions = [sine_position(*shape, x.shape[2], x) for shape in shapes]
        position = torch.cat([s + e for s, e in zip(positions, self.level_embed, strict=True)])
        reference = torch.cat([pixel_centres(*shape, x) for shape in shapes])   # [S, 2]
        for layer in self.encoder:
            x = layer(x, position, reference.expand(x.shape[0], -1, -1), shapes)
        return x, shapes

    def query_embedding(self, grid):
        """e, resized where the output has another size than img_size / 8. [1, Q, C]."""
        if grid == [self.side, self.side]:
            return self.query_embed[None]
        picture = self.query_embed.T.unflatten(1, (self.side, self.side))[None]     # [1, C, .., ..]
        return F.interpolate(picture, grid, mode="bilinear").flatten(2).transpose(1, 2)

    def loss(self, outputs, label, cross_entropy):
        """The training loss, a scalar.

        outputs: of `forward` in training mode. label: int64 [B, H, W], 255 = void.
        cross_entropy(scores, label): the whole loss of a network without boundary heads. With them
        the loss is that of the released training, `boundary.boundary_loss`.
        """
        if "mask" not in outputs:
            return cross_entropy(outputs["out"], label)
        return total_loss(boundary_loss(outputs["out"], *enlarge(outputs, label.shape[1:]), label))


def make_backbone(name, img_size, context):
    """The last three maps: "resnet50" all at 1/8, "deit" at 1/16, "tiny" at 1/8, 1/16, 1/32."""
    if name == "tiny":
        # Without context only the finest map is read, and the coarser stages would be idle.
        return ResNet("tiny", strides=(2, 2, 2, 2) if context else (2, 2))
    if name == "resnet50":
        return ResNet("resnet50", (32, 32, 64), (1, 2, 1, 1), (1, 1, 2, 4), contract=True)
    return VisionTransformer(img_size)


def initialise(layers):
    """Xavier for all matrices of encoder or decoder; then the sparse attention gets its compass."""
    for module in layers.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for module in layers.modules():
        if isinstance(module, DeformableAttention):
            module.initialise()


def check_sizes(o):
    """Raise a ValueError where options do not fit each other."""
    multiple = 16 if o["backbone"] == "deit" else 8
    rules = (
        ("img_size", o["img_size"] >= 32 and o["img_size"] % multiple == 0,
         f"a multiple of {multiple}, at least 32"),
        *((name, o[name] > 0, "positive") for name in ("points", "depth")),
        ("channels", o["channels"] % 4 == 0, "a multiple of 4"),
        ("refine", o["boundary"] or not o["refine"], "False without boundary, spatial, context"))
    for name, holds, demand in rules:
        if not holds:
            raise ValueError(f"{name} must be {demand}, not {o[name]}")


DEFAULTS = dict(
    backbone="resnet50", img_size=480, channels=256, heads=8, levels=3, points=16, depth=2,
    hidden=2048, dropout=0.1, decoder_mixing="none", spatial=True, boundary=True, refine=False,
    context=True, fast=True)

PRESETS = {
    # Without boundary heads, whose loss outweighs all else in the few steps of a laptop.
    "tiny": dict(backbone="tiny", img_size=128, channels=64, heads=8, points=4, depth=1, hidden=128,
                 dropout=0.0, boundary=False),
    "resnet50": dict(), "deit": dict(backbone="deit"),
    "deit_cityscapes": dict(backbone="deit", img_size=768),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any of these options overridden.

    backbone: "resnet50" (deep stem, dilated), "deit" (both the paper's) or "tiny" (for a laptop).
    img_size: side in pixels for which the query embedding, (img_size / 8)^2, and the position
        embedding of "deit" are made; others are resized. 480, or 768 for the paper's Cityscapes.
    channels: C. heads: M. depth: layers of encoder and of decoder. hidden: width of the FFN.
        dropout: in both. Those of the released code, smaller in "tiny".
    levels: L, 1 to 3, the last L of the three maps. points: N. Both vary in the paper's table 6.
    decoder_mixing: of `SelfAttention`. "none" is the released network, which is always tested on
        one image at a time; "batch" the released training; "pixels" the decoder as it is described.
    spatial: False drops the spatial branch of (K) and the boundary heads; a row of table 5.
    boundary: False drops the boundary heads and their losses, as table 6 does.
    refine: True lets the boundary heads correct the output in evaluation, as the paper's figure 4.
    context: False keeps only the backbone's last map ("tiny": that at 1/8), a 1x1 convolution and
        the classifier.
    fast: False runs the attention as it stands in model.py; True takes (G) and (H) from fast.py,
        and (A) and (B) from PyTorch.

    Returns a module: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, see `UNEPT`. Raises
    ValueError for an unknown preset or option, naming the valid ones.
    """
    check_classes(num_classes)
    check("preset", preset, tuple(PRESETS))
    for name in options:
        check("option", name, tuple(DEFAULTS))
    o = {**DEFAULTS, **PRESETS[preset], **options}
    check("backbone", o["backbone"], ("resnet50", "deit", "tiny"))
    check("decoder_mixing", o["decoder_mixing"], ("none", "batch", "pixels"))
    check("levels", o["levels"], (1, 2, 3))
    o["boundary"] = o["boundary"] and o["spatial"] and o["context"]
    check_sizes(o)
    return UNEPT(num_classes, **o)
