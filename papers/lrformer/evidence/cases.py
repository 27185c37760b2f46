"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

import math
from types import SimpleNamespace

import torch

from .. import model


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    size = side, side + 1
    x, o = torch.randn(2, 8, *size), torch.randn(2, 3, 2, 3)
    attention = model.Attention(8, 2, 4, fast=False)
    maps = [torch.randn(2, 8, n, n + 1) for n in (3, 2)]
    convs = torch.nn.ModuleList(model.depthwise(8) for _ in maps)
    q, k, v = (torch.randn(2, n, 8) for n in (5, 4, 4))
    decoder = model.Decoder((2, 3, 4), 3, 8, 3, 1.0, fast=False)
    features = [torch.randn(1, c, n, n + 1) for c, n in ((2, 4), (3, 2), (4, 1))]
    blocks = [model.Block(8, 2, 3, 4, torch.nn.BatchNorm2d, 1.0, pre_norm=not fast, fast=fast)
              for fast in (False, True)]
    return {
        "grid": [((30, 44), 16), ((44, 30), 16), ((9, 24), 16), ((24, 9), 16), ((7, 7), 5),
                 ((2, 5), 1)],
        "pyramid": [(16,), (32,), (4,), (20,), (24,)],
        "pool": [(x, (2, 3)), (x, (5, 2))],
        "queries": [(x, attention)],
        "keys_values": [(maps, attention), (maps, attention, convs)],
        "attend": [(q, k, v, 2), (q, k, v, 1)],
        "enlarge": [(o, (side + 2, side + 4)), (o, (2, 2))],
        "block": [(torch.randn(2, 8, side + 2, side + 3), block) for block in blocks],
        "feed_forward": [(x, model.FeedForward(8, 2, fast=False))],
        "decode": [(features, decoder)],
    }


def attend(q, k, v, heads):
    """What an attention without output projection does, given its queries, keys and values."""
    layer = SimpleNamespace(
        fast=False, side=1, sides=(), heads=heads, query=lambda t: q,
        keys_values=lambda levels, convs: (k, v), output=lambda o: o)
    return model.Attention.forward(layer, q.new_zeros(1, 1, 1, q.shape[1])).flatten(2).mT


# The same in model.py, where it has another name or other arguments.
FAST = {
    "queries": lambda cells, attention: attention.query(model.as_tokens(cells)),
    "keys_values": lambda maps, attention, convs=(): attention.keys_values(maps, convs),
    "attend": attend,
    "block": lambda x, module, convs=(): module(x, convs),
    "feed_forward": lambda x, module: module(x),
    "decode": lambda features, decoder: decoder(features),
}


# Numbers to follow by hand, for the page of exercises. The map, its cells, queries, keys, values
# and answers are the lesson's.
X = torch.tensor([[[[1.0, -1, 0, 2], [-1, 1, 2, 0], [3, -1, 1, 1], [-1, -1, 1, 1]]]])
CELLS = torch.tensor([[[[0.0, 1]], [[1, 0]]]])
QUERY = math.log(3) / math.sqrt(2)


def only(module, **weights):
    """The module with all weights 0 but those given: {name of a parameter, __ for . : {place:
    number}}. BatchNorms do nothing."""
    for layer in module.eval().modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            for parameter in layer.parameters():
                torch.nn.init.zeros_(parameter)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 0.0
    for name, numbers in weights.items():
        for place, number in numbers.items():
            dict(module.named_parameters())[name.replace("__", ".")][place] = number
    return module


def attending():
    """The attention of the lesson."""
    return only(model.Attention(2, 1, 2, fast=False), query__weight={(0, 0): QUERY},
                key_value__weight={(0, 0): 1, (2, 0): 4}, output__weight={(0, 0): 1})


TINY = {
    "grid": lambda: ((4, 6), 3),
    "pyramid": lambda: (24,),
    "pool": lambda: (X, (2, 2)),
    "queries": lambda: (CELLS, attending()),
    "keys_values": lambda: ([CELLS], attending()),
    "attend": lambda: (torch.tensor([[[0.0, 0], [QUERY, 0]]]), torch.tensor([[[-1.0, 0], [1, 0]]]),
                       torch.tensor([[[-4.0, 0], [4, 0]]]), 1),
    "enlarge": lambda: (torch.tensor([[[[0.0, 2]]]]), (1, 4)),
    "block": lambda: (torch.tensor([[[[1.0, 2]]]]), only(
        model.Block(1, 1, 2, 1, torch.nn.Identity, 0.5, fast=False),
        position__weight={(0, 0, 1, 1): 1}, feed_forward__narrow__bias={0: 20})),
    "feed_forward": lambda: (torch.tensor([[[[1.0, 2]]]]), only(
        model.FeedForward(1, 1, fast=False), widen__weight={(0, 0): 100},
        conv__weight={(0, 0, 1, 1): 1}, narrow__weight={(0, 0): 0.01})),
    "decode": lambda: (
        [torch.tensor([[[numbers]]]) for numbers in ([1.0, 2], [3.0], [4.0])],
        only(model.Decoder((1, 1, 1), 1, 8, 2, 1.0, fast=False),
             squeeze1__weight={(0, 0, 0, 0): 1, (0, 1, 0, 0): 10, (0, 2, 0, 0): 100},
             squeeze2__weight={(0, 0, 0, 0): 1, (0, 8, 0, 0): 1000},
             classifier__weight={(0, 0, 0, 0): 1})),
}
