"""Low-resolution self-attention exactly as its equations read: Python loops over cells and pixels,
no tricks.

Made to be read beside paper.md and to be wrong nowhere; hopelessly slow on purpose. The letters are
those of paper.md. A function takes the map and the module of model.py whose weights it reads; the
code of that module is not used (but for a block's norms, which are torch's).
"""

import math

import torch

PYRAMID = (11, 8, 6, 4)  # sides of the key/value grids beside a query grid of side 16


def grid(size, side):
    """(A): `side` cells along the short side of the map, the other side in proportion. (H, W) ->
    (a, b)."""
    height, width = size
    short, long = min(height, width), max(height, width)
    other = math.floor(long * side / short + 0.501)  # to the nearest, exact halves up
    return (side, other) if width >= height else (other, side)  # (A)


def pyramid(side):
    """(B): sides of the four key/value grids that belong to a query grid of this side."""
    return tuple(math.floor(t * side / 16 + 0.501) for t in PYRAMID)  # (B)


def pool(x, cells):
    """(C): the mean of the pixels of each cell. x: [B, C, H, W], cells (a, b) -> [B, C, a, b].

    Nothing special happens where the map is smaller than the grid: cells then share pixels.
    """
    height, width = x.shape[-2:]
    rows = []
    for i in range(cells[0]):
        top, bottom = math.floor(i * height / cells[0]), math.ceil((i + 1) * height / cells[0])
        row = []
        for j in range(cells[1]):
            left, right = math.floor(j * width / cells[1]), math.ceil((j + 1) * width / cells[1])
            pixels = [x[:, :, y, z] for y in range(top, bottom) for z in range(left, right)]
            row.append(sum(pixels) / len(pixels))  # (C)
        rows.append(torch.stack(row, dim=-1))  # [B, C, b]
    return torch.stack(rows, dim=-2)  # [B, C, a, b]


def linear(vectors, weight, bias):
    """One output number after the other. vectors: [B, C], weight: [D, C] -> [B, D]."""
    out = [(row * vectors).sum(1) for row in weight]
    return torch.stack(out, dim=1) + bias


def convolve(z, conv):
    """Depth-wise 3x3 convolution, what lies outside the map counts as 0.

    z: [B, C, H, W], conv: a convolution with kernels [C, 1, 3, 3] and bias -> [B, C, H, W].
    """
    height, width = z.shape[-2:]
    rows = []
    for i in range(height):
        row = []
        for j in range(width):
            value = conv.bias
            for u in (-1, 0, 1):
                for w in (-1, 0, 1):
                    if 0 <= i + u < height and 0 <= j + w < width:
                        value = value + conv.weight[:, 0, u + 1, w + 1] * z[:, :, i + u, j + w]
            row.append(value.expand(len(z), -1))
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def queries(cells, attention):
    """(D): one query per cell, row after row. cells: [B, C, a, b] -> [B, m, C] with m = a * b.

    attention: a `model.Attention`.
    """
    q = []
    for i in range(cells.shape[2]):
        for j in range(cells.shape[3]):
            cell = cells[:, :, i, j]
            q.append(linear(cell, attention.query.weight, attention.query.bias))  # (D)
    return torch.stack(q, dim=1)


def keys_values(maps, attention, convs=()):
    """(E): the tokens of all pyramid levels, normalised, as keys and values.

    maps: [[B, C, a_k, b_k], ...], attention: a `model.Attention`, convs: one depth-wise convolution
    per level, or none -> two [B, n, C].
    """
    keys, values = [], []
    channels = maps[0].shape[1]
    for level, z in enumerate(maps):
        if convs:
            z = z + convolve(z, convs[level])
        for i in range(z.shape[2]):
            for j in range(z.shape[3]):
                token = z[:, :, i, j]
                mean = token.mean(1, keepdim=True)
                variance = ((token - mean) ** 2).mean(1, keepdim=True)
                token = (token - mean) / torch.sqrt(variance + 1e-5)
                token = token * attention.norm.weight + attention.norm.bias
                layer = attention.key_value
                both = linear(token, layer.weight, layer.bias)  # (E)
                keys.append(both[:, :channels])
                values.append(both[:, channels:])
    return torch.stack(keys, dim=1), torch.stack(values, dim=1)


def attend(q, k, v, heads):
    """(F) without its output projection. q: [B, m, C], k, v: [B, n, C] -> [B, m, C]."""
    d = q.shape[2] // heads
    cells = []
    for i in range(q.shape[1]):
        parts = []
        for head in range(heads):
            own = slice(head * d, (head + 1) * d)
            scores = [
                (q[:, i, own] * k[:, t, own]).sum(1) / math.sqrt(d) for t in range(k.shape[1])
            ]
            largest = torch.stack(scores).amax(0)  # subtracted so that exp cannot overflow
            weights = [torch.exp(score - largest) for score in scores]
            total = sum(weights)
            mixed = sum((w / total)[:, None] * v[:, t, own] for t, w in enumerate(weights))  # (F)
            parts.append(mixed)
        cells.append(torch.cat(parts, dim=1))
    return torch.stack(cells, dim=1)


def enlarge(o, size):
    """(G): bilinear interpolation, align_corners False. o: [B, C, a, b] -> [B, C, H, W] with
    (H, W) = size."""

    def taps(y, pixels, cells):
        """The two cells that pixel y reads, as (cell, weight)."""
        position = max((y + 0.5) * cells / pixels - 0.5, 0)
        floor = math.floor(position)
        return (floor, 1 - (position - floor)), (min(floor + 1, cells - 1), position - floor)

    rows = []
    for y in range(size[0]):
        row = []
        for x in range(size[1]):
            value = 0
            for i, wy in taps(y, size[0], o.shape[2]):
                for j, wx in taps(x, size[1], o.shape[3]):
                    value = value + wy * wx * o[:, :, i, j]  # (G)
            row.append(value)
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def lrsa(x, attention, convs=()):
    """Low-resolution self-attention, (A) to (G). x: [B, C, H, W] -> [B, C, H, W], any H, W >= 1.

    attention: a `model.Attention`. convs: see `keys_values`.
    """
    size = x.shape[-2:]
    cells = grid(size, attention.side)
    q = queries(pool(x, cells), attention)
    k, v = keys_values([pool(x, grid(size, side)) for side in attention.sides], attention, convs)
    o = attend(q, k, v, attention.heads)
    layer = attention.output
    o = [linear(o[:, i], layer.weight, layer.bias) for i in range(o.shape[1])]
    return enlarge(torch.stack(o, dim=2).unflatten(2, cells), size)


def feed_forward(x, ffn):
    """(I). x: [B, C, H, W], ffn: a `model.FeedForward` -> [B, C, H, W]."""
    height, width = x.shape[-2:]

    def everywhere(z, layer):
        """A linear layer at every position. [B, C, H, W] -> [B, D, H, W]."""
        rows = []
        for i in range(height):
            row = [linear(z[:, :, i, j], layer.weight, layer.bias) for j in range(width)]
            rows.append(torch.stack(row, dim=-1))
        return torch.stack(rows, dim=-2)

    u = everywhere(x, ffn.widen)
    u = u * (1 + torch.erf(u / math.sqrt(2))) / 2  # GELU
    u = u + convolve(u, ffn.conv)
    return everywhere(u, ffn.narrow)  # (I)


def block(x, module, convs=()):
    """(H) without stochastic depth.

    x: [B, C, H, W], module: a `model.Block` -> [B, C, H, W]. Where it has a `pre_norm`, that comes
    first, on the stream itself. gamma_1 and gamma_2 are `scale1` and `scale2`.
    """
    if module.pre_norm is not None:
        x = module.pre_norm(x)
    x = x + convolve(x, module.position)
    if module.attention is not None:
        x = x + scaled(lrsa(module.norm1(x), module.attention, convs), module.scale1)
    y = feed_forward(module.norm2(x), module.feed_forward)
    return x + scaled(y, module.scale2)  # (H)


def scaled(y, gamma):
    """gamma * y, one channel after the other; y where gamma is None. y: [B, C, H, W], gamma:
    [C]."""
    if gamma is None:
        return y
    return torch.stack([factor * y[:, c] for c, factor in enumerate(gamma)], dim=1)


def decode(features, decoder):
    """(J) without dropout. features: (c2, c3, c4), decoder: a `model.Decoder`
    -> [B, classes, H/8, W/8].

    All maps are enlarged first and stand side by side; then come the 1x1 convolutions.
    """
    def everywhere(z, conv):
        """A 1x1 convolution. [B, C, H, W] -> [B, D, H, W]."""
        out = torch.einsum("dc,bchw->bdhw", conv.weight[:, :, 0, 0], z)
        return out if conv.bias is None else out + conv.bias[:, None, None]

    c2, c3, c4 = features
    size = c2.shape[-2:]
    c3, c4 = enlarge(c3, size), enlarge(c4, size)
    p = decoder.bn1(everywhere(torch.cat([c2, c3, c4], dim=1), decoder.squeeze1)).clamp(min=0)
    p = block(p, decoder.fuse1)  # (K)
    p = decoder.bn2(everywhere(torch.cat([p, c4], dim=1), decoder.squeeze2)).clamp(min=0)
    p = block(p, decoder.fuse2)
    return everywhere(p, decoder.classifier)  # (J)
