"""What explain.py shows of PySA is what the network computes with."""

import pytest
import torch

from .. import explain
from ..model import build

attention = pytest.importorskip("papers.attention", reason="the folder was taken alone")
SIZE, PIXEL = (
    (64, 96),
    (13, 90),
)  # not square, and 90 is no row: rows and columns cannot be mixed up
AT_8 = (1, 11)  # where PIXEL lies on a map of 1/8 of the size


def passed(*more, **options):
    """(model, record of one forward pass with the modules `more` watched as well)."""
    torch.manual_seed(0)
    model = build(3, **options).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(1, 3, *SIZE)
    with attention.record(model, (*explain.RECORD, *more)) as record, torch.no_grad():
        model(images)
    return model, record


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (a - b).abs().max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fast": False},
        {"variant": "parallel"},
        {"position": True},
        {"cells": 3},
        {"position": True, "variant": "parallel"},
        {"regions": (4, 3)},
    ],
    ids=str,
)
@torch.no_grad()
def test_what_is_shown_is_used(options):
    """The weights times the values, level upon level, are the context that the classifier reads at
    the pixel."""
    watched = ("head.reduce", "head.levels.*.value", "head.bottleneck")
    model, record = passed(*watched, **options)
    parts = []
    for number, (_, shown) in enumerate(explain.explain(model, record, SIZE, PIXEL)):
        close(shown.sum(), torch.ones(()))
        values = record[f"head.levels.{number}.value"][1][0]  # [C, N, N]
        parts.append((shown * values).sum((1, 2)))
    assert len(parts) == len(options.get("regions", (1, 2, 4, 8)))
    used = record["head.bottleneck"][0][0][0, :, AT_8[0], AT_8[1]]
    if "variant" in options:
        context = torch.cat(parts)
        close(context, used[-len(context) :])
    else:
        context = record["head.reduce"][1][0, :, AT_8[0], AT_8[1]] + sum(parts)
        close(context, used[: len(context)])


def test_regions():
    """Outside the pixel's own region nothing is looked at."""
    model, record = passed()
    with torch.no_grad():
        panels = explain.explain(model, record, SIZE, PIXEL)
    for (title, shown), regions in zip(panels, (1, 2, 4, 8), strict=True):
        assert f"{regions} x {regions} regions of 2 x 2 cells" in title
        rows, columns = shown.nonzero().T
        assert set((rows // 2).tolist()) == {PIXEL[0] * regions // SIZE[0]}
        assert set((columns // 2).tolist()) == {PIXEL[1] * regions // SIZE[1]}


def test_without_context_there_is_nothing_to_show():
    model, record = passed(context=False)
    assert explain.explain(model, record, SIZE, PIXEL) == []
