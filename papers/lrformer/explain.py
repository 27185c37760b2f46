"""What a pixel looks at in LRFormer: the cells of four small grids, whatever the size of the image."""

import torch

from .model import attend, enlarge, grid, keys_values, pool, pool_all, queries

RECORD = ("backbone.stages.*.blocks.*.attention", "head.fuse?.attention")


def token_weights(x, attention, convs, pixel):
    """How much each key/value token counts at one pixel of the output. x: [1, C, H, W], pixel: (row, column) in it
    -> [heads, n], each head's weights sum to 1; the tokens are those of `keys_values`.

    The attention of the cells comes from Eq. (6) with one-hot values; the pixel then reads at most four cells.
    """
    size = x.shape[-2:]
    cells = grid(size, attention.side)
    if all(a % side == 0 for a, side in zip(cells, size)):  # as in `lrsa`: the pixels themselves are the cells
        cells = size
    # Enlarging works on rows and columns apart, so enlarging one-hot columns tells what a pixel reads.
    rows, columns = (
        enlarge(torch.eye(a).to(x)[None, :, :, None], (side, 1))[0, :, p, 0]  # [a]
        for a, side, p in zip(cells, size, pixel)
    )
    shares = rows[:, None] * columns  # [a, b]
    q = queries(x if cells == size else pool(x, cells), attention)[:, shares.flatten() > 0]  # at most four
    k, _ = keys_values(pool_all(x, [grid(size, side) for side in attention.sides]), attention, convs)
    one_hot = torch.eye(k.shape[1]).to(k).repeat(1, attention.heads)[None]  # [1, n, heads * n]
    mixed = attend(q, k, one_hot, attention.heads)[0]  # [at most four, heads * n]
    return (shares[shares > 0] @ mixed).view(attention.heads, -1)


def spread(weights, size, grids):
    """From tokens to places. weights: [n], of grids (a, b) one behind the other -> [H, W] with (H, W) = size, in units
    of the even share: 1 wherever every cell of a grid counts the same, mean 1 up to what interpolation does at borders.
    """
    parts = weights.split([a * b for a, b in grids])
    return sum(enlarge(a * b * part.view(1, 1, a, b), size)[0, 0] for (a, b), part in zip(grids, parts))


def explain(model, record, size, pixel):
    """One map for the last block of each stage and for each block of the decoder, mean over the heads. See
    papers/attention.py."""
    panels = {}
    for name, ((x, convs, _), _) in record.items():
        attention, parts = model.get_submodule(name), name.split(".")
        here = [(2 * p + 1) * cells // (2 * side) for p, cells, side in zip(pixel, x.shape[-2:], size)]
        grids = [grid(x.shape[-2:], side) for side in attention.sides]
        weights = token_weights(x, attention, convs, here).mean(0)
        place = f"decoder block {parts[1][-1]}" if parts[0] == "head" else f"encoder stage {int(parts[2]) + 1}"
        title = f"{place}: attention to {len(weights)} cells, 1 = even share"
        panels[place] = (title, spread(weights, size, grids))  # a later block of a stage replaces the earlier
    return list(panels.values())
