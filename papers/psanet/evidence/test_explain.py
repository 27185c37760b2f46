"""What explain.py shows of PSANet is what the network computes with."""

import pytest
import torch

from .. import explain, fast, model

attention = pytest.importorskip("papers.attention", reason="the folder was taken alone")
SIZE, PIXEL = (64, 96), (20, 70)  # 70 is no row: rows and columns cannot change places unnoticed


def passed(*more, **options):
    """(model, record of one forward pass with the modules `more` watched as well)."""
    torch.manual_seed(0)
    network = model.build(3, **options).eval()
    images = torch.randn(1, 3, *SIZE)
    with attention.record(network, (*explain.RECORD, *more)) as record, torch.no_grad():
        network(images)
    return network, record


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), (a - b).abs().max()


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"psa_softmax": False},
        {"psa_type": "distribute"},
        {"mask_size": (5, 3)},
        {"compact": True, "mask_size": (5, 7)},
    ],
)
@torch.no_grad()
def test_what_is_shown_is_used(options, is_fast):
    """The weights times the values are what the projection reads, at the nearest receiver: one in
    16 pixels."""
    network, record = passed("psa.project.0", fast=is_fast, **options)
    receiver = (1, 4)  # of 5 x 7: PIXEL is (20, 70)
    (read,), _ = record.pop("psa.project.0")
    used = read[0, :, receiver[0], receiver[1]].split(64)
    panels = explain.explain(network, record, SIZE, PIXEL)
    assert len(panels) == len(used) == len(network.psa.directions) == len(record)
    for branch, ((v,), q), part, (title, shown) in zip(
        network.psa.branches, record.values(), used, panels, strict=True
    ):
        assert title.startswith(branch.direction)
        assert ("takes" in title) == (branch.direction == "collect")
        weights = explain.receiver_weights(branch, q[0].permute(1, 2, 0), receiver)
        close((weights * v[0]).sum((1, 2)), part)
        if branch.softmax:
            close(weights.sum(), torch.ones(()))
        assert shown.shape == SIZE
        close(shown[::16, ::16], weights[:4, :6].abs())  # of the sources in the image itself


@torch.no_grad()
def test_weights_are_rows_of_the_whole_matrix():
    q = torch.randn(1, 5, 4, 6)
    one_hot = torch.eye(24).view(1, 24, 4, 6)
    for direction in ("collect", "distribute"):
        branch = model.PSABranch(8, 5, direction, (7, 11))
        matrix = getattr(fast, direction)(q, branch.table, one_hot, (7, 11))  # [1, N, 4, 6]
        for y, x in ((0, 0), (3, 1), (2, 5)):
            weights = explain.receiver_weights(branch, q[0].permute(1, 2, 0), (y, x))
            close(weights, matrix[0, :, y, x].view(4, 6))
