"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

import torch

from .. import model


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    size = side, side + 1
    x, o = torch.randn(2, 8, *size), torch.randn(2, 3, 2, 3)
    attention = model.Attention(8, 2, 4)
    maps = [torch.randn(2, 8, n, n + 1) for n in (3, 2)]
    convs = torch.nn.ModuleList(model.depthwise(8) for _ in maps)
    q, k, v = (torch.randn(2, n, 8) for n in (5, 4, 4))
    decoder = model.Decoder((2, 3, 4), 3, 8, 2, 1.0, True)
    features = [torch.randn(1, c, n, n + 1) for c, n in ((2, 4), (3, 2), (4, 1))]
    block = model.Block(8, 2, 2, 4, torch.nn.BatchNorm2d, 1.0)
    return {
        "grid": [((30, 44), 16), ((44, 30), 16), ((9, 24), 16), ((7, 7), 5)],
        "pyramid": [(16,), (32,), (4,), (20,)],
        "pool": [(x, (2, 3)), (x, (5, 2))],
        "queries": [(x, attention)],
        "keys_values": [(maps, attention), (maps, attention, convs)],
        "attend": [(q, k, v, 2), (q, k, v, 1)],
        "enlarge": [(o, (side + 2, side + 4)), (o, (2, 2))],
        "block": [(x, block)],
        "feed_forward": [(x, model.FeedForward(8, 2))],
        "decode": [(features, decoder)],
    }


# The same in model.py, where it has another name or other arguments.
FAST = {
    "feed_forward": lambda x, module: module(x),
    "block": lambda x, module, convs=(): module(x, convs),
    "decode": lambda features, decoder: decoder(features),
}
