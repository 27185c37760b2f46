"""What the programs tell before they do anything: options, the recipe, the layers of a network."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from common.cli import load_paper, papers
from common.recipe import Recipe
from papers import describe
from papers.psanet.model import PSA

every_paper = pytest.mark.parametrize("paper", papers())


@every_paper
def test_every_option_has_a_meaning(paper):
    module = load_paper(paper)
    said = describe.meanings(module.build.__doc__, module.DEFAULTS)
    assert said.keys() == module.DEFAULTS.keys()
    assert all(len(meaning) > 1 for meaning in said.values())
    assert not any(re.search(rf"(\. |^){name}: ", meaning) for name in module.DEFAULTS
                   for meaning in said.values())  # each entry ends where the next one begins


def test_meanings():
    text = """A network.

    a: one
        line. b, c: two of them. d: no option.
    Returns b: c.

    e: far away
    """
    assert describe.meanings(text, ["a", "b", "c", "e"]) == {
        "a": "one line.", "b": "two of them. d: no option. Returns b: c.",
        "c": "two of them. d: no option. Returns b: c.", "e": "far away"}


@pytest.mark.parametrize("paper", ["pan", "psanet"])
def test_options(cli, tmp_path, monkeypatch, paper):
    monkeypatch.setattr(describe, "multiply_adds", lambda model, side: {"": side * 1000})
    code, out, err = cli("train", "--paper", paper, "--options")
    module = load_paper(paper)
    assert code == 0 and err == "" and not any(tmp_path.iterdir())
    assert "128 k" in out.split("\n")[1] and "512 k" in out.split("\n")[2]
    for name, default in module.DEFAULTS.items():
        assert f"  {name} = {default}" in out
    for name in (*module.PRESETS, *load_paper(paper, "recipe").RECIPES, *datasets.NAMES):
        assert name in out
    for field in dataclasses.fields(Recipe):
        assert field.name in out


def test_parameters_and_multiply_adds():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    assert describe.parameters(model) == 3 * 4 * 9 + 4 + 4 * 2 + 2
    assert describe.multiply_adds(model, 32) == {
        "": 32 * 32 * (3 * 4 * 9 + 8), "0": 32 * 32 * 3 * 4 * 9, "1": 32 * 32 * 8}
    assert [describe.short(n) for n in (999, 1234, 53_200_000, 168e9)] == [
        "999", "1.23 k", "53.2 M", "168 G"]


def test_sums_in_place_are_multiply_adds_too():
    """PSANet's fast distribute adds the tiles in place, collect does not: both do as much."""
    found = set()
    for direction in ("collect", "distribute"):
        model = nn.Sequential(nn.Conv2d(3, 8, 1), PSA(8, 16, (direction,), (63, 63), 1))
        found.add(describe.multiply_adds(model, 32)[""])
    assert len(found) == 1


@every_paper
@pytest.mark.parametrize("dataset", ["ade20k", "folder"])
def test_a_dry_run_needs_no_data_and_writes_nothing(cli, tmp_path, paper, dataset):
    preset = [*load_paper(paper).PRESETS][1]
    code, out, err = cli("train", "--paper", paper, "--dataset", dataset, "--preset", preset,
                         "--dry-run", "--recipe", "momentum=0.77", "--freeze", "backbone")
    assert code == 0 and err == "" and not any(tmp_path.iterdir())
    assert "momentum=0.77" in out and "freeze=backbone" in out
    for field in dataclasses.fields(Recipe):
        assert len(re.findall(rf"(?<!\w){field.name}=", out)) == 1
    assert load_paper(paper, "recipe").__doc__ in out


def test_rates_of_the_groups(cli):
    """Ten times the rate for the head; a tenth of each after the drop."""
    code, out, _ = cli("train", "--paper", "unept", "--preset", "deit", "--dataset", "ade20k",
                       "--dry-run")
    steps, *groups = (line.split() for line in out.splitlines()[5:8])
    assert steps[-6:] == ["0", "16000", "48000", "80000", "127999", "159999"]
    rest, backbone = sorted(groups, key=lambda line: line[0] == "backbone")
    assert backbone[0] == "backbone" and "backbone" not in " ".join(rest)
    for line, rate in ((backbone, 1e-5), (rest, 1e-4)):
        rates = [float(word) for word in line[line.index("tensors)") + 1 :][:6]]
        assert rates == pytest.approx([rate] * 4 + [rate / 10] * 2)
        assert line[-1] == "0.0001"


def test_a_dry_run_beside_a_run(cli, tmp_path):
    """A run is not in the way, and nothing of it changes."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("mine", encoding="utf-8")
    assert cli("train", "--out", "run", "--dry-run")[0] == 0
    assert (tmp_path / "run" / "config.json").read_text(encoding="utf-8") == "mine"


def opening(capsys, images, device="cpu", forward=6.0, **changes):
    label = np.zeros((64, 128), np.uint8)
    config = {"paper": "pysa", "preset": "tiny", "dataset": "folder"}
    recipe = Recipe(steps=100, eval_every=30, crop_size=64, **changes)
    describe.open_training(config, recipe, [0] * 11, [(label, label)] * images, Path("here"),
                           device, forward)
    return capsys.readouterr().err


def test_before_the_first_step(capsys):
    """6 s a forward pass: 100 steps take 30 min, and four times 8 images of 2 crops 0.8 min."""
    text = opening(capsys, 8)
    assert "pysa tiny on folder: 100 steps of 8 images, 11 for training, 8 for validation" in text
    assert "about 31 min" in text and "saved in here" in text and "--resume" in text
    assert "every 30 steps" in text
    assert "about 30 min" in opening(capsys, 8, test_scale=0.1)
    assert "min" not in opening(capsys, 5, device="cuda").partition("\n")[0]
    assert "min" not in opening(capsys, 5, forward=None).partition("\n")[0]


@pytest.mark.parametrize("load,told", [(1e9, True), (0.0, False)])
def test_busy_processors(capsys, monkeypatch, load, told):
    monkeypatch.setattr(describe.os, "getloadavg", lambda: (load, 0, 0), raising=False)
    monkeypatch.setattr(describe.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert ("OMP_NUM_THREADS=1" in opening(capsys, 5)) == told
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert "OMP_NUM_THREADS=1" not in opening(capsys, 5)
