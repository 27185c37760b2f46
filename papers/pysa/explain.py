"""What a pixel looks at in PySA: at every level the cells of its own region, each with a weight."""

import torch

from .model import as_map, by_region
from .readings import PositionedLevel

RECORD = ("head", "head.levels.*.query", "head.levels.*.key")


def cell_weights(level, queries, keys, size, pixel):
    """How much each cell counts at one pixel of a level's output.

    queries, keys: [1, d, N, N] of the level. size: (H, W) of the map. pixel: (row, column) in it.
    Returns [N, N], which sums to 1; cells outside the pixel's region have 0. By (E) the pixel reads
    at most four cells; each of them has weights for the cells of its region, by (C).
    """
    q, k = by_region(queries, level.regions), by_region(keys, level.regions)  # [1, R*R, G*G, d]
    scores = q @ k.mT / q.shape[-1] ** 0.5                          # [1, R*R, G*G, G*G]
    if isinstance(level, PositionedLevel):
        scores = scores + level.relative()
    rows, columns = (level.enlarging(n)[p].to(q) for n, p in zip(size, pixel, strict=True))  # [N]
    read = by_region(torch.outer(rows, columns)[None, None], level.regions)  # [1, R*R, G*G, 1]
    return as_map(torch.softmax(scores, dim=-1).mT @ read, level.regions, level.cells)[0, 0]


def explain(model, record, size, pixel):
    """One map per level, [N, N] cells. See papers/attention.py."""
    (features,), _ = record["head"]                                 # [1, 2048, H/8, W/8]
    sides = features.shape[-2:]
    pixel = [(2 * p + 1) * n // (2 * side) for p, n, side in zip(pixel, sides, size, strict=True)]
    panels = []
    for number, level in enumerate(model.head.levels):
        queries, keys = (record[f"head.levels.{number}.{name}"][1] for name in ("query", "key"))
        r, g = level.regions, level.cells
        title = f"level {number + 1}: {r} x {r} regions of {g} x {g} cells"
        panels.append((title, cell_weights(level, queries, keys, sides, pixel)))
    return panels
