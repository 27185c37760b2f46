"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import model

MASK = (3, 4)  # smaller than the offsets of a map, and its middle is no middle


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    q, v = torch.randn(2, 3, side, side + 1), torch.randn(2, 4, side, side + 1)
    table, positions = torch.randn(12, 3), torch.randn(side * (side + 1), 3)
    logits = list(torch.randn(side * (side + 1), 2))
    modules = [model.PSA(4, 3, ("collect", "distribute"), MASK, fast=fast)
               for fast in (False, True)]
    return {
        "overcomplete": [(q, table)],
        "collect": [(q, table, v, MASK), (q, table, v, MASK, False, None)],
        "distribute": [(q, table, v, MASK), (q, table, v, MASK, False, None)],
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

# Numbers to follow by hand, for the page of exercises: one image, one channel, 1 x 2 pixels.
ROW = torch.tensor([[[[1.0, 2.0]]]])
TINY = {
    "overcomplete": (ROW, torch.tensor([[10.0], [20.0], [30.0]])),
    "aggregate": ([torch.tensor([0.0]), torch.tensor([1.0986123])], 4 * ROW, True, 1.0),
    "compact": (ROW, torch.tensor([[10.0], [20.0]]), ROW, "collect", False),
}
