"""What a network takes, and what it refuses in one line: the table of docs/errors.md, cell by
cell."""

import functools
import importlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
every_paper = pytest.mark.parametrize("paper", PAPERS)


def build(paper, **options):
    torch.manual_seed(0)
    return importlib.import_module(f"papers.{paper}.model").build(3, **options).eval()


def same(one, other, images, tolerance=1e-5):
    """Whether two networks give the same scores, on images that neither has seen."""
    return bool((one(images)["out"] - other(images)["out"]).abs().max() < tolerance)


def runs(dtype, train=False):
    """The network in another number format: scores of that format, all finite; in training finite
    gradients for all that gets one."""
    def run(paper):
        model, images = build(paper).to(dtype), torch.randn(2, 3, 128, 128).to(dtype)
        if not train:
            out = model(images)["out"]
            return out.dtype == dtype and bool(out.isfinite().all())
        outputs = model.train()(images)
        sum(scores.float().square().mean() for scores in outputs.values()).backward()
        return all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return run


def on_meta(paper):
    return build(paper).to("meta")(torch.zeros(2, 3, 64, 48, device="meta"))["out"].is_meta


def exported(images, dynamic, *others):
    """By torch.export, tried on other images than those it was exported with."""
    def run(paper):
        model, first = build(paper), torch.randn(*images)
        places = {place: torch.export.Dim.AUTO for place in dynamic}
        graph = torch.export.export(model, (first,), dynamic_shapes=(places,)).module()
        return all(same(graph, model, torch.randn(*other)) for other in (images, *others))
    return run


any_batch = functools.cache(exported((2, 3, 64, 96), (0,), (3, 3, 64, 96), (40, 3, 64, 96)))


def any_size(paper):
    """Where the table says no: the graph for one size refuses another one. To ask torch.export for
    more takes minutes."""
    if cells()["`torch.export`, any size", paper] == "yes":
        return exported((2, 3, 64, 96), (0, 2, 3), (3, 3, 80, 64), (2, 3, 99, 99))(paper)
    return exported((2, 3, 64, 96), (), (2, 3, 80, 64))(paper)


def traced(paper):
    model = build(paper)
    return same(torch.jit.trace(model, torch.randn(2, 3, 64, 48), strict=False), model,
                torch.randn(2, 3, 64, 48))


WAYS = {  # rows of the table
    "sides of any length, from 1 pixel": lambda paper: all(
        build(paper)(torch.randn(1, 3, *size))["out"].shape == (1, 3, *size)
        for size in ((1, 1), (1, 70), (7, 5), (33, 100))),
    "`.double()`": runs(torch.float64),
    "`.half()`": runs(torch.float16), "`.bfloat16()`": runs(torch.bfloat16),
    "training after `.half()`": runs(torch.float16, train=True),
    "training after `.bfloat16()`": runs(torch.bfloat16, train=True),
    '`.to("meta")`': on_meta,
    "`torch.export`, one size": any_batch,  # also tried with the size that was given
    "`torch.export`, any batch": any_batch,
    "`torch.export`, any size": any_size,
    "`torch.jit.trace`, one size": traced,
}


def cells():
    """{(row, paper): what the table says}."""
    table = PAGE.partition("\n## What a network takes")[2]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")]
                      for line in re.findall(r"^\|.*\|$", table, re.M)]
    return {(row[0], paper): said for row in rows
            for paper, said in zip(head[1:], row[1:], strict=True)}


def test_the_table_is_complete():
    assert sorted(cells()) == sorted((way, paper) for way in WAYS for paper in PAPERS)


@every_paper
@pytest.mark.parametrize("way", WAYS)
def test_the_table_is_true(way, paper):
    """"no" stands for an error that says so, not for wrong numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and says so often
        with torch.no_grad() if "training" not in way else torch.enable_grad():
            try:
                works = WAYS[way](paper)
            except Exception as error:
                assert cells()[way, paper] == "no", error
                if "jit" in way:
                    assert isinstance(error, ValueError) and "torch.export" in str(error)
                return
    assert works and cells()[way, paper] == "yes"


IMAGES = torch.randn(2, 3, 64, 48)
REFUSED = {
    "one image without a batch": IMAGES[0], "five dimensions": IMAGES[None],
    "grey": IMAGES[:, :1], "four channels": IMAGES[:, [0, 1, 2, 2]],
    "channels last": IMAGES.permute(0, 2, 3, 1), "stored bytes": IMAGES.byte(),
    "whole numbers": IMAGES.long(), "truth values": IMAGES > 0, "complex": IMAGES * 1j,
    "no images": IMAGES[:0], "no rows": IMAGES[:, :, :0], "no columns": IMAGES[..., :0],
    "an array": IMAGES.numpy(), "a list": [IMAGES[0]], "nothing": None,
}


@every_paper
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_batch_of_images(paper, kind):
    found = REFUSED[kind]
    for training in (False, True):
        with pytest.raises(ValueError, match=r"images must be floating point \[B, 3, H, W\]"
                           ) as error:
            build(paper).train(training)(found)
        assert "\n" not in str(error.value)
        if isinstance(found, torch.Tensor):
            assert str([*found.shape]) in str(error.value)


@every_paper
def test_numbers_of_classes(paper):
    module = importlib.import_module(f"papers.{paper}.model")
    for wrong in (0, -1, True, 2.0, "3", None, [3]):
        for preset in module.PRESETS:
            with pytest.raises(ValueError, match="num_classes must be a whole number, 1 or more"):
                module.build(wrong, preset)
    assert module.build(np.int64(1)).eval()(IMAGES)["out"].shape == (2, 1, 64, 48)


@pytest.mark.parametrize("variant", ["jw", "smp", "note"])
def test_readings_of_pan_have_the_same_door(variant):
    with pytest.raises(ValueError, match="images must be"):
        build("pan", variant=variant)(IMAGES[0])
