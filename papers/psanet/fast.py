"""Exact shortcuts for model.py: nothing here changes a result by more than rounding.

  branch    the reduction on the pixels that are left after shrinking     PSABranch.forward
  dense     pairs of pixels as a view of the over-complete map            collect, distribute
  Stream    the same in tiles: neither that map nor the N x N matrix      collect, distribute
  compact   PyTorch's fused attention                                     compact
  classify  the classifier before enlarging                               PSANet.scores

Layers are called, so that their hooks fire, but for one: `classify` splits the weight of
`classifier.0`, whose own forward does not run.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from . import model  # which imports this file too: so a name of it is looked up when it is used

# --------------------------------------------------------------------------------- before the sum


def branch(x, module):
    """Replaces the body of `PSABranch.forward`. [B, inputs, H, W] -> [B, C, h, w].

    Why it is the same: the reduction acts on each pixel alone and shrinking picks pixels, so they
    may change places; but not in training, where BatchNorm takes its statistics from the whole map.
    What it saves: three quarters of the reduction at shrink_factor 2, in evaluation.
    """
    reduce, factor = module.reduce, module.shrink_factor
    if reduce[1].training:
        v = model.shrink(reduce(x), factor)                     # (A)  [B, C, h, w]
    else:
        v = reduce(model.shrink(x, factor))                     # (A)  [B, C, h, w]
    q = module.query(v)                                         # (B)  [B, C, h, w]
    options = module.softmax, module.factor
    if module.compact:
        z = compact(q, module.table, v, module.direction, *options)
    else:
        z = attend(module.direction, q, module.table, v, module.mask_size, *options)
    return z.to(v.dtype)


# ------------------------------------------------------------------------------ which form when

TILE = 15  # owners per side of a tile: fewer waste time in small products, more waste offsets
LARGEST_DENSE = 2**19  # logits of all pixels for all offsets: beyond, tiles are smaller and faster


def attend(direction, q, table, v, mask_size, softmax=True, factor=1.0):
    """`dense` or `Stream`: `Stream`, which is smaller, where the over-complete map would have more
    than LARGEST_DENSE entries. Arguments and result as in `model.collect`."""
    batch, _, height, width = q.shape
    with model.without_autocast(q.device.type):
        q, table, v = model.promoted(q, table, v)
        q, v = (t.permute(0, 2, 3, 1).contiguous() for t in (q, v))     # free for channels-last
        table = model.fit_table(table, mask_size, (height, width))      # [2H-1, 2W-1, C]
        if batch * height * width * (2 * height - 1) * (2 * width - 1) <= LARGEST_DENSE:
            z = dense(direction, q, table, v, softmax)           # [B, H, W, D]
        else:
            tile = tuple(math.ceil(side / math.ceil(side / TILE)) for side in (height, width))
            z = Stream.apply(direction, q, table, v, softmax, tile)     # [B, H, W, D]
    divisor = factor or math.prod(mask_size)
    z = z.permute(0, 3, 1, 2)                                   # [B, D, H, W]
    return z if divisor == 1 else z / divisor


def collect(q, table, v, mask_size, softmax=True, factor=1.0):
    """`model.collect`, (C), (D), (F) and (G)."""
    return attend("collect", q, table, v, mask_size, softmax, factor)


def distribute(q, table, v, mask_size, softmax=True, factor=1.0):
    """`model.distribute`, (C), (E), (F) and (G)."""
    return attend("distribute", q, table, v, mask_size, softmax, factor)


def compact(q, table, v, direction, softmax=True, factor=1.0):
    """Replaces `model.compact`. Why it is the same: it is ordinary attention with the scale 1,
    whose keys (collect) or queries (distribute) are learned. Saves the N x N matrix."""
    if not softmax:
        return model.compact(q, table, v, direction, softmax, factor)
    model.check_compact(table, v.shape[-2:])
    with model.without_autocast(q.device.type):
        q, table, values = model.promoted(q.flatten(2).mT, table, v.flatten(2).mT)  # [B, N, C]
        table = table.expand(q.shape[0], -1, -1)                # [B, N, C]
        receivers, sources = (q, table) if direction == "collect" else (table, q)   # (J)
        z = F.scaled_dot_product_attention(receivers, sources, values, scale=1.0)   # [B, N, D]
    return z.mT.unflatten(2, v.shape[-2:]) / (factor or table.shape[1])


# ----------------------------------------------------------------------------------- one matrix


def dense(direction, q, table, v, softmax=True):
    """Replaces (C) to (G): all pairs of pixels as one matrix, P[owner, other], that is a view.

    q: [B, H, W, C], table: [2H-1, 2W-1, C], v: [B, H, W, D] -> [B, H, W, D].
    Why it is the same: (D) reads row [k, l] of P and (E) its column, since in both the owner's
    feature meets the offset from the owner to the other. Saves the indices and the gathering.
    """
    batch, height, width, _ = q.shape
    h = q.flatten(0, 2) @ table.flatten(0, 1).T                 # (C)  [B*N, (2H-1)(2W-1)]
    h = h.view(batch, height, width, *table.shape[:2])          # [B, H, W, 2H-1, 2W-1]
    p = windows(h, (height, width)).reshape(batch, height * width, -1)  # [B, N owners, N others]
    a = p if direction == "collect" else p.transpose(1, 2)      # (D), (E)  [B, N, N]
    if softmax:
        a = a.softmax(-1)                                       # (F)  [B, N receivers, N sources]
    z = a @ v.flatten(1, 2)                                     # (G)  [B, N, D]
    return z.unflatten(1, (height, width))                      # [B, H, W, D]


def windows(logits, size):
    """From logits per offset to logits per pair of pixels, without copying anything.

    logits: contiguous [B, a, b, H+a-1, W+b-1], for a tile of a x b owners, the logit of every
    offset from the last owner's view of the first pixel to the first owner's view of the last
    pixel. size: (H, W), the map.
    Returns the view P [B, a, b, H, W], P[k, l, s, t] = logits[k, l, s - k + a - 1, t - l + b - 1].

    One owner further right in the image sees the same pixel one offset further left in the table:
    hence the -1 in the stride of l, and the minus one row in that of k. No two entries share a
    cell, so P may be written to.
    """
    batch, a, b, rows, columns = logits.shape
    image = a * b * rows * columns
    strides = (image, b * rows * columns - columns, rows * columns - 1, columns, 1)
    from_first = logits.view(-1)[(a - 1) * columns + b - 1 :]
    return from_first.as_strided((batch, a, b, *size), strides)         # [B, a, b, H, W]


# ------------------------------------------------------------------------------ the same in tiles


def tiles(size, tile):
    """For every tile of owners: (its rows, its columns, the part of the table that it needs)."""
    height, width = size
    for top in range(0, height, tile[0]):
        bottom = min(top + tile[0], height)
        for left in range(0, width, tile[1]):
            right = min(left + tile[1], width)
            offsets = (
                slice(height - bottom, 2 * height - 1 - top),
                slice(width - right, 2 * width - 1 - left),
            )
            yield slice(top, bottom), slice(left, right), offsets


def tile_logits(owners, slab):
    """Logits of a tile. owners: [B, a, b, C], slab: [H+a-1, W+b-1, C], its part of the table
    -> (by offset [B, a, b, H+a-1, W+b-1], by pixel P [B, a*b, N])."""
    batch, a, b, _ = owners.shape
    rows, columns = slab.shape[:2]
    logits = owners.flatten(0, 2) @ slab.flatten(0, 1).T        # (C)  [B*a*b, (H+a-1)(W+b-1)]
    logits = logits.view(batch, a, b, rows, columns)            # [B, a, b, H+a-1, W+b-1]
    p = windows(logits, (rows - a + 1, columns - b + 1))        # [B, a, b, H, W], a view
    return logits, p.reshape(batch, a * b, -1)                  # the only copy


class Stream(torch.autograd.Function):
    """`dense` without its matrices: neither the N x 4N logits nor the N x N attention ever exists.

    A tile of a x b owners needs (H+a-1)(W+b-1) offsets, a rectangle of the table, instead of all
    (2H-1)(2W-1); its rows of P are one matrix product and one view. To a collecting tile all
    sources are present: softmax, weighted sum, done. To a distributing tile only its own sources
    are: receivers keep a running maximum and sum, as in FlashAttention (Dao et al., 2022).
    tile = (1, W) is one row of the map at a time.

    Backward recomputes P from q and the table. With A the attention, g the gradient of z and
    delta_i = g_i . z_i, the softmax gives dP = A * (g_i . v_j - delta_i) for receiver i and source
    j. Both directions are the same code, if the owner's side is g or v and the other is v or g.
    """

    @staticmethod
    def forward(ctx, direction, q, table, v, softmax, tile):
        run = collect_tiles if direction == "collect" else distribute_tiles
        z, normaliser = run(q, table, v, softmax, tile)
        ctx.save_for_backward(q, table, v, z, normaliser)
        ctx.collects, ctx.softmax, ctx.tile = direction == "collect", softmax, tile
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        """g: the gradient of z, [B, H, W, D] -> those of q, table and v, of their shapes."""
        q, table, v, z, normaliser = ctx.saved_tensors
        size, g = q.shape[1:3], g.contiguous()
        delta = (g * z).sum(-1)                                 # [B, H, W]
        own, others = (g, v) if ctx.collects else (v, g)
        flat = others.flatten(1, 2)                             # [B, N, D]
        dq, dtable, dv = torch.empty_like(q), torch.zeros_like(table), torch.zeros_like(v)
        for rows, columns, offsets in tiles(size, ctx.tile):
            owners, slab = q[:, rows, columns], table[offsets]  # [B, a, b, C], [H+a-1, W+b-1, C]
            logits, a = tile_logits(owners, slab)               # a: [B, a*b, N]
            mine = own[:, rows, columns].flatten(1, 2)          # [B, a*b, D]
            if ctx.softmax:
                a.sub_(per_receiver(normaliser, rows, columns, ctx.collects)).exp_()
            if ctx.collects:
                dv.view_as(flat).baddbmm_(a.transpose(1, 2), mine)
            else:
                dv[:, rows, columns] = (a @ flat).view(*owners.shape[:3], -1)
            dp = mine @ flat.transpose(1, 2)                    # [B, a*b, N]
            if ctx.softmax:
                dp.sub_(per_receiver(delta, rows, columns, ctx.collects)).mul_(a)
            dlogits = logits.zero_()  # the same memory; offsets that no pixel has stay 0
            windows(dlogits, size).copy_(dp.view(*owners.shape[:3], *size))
            del a, dp
            dlogits = dlogits.flatten(3).flatten(0, 2)          # [B*a*b, (H+a-1)(W+b-1)]
            dq[:, rows, columns] = (dlogits @ slab.flatten(0, 1)).view_as(owners)
            dtable[offsets] += (dlogits.T @ owners.flatten(0, 2)).view_as(slab)
        return None, dq, dtable, dv, None, None


def per_receiver(t, rows, columns, collects):
    """One number per receiver, [B, H, W], as what broadcasts against a tile's [B, a*b, N]."""
    return t[:, rows, columns].flatten(1)[:, :, None] if collects else t.flatten(1)[:, None]


def collect_tiles(q, table, v, softmax, tile):
    """(z [B, H, W, D], log of the sum of exp(logit) per receiver [B, H, W]), tile by tile."""
    values, z = v.flatten(1, 2), torch.empty_like(v)
    normaliser = v.new_zeros(v.shape[:3])
    for rows, columns, offsets in tiles(v.shape[1:3], tile):
        owners = q[:, rows, columns]                            # [B, a, b, C]
        p = tile_logits(owners, table[offsets])[1]              # (D)  [B, a*b, N]
        if softmax:
            largest = p.amax(-1, keepdim=True)                  # [B, a*b, 1]
            total = p.sub_(largest).exp_().sum(-1, keepdim=True)
            normaliser[:, rows, columns] = (largest + total.log()).view(owners.shape[:3])
        part = p @ values                                       # (G)  [B, a*b, D]
        if softmax:
            part.div_(total)                                    # (F)
        z[:, rows, columns] = part.view(*owners.shape[:3], -1)
    return z, normaliser


def distribute_tiles(q, table, v, softmax, tile):
    """As `collect_tiles`; `largest` and `total` are those of the tiles so far."""
    batch, height, width, _ = v.shape
    z = v.new_zeros(batch, height * width, v.shape[-1])         # [B, N, D]
    largest = v.new_full((batch, height * width), -math.inf)    # [B, N]
    total = torch.zeros_like(largest)                           # the sum of exp(logit - largest)
    for rows, columns, offsets in tiles((height, width), tile):
        p = tile_logits(q[:, rows, columns], table[offsets])[1]         # (E)  [B, a*b, N]
        if softmax:
            highest = torch.maximum(largest, p.amax(1))         # [B, N]
            p.sub_(highest[:, None]).exp_()
            shift = largest.sub_(highest).exp_()                # what earlier tiles are scaled by
            total.mul_(shift).add_(p.sum(1))
            z.mul_(shift[..., None])
            largest = highest
        z.baddbmm_(p.transpose(1, 2), v[:, rows, columns].flatten(1, 2))        # (G)
    if softmax:
        z.div_(total[..., None])                                # (F)
    return z.view_as(v), largest.add_(total.log_()).view(v.shape[:3])


# --------------------------------------------------------------------------------- the classifier


def classify(x, context, weight, factor):
    """Replaces the line before (I) and the first layer of the classifier. Forms neither the
    enlarged context nor [x; enlarged context].

    Why it is the same: enlarging acts on space, the weights of one tap of the 3x3 convolution on
    channels, so they may change places: the nine taps of the context half are 1x1 convolutions on
    the small map. What is left, enlarge and shift by one pixel, is linear in each axis: three
    shifted copies of U (`shifted_enlarging_matrix`), side by side.
    What it saves: three quarters of half of the most expensive layer at factor 2.

    x: [B, X, H, W], context: [B, Y, h, w], weight: [D, X + Y, 3, 3], factor: s with H = (h-1)s+1
    -> [B, D, H, W].
    """
    of_x, of_context = weight.split([x.shape[1], context.shape[1]], dim=1)
    y = F.conv2d(x, of_x, padding=1)                            # [B, D, H, W]
    if factor == 1:
        return y + F.conv2d(context, of_context, padding=1)
    taps = of_context.permute(2, 3, 0, 1).flatten(0, 2)         # [3 * 3 * D, Y]
    t = F.conv2d(context, taps[:, :, None, None])               # [B, 3 * 3 * D, h, w]
    t = t.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 4, 2, 5)    # [B, D, 3, h, 3, w]
    t = t.flatten(4).flatten(2, 3)                              # [B, D, 3h, 3w]
    traced = torch.compiler.is_compiling() or type(t) is not torch.Tensor  # not to be kept
    make = shifted_enlarging_matrix.__wrapped__ if traced else shifted_enlarging_matrix
    rows, columns = (make(side, factor, t.device, t.dtype) for side in context.shape[-2:])
    return y + rows @ (t @ columns.T)                           # (I)  [B, D, H, W]


@functools.lru_cache(256)
@torch.inference_mode(False)  # what is kept must serve training, too
def shifted_enlarging_matrix(size, factor, device, dtype):
    """[n', 3n] with n' = (n-1)s+1: U for the taps -1, 0, +1, moved to read pixels i-1, i, i+1."""
    u = F.pad(enlarging_matrix(size, factor), (0, 0, 1, 1))
    shifted = [u[tap : tap + len(u) - 2] for tap in range(3)]
    return torch.cat(shifted, dim=1).to(device, dtype)


def enlarging_matrix(size, factor):
    """U [(n-1)s+1, n]: bilinear enlargement of n = `size` values by s, corners onto corners."""
    position = torch.arange((size - 1) * factor + 1).double() / factor
    return (1 - (position[:, None] - torch.arange(size)).abs()).clamp(min=0)
