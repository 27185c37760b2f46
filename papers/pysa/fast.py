"""An exact shortcut for model.py: nothing here changes a result by more than rounding.

Modules: query, key, value and reduce are called as ever, so hooks see them. A level as a whole is
not called, so neither are hooks on it; with position=True it owns a parameter, `position`.
"""

import functools

import torch

from . import model


def series(x, levels):
    """(F) without the maps between the levels. [B, C, H, W] -> [B, C, H, W].

    Replaces the loop `x = x + level(x)` of model.SeriesHead.forward.
    Why it is the same: a level reads its input only by pooling, P, and adds only an enlargement, U.
    Both are linear. So the cells of level s are those of the first map and those of what the levels
    before it have added:

        T_s = P_s X_0 P'_s^T + sum over t < s of (P_s U_t) O_t (P'_s U'_t)^T             (F)
        X_S = X_0 + sum over t of U_t O_t U'_t^T

    where P_s [N_s, H] and U_t [H, N_t] belong to the rows, P'_s [N_s, W] and U'_t [W, N_t] to the
    columns; P_s U_t [N_s, N_t] is at most 16 x 16. With a maximum for the mean this would not hold.
    What it saves: X_0 is read once for all levels and written once; nothing between is formed.
    """
    if not levels:
        return x
    # The map keeps its layout in memory, so nothing large is copied.
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    grids = tuple((level.regions, level.cells) for level in levels)
    traced = torch.compiler.is_compiling() or type(x) is not torch.Tensor  # not to be kept
    make = matrices.__wrapped__ if traced else matrices
    rows, columns = (make(n, grids, x.device, x.dtype) for n in x.shape[-2:])
    (p_h, pu_h, u_h), (p_w, pu_w, u_w) = rows, columns
    counts = [len(p) for p in p_h]                                  # N_s of every level
    narrow = on_rows(torch.cat(p_h), x).split(counts, dim=-2)       # S of [B, C, N_s, W]
    outputs = []
    for s, level in enumerate(levels):
        t = on_columns(p_w[s], narrow[s])                           # [B, C, N_s, N_s]
        for earlier, o in enumerate(outputs):
            t = t + on_rows(pu_h[s][earlier], on_columns(pu_w[s][earlier], o))      # (F)
        o = level.attend(level.reduce(t))                           # [B, C, N_s, N_s]
        outputs.append(o.contiguous(memory_format=layout))
    wide = torch.cat([on_columns(u, o) for u, o in zip(u_w, outputs, strict=True)], dim=-2)
    return x + on_rows(torch.cat(u_h, dim=1), wide)                 # [B, C, H, W]


@functools.lru_cache(256)
@torch.inference_mode(False)  # what is kept must serve training, too
def matrices(size, grids, device, dtype):
    """The matrices of a side of `size` pixels, for levels of these (R, G): all P_s, all P_s U_t
    with t < s, all U_t."""
    pools = [pooling_matrix(size, r * g) for r, g in grids]
    enlargements = [model.enlarging_matrix(size, r, g) for r, g in grids]
    between = [[(p @ u).to(device, dtype) for u in enlargements[:s]] for s, p in enumerate(pools)]
    pools, enlargements = ([m.to(device, dtype) for m in ms] for ms in (pools, enlargements))
    return pools, between, enlargements


def on_rows(p, x):
    """P X for every channel. P [N, H], x [B, C, H, W] in either layout -> [B, C, N, W] in it."""
    if x.stride(1) != 1:
        return p @ x
    x = x.permute(0, 2, 3, 1)                                       # [B, H, W, C]
    return (p @ x.flatten(2)).unflatten(2, x.shape[2:]).permute(0, 3, 1, 2)


def on_columns(p, x):
    """X P^T for every channel. P [N, W], x [B, C, H, W] in either layout -> [B, C, H, N] in it."""
    if x.stride(1) != 1:
        return x @ p.mT
    return (p @ x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pooling_matrix(size, cells):
    """P [N, size], float64: row i averages the pixels of cell i; `cells` is N.

    Replaces `adaptive_avg_pool2d` by T = P X P'^T. The bins are the same: from floor(i * size / N)
    to ceil((i + 1) * size / N), so there is at least one pixel in each for every size >= 1.
    """
    i, pixel = torch.arange(cells)[:, None], torch.arange(size)
    start, end = i * size // cells, ((i + 1) * size + cells - 1) // cells
    return ((pixel >= start) & (pixel < end)) / (end - start).double()
