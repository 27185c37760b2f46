"""Pyramid self-attention exactly as its equations read: Python loops over cells and pixels, no tricks.

Made to be read beside paper.md and to be wrong nowhere; hopelessly slow on purpose. model.py holds the
fast form of every function below under the same name, with the same arguments and the same results.

All index arithmetic is done in integers, so that a pixel exactly on a border belongs to the same cell on
every machine. Tensors only hold the numbers (and carry the gradients).
"""

import math

import torch


def pool(x, cells, reduction="avg"):
    """Eq. (1): one feature per grid cell.

    x: [B, C, H, W]. cells: N = R * G, the number of cells per side. reduction: "avg" or "max".
    Returns [B, C, N, N]. Works for every H, W >= 1: the bins of neighbouring cells overlap where N does
    not divide the side, and repeat pixels where N is larger than it.
    """
    height, width = x.shape[-2:]
    rows = []
    for i in range(cells):
        row = []
        for j in range(cells):
            top, bottom = i * height // cells, -(-(i + 1) * height // cells)  # floor, ceil
            left, right = j * width // cells, -(-(j + 1) * width // cells)
            pixels = [x[:, :, y, z] for y in range(top, bottom) for z in range(left, right)]
            if reduction == "avg":
                row.append(sum(pixels) / len(pixels))  # Eq. (1)
            else:
                row.append(torch.stack(pixels).amax(0))
        rows.append(torch.stack(row, dim=-1))  # [B, C, N]
    return torch.stack(rows, dim=-2)  # [B, C, N, N]


def project(t, weight, bias):
    """Eq. (2): one linear map, the same for every cell. t: [B, C, N, N], weight [D, C] -> [B, D, N, N]."""
    out = []
    for row in weight.flatten(1):
        out.append(sum(row[c] * t[:, c] for c in range(t.shape[1])))
    out = torch.stack(out, dim=1)
    return out if bias is None else out + bias[:, None, None]  # Eq. (2)


def attend(q, k, v, regions, heads=1, scaled=True, position=None):
    """Eq. (3) and (4): self-attention among the cells of each region, and only among those.

    q, k: [B, d, N, N], v: [B, C, N, N], N a multiple of `regions` = R.
    heads: channels are cut into this many groups that attend separately. scaled: divide the scores by
    sqrt(d per head). position: [heads, 2G-1, 2G-1] scores to add by relative position (row, column), or None.
    Returns [B, C, N, N].
    """
    cells = q.shape[-1]
    side = cells // regions  # G
    d, c = q.shape[1] // heads, v.shape[1] // heads
    scale = 1 / math.sqrt(d) if scaled else 1.0
    output = torch.zeros_like(v)
    for h in range(heads):
        qh, kh, vh = q[:, h * d : (h + 1) * d], k[:, h * d : (h + 1) * d], v[:, h * c : (h + 1) * c]
        for i in range(cells):
            for j in range(cells):
                # the cells of the region of (i, j), its own cell included
                top, left = i // side * side, j // side * side
                region = [(m, n) for m in range(top, top + side) for n in range(left, left + side)]
                scores = []
                for m, n in region:
                    score = (qh[:, :, i, j] * kh[:, :, m, n]).sum(1) * scale
                    if position is not None:
                        score = score + position[h, m - i + side - 1, n - j + side - 1]
                    scores.append(score)
                largest = torch.stack(scores).amax(0)  # subtracted so that exp cannot overflow
                weights = [torch.exp(score - largest) for score in scores]
                total = sum(weights)
                weights = [weight / total for weight in weights]  # Eq. (3)
                mixed = sum(w[:, None] * vh[:, :, m, n] for w, (m, n) in zip(weights, region))  # Eq. (4)
                output[:, h * c : (h + 1) * c, i, j] = mixed
    return output


def attend_dense(q, k, v, regions, scaled=True):
    """Eq. (3) and (4) as one big masked matrix: full attention between all N * N cells, with minus infinity
    where two cells lie in different regions. Same arguments and result as `attend` with one head."""
    cells = q.shape[-1]
    index = torch.arange(cells) // (cells // regions)
    region = (index[:, None] * regions + index).flatten()  # rho(i, j), as one number per cell
    scores = q.flatten(2).transpose(1, 2) @ k.flatten(2)  # [B, N*N, N*N]
    if scaled:
        scores = scores / math.sqrt(q.shape[1])
    scores = scores.masked_fill(region[:, None] != region[None, :], -math.inf)
    mixed = scores.softmax(-1) @ v.flatten(2).transpose(1, 2)  # [B, N*N, C]
    return mixed.transpose(1, 2).unflatten(2, (cells, cells))


def enlarging_taps(y, height, regions, cells, scope, interpolation):
    """The cells that pixel row y of `height` reads, as [(cell, weight), ...]: one row of the matrix U.

    scope "region" never looks across the border of the pixel's own region; "merged" does.
    """
    grid = regions * cells  # N
    region = min((2 * y + 1) * regions // (2 * height), regions - 1)  # the region of the pixel's centre
    low, high = (region * cells, region * cells + cells - 1) if scope == "region" else (0, grid - 1)
    if interpolation == "nearest":
        nearest = (2 * y + 1) * grid // (2 * height)
        return [(min(max(nearest, low), high), 1.0)]
    # position among the cells, s = ((2y + 1) N - H) / (2H), split into floor and fraction
    floor, rest = divmod((2 * y + 1) * grid - height, 2 * height)
    fraction = rest / (2 * height)
    return [(min(max(floor, low), high), 1 - fraction), (min(max(floor + 1, low), high), fraction)]


def enlarge(o, size, regions, scope="region", interpolation="bilinear"):
    """Eq. (5): from cells back to pixels. o: [B, C, N, N] -> [B, C, H, W] with (H, W) = size."""
    height, width = size
    side = o.shape[-1] // regions
    rows = []
    for y in range(height):
        row = []
        for x in range(width):
            total = 0
            for i, wy in enlarging_taps(y, height, regions, side, scope, interpolation):
                for j, wx in enlarging_taps(x, width, regions, side, scope, interpolation):
                    total = total + wy * wx * o[:, :, i, j]  # Eq. (5)
            row.append(total)
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def pysa(x, level):
    """Eq. (6): one level. `level` is a model.PySALevel; its weights and options are used, its code is not."""
    t = pool(x, level.regions * level.cells, level.pool)
    if level.reduce is not None:
        t = level.reduce(t)
    q = project(t, level.query.weight, level.query.bias)
    k = project(t, level.key.weight, level.key.bias)
    v = project(t, level.value.weight, level.value.bias)
    o = attend(q, k, v, level.regions, level.heads, level.scaled, level.position)
    if level.output is not None:
        o = project(o, level.output.weight, level.output.bias)
    if level.gain is not None:
        o = level.gain * o
    return enlarge(o, x.shape[-2:], level.regions, level.scope, level.interpolation)  # Eq. (6)


def series(x, levels):
    """Eq. (7): global context first, then ever smaller regions, each level reading the sum so far."""
    for level in levels:
        x = x + pysa(x, level)  # Eq. (7)
    return x


def parallel(features, x, levels):
    """Eq. (8): every level reads the same map; the results stand side by side behind the features."""
    return torch.cat([features] + [pysa(x, level) for level in levels], dim=1)  # Eq. (8)
