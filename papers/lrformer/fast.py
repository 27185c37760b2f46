"""Exact shortcuts for model.py: nothing here changes a result by more than rounding.

Every layer is called, a few times where model.py calls it once, with two exceptions: `squeeze`
splits the kernel of a convolution, `plus` adds 1 to the middle of one.
"""

import functools

import torch
import torch.nn.functional as F

from . import model

STRIP = 2**20  # numbers of a hidden map that stay in a processor's cache


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
    return o if cells == size else enlarge(o, size)


def enlarge(o, size):
    """Replaces `model.enlarge`, with the same arguments and result.

    Why the same: bilinear enlargement can be done by rows, then by columns: U O U'^T with a thin
    matrix for each side. What it saves: PyTorch copies the map into another layout and back, and
    its backward pass is slower than these products.
    """
    o = o.permute(0, 2, 3, 1)  # [B, a, b, C]
    rows, columns = (kept(enlarging_matrix, n, cells, o)
                     for n, cells in zip(size, o.shape[1:3], strict=True))
    bands = (rows @ o.flatten(2)).unflatten(2, o.shape[2:])         # [B, H, b, C]
    return (columns @ bands).permute(0, 3, 1, 2)                    # [B, C, H, W]


def kept(make, size, cells, like):
    """make(size, cells) of the type and on the device of `like`, made once and not in every pass;
    but what is traced must not be kept."""
    if torch.compiler.is_compiling() or type(like) is not torch.Tensor:
        return make(size, cells).to(like)
    return keep(make, size, cells, like.device, like.dtype)


@functools.lru_cache(1024)
@torch.inference_mode(False)  # what is kept must serve training, too
def keep(make, size, cells, device, dtype):
    """See `kept`."""
    return make(size, cells).to(device, dtype)


def enlarging_matrix(size, cells):
    """U [size, cells]: row y holds the weights of the cells, at most two, that pixel y reads."""
    one_hot = torch.eye(cells, dtype=torch.float64)[None]
    return F.interpolate(one_hot, size, mode="linear", align_corners=False)[0].mT


def pool_all(x, grids):
    """Replaces `pool` for several grids, where gradients are wanted. x: [B, C, H, W], grids
    [(a, b), ...] -> [[B, C, a, b], ...].

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
    sides = ((height, heights), (width, widths))
    rows, columns = (kept(pooling_matrix, *side, x) for side in sides)
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

    Without gradients on a processor: in strips of rows. Why the same: only the 3x3 convolution sees
    other rows, and its strips begin with the last two rows of the strip before. What it saves: the
    hidden map is r times as large as x, the largest of the encoder; a strip of about STRIP numbers
    stays in the cache. With gradients all hidden numbers must be kept anyway.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return all_rows(x, module)
    height = x.shape[2]
    rows = max(8, STRIP * height // (module.ratio * x.numel()))
    if rows >= height:
        return all_rows(x, module)
    before, strips = [], []
    for first in range(0, height, rows):
        u = torch.cat([*before, hidden(x[:, :, first : first + rows], module)], dim=2)
        before = [u[:, :, -2:]]
        # The last row waits for the one below it; the first is only a neighbour, except at the top.
        end = None if first + rows >= height else -1
        u = plus(u, module.conv)[:, :, min(first, 1) : end]
        strips.append(model.at_each_position(module.narrow, u))
    return torch.cat(strips, dim=2)


def all_rows(x, module):
    """(I), see `plus`. [B, C, H, W] -> [B, C, H, W]."""
    return model.at_each_position(module.narrow, plus(hidden(x, module), module.conv))


def hidden(x, module):
    """The first line of (I). [B, C, H, W] -> [B, r C, H, W]."""
    return F.gelu(model.at_each_position(module.widen, x))


def plus(x, conv):
    """Replaces x + DW(x) in (H) and (I). x: [B, C, H, W], conv: DW -> [B, C, H, W].

    Why the same: x is a convolution of x, too, with a 1 in the middle of the kernel. What it saves:
    a map is read and written once less, forward and backward. The convolution is not called: its
    kernel is changed. Not in half precision, where a 1 swallows small weights.
    """
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if mixed or conv.weight.dtype.itemsize < 4:
        return x + conv(x)
    kernel = conv.weight + F.pad(x.new_ones(1, 1), (1, 1, 1, 1))    # [C, 1, 3, 3]
    return F.conv2d(x, kernel, conv.bias, padding=1, groups=len(kernel))


def squeeze(maps, conv):
    """Replaces `enlarge_and_squeeze` in `Decoder.forward`, with the same arguments and result.

    Why the same: a 1x1 convolution acts on channels, enlarging on positions, both are linear; so
    each map is squeezed in its own size, then enlarged and added. What it saves: multiply-adds, and
    the maps side by side are never formed. The convolution is not called: its kernel is split.
    """
    weights = conv.weight.flatten(1).split([c.shape[1] for c in maps], dim=1)
    first, *rest = (model.at_each_position(functools.partial(F.linear, weight=weight), c)
                    for c, weight in zip(maps, weights, strict=True))
    return first + sum(enlarge(c, first.shape[-2:]) for c in rest)
