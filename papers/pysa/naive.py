"""Pyramid self-attention exactly as its equations read: Python loops over cells and pixels, no
tricks.

Made to be read beside paper.md and to be wrong nowhere; hopelessly slow on purpose. The first five
functions take maps and numbers. Those below take maps and modules of model.py: pysa(x, level) is
what level(x) must be, and uses the weights of the level and its R and G, never its code.

All index arithmetic is done in integers, so that a pixel exactly on a border belongs to the same
cell on every machine. Tensors only hold the numbers (and carry the gradients).
"""

import math

import torch


def pool(x, cells):
    """(A): one feature per cell, the mean of its pixels.

    x: [B, C, H, W]. cells: N = R * G, the number of cells along a side. Returns [B, C, N, N]. Works
    for every H, W >= 1: neighbouring cells share pixels where N does not divide the side, and
    repeat them where N is larger than it.
    """
    height, width = x.shape[-2:]
    rows = []
    for i in range(cells):
        row = []
        for j in range(cells):
            top, bottom = i * height // cells, math.ceil((i + 1) * height / cells)
            left, right = j * width // cells, math.ceil((j + 1) * width / cells)
            pixels = [x[:, :, m, n] for m in range(top, bottom) for n in range(left, right)]
            row.append(sum(pixels) / len(pixels))           # (A)
        rows.append(torch.stack(row, dim=-1))               # [B, C, N]
    return torch.stack(rows, dim=-2)                        # [B, C, N, N]


def project(t, weight, bias):
    """(B): one linear map, the same for every cell.

    t: [B, C, N, N], weight: [D, C] with any number of sides of 1 after it, bias: [D]. Returns
    [B, D, N, N].
    """
    out = []
    for row, b in zip(weight.flatten(1), bias, strict=True):
        out.append(sum(row[c] * t[:, c] for c in range(t.shape[1])) + b)  # (B)  [B, N, N]
    return torch.stack(out, dim=1)


def attend(q, k, v, regions, position=None):
    """(C) and (D): self-attention among the cells of each region, and only among those.

    q, k: [B, d, N, N], v: [B, C, N, N], N a multiple of `regions` = R. position: None, or
    [1, 2G-1, 2G-1] scores to add by relative position (row, column), see readings.py. Returns
    [B, C, N, N].
    """
    cells = q.shape[-1]
    side = cells // regions                                 # G
    output = torch.zeros_like(v)
    for i in range(cells):
        for j in range(cells):
            top, left = i // side * side, j // side * side  # of the region of cell (i, j)
            region = [(m, n) for m in range(top, top + side) for n in range(left, left + side)]
            scores = []
            for m, n in region:                             # cell (i, j) itself is one of them
                score = (q[:, :, i, j] * k[:, :, m, n]).sum(1) / math.sqrt(q.shape[1])
                if position is not None:
                    score = score + position[0, m - i + side - 1, n - j + side - 1]  # (I)
                scores.append(score)                        # [B]
            largest = torch.stack(scores).amax(0)           # subtracted: exp must not overflow
            weights = [torch.exp(score - largest) for score in scores]
            total = sum(weights)
            weights = [weight / total for weight in weights]  # (C)
            output[:, :, i, j] = sum(                       # (D)
                w[:, None] * v[:, :, m, n] for w, (m, n) in zip(weights, region, strict=True)
            )
    return output


def attend_dense(q, k, v, regions):
    """(C) and (D) as one big masked matrix: attention between all N * N cells, with minus infinity
    where two cells lie in different regions. The same arguments and result as `attend`."""
    cells = q.shape[-1]
    index = torch.arange(cells) // (cells // regions)
    region = (index[:, None] * regions + index).flatten()   # [N*N], the number of a cell's region
    scores = q.flatten(2).mT @ k.flatten(2) / math.sqrt(q.shape[1])  # [B, N*N, N*N]
    scores = scores.masked_fill(region[:, None] != region[None, :], -math.inf)
    mixed = scores.softmax(-1) @ v.flatten(2).mT            # [B, N*N, C]
    return mixed.mT.unflatten(2, (cells, cells))


def enlarging_taps(y, height, regions, cells):
    """The cells that pixel row y of `height` reads, as [(cell, weight), (cell, weight)]: one row of
    the matrix U. It never looks across the border of its own region. cells: G."""
    region = (2 * y + 1) * regions // (2 * height)          # of the centre of the pixel
    first, last = region * cells, region * cells + cells - 1
    # The centre lies at ((2y + 1) N - H) / (2H) among the cells, split into floor and fraction.
    floor, rest = divmod((2 * y + 1) * regions * cells - height, 2 * height)
    fraction = rest / (2 * height)
    below, above = min(max(floor, first), last), min(max(floor + 1, first), last)
    return [(below, 1 - fraction), (above, fraction)]


def enlarge(o, size, regions):
    """(E): from cells back to pixels. o: [B, C, N, N] -> [B, C, H, W] with (H, W) = size."""
    height, width = size
    cells = o.shape[-1] // regions
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            total = 0
            for i, in_rows in enlarging_taps(y, height, regions, cells):
                for j, in_columns in enlarging_taps(x, width, regions, cells):
                    total = total + in_rows * in_columns * o[:, :, i, j]  # (E)
            row.append(total)
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def pysa(x, level):
    """One level, (A) to (E). x: [B, inputs, H, W], level: a PySALevel -> [B, C, H, W]."""
    t = level.reduce(pool(x, level.regions * level.cells))
    q, k, v = (project(t, p.weight, p.bias) for p in (level.query, level.key, level.value))
    o = attend(q, k, v, level.regions, getattr(level, "position", None))
    return enlarge(o, x.shape[-2:], level.regions)


def series(x, levels):
    """(F): each level reads the sum so far. x: X_0 [B, C, H, W] -> X_S [B, C, H, W]."""
    for level in levels:
        x = x + pysa(x, level)                              # (F)
    return x


def series_head(features, head):
    """(G): features: Z [B, inputs, H, W], head: a SeriesHead -> [B, num_classes, H, W]."""
    x = series(head.reduce(features), head.levels)
    return head.classifier(head.bottleneck(torch.cat([x, features], dim=1)))  # (G)


def parallel(features, levels):
    """Every level reads the same map; the results stand side by side after it.

    features: Z [B, inputs, H, W] -> [B, inputs + S * C, H, W].
    """
    return torch.cat([features, *(pysa(features, level) for level in levels)], dim=1)  # (H)


def parallel_head(features, head):
    """(H): features: Z [B, inputs, H, W], head: a ParallelHead -> [B, num_classes, H, W]."""
    return head.classifier(head.bottleneck(parallel(features, head.levels)))  # (H)
