"""Arguments for the functions of naive.py, with which the judge of the exercises calls them."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from .. import fast, model, naive, readings


def cases(side):
    """{function of naive.py: arguments}, on maps of `side` rows and one column more."""
    size = side, side + 1
    x = torch.randn(2, 8, *size)
    q, k, v = (torch.randn(2, d, 4, 4) for d in (3, 3, 4))
    six = [torch.randn(1, d, 6, 6) for d in (2, 2, 1)]
    levels = torch.nn.ModuleList(model.PySALevel(8, r) for r in (1, 2, 4))
    return {
        "pool": [(x, 2), (x, 5)],
        "project": [(x, torch.randn(5, 8), torch.randn(5))],
        "attend": [(q, k, v, 2), (q, k, v, 1), (q, k, v, 2, torch.randn(1, 3, 3)),
                   (*six, 3)],
        "enlarge": [(v, (side + 2, side + 4), 2), (v, (side + 2, side + 4), 1)],
        "series": [(x, levels), (x, [])],
        "series_head": [(x, model.SeriesHead(8, 3, 8, (1, 2), 2, fast=False))],
        "parallel_head": [(x, model.ParallelHead(8, 3, 16, (1, 2), 2))],
    }


def attend(q, k, v, regions, position=None):
    """The method of a level, given its queries, keys and values."""
    made = model.PySALevel if position is None else readings.PositionedLevel
    cells = q.shape[-1] // regions
    level = SimpleNamespace(query=lambda t: q, key=lambda t: k, value=lambda t: v, regions=regions,
                            cells=cells)
    if position is not None:
        level = made(8, regions, cells)
        level.query, level.key, level.value = (Constant(t) for t in (q, k, v))
        level.position.data = position
    return made.attend(level, None)


class Constant(torch.nn.Module):
    """A layer that always returns the same."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, _):
        return self.value


def enlarge(o, size, regions):
    """The last line of a level, given what its cells have become."""
    level = SimpleNamespace(
        grid=1, reduce=lambda t: t, attend=lambda t: o,
        enlarging=lambda n: model.enlarging_matrix(n, regions, o.shape[-1] // regions))
    return model.PySALevel.forward(level, o.new_zeros(1, 1, *size))


# The same in model.py, where it has another name or other arguments.
FAST = {
    "pool": F.adaptive_avg_pool2d,
    "attend": attend,
    "enlarge": enlarge,
    "series": lambda x, levels: fast.series(x, levels),
    "series_head": lambda features, head: head(features),
    "parallel_head": lambda features, head: head(features),
}


def interleaved(q, k, v, regions, position=None, attend=naive.attend):
    """`naive.attend` where a region is every R-th row and column of cells, not a block of them."""
    order = torch.arange(q.shape[-1]).view(-1, regions).mT.flatten()
    q, k, v = (t[..., order, :][..., order] for t in (q, k, v))
    back = order.argsort()
    return attend(q, k, v, regions, position)[..., back, :][..., back]


# (what, function of naive.py, what stands in its place): what people do, for hints.
MISTAKES = [
    ("regions interleaved: every R-th cell in place of G cells side by side", "attend",
     interleaved),
    ("R and G exchanged", "attend", lambda q, k, v, regions, position=None, attend=naive.attend:
     attend(q, k, v, q.shape[-1] // regions, position)),
]

# Numbers to follow by hand, for the page of exercises: one image, one or two channels. `attend` has
# those of the lesson.
ROW = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]])
CELLS = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
TINY = {
    "pool": lambda: (torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]), 1),
    "project": lambda: (ROW, torch.tensor([[2.0, 3.0]]), torch.tensor([10.0])),
    "attend": lambda: (1.0986123 * CELLS, CELLS, 12 * CELLS, 1),
    "enlarge": lambda: (torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]]), (2, 4), 1),
}
