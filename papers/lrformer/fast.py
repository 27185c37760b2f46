"""Exact shortcuts for model.py: nothing here changes a result by more than rounding.

Every layer is called, as in model.py, but two: the squeezes of the decoder are split, see
`squeeze`.
"""

import torch
import torch.nn.functional as F

from . import model

STRIP = 2**21  # numbers of a hidden map that stay in a processor's cache


def attention(x, module, convs=()):
    """Replaces the rest of `Attention.forward`. x: [B, C, H, W], module: its `self` -> [B, C, H,
    W].

    1. All grids are pooled together: see `pool_all`.
    2. Where the query grid repeats every pixel a whole number of times, the pixels themselves ask
       and nothing is enlarged. Why the same: the cells of one pixel ask the same and get the same
       answer, and enlarging averages equal cells. Saves queries: 64 in place of 256 for a map of
       8 x 8 and a grid of 16 x 16.
    3. The scores (F) are never stored: fused attention. Why the same: it divides by sqrt(d) too.
    """
    size = x.shape[-2:]
    cells, *grids = (model.grid(size, s) for s in (module.side, *module.sides))
    if cells[0] % size[0] == 0 and cells[1] % size[1] == 0:
        cells, z, levels = size, x, pool_all(x, grids)
    else:
        z, *levels = pool_all(x, [cells, *grids])
    q = module.query(model.as_tokens(z))                            # [B, m, C]
    k, v = module.keys_values(levels, convs)                        # [B, n, C]
    q, k, v = (model.by_head(t, module.heads) for t in (q, k, v))   # [B, h, m or n, d]
    o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    o = model.as_map(module.output(o), cells)                       # [B, C, a, b]
    return o if cells == size else model.enlarge(o, size)


def pool_all(x, grids):
    """Replaces `pool` for several grids, in training. x: [B, C, H, W], grids [(a, b), ...]
    -> [[B, C, a, b], ...].

    Why the same: the mean over a rectangle is a mean over its rows, then over its columns, P X P'^T
    with a thin matrix P for each side. What it saves: with the row matrices of all grids on top of
    each other the gradient of the large map is written once. PyTorch's pooling is quick, but its
    backward pass is several times slower than these products.
    """
    if not torch.is_grad_enabled():
        return [model.pool(x, cells) for cells in grids]
    x = x.permute(0, 2, 3, 1)  # [B, H, W, C]
    height, width, channels = x.shape[1:]
    heights, widths = zip(*grids, strict=True)
    rows, columns = pooling_matrix(height, heights).to(x), pooling_matrix(width, widths).to(x)
    bands = (rows @ x.flatten(2)).unflatten(2, (width, channels))  # [B, sum of a, W, C]
    pairs = zip(columns.split(widths), bands.split(heights, dim=1), strict=True)
    return [(p @ band).permute(0, 3, 1, 2) for p, band in pairs]  # [B, C, a, b] each


def pooling_matrix(size, cells):
    """P [sum(cells), size], the pooling matrices of several grids on top of each other.

    size: pixels along this axis. cells: cells of each grid. Row i of a grid of n cells averages the
    pixels floor(i size / n) to ceil((i + 1) size / n) - 1.
    """
    i = torch.cat([torch.arange(n) for n in cells])
    n = torch.cat([torch.full((side,), side) for side in cells])
    start, end = i * size // n, ((i + 1) * size + n - 1) // n
    pixel = torch.arange(size)
    inside = (pixel >= start[:, None]) & (pixel < end[:, None])
    return inside / (end - start)[:, None].double()


def feed_forward(x, module):
    """Replaces the rest of `FeedForward.forward`. x: [B, C, H, W] -> [B, C, H, W].

    In inference on a processor strip by strip: rows with one more on either side, because of the
    3x3 convolution, which are cut off again. Why the same: nothing else looks sideways. What it
    saves: the hidden map is r times as large as x and by far the largest of the network; a strip of
    about STRIP numbers stays in the cache. With gradients all hidden numbers must be kept anyway.
    """
    height = x.shape[2]
    rows = max(8, STRIP * height // (module.ratio * x.numel()))
    if x.device.type != "cpu" or torch.is_grad_enabled() or rows >= height:
        return all_rows(x, module)
    strips = []
    for first in range(0, height, rows):
        above = min(first, 1)
        y = all_rows(x[:, :, first - above : first + rows + 1], module)
        strips.append(y[:, :, above : above + rows])
    return torch.cat(strips, dim=2)


def all_rows(x, module):
    """(I), with the sum in place. [B, C, H, W] -> [B, C, H, W]."""
    u = F.gelu(model.at_each_position(module.widen, x))             # [B, r C, H, W]
    u = module.conv(u).add_(u)
    return model.at_each_position(module.narrow, u)


def squeeze(maps, conv):
    """Replaces `enlarge_and_squeeze` in `Decoder.forward`, with the same arguments and result.

    Why the same: a 1x1 convolution acts on channels, enlarging on positions, both are linear; so
    each map is squeezed in its own size, then enlarged and added. What it saves: multiply-adds, and
    the maps side by side are never formed. The convolution is not called: its kernel is split.
    """
    weights = conv.weight.split([c.shape[1] for c in maps], dim=1)
    first, *rest = (F.conv2d(c, weight) for c, weight in zip(maps, weights, strict=True))
    return first + sum(model.enlarge(c, first.shape[-2:]) for c in rest)
