"""What holds for every paper: whatever folder lies under papers/ is held to the same. Presets
`tiny`, on the CPU.

`python -m tests.test_every_paper` writes the loss curves anew (tests/curves.json), where a change
of them is wanted.
"""

import contextlib
import importlib
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from common.loop import add_gradients
from common.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))
CURVES = Path(__file__).with_name("curves.json")
CLASSES, SIDE = 5, 128  # SIDE: the training crop; some networks take no other while training

every_paper = pytest.mark.parametrize("paper", PAPERS)


def network(paper, seed=0, dtype=torch.float32):
    """The tiny network, as initialised under a seed."""
    torch.manual_seed(seed)
    return importlib.import_module(f"papers.{paper}.model").build(CLASSES).to(dtype)


def batch(count=2, seed=0):
    """Blocks of 16 x 16 pixels in five noisy greys. images [count, 3, SIDE, SIDE], label int64
    [count, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    label = rng.integers(CLASSES, size=(count, SIDE // 16, SIDE // 16)).repeat(16, 1).repeat(16, 2)
    images = label[:, None] - 2 + rng.normal(size=(count, 3, SIDE, SIDE))
    return torch.from_numpy(images).float(), torch.from_numpy(label)


def step(model, images, label, autocast=None):
    """The gradients of one training step, by the training loop's own code. Returns the loss."""
    model.train()
    model.zero_grad()
    off = torch.amp.GradScaler("cpu", enabled=False)
    return add_gradients(model, model, images, label, Recipe(),
                         autocast or contextlib.nullcontext(), off)


def curve(paper, steps=10):
    """Losses of `steps` steps of SGD in double precision: AdamW, and batch statistics over PAN's
    very small maps, blow up the rounding errors in which processors and numbers of threads
    differ."""
    model, (images, label) = network(paper, dtype=torch.float64), batch(3)
    images = images.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for number in range(steps):
        torch.manual_seed(number)  # of dropout
        losses.append(step(model, images, label))
        optimizer.step()
    return losses


@every_paper
def test_finite_whatever_comes_in(paper):
    model = network(paper).eval()
    noise = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        for images in (0 * noise, 0 * noise + 1, 0 * noise + 1e4, 1e4 * noise, -1e4 * noise.abs()):
            scores = model(images)["out"]
            assert scores.shape == (1, CLASSES, 64, 48) and torch.isfinite(scores).all()


@every_paper
def test_sizes(paper):
    model = network(paper).eval()
    with torch.no_grad():
        for height, width in ((32, 97), (97, 32), (33, 64), (61, 45), (96, 50)):
            scores = model(torch.randn(1, 3, height, width))["out"]
            assert scores.shape == (1, CLASSES, height, width) and torch.isfinite(scores).all()


@every_paper
def test_a_batch_is_its_images_one_by_one(paper):
    model = network(paper, dtype=torch.float64).eval()
    images = torch.randn(3, 3, 64, 80, dtype=torch.float64)
    with torch.no_grad():
        together = model(images)["out"]
        for image, scores in zip(images, together, strict=True):
            assert (model(image[None])["out"][0] - scores).abs().max() < 1e-9


@every_paper
def test_every_parameter_learns(paper):
    """In the first step or in the second: what lies behind a layer that starts at zero has to wait
    for it."""
    model = network(paper)
    optimizer, dead = torch.optim.SGD(model.parameters(),
                                      lr=0.01), {name for name, _ in model.named_parameters()}
    for _ in range(2):
        step(model, *batch())
        dead -= {name for name, p in model.named_parameters() if p.grad is not None
                 and p.grad.abs().max() > 0}
        optimizer.step()
    assert not dead


@every_paper
def test_nothing_is_learned_from_ignored_pixels(paper):
    model = network(paper)
    images, label = batch()
    assert step(model, images, torch.full_like(label, 255)) == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


@every_paper
def test_initialisation_depends_on_the_seed_and_on_nothing_else(paper):
    first, again, other = (network(paper, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_paper
def test_saved_and_loaded(paper):
    model, other = network(paper, 0).eval(), network(paper, 1).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images)["out"], other(images)["out"])


@every_paper
def test_losses_of_ten_steps(paper):
    stored = json.loads(CURVES.read_text(encoding="utf-8"))
    if paper not in stored:
        pytest.skip(f"no curve of {paper} is stored: python -m tests.test_every_paper")
    losses = curve(paper)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(stored[paper],
                                   rel=1e-4), "if wanted: python -m tests.test_every_paper"


@every_paper
def test_bfloat16(paper):
    model, (images, label) = network(paper), batch()
    torch.manual_seed(0)  # of dropout
    wanted = step(model, images, label)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(step(model, images, label, torch.autocast("cpu", torch.bfloat16)))
        optimizer.step()
    assert losses[0] == pytest.approx(wanted, rel=0.02) and losses[1] < losses[0]
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())


@every_paper
def test_compile(paper):
    """torch.compile takes a training step as a graph and computes the same. Backend "eager": it
    needs no C++ compiler."""
    plain, model, (images, label) = network(paper), network(paper), batch()
    torch.manual_seed(0)  # of dropout
    wanted = step(plain, images, label)
    model.train()
    off = torch.amp.GradScaler("cpu", enabled=False)
    compiled = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about itself
        torch.manual_seed(0)
        got = add_gradients(compiled, model, images, label, Recipe(), contextlib.nullcontext(), off)
    assert got == pytest.approx(wanted, rel=1e-5)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@every_paper
def test_export(paper):
    """The network is a graph: torch.export takes all of it, and the graph computes the same."""
    model, images = network(paper).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        graph = torch.export.export(model, (images,)).module()
        assert (graph(images)["out"] - model(images)["out"]).abs().max() < 1e-5


if __name__ == "__main__":
    text = json.dumps({paper: curve(paper) for paper in PAPERS}, indent=1) + "\n"
    CURVES.write_text(text, encoding="utf-8", newline="\n")
    print(f"{CURVES}: written anew")
