"""What a pixel looks at in LRFormer: the cells of four small grids, whatever the size of the
image."""

import torch

from .model import by_head, enlarge, grid

ATTENTIONS = ("backbone.stages.*.blocks.*.attention", "head.fuse?.attention")
RECORD = tuple(name + part for name in ATTENTIONS for part in ("", ".query", ".key_value"))


def token_weights(attention, q, k, size, pixel):
    """How much each key/value token counts at one pixel of the output.

    attention: a `model.Attention`, q: [1, m, C], k: [1, n, C], what its layers returned for a map
    of `size` (H, W), pixel: (row, column) in it -> [heads, n], each head's weights sum to 1; the
    tokens are those of (E). The pixel reads at most four cells, so only their rows of (F) are made.
    """
    cells = grid(size, attention.side)
    if cells[0] * cells[1] != q.shape[1]:  # as in fast.attention: the pixels themselves ask
        cells = size
    # Enlarging works on rows and columns apart, so enlarging one-hot columns tells what is read.
    rows, columns = (
        enlarge(torch.eye(a).to(q)[None, :, :, None], (side, 1))[0, :, p, 0]  # [a]
        for a, side, p in zip(cells, size, pixel, strict=True)
    )
    shares = (rows[:, None] * columns).flatten()  # [m]
    q, k = by_head(q[:, shares > 0], attention.heads)[0], by_head(k, attention.heads)[0]
    a = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)  # [heads, at most four, n]
    return shares[shares > 0] @ a


def spread(weights, size, grids):
    """From tokens to places. weights: [n], of grids (a, b) one behind the other -> [H, W] with
    (H, W) = size, in units of the even share: 1 wherever every cell of a grid counts the same, mean
    1 up to what interpolation does at borders."""
    parts = weights.split([a * b for a, b in grids])
    return sum(
        enlarge(a * b * part.view(1, 1, a, b), size)[0, 0]
        for (a, b), part in zip(grids, parts, strict=True)
    )


def explain(model, record, size, pixel):
    """One map for the last block of each stage and for each block of the decoder, mean over the
    heads. See papers/attention.py."""
    panels = {}
    for name in (name for name in record if name.endswith("attention")):
        attention, parts = model.get_submodule(name), name.split(".")
        here = record[name][0][0].shape[-2:]  # of the map
        place = [
            (2 * p + 1) * n // (2 * side) for p, n, side in zip(pixel, here, size, strict=True)
        ]
        q, k = record[f"{name}.query"][1], record[f"{name}.key_value"][1].chunk(2, dim=-1)[0]
        weights = token_weights(attention, q, k, here, place).mean(0)
        grids = [grid(here, side) for side in attention.sides]
        if parts[0] == "head":
            panel = f"decoder block {parts[1][-1]}"
        else:
            panel = f"encoder stage {int(parts[2]) + 1}"
        title = f"{panel}: attention to {len(weights)} cells, 1 = even share"
        panels[panel] = (title, spread(weights, size, grids))  # a later block replaces the earlier
    return list(panels.values())
