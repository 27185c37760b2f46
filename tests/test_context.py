"""The premise of the `shapes` scenes, for every paper: without context the `tiny` network cannot
see the key."""

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))
REACH = 64  # pixels between the key and any object in a 128 x 128 scene
SEES_FAR_ANYWAY = {"lrformer": "its depth-wise convolutions at stride 32 span the whole scene"}


def radius(network, size=256):
    """How far the score of the centre pixel depends on the input, in pixels, by input gradients in
    eval mode."""
    network.eval()
    images = torch.randn(1, 3, size, size,
                         generator=torch.Generator().manual_seed(0)).requires_grad_()
    network(images)["out"][0, :, size // 2, size // 2].sum().backward()
    rows, columns = images.grad.abs().amax((0, 1)).nonzero().T
    return int(max((rows - size // 2).abs().max(), (columns - size // 2).abs().max()))


@pytest.mark.parametrize("paper", PAPERS)
def test_only_context_reaches_the_key(paper):
    torch.manual_seed(0)
    build = importlib.import_module(f"papers.{paper}.model").build
    if paper not in SEES_FAR_ANYWAY:
        assert radius(build(12, context=False)) < REACH
    assert radius(build(12)) > REACH
