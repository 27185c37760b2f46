"""PSANet: Point-wise Spatial Attention Network for Scene Parsing (Zhao et al., ECCV 2018).

Read from top to bottom beside paper.md: the attention as one matrix, the same attention in tiles, the module, the
network. naive.py says the same with loops.

Shapes: B images, C channels of the query, D of the value, an H x W map of N = H * W pixels.
Every pixel owns one logit per offset of another pixel: the dot product of its query and the row of a learned table
R that belongs to the offset. All pairs of pixels form one matrix, P[owner, other] = q_owner . R[other - owner].
collect: the owner is the receiver of the features; distribute: the owner is their source.
"""

import inspect
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .resnet import ResNet

# ------------------------------------------------------------------------------------------ one matrix


def fit_table(table, mask_size, size):
    """Crop the table, or pad it with zero rows, around its centre, so that it has one row per offset of the map.

    table: [mask_h * mask_w, C], mask_size: (mask_h, mask_w), size: (H, W) -> R: [2H-1, 2W-1, C].
    A zero row gives the logit 0, which is the rule for offsets that the table lacks; a row cut off belongs to an
    offset that no two pixels of the map have. So only this one case is left.
    """
    (mask_h, mask_w), (height, width) = mask_size, size
    table = table.unflatten(0, mask_size)  # [mask_h, mask_w, C]
    top, left = height - 1 - (mask_h - 1) // 2, width - 1 - (mask_w - 1) // 2
    bottom, right = 2 * height - 1 - mask_h - top, 2 * width - 1 - mask_w - left
    if (top, bottom, left, right) == (0, 0, 0, 0):
        return table  # F.pad would copy
    return F.pad(table, (0, 0, left, right, top, bottom))  # [2H-1, 2W-1, C]


def gather(logits, size):
    """From logits per offset to logits per pair of pixels, without copying anything.

    logits: contiguous [B, a, b, H+a-1, W+b-1], for a tile of a x b owners, the logit of every offset from the last
    owner's view of the first pixel to the first owner's view of the last pixel. size: (H, W), the map.
    Returns the view P [B, a, b, H, W], P[k, l, s, t] = logits[k, l, s - k + a - 1, t - l + b - 1].

    One owner further right in the image sees the same pixel one offset further left in the table: hence the -1
    in the stride of l, and the minus one row in that of k. No two entries share a cell, so P may be written to.
    """
    batch, a, b, rows, columns = logits.shape
    strides = (a * b * rows * columns, b * rows * columns - columns, rows * columns - 1, columns, 1)
    start = logits.storage_offset() + (a - 1) * columns + b - 1
    return logits.as_strided((batch, a, b, *size), strides, start)  # [B, a, b, H, W]


def dense(direction, q, table, v, softmax=True):
    """The attention as one N x N matrix: the form to read, and to run on small maps.

    direction: "collect" or "distribute". q: [B, H, W, C], table: [2H-1, 2W-1, C], v: [B, H, W, D] -> [B, H, W, D].
    """
    batch, height, width, _ = q.shape
    logits = q.flatten(0, 2) @ table.flatten(0, 1).T  # [B*N, (2H-1)(2W-1)]
    logits = logits.view(batch, height, width, *table.shape[:2])  # [B, H, W, 2H-1, 2W-1]
    p = gather(logits, (height, width)).reshape(batch, height * width, -1)  # [B, N owners, N others]
    if direction == "collect":
        a = p  # Eq. (7)  [B, N receivers, N sources]
    else:
        a = p.transpose(1, 2)  # Eq. (8)  [B, N receivers, N sources]
    if softmax:
        a = a.softmax(-1)  # Eq. (9)
    z = a @ v.flatten(1, 2)  # Eq. (6)  [B, N, D]
    return z.unflatten(1, (height, width))  # [B, H, W, D]


# ------------------------------------------------------------------------------------------ the same in tiles


def tiles(size, tile):
    """For every tile of owners: (its rows, its columns, the part of the table that it needs)."""
    height, width = size
    for top in range(0, height, tile[0]):
        bottom = min(top + tile[0], height)
        for left in range(0, width, tile[1]):
            right = min(left + tile[1], width)
            offsets = slice(height - bottom, 2 * height - 1 - top), slice(width - right, 2 * width - 1 - left)
            yield slice(top, bottom), slice(left, right), offsets


def tile_logits(owners, slab):
    """Logits of a tile. owners: [B, a, b, C], slab: [H+a-1, W+b-1, C], its part of the table
    -> (by offset [B, a, b, H+a-1, W+b-1], by pixel P [B, a*b, N])."""
    batch, a, b, _ = owners.shape
    rows, columns = slab.shape[:2]
    logits = owners.flatten(0, 2) @ slab.flatten(0, 1).T  # [B*a*b, (H+a-1)(W+b-1)]
    logits = logits.view(batch, a, b, rows, columns)  # [B, a, b, H+a-1, W+b-1]
    p = gather(logits, (rows - a + 1, columns - b + 1))  # [B, a, b, H, W], a view
    return logits, p.reshape(batch, a * b, -1)  # the only copy


class Stream(torch.autograd.Function):
    """`dense` without its matrices: neither the N x 4N logits nor the N x N attention ever exists.

    A tile of a x b owners needs (H+a-1)(W+b-1) offsets, a rectangle of the table, instead of all (2H-1)(2W-1); its
    rows of P are one matrix product and one view. To a collecting tile all sources are present: softmax, weighted
    sum, done. To a distributing tile only its own sources are: receivers keep a running maximum and sum, as in
    FlashAttention (Dao et al., 2022). tile = (1, W) is one row of the map at a time.

    Backward recomputes P from q and the table. With A the attention, g the gradient of z and
    delta_i = g_i . z_i, the softmax gives dP = A * (g_i . v_j - delta_i) for receiver i and source j. Both
    directions are the same code, if the owner's side is g or v and the other side is v or g.
    """

    @staticmethod
    def forward(ctx, direction, q, table, v, softmax, tile):
        batch, height, width, _ = q.shape
        pixels, collects = height * width, direction == "collect"
        values = v.flatten(1, 2)  # [B, N, D]
        z = torch.zeros_like(v)
        flat = z.view(batch, pixels, -1)  # [B, N, D], the same memory
        total = v.new_zeros(batch, pixels)  # per receiver: the sum of exp(logit - largest)
        largest = v.new_full((batch, pixels), -math.inf)
        for rows, columns, offsets in tiles((height, width), tile):
            owners = q[:, rows, columns]  # [B, a, b, C]
            p = tile_logits(owners, table[offsets])[1]  # [B, a*b, N]
            if collects:
                if softmax:
                    highest = p.amax(-1, keepdim=True)  # [B, a*b, 1]
                    p.sub_(highest).exp_()
                    sums = p.sum(-1, keepdim=True)  # [B, a*b, 1]
                    largest.view(z.shape[:3])[:, rows, columns] = highest.view(owners.shape[:3])
                    total.view(z.shape[:3])[:, rows, columns] = sums.view(owners.shape[:3])
                z[:, rows, columns] = (p @ values).view(*owners.shape[:3], -1)
                continue
            if softmax:
                highest = torch.maximum(largest, p.amax(1))  # [B, N]
                p.sub_(highest[:, None]).exp_()
                shift = largest.sub_(highest).exp_()  # what earlier tiles must be scaled by
                total.mul_(shift).add_(p.sum(1))
                flat.mul_(shift[..., None])
                largest = highest
            flat.baddbmm_(p.transpose(1, 2), v[:, rows, columns].flatten(1, 2))
        if softmax:
            flat.div_(total[..., None])
        ctx.save_for_backward(q, table, v, z, largest.add_(total.log_()))
        ctx.collects, ctx.softmax, ctx.tile = collects, softmax, tile
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        """g: the gradient of z, [B, H, W, D] -> those of q, table and v, of their shapes. See above."""
        q, table, v, z, normaliser = ctx.saved_tensors  # normaliser: log of the sum of exp(logit), [B, N]
        batch, height, width, _ = q.shape
        g = g.contiguous()
        delta = (g * z).sum(-1)  # [B, H, W]
        normaliser = normaliser.view_as(delta)
        own, others = (g, v) if ctx.collects else (v, g)
        flat_others = others.flatten(1, 2)  # [B, N, D]
        dq, dtable, dv = torch.empty_like(q), torch.zeros_like(table), torch.zeros_like(v)
        for rows, columns, offsets in tiles((height, width), ctx.tile):
            owners = q[:, rows, columns]  # [B, a, b, C]
            slab = table[offsets]  # [H+a-1, W+b-1, C]
            logits, a = tile_logits(owners, slab)  # a: [B, a*b, N]

            def per_receiver(t):
                """One number per receiver, [B, H, W], as what broadcasts against [B, a*b, N]."""
                return t[:, rows, columns].flatten(1)[:, :, None] if ctx.collects else t.flatten(1)[:, None]

            if ctx.softmax:
                a.sub_(per_receiver(normaliser)).exp_()
            mine = own[:, rows, columns].flatten(1, 2)  # [B, a*b, D]
            if ctx.collects:
                dv.view_as(flat_others).baddbmm_(a.transpose(1, 2), mine)
            else:
                dv[:, rows, columns] = (a @ flat_others).view(*owners.shape[:3], -1)
            dp = mine @ flat_others.transpose(1, 2)  # [B, a*b, N]
            if ctx.softmax:
                dp.sub_(per_receiver(delta)).mul_(a)
            dlogits = logits.zero_()  # the memory is used again; offsets that no pixel has stay 0
            gather(dlogits, (height, width)).copy_(dp.view(*owners.shape[:3], height, width))
            del a, dp
            dlogits = dlogits.flatten(3).flatten(0, 2)  # [B*a*b, (H+a-1)(W+b-1)]
            dq[:, rows, columns] = (dlogits @ slab.flatten(0, 1)).view_as(owners)
            dtable[offsets] += (dlogits.T @ owners.flatten(0, 2)).view_as(slab)
        return None, dq, dtable, dv, None, None


# ------------------------------------------------------------------------------------------ which form when

TILE = 15  # owners per side of a tile: fewer waste time in small matrix products, more waste offsets and memory
LARGEST_DENSE = 2**19  # logits of all pixels for all offsets: beyond, tiles are smaller, on large maps twice as fast


def attention(direction, q, table, v, mask_size, softmax, factor):
    """`dense` or `Stream`: `Stream`, which is smaller, where the over-complete map would have more
    than LARGEST_DENSE entries. Computes in float32 at least, whatever the autocast says.

    q: [B, C, H, W], table: [mask_h * mask_w, C], v: [B, D, H, W] -> [B, D, H, W].
    """
    batch, _, height, width = q.shape
    mask_h, mask_w = mask_size
    if table.shape[0] != mask_h * mask_w:
        raise ValueError(f"a mask of {mask_h} x {mask_w} needs a table of {mask_h * mask_w} rows, not {len(table)}")
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
        q, v = (t.to(dtype).permute(0, 2, 3, 1).contiguous() for t in (q, v))  # [B, H, W, C]: free for channels-last
        table = fit_table(table.to(dtype), mask_size, (height, width))  # [2H-1, 2W-1, C]
        if batch * height * width * (2 * height - 1) * (2 * width - 1) <= LARGEST_DENSE:
            z = dense(direction, q, table, v, softmax)
        else:
            tile = tuple(math.ceil(side / math.ceil(side / TILE)) for side in (height, width))
            z = Stream.apply(direction, q, table, v, softmax, tile)
    z = z.permute(0, 3, 1, 2)  # [B, D, H, W]
    divisor = mask_h * mask_w if factor is None else factor
    return z if divisor == 1 else z / divisor


def collect(q, table, v, mask_size, softmax=True, factor=1.0):
    """Every pixel decides how much it takes from each other pixel.

    q: [B, C, H, W], the features that predict. table: [mask_h * mask_w, C], one row per offset.
    v: [B, D, H, W], the features that are passed on. mask_size: (mask_h, mask_w), any size.
    softmax: normalise each receiver's weights over the sources. factor: N of Eq. (6), None for mask_h * mask_w.
    Returns [B, D, H, W].
    """
    return attention("collect", q, table, v, mask_size, softmax, factor)  # Eq. (3)


def distribute(q, table, v, mask_size, softmax=True, factor=1.0):
    """Every pixel decides how much it gives to each other pixel. Arguments and result as in `collect`.

    The softmax is again over the sources of one receiver: what a pixel hands out need not sum to 1.
    """
    return attention("distribute", q, table, v, mask_size, softmax, factor)  # Eq. (4)


def compact(q, table, v, direction, softmax=True, factor=1.0):
    """The variant without offsets: row p of the table belongs to the absolute position p, row-major. This is
    ordinary attention whose keys (collect) or queries (distribute) are learned.

    q: [B, C, H, W], table: [H * W, C], v: [B, D, H, W], direction: "collect" or "distribute" -> [B, D, H, W].
    """
    size, positions = q.shape[-2:], len(table)
    if positions != size.numel():
        raise ValueError(f"a compact table of {positions} rows fits no map of {size[0]} x {size[1]}")
    q, v = (t.flatten(2).transpose(1, 2) for t in (q, v))  # [B, N, C]
    table = table.to(q.dtype).expand(len(q), -1, -1)  # [B, N, C]
    receivers, sources = (q, table) if direction == "collect" else (table, q)
    if softmax:
        z = F.scaled_dot_product_attention(receivers, sources, v, scale=1.0)  # [B, N, D]
    else:
        z = receivers @ sources.transpose(1, 2) @ v  # [B, N, D]
    z = z.transpose(1, 2).unflatten(2, size)  # [B, D, H, W]
    divisor = positions if factor is None else factor
    return z if divisor == 1 else z / divisor


# ------------------------------------------------------------------------------------------ the module


def conv_bn_relu(inputs, outputs, kernel):
    """Convolution without bias, BatchNorm, ReLU; keeps the size of the map."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def shrink(x, factor):
    """[B, C, H, W] -> [B, C, (H-1)//s+1, (W-1)//s+1]. Bilinear with the corners kept reads the pixels 0, s, 2s, ...
    where s divides H-1 and W-1: so it is no more than picking them."""
    return x[:, :, ::factor, ::factor]


class PSABranch(nn.Module):
    """One direction: reduce the channels, shrink, predict from what is left.

    inputs: channels of the map. channels: C, of query and value alike. positions: rows of the table.
    forward: [B, inputs, H, W] -> (query, value), both [B, C, h, w] on the shrunk map.
    """

    def __init__(self, inputs, channels, positions, shrink_factor):
        super().__init__()
        self.shrink_factor = shrink_factor
        self.reduce = conv_bn_relu(inputs, channels, 1)
        self.query = conv_bn_relu(channels, channels, 1)
        # The weight of the 1x1 convolution that makes the over-complete map. It has neither bias nor padding: a
        # padded one would put a frame of zeros around the map and shift every pixel's predictions to its neighbour.
        self.table = nn.Parameter(torch.empty(positions, channels).uniform_(-1, 1) / math.sqrt(channels))

    def forward(self, x):
        if self.reduce[1].training:  # BatchNorm takes its statistics from the whole map
            v = shrink(self.reduce(x), self.shrink_factor)  # [B, C, h, w]
        else:  # pixel by pixel, so the pixels that are dropped need not be reduced
            v = self.reduce(shrink(x, self.shrink_factor))  # [B, C, h, w]
        return self.query(v), v


class PSA(nn.Module):
    """The point-wise spatial attention module.

    inputs: channels of the map. channels: C. directions: of ("collect", "distribute"), in the order in which their
    results are concatenated. mask_size: (mask_h, mask_w), of the table; in compact mode the size of the shrunk map.
    shrink_factor: s. softmax, factor: see `collect`. compact: see `compact`.

    forward: [B, inputs, H, W], s dividing H-1 and W-1, -> context [B, inputs, h, w], h = (H-1)/s+1, w = (W-1)/s+1.
    """

    def __init__(
        self, inputs, channels, directions, mask_size, shrink_factor=2, softmax=True, factor=1.0, compact=False
    ):
        super().__init__()
        self.directions, self.mask_size, self.shrink_factor = directions, mask_size, shrink_factor
        self.softmax, self.factor, self.compact = softmax, factor, compact
        self.branches = nn.ModuleList(
            PSABranch(inputs, channels, mask_size[0] * mask_size[1], shrink_factor) for _ in directions
        )
        self.project = conv_bn_relu(channels * len(directions), inputs, 1)

    def forward(self, x):
        for name, side in zip(("height", "width"), x.shape[-2:]):
            if (side - 1) % self.shrink_factor:
                raise ValueError(f"the {name} of the map, {side}, is not 1 + a multiple of {self.shrink_factor}")
        size = tuple((side - 1) // self.shrink_factor + 1 for side in x.shape[-2:])
        if self.compact and size != self.mask_size:
            raise ValueError(
                f"a compact PSA knows one map size, {self.mask_size[0]} x {self.mask_size[1]} after shrinking, and "
                f"this one has {size[0]} x {size[1]}: use images of the training crop's size, or compact=False"
            )
        return psa(x, self)


def psa(x, module):
    """The context of a map. x: [B, inputs, H, W] -> [B, inputs, h, w] on the shrunk map."""
    z = []
    for direction, branch in zip(module.directions, module.branches):
        q, v = branch(x)  # [B, C, h, w] each
        if module.compact:
            z.append(compact(q, branch.table, v, direction, module.softmax, module.factor))
        else:
            function = collect if direction == "collect" else distribute
            z.append(function(q, branch.table, v, module.mask_size, module.softmax, module.factor))
    return module.project(torch.cat(z, dim=1))


# ------------------------------------------------------------------------------------------ the network


def enlarging_matrix(size, factor):
    """U [(n-1)s+1, n]: bilinear enlargement of n = `size` values by s = `factor`, the corners kept."""
    position = torch.arange((size - 1) * factor + 1).double() / factor
    return (1 - (position[:, None] - torch.arange(size)).abs()).clamp(min=0)


def classify(x, context, weight, factor):
    """Eq. (10) and the 3x3 convolution behind it, without forming [x; enlarged context].

    Enlarging acts on space, the weights of one tap of the convolution on channels, so they may change places: the
    nine taps of the context half are 1x1 convolutions on the small map. What is left, enlarge and shift by one
    pixel, is linear in each axis: three shifted copies of U, side by side.

    x: [B, X, H, W], context: [B, Y, h, w], weight: [D, X + Y, 3, 3], factor: s with H = (h-1)s+1 -> [B, D, H, W].
    """
    of_x, of_context = weight.split([x.shape[1], context.shape[1]], dim=1)
    y = F.conv2d(x, of_x, padding=1)  # [B, D, H, W]
    if factor == 1:
        return y + F.conv2d(context, of_context, padding=1)
    taps = of_context.permute(2, 3, 0, 1).flatten(0, 2)  # [3 * 3 * D, Y]
    t = F.conv2d(context, taps[:, :, None, None])  # [B, 3 * 3 * D, h, w]
    t = t.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # [B, D, 3h, 3w]
    rows, columns = (shifted_enlarging_matrix(side, factor).to(t) for side in context.shape[-2:])  # [H, 3h], [W, 3w]
    return y + rows @ (t @ columns.T)  # Eq. (10)  [B, D, H, W]


def shifted_enlarging_matrix(size, factor):
    """[n', 3n] with n' = (n-1)s+1: U for the taps -1, 0, +1, each moved so that pixel i reads i-1, i, i+1."""
    u = enlarging_matrix(size, factor)
    return torch.cat([F.pad(u, (0, 0, 1, 1))[tap : tap + len(u)] for tap in range(3)], dim=1)


class PSANet(nn.Module):
    """A segmentation network: ResNet, point-wise spatial attention, classifier, bilinear enlargement.

    backbone: "resnet50", "resnet101", "resnet152" (deep stem, layers 3 and 4 dilated) or "tiny"; output at 1/8.
    channels: C of the attention and width of the classifier. psa_type: "collect", "distribute" or "bidirection".
    compact: one logit per absolute position instead of one per offset; then only one image size is possible.
    shrink_factor: the attention's map is this much smaller per side. crop_size: side of the training images.
    mask_size: (mask_h, mask_w), offsets in the table; None for all that a map of the training crop has.
    normalization_factor: the sum is divided by it, None for mask_h * mask_w. psa_softmax: softmax over the sources.
    zoom_factor: logits at zoom_factor / 8 of the image; for 1, 2, 4 they belong to the pixels 0, 8/z, 2 * 8/z, ...
    aux: auxiliary head on the last but one stage. context=False: the FCN baseline, without PSA.

    forward: images [B, 3, H, W] -> {"out": [B, num_classes, H, W]}, in training also "aux" of that shape.
    The official network exists for sides 1 + 8 * shrink_factor * k only. Other images are padded to the next such
    size with zeros, the mean colour, at the right and at the bottom, and the logits are cut back.
    """

    def __init__(
        self, num_classes, backbone="resnet50", channels=512, psa_type="bidirection", compact=False, shrink_factor=2,
        crop_size=465, mask_size=None, normalization_factor=1.0, psa_softmax=True, zoom_factor=8, aux=True,
        context=True,
    ):
        super().__init__()
        check("psa_type", psa_type, ("collect", "distribute", "bidirection"))
        check("zoom_factor", zoom_factor, (1, 2, 4, 8))
        if not isinstance(shrink_factor, int) or shrink_factor < 1:
            raise ValueError(f"shrink_factor must be a whole number >= 1, not {shrink_factor!r}")
        if normalization_factor is not None and not normalization_factor > 0:
            raise ValueError(f"normalization_factor must be positive or None, not {normalization_factor!r}")
        self.zoom_factor = zoom_factor
        # Pixels between image sizes that need no padding.
        self.step = 8 * shrink_factor if context else 8
        side = math.ceil((crop_size - 1) / (8 * shrink_factor)) + 1  # of the shrunk map
        if mask_size is None:
            mask_size = (side, side) if compact else (2 * side - 1, 2 * side - 1)
        if len(mask_size) != 2 or min(mask_size) < 1:
            raise ValueError(f"mask_size must be two positive numbers (rows, columns), not {mask_size!r}")
        if backbone == "tiny":
            self.backbone = ResNet(backbone, strides=(2, 2))
        else:
            self.backbone = ResNet(backbone, (64, 64, 128), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
        *_, middle, last = self.backbone.channels
        self.psa = None
        if context:
            directions = ("collect", "distribute") if psa_type == "bidirection" else (psa_type,)
            self.psa = PSA(
                last, channels, directions, tuple(mask_size), shrink_factor, psa_softmax, normalization_factor, compact
            )
        self.classifier = scores_head(2 * last if context else last, channels, num_classes)
        self.aux_head = scores_head(middle, middle // 4, num_classes) if aux else None

    def forward(self, images):
        height, width = images.shape[-2:]
        images = F.pad(images, (0, (1 - width) % self.step, 0, (1 - height) % self.step))  # 1 + step * k per side
        *_, middle, last = self.backbone(images)  # [B, 1024, H/8, W/8], [B, 2048, H/8, W/8]
        if self.psa is None:
            scores = {"out": self.classifier(last)}
        else:
            first = self.classifier[0].weight
            y = classify(last, self.psa(last), first, self.psa.shrink_factor)  # [B, 512, H/8, W/8]
            scores = {"out": self.classifier[1:](y)}
        if self.training and self.aux_head is not None:
            scores["aux"] = self.aux_head(middle)
        return {name: self.enlarge(s)[:, :, : self.sides(height), : self.sides(width)] for name, s in scores.items()}

    def enlarge(self, scores):
        """[B, K, h, w] -> [B, K, (h-1)z+1, (w-1)z+1] with z = zoom_factor."""
        size = [(side - 1) * self.zoom_factor + 1 for side in scores.shape[-2:]]
        return F.interpolate(scores, size, mode="bilinear", align_corners=True)

    def sides(self, pixels):
        """How many logits lie on so many pixels."""
        return (pixels - 1) * self.zoom_factor // 8 + 1

    def loss(self, outputs, label, cross_entropy):
        """Cross-entropy of "out" plus 0.4 times that of "aux". label: [B, H, W]; where zoom_factor is less than 8, the
        pixels count at which the logits lie."""
        label = label[:, :: 8 // self.zoom_factor, :: 8 // self.zoom_factor]
        loss = cross_entropy(outputs["out"], label)
        return loss + 0.4 * cross_entropy(outputs["aux"], label) if "aux" in outputs else loss


def scores_head(inputs, width, num_classes):
    """3x3 convolution, BatchNorm, ReLU, dropout of whole channels, 1x1 convolution. -> [B, num_classes, H, W]."""
    return nn.Sequential(*conv_bn_relu(inputs, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1))


def check(option, value, valid):
    """Raise a ValueError that names the valid choices."""
    if value not in valid:
        raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(map(str, valid))}")


PRESETS = {
    "tiny": dict(backbone="tiny", channels=64, crop_size=128),
    "resnet50": dict(backbone="resnet50"),
    "resnet101": dict(backbone="resnet101"),
    "resnet152": dict(backbone="resnet152"),
}


def build(num_classes, preset="tiny", **options):
    """The network of a preset, with any option of `PSANet` overridden; crop_size=705 is the one for Cityscapes.

    Raises ValueError for an unknown preset or option, naming the valid ones.
    """
    check("preset", preset, tuple(PRESETS))
    valid = tuple(inspect.signature(PSANet).parameters)[1:]
    for name in options:
        check("option", name, valid)
    return PSANet(num_classes, **{**PRESETS[preset], **options})
