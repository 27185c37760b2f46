"""What a pixel looks at in PySA: at every level the cells of its own region, each with a weight."""

import torch

from .model import attend, enlarging_matrix, pool, project, pysa

RECORD = ("head", "head.reduce")


def cell_weights(x, level, pixel):
    """How much each cell counts at one pixel of a level's output. x: [1, inputs, H, W], pixel: (row, column) in it
    -> [heads, N, N], each head's weights sum to 1; cells outside the pixel's region have 0.

    The attention of the cells comes from Eq. (3) and (4) with one-hot values; the pixel then reads at most four cells.
    """
    cells = pool(x, level.regions * level.cells, level.pool)
    if level.reduce is not None:
        cells = level.reduce(cells)
    q, k = (project(cells, p.weight, p.bias) for p in (level.query, level.key))
    side = cells.shape[-1]
    one_hot = torch.eye(side**2).to(q).view(1, side**2, side, side).repeat(1, level.heads, 1, 1)
    mixed = attend(q, k, one_hot, level.regions, level.heads, level.scaled, level.position)  # [1, heads*N*N, N, N]
    rows, columns = (
        enlarging_matrix(size, level.regions, level.cells, level.scope, level.interpolation)[p].to(q)
        for size, p in zip(x.shape[-2:], pixel)
    )
    return (rows @ mixed @ columns).view(level.heads, side, side)


def explain(model, record, size, pixel):
    """One map per level, [N, N] cells, mean over the heads. See papers/attention.py."""
    head = model.head
    reduced = "head.reduce" in record
    x = record["head.reduce"][1] if reduced else record["head"][0][0]  # [1, C, H/8, W/8]
    pixel = [(2 * p + 1) * cells // (2 * side) for p, cells, side in zip(pixel, x.shape[-2:], size)]
    panels = []
    for number, level in enumerate(head.levels, 1):
        title = f"level {number}: {level.regions} x {level.regions} regions of {level.cells} x {level.cells} cells"
        panels.append((title, cell_weights(x, level, pixel).mean(0)))
        if head.variant == "series":
            x = x + pysa(x, level)
    return panels
