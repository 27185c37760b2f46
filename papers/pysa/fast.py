"""An exact shortcut for model.py: nothing here changes a result by more than rounding.

Modules: query, key, value and reduce are called as ever, so hooks see them. A level as a whole is
not called, so neither are hooks on it; with position=True it owns a parameter, `position`.
"""

import torch


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
    pools, enlargements = [], []  # of the rows, then of the columns
    for size in x.shape[-2:]:
        pools.append([pooling_matrix(size, level.grid) for level in levels])
        enlargements.append([level.enlarging(size) for level in levels])
    counts = [len(p) for p in pools[0]]                             # N_s of every level
    narrow = (torch.cat(pools[0]).to(x) @ x).split(counts, dim=-2)  # S of [B, C, N_s, W]
    outputs = []
    for s, level in enumerate(levels):
        t = narrow[s] @ pools[1][s].mT.to(x)                        # [B, C, N_s, N_s]
        for earlier, o in enumerate(outputs):
            rows, columns = ((pools[i][s] @ enlargements[i][earlier]).to(x) for i in (0, 1))
            t = t + rows @ (o @ columns.mT)                         # (F)  [B, C, N_s, N_s]
        outputs.append(level.attend(level.reduce(t)))
    wide = [o @ u.mT.to(x) for o, u in zip(outputs, enlargements[1], strict=True)]
    return x + torch.cat(enlargements[0], dim=1).to(x) @ torch.cat(wide, dim=-2)


def pooling_matrix(size, cells):
    """P [N, size], float64: row i averages the pixels of cell i; `cells` is N.

    Replaces `adaptive_avg_pool2d` by T = P X P'^T. The bins are the same: from floor(i * size / N)
    to ceil((i + 1) * size / N), so there is at least one pixel in each for every size >= 1.
    """
    i, pixel = torch.arange(cells)[:, None], torch.arange(size)
    start, end = i * size // cells, ((i + 1) * size + cells - 1) // cells
    return ((pixel >= start) & (pixel < end)) / (end - start).double()
