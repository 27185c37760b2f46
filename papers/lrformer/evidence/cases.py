"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

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
