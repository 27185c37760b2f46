"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import model, naive

HEADS, LEVELS, POINTS = 2, 2, 3


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    shapes = [(side, side + 1), (side - 1, side - 1)]
    sources, points = sum(h * w for h, w in shapes), (HEADS, LEVELS, POINTS)
    query, source = torch.randn(2, 4, 8), torch.randn(2, sources, 8)
    reference, offsets = torch.rand(2, 4, 2), torch.randn(2, 4, *points, 2)
    locations = 1.4 * torch.rand(2, 4, *points, 2) - 0.2  # some lie outside
    weights = torch.rand(2, 4, *points)
    layers = [model.DeformableAttention(8, *points, fast=fast) for fast in (False, True)]
    maps = [(torch.randn(n, 8), torch.randn(n)) for n in (24, 12)]
    q, k, v = (torch.randn(2, HEADS, n, 3) for n in (4, 5, 5))
    label = torch.ones(2, 14, side + 11, dtype=torch.long)
    label[0, 5:], label[0, :4, :6], label[1, 3:9, 4:12] = 2, 255, 0
    edge = torch.ones(1, 16, 22, dtype=torch.long)  # a class of just 100 pixels, and much void
    edge[0, :10, :10], edge[0, 10:] = 0, 255
    logits, mask, direction = (torch.randn(2, n, 14, side + 11) for n in (3, 2, 8))
    mask[0, :, 4:6], mask[1, 1, 0] = 0.25, 0.5  # exactly at the thresholds
    value = torch.randn(2, sources, HEADS, 4)
    x, y = torch.tensor(1.3), torch.tensor(side - 0.6)
    return {
        "full_attention": [(q, k, v)],
        "predict": [(query, *maps, *points)],
        "sampling_locations": [(reference, offsets, shapes)],
        "bilinear": [(torch.randn(side, side + 1, 3), *place) for place in
                     ((x, y), (y, x), (x - 2, y), (x - 1, x - 1), (x, y + 3), (y + 1, x))],
        "deformable_attention": [(value, shapes, locations, weights)],
        "attention_matrix": [(shapes, locations, weights)],
        "attend": [(query, reference, source, shapes, layer) for layer in layers],
        "queries": [(torch.randn(2, 3, side, side + 1), torch.randn(side * (side + 1), 3))],
        "boundary_targets": [(label,), (label, 6), (edge,)],
        "refine": [(logits, mask, direction)],
        "boundary_loss": [(logits, mask, direction, label),
                          (logits, mask, direction, torch.ones_like(label))],
    }


def predict(query, offset_map, weight_map, heads, levels, points):
    """The method of the attention, given its two matrices."""
    attention = SimpleNamespace(
        heads=heads, levels=levels, points=points,
        sampling_offsets=lambda z: F.linear(z, *offset_map),
        attention_weights=lambda z: F.linear(z, *weight_map))
    return model.DeformableAttention.predict(attention, query)


# The same in model.py, where it has another name or other arguments.
FAST = {
    "full_attention": lambda q, k, v: model.full_attention(q, k, v),
    "predict": predict,
    "attend": lambda query, reference, source, shapes, module: module(
        query, reference, source, shapes),
}


def elsewhere(place, real=naive.bilinear):
    """The rule of a point, at another place."""
    return lambda level, x, y: real(level, *place(level, x, y))


# What people get wrong: (what, name of the function of naive.py, what they do instead).
MISTAKES = [
    ("x and y of a point moved by another -1/2", "bilinear",
     elsewhere(lambda level, x, y: (x - 0.5, y - 0.5))),
    ("the edge repeated outside instead of zeros", "bilinear",
     elsewhere(lambda level, x, y: (x.clamp(0, level.shape[1] - 1), y.clamp(0, len(level) - 1)))),
    ("int() for floor, which rounds up below 0", "math",
     SimpleNamespace(**{**vars(math), "floor": int})),
    ("rows made to sum to 1, where a part of them lies outside", "attention_matrix",
     lambda *arguments, real=naive.attention_matrix: F.normalize(real(*arguments), p=1, dim=-1)),
]


# Numbers to follow by hand, for the page of exercises: the query of the lesson, which looks at two
# points of a map of 3 x 4 pixels that hold 0 to 11; the lesson's row of scores for `refine`.
SHAPES, PIXELS = [(3, 4)], torch.arange(12.0).view(1, 12, 1)
REFERENCE = torch.tensor([[[0.375, 0.5]]])
OFFSETS = torch.tensor([0.5, 0, 0, 1]).view(1, 1, 1, 1, 2, 2)
LOCATIONS = torch.tensor([0.5, 0.5, 0.375, 5 / 6]).view(1, 1, 1, 1, 2, 2)
WEIGHTS = torch.tensor([0.75, 0.25]).view(1, 1, 1, 1, 2)
MAPS = ((torch.tensor([[1.0], [0], [0], [2]]), torch.zeros(4)),
        (torch.tensor([[2 * math.log(3)], [0]]), torch.zeros(2)))
ROW = torch.tensor([[[[0.0, 1, 5, 9]]]])


def looking():
    """The attention of the lesson."""
    module = model.DeformableAttention(1, 1, 1, 2)
    layers = (module.sampling_offsets, module.attention_weights)
    for layer, (weight, bias) in zip(layers, MAPS, strict=True):
        layer.weight.copy_(weight), layer.bias.copy_(bias)
    for layer in (module.value_proj, module.output_proj):
        torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
    return module


def one_at(shape, place, value=1.0):
    """Zeros but for one number."""
    found = torch.zeros(shape)
    found[place] = value
    return found


TINY = {
    "full_attention": lambda: (torch.tensor([[[[math.log(3)]]]]), torch.tensor([[[[1.0], [0]]]]),
                               torch.tensor([[[[8.0], [4]]]])),
    "predict": lambda: (torch.tensor([[[0.5]]]), *MAPS, 1, 1, 2),
    "sampling_locations": lambda: (REFERENCE, OFFSETS, SHAPES),
    "bilinear": lambda: (PIXELS.view(3, 4, 1), torch.tensor(1.5), torch.tensor(1.0)),
    "deformable_attention": lambda: (PIXELS.view(1, 12, 1, 1), SHAPES, LOCATIONS, WEIGHTS),
    "attention_matrix": lambda: (SHAPES, LOCATIONS, WEIGHTS),
    "attend": lambda: (torch.tensor([[[0.5]]]), REFERENCE, PIXELS, SHAPES, looking()),
    "queries": lambda: (torch.tensor([[[[1.0, 2]]]]), torch.tensor([[10.0], [20]])),
    "boundary_targets": lambda: (torch.arange(200).view(1, 1, 200) // 100,),
    "refine": lambda: (ROW, one_at((1, 2, 1, 4), (0, 1, 0, 1)), one_at((1, 8, 1, 4), (0, 4, 0, 1))),
    "boundary_loss": lambda: (
        torch.zeros(1, 2, 1, 2), one_at((1, 2, 1, 2), (0, 1, 0, 0), math.log(3)),
        torch.zeros(1, 8, 1, 2), torch.tensor([[[0, 1]]]),
        (torch.tensor([[[1, 0]]]), torch.tensor([[[4, 255]]]))),
}
