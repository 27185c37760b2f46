"""Point-wise spatial attention exactly as its equations read: Python loops over pixels, no tricks.

Made to be read beside paper.md, whose letters mark the lines, and to be wrong nowhere; hopelessly
slow on purpose. `collect`, `distribute` and `compact` take what those of model.py and fast.py take
and return the same; `psa` takes the map and the module whose weights it reads, `classify` the two
maps and the weight of the convolution behind them.

Pixels are (row, column), counted from 0. Every pixel *owns* one logit per relative position of
another pixel.
"""

import itertools

import torch
import torch.nn.functional as F


def overcomplete(q, table):
    """The map h of all predictions: a 1x1 convolution whose weight is `table`, one row per offset.

    q: [B, C, H, W], table: [mask_h * mask_w, C] -> h: [B, mask_h * mask_w, H, W]. "Over-complete",
    because from any one pixel most offsets lead out of the image.
    """
    h = [sum(row[c] * q[:, c] for c in range(len(row))) for row in table]       # (C)
    return torch.stack(h, dim=1)


def read(h, owner, other, mask_size):
    """What `owner` predicts for the pixel `other`: h at the owner, in the channel of the offset
    between them.

    h: [B, mask_h * mask_w, H, W]; owner, other: (row, column); mask_size: (mask_h, mask_w) -> [B].
    Offset (0, 0) is the entry ((mask_h - 1) // 2, (mask_w - 1) // 2) of the mask, whose channels
    are row-major. An offset outside the mask has the logit 0, so after the softmax it still has a
    weight.
    """
    mask_h, mask_w = mask_size
    a = other[0] - owner[0] + (mask_h - 1) // 2                                 # (D), (E)
    b = other[1] - owner[1] + (mask_w - 1) // 2
    if not (0 <= a < mask_h and 0 <= b < mask_w):
        return h.new_zeros(len(h))
    return h[:, a * mask_w + b, owner[0], owner[1]]


def aggregate(logits, v, softmax, divisor):
    """(F) and (G) for one receiver. logits: one [B] per source pixel, row-major, v: [B, D, H, W]
    -> [B, D]."""
    weights = logits
    if softmax:
        largest = torch.stack(logits).amax(0)  # subtracted so that exp cannot overflow
        powers = [torch.exp(logit - largest) for logit in logits]
        total = sum(powers)
        weights = [power / total for power in powers]                           # (F)
    sources = v.flatten(2).unbind(-1)  # H * W times [B, D]
    terms = [weight[:, None] * source for weight, source in zip(weights, sources, strict=True)]
    return sum(terms) / divisor                                                 # (G)


def collect(q, table, v, mask_size, softmax=True, factor=1.0):
    """Every pixel decides how much it takes from each other pixel.

    q: [B, C, H, W], the features that predict. table: [mask_h * mask_w, C], one row per offset.
    v: [B, D, H, W], the features that are passed on. mask_size: (mask_h, mask_w), any size: the
    offset (0, 0) is the entry ((mask_h - 1) // 2, (mask_w - 1) // 2), H - 1 and W - 1 for all
    offsets of the map; an offset that the mask lacks has the logit 0. softmax: normalise each
    receiver's weights over the sources. factor: f of (G), None for mask_h * mask_w. Returns
    [B, D, H, W].
    """
    height, width = v.shape[-2:]
    divisor = mask_size[0] * mask_size[1] if factor is None else factor
    h = overcomplete(q, table)
    pixels = list(itertools.product(range(height), range(width)))
    z = []
    for receiver in pixels:
        logits = []
        for source in pixels:
            logits.append(read(h, owner=receiver, other=source, mask_size=mask_size))   # (D)
        z.append(aggregate(logits, v, softmax, divisor))
    return torch.stack(z, dim=-1).unflatten(-1, (height, width))


def distribute(q, table, v, mask_size, softmax=True, factor=1.0):
    """Every pixel decides how much it gives to each other pixel. Arguments and result as in
    `collect`.

    The softmax is again over the sources of one receiver: what a pixel hands out need not sum to 1.
    """
    height, width = v.shape[-2:]
    divisor = mask_size[0] * mask_size[1] if factor is None else factor
    h = overcomplete(q, table)
    pixels = list(itertools.product(range(height), range(width)))
    z = []
    for receiver in pixels:
        logits = []
        for source in pixels:
            logits.append(read(h, owner=source, other=receiver, mask_size=mask_size))   # (E)
        z.append(aggregate(logits, v, softmax, divisor))
    return torch.stack(z, dim=-1).unflatten(-1, (height, width))


def compact(q, table, v, direction, softmax=True, factor=1.0):
    """The variant without offsets: row p of the table belongs to the absolute position p,
    row-major.

    q: [B, C, H, W], table: [H * W, C], v: [B, D, H, W], direction: "collect" or "distribute",
    softmax: as in `collect`, factor: f of (G), None for H * W -> [B, D, H, W].
    """
    height, width = v.shape[-2:]
    divisor = height * width if factor is None else factor
    h = overcomplete(q, table).flatten(2)  # [B, position, owner]
    z = []
    for receiver in range(height * width):
        if direction == "collect":
            logits = [h[:, source, receiver] for source in range(height * width)]       # (J)
        else:
            logits = [h[:, receiver, source] for source in range(height * width)]       # (J)
        z.append(aggregate(logits, v, softmax, divisor))
    return torch.stack(z, dim=-1).unflatten(-1, (height, width))


def shrink(x, factor):
    """[B, C, H, W] -> [B, C, (H-1)//s+1, (W-1)//s+1], bilinear with the corners kept."""
    size = [(side - 1) // factor + 1 for side in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def enlarge(x, factor):
    """[B, C, h, w] -> [B, C, (h-1)s+1, (w-1)s+1], bilinear with the corners kept."""
    size = [(side - 1) * factor + 1 for side in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def psa(x, module):
    """The context of a map. x: [B, inputs, H, W], module: a model.PSA, whose weights and options
    are used and whose code is not -> [B, inputs, h, w] on the shrunk map."""
    z = []
    for direction, branch in zip(module.directions, module.branches, strict=True):
        v = shrink(branch.reduce(x), module.shrink_factor)                      # (A)  [B, C, h, w]
        q = branch.query(v)                                                     # (B)
        if module.compact:
            z.append(compact(q, branch.table, v, direction, module.softmax, module.factor))
        else:
            attend = collect if direction == "collect" else distribute
            options = module.mask_size, module.softmax, module.factor
            z.append(attend(q, branch.table, v, *options))
    return module.project(torch.cat(z, dim=1))                                  # (H)


def classify(x, context, weight, factor):
    """(I) and the 3x3 convolution behind it. x: [B, X, H, W], context: [B, Y, h, w], weight:
    [D, X + Y, 3, 3], factor: s with H = (h-1)s+1 -> [B, D, H, W]."""
    y = torch.cat([x, enlarge(context, factor)], dim=1)                         # (I)
    return F.conv2d(y, weight, padding=1)
