"""What explain.py shows of LRFormer is what the network computes with."""

import pytest
import torch

from .. import explain
from ..model import build, grid

attention = pytest.importorskip("papers.attention", reason="the folder was taken alone")
# 87 is no row: nothing can change places unnoticed. Both are the last of four pixels.
SIZE, PIXEL = (64, 96), (15, 87)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (a - b).abs().max()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"pool_sizes": (16, 6, 8, 2), "head_pool_size": 5}, {"depths": (2, 1, 1, 1)}],
    ids=str,
)
@torch.no_grad()
def test_what_is_shown_is_used(options, fast):
    """The weights times the values, projected, are the output of the attention at the pixel."""
    torch.manual_seed(0)
    model = build(3, fast=fast, **options).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    with attention.record(model, explain.RECORD) as record:
        model(torch.randn(1, 3, *SIZE))
    panels = explain.explain(model, record, SIZE, PIXEL)
    assert len(panels) == 6
    shown = iter(panels)
    names = [name for name in record if name.endswith("attention")]
    assert len(names) == sum(options.get("depths", (1, 1, 1, 1))) + 2
    for name in names:
        (x, *_), output = record[name]
        module, stride = model.get_submodule(name), SIZE[0] // x.shape[2]
        y, z = PIXEL[0] // stride, PIXEL[1] // stride
        k, v = record[f"{name}.key_value"][1].chunk(2, dim=-1)  # [1, n, C] each
        weights = explain.token_weights(
            module, record[f"{name}.query"][1], k, x.shape[-2:], (y, z)
        )  # [heads, n]
        close(weights.sum(1), torch.ones(module.heads))
        mixed = torch.einsum("hn,nhd->hd", weights, v[0].unflatten(1, (module.heads, -1)))
        close(module.output(mixed.flatten()), output[0, :, y, z])
        grids = [grid(x.shape[-2:], side) for side in module.sides]
        last = not (options.get("depths") and name.startswith("backbone.stages.0.blocks.0"))
        if last:  # the last block of a stage is shown
            close(next(shown)[1], explain.spread(weights.mean(0), SIZE, grids))


def test_even_attention_is_drawn_even():
    grids = [(4, 6), (2, 3)]
    even = torch.cat([torch.full((24,), 0.5 / 24), torch.full((6,), 0.5 / 6)])
    close(explain.spread(even, (20, 30), grids), torch.ones(20, 30))
