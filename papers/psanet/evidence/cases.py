"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import model, naive

MASK = (3, 4)  # smaller than the offsets of a map, and its middle is no middle


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    q, v = torch.randn(2, 3, side, side + 1), torch.randn(2, 4, side, side + 1)
    table, positions = torch.randn(12, 3), torch.randn(side * (side + 1), 3)
    full, offsets = (2 * side - 1, 2 * side + 1), torch.randn((2 * side - 1) * (2 * side + 1), 3)
    logits = list(torch.randn(side * (side + 1), 2))
    modules = [model.PSA(4, 3, ("collect", "distribute"), MASK, fast=fast)
               for fast in (False, True)]
    return {
        "overcomplete": [(q, table)],
        "collect": [(q, offsets, v, full), (q, table, v, MASK), (q, table, v, MASK, False, None)],
        "distribute": [(q, offsets, v, full), (q, table, v, MASK),
                       (q, table, v, MASK, False, None)],
        "aggregate": [(logits, v, True, 1.0), (logits, v, False, 12)],
        "compact": [(q, positions, v, "collect"), (q, positions, v, "distribute", True, None)],
        "psa": [(torch.randn(2, 4, 2 * side - 1, 2 * side + 1), psa) for psa in modules],
        "classify": [(torch.randn(1, 2, 2 * side - 1, 2 * side + 1),
                      torch.randn(1, 3, side, side + 1), torch.randn(2, 5, 3, 3), 2)],
    }


def classify(x, context, weight, factor):
    """The network's scores, given the context and a classifier of one convolution."""
    network = SimpleNamespace(fast=False, psa=lambda _: context,
                              classifier=lambda y: F.conv2d(y, weight, padding=1))
    network.psa.shrink_factor = factor
    return model.PSANet.scores(network, x)


def aggregate(logits, v, softmax, divisor):
    """`model.aggregate` for one receiver: it is there N times, and the first is taken."""
    a = torch.stack(logits, dim=-1)[:, None].expand(-1, len(logits), -1)    # [B, N, N]
    return model.aggregate(a, v, softmax, divisor).flatten(2)[..., 0]


# The same in model.py, where it has another name or other arguments; None: it is nowhere alone.
FAST = {
    "classify": classify,
    "overcomplete": None,
    "aggregate": aggregate,
    "psa": lambda x, module: module(x),
}


def elsewhere(change):
    """`naive.read` where change(down, right, mask_h, mask_w) takes the place of the offset."""
    def wrong(h, owner, other, mask_size, read=naive.read):
        down, right = change(other[0] - owner[0], other[1] - owner[1], *mask_size)
        return read(h, owner, (owner[0] + down, owner[1] + right), mask_size)
    return wrong


def clamped(down, right, mask_h, mask_w):
    """The nearest offset that the mask has."""
    return (min(max(down, -((mask_h - 1) // 2)), mask_h // 2),
            min(max(right, -((mask_w - 1) // 2)), mask_w // 2))


def outside(value):
    """`naive.read` with another logit than 0 for offsets that the mask lacks."""
    def wrong(h, owner, other, mask_size, read=naive.read):
        offset = other[0] - owner[0], other[1] - owner[1]
        lacks = clamped(*offset, *mask_size) != offset
        return h.new_full((len(h),), value) if lacks else read(h, owner, other, mask_size)
    return wrong


# (what, function of naive.py, what stands in its place): what people do, for hints.
MISTAKES = [
    *(("offsets outside the mask get minus infinity, not the logit 0", "read", outside(value))
      for value in (-math.inf, -1e9)),
    ("offsets outside the mask read its nearest entry, not the logit 0", "read",
     elsewhere(clamped)),
    ("rows and columns of the mask exchanged", "read", elsewhere(lambda y, x, *_: (x, y))),
    ("the rows of the mask mirrored", "read", elsewhere(lambda y, x, *_: (-y, x))),
    ("the columns of the mask mirrored", "read", elsewhere(lambda y, x, *_: (y, -x))),
    ("the rows and the columns of the mask mirrored: k with s, l with t exchanged", "read",
     elsewhere(lambda y, x, *_: (-y, -x))),
]

# Numbers to follow by hand, for the page of exercises: one image, one channel, 1 x 2 pixels.
ROW = torch.tensor([[[[1.0, 2.0]]]])
TINY = {
    "overcomplete": lambda: (ROW, torch.tensor([[10.0], [20.0], [30.0]])),
    "aggregate": lambda: ([torch.tensor([0.0]), torch.tensor([1.0986123])], 4 * ROW, True, 1.0),
    "compact": lambda: (ROW, torch.tensor([[10.0], [20.0]]), ROW, "collect", False),
}
