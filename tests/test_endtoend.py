"""tests/endtoend.py at tiny sizes: shares add up, and what it compares gives the same classes."""

import sys

import numpy as np
import pytest
import torch

from tests import endtoend
from tests.commands import SMALL, peak_memory_once


@pytest.fixture
def run(monkeypatch, capsys):
    """run(flags) -> the cells of the rows that it prints, lists of text."""
    for name, value in SMALL["tests.endtoend"].items():
        monkeypatch.setattr(endtoend, name, value)
    monkeypatch.setattr(endtoend, "peak_memory", peak_memory_once)
    threads = torch.get_num_threads()

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["endtoend", *flags])
        endtoend.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    yield call
    torch.set_num_threads(threads)


def test_training(run, monkeypatch):
    """A row per paper and number of workers; the parts of a step are all of it."""
    monkeypatch.setattr(endtoend, "NAMES", {"pan": "PAN"})
    headings, *rows = run("training")
    assert [row[:3] for row in rows] == [["shapes", "0", "PAN"], ["shapes", "2", "PAN"]]
    for row in rows:
        shares = [float(cell.rstrip("%")) for cell in row[4:]]
        assert len(row) == len(headings) and sum(shares) == pytest.approx(100, abs=0.3)
        assert min(shares) >= 0


def test_evaluation(run):
    _, *rows = run("evaluation", "outside", "norms")
    assert [row[1] for row in rows[:5]] == [*endtoend.NAMES.values()]
    assert all(0 < float(row[-1].rstrip("%")) < 100 for row in rows[:5])
    assert len([row for row in rows if row[0].startswith("`")]) == 5


def test_memory_and_scales(run):
    """The plainest program chooses the same classes, or it ends in an error."""
    rows = run("memory", "multiscale")
    assert [row[0] for row in rows].count("`multiscale`") == 1
    assert all(row[-1].endswith("GiB") for row in rows if "memory" not in row[-1])


def test_a_difference_ends_in_an_error(run, monkeypatch):
    monkeypatch.setattr(endtoend, "plainest", lambda *_: np.zeros(endtoend.STREET, np.uint8))
    with pytest.raises(SystemExit, match="pixels differ"):
        run("multiscale")
