"""Weights per class, the Dice loss, and what a run writes about its losses."""

import contextlib
import csv
import functools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import checkpoint, loop, stop
from common.errors import UserError
from common.losses import cross_entropy
from common.recipe import Recipe
from datasets import pictures, statistics
from papers import losses, runs
from tests.crash import differences
from tests.test_cli import QUICK, data  # noqa: F401, a fixture
from tests.test_training import OwnLoss, Toy

WEIGHTS = [0.5, 3.0, 1.0, 0.25]


def batch(count=2, side=6):
    """Scores of four classes, labels with ignored pixels."""
    torch.manual_seed(0)
    label = torch.randint(0, 4, (count, side, side))
    label[0, 1:] = 255
    return torch.randn(count, 4, side, side, requires_grad=True), label


def test_weighted_cross_entropy():
    """PyTorch's own mean, which divides by the sum of the weights."""
    scores, label = batch()
    weights = torch.tensor(WEIGHTS)
    assert torch.allclose(cross_entropy(scores, label, weights=weights),
                          F.cross_entropy(scores, label, weights, ignore_index=255))
    assert cross_entropy(scores, torch.full_like(label, 255), weights=weights) == 0
    few = torch.full_like(label, 255)
    few[0, 0, 0] = 3  # a single pixel of a small weight counts as much as any
    assert torch.allclose(cross_entropy(scores, few, weights=weights),
                          cross_entropy(scores, few))


@pytest.mark.parametrize("kind", [Toy, OwnLoss])
def test_weights_in_parts_of_a_batch(kind, monkeypatch):
    """The gradients are those of the whole batch, whether the network adds up its own loss or
    not; and they are other ones than without weights."""
    monkeypatch.setattr(losses, "asks", lambda *_: True)
    images, label = torch.randn(8, 3, 6, 6), batch(8)[1]
    off, found = torch.amp.GradScaler("cpu", enabled=False), []
    torch.manual_seed(0)
    model = kind().float()
    config = {"paper": "toy", "loss": "cross-entropy", "class_weights": None}
    for parts, weights in ((1, None), (1, WEIGHTS), (4, WEIGHTS)):
        recipe = Recipe(accumulate=parts)
        losses.choose(model, {**config, "class_weights": weights, "loss_weights": weights}, recipe)
        model.zero_grad()
        value = loop.add_gradients(model, model, images, label, recipe, contextlib.nullcontext(),
                                   off)
        found.append((value, model.conv.weight.grad.clone(), model.aux.weight.grad.clone()))
        vars(model).pop("loss", None)
    plain, whole, parts = found
    assert whole[0] == pytest.approx(parts[0], rel=1e-6) and whole[0] != pytest.approx(plain[0])
    if kind is Toy:
        by_hand = [F.cross_entropy(scores, label, torch.tensor(WEIGHTS), ignore_index=255).item()
                   for scores in model(images).values()]
        assert whole[0] == pytest.approx(by_hand[0] + 0.4 * by_hand[1], rel=1e-5)
    for a, b, other in zip(whole[1:], parts[1:], plain[1:], strict=True):
        assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, other, atol=1e-3)


def dice_by_hand(scores, label):
    """Class by class and pixel by pixel."""
    p, overlaps = scores.softmax(1), []
    pixels = [(b, y, x) for b, y, x in np.ndindex(*label.shape) if label[b, y, x] != 255]
    for k in range(scores.shape[1]):
        is_k = [float(label[pixel] == k) for pixel in pixels]
        share = [p[b, k, y, x].item() for b, y, x in pixels]
        if sum(is_k):
            both = sum(a * b for a, b in zip(is_k, share, strict=True))
            overlaps.append(2 * both / (sum(is_k) + sum(share)))
    return 1 - sum(overlaps) / len(overlaps)


def test_dice():
    scores, label = batch()
    label[label == 2] = 1  # a class that does not occur is left out of the mean
    assert losses.dice(scores, label).item() == pytest.approx(dice_by_hand(scores, label), abs=1e-6)
    perfect = 100 * F.one_hot(label.where(label != 255, 0), 4).movedim(-1, 1).float()
    assert losses.dice(perfect, label).item() == pytest.approx(0, abs=1e-6)
    nothing = losses.dice(scores, torch.full_like(label, 255))
    nothing.backward()
    assert nothing.item() == 0 and scores.grad.abs().max() == 0


class Labels:
    """Three labels: 90 pixels of a and 10 of b; 100 of a, half of the image ignored; c nowhere."""

    classes = ("a", "b", "c")

    def __init__(self, count=2):
        self.count = count

    def __len__(self):
        return self.count

    def label(self, index):
        label = np.zeros((10, 10 + 10 * (index == 1)), np.uint8)
        label[0] = 1 if index == 0 else 0
        label[:, 10:] = 255
        return label


def test_median_frequency_balancing():
    """a: 190 of 200 pixels; b: 10 of the 100 pixels of the one image that holds it; c: 1."""
    found = statistics.balanced(Labels())
    median = (0.95 + 0.1) / 2
    assert found == pytest.approx([median / 0.95, median / 0.1, 1.0], abs=1e-5)

    class Scenes:  # made on the fly: without `label`
        classes = ("a", "b", "c")
        __len__ = lambda self: 2
        __getitem__ = lambda self, index: (None, Labels().label(index))

    assert statistics.balanced(Scenes()) == found


def test_what_a_run_is_told(capsys):
    config = {"class_weights": "auto"}
    statistics.weigh(config, Labels(), None)
    assert config["loss_weights"] == statistics.balanced(Labels())
    assert "class weights: a 0.553, b 5.25, c 1" in capsys.readouterr().err
    stored = dict(config, loss_weights=[1.0, 2.0, 3.0])
    statistics.weigh(stored, Labels(1), {"config": stored})  # resumed: its own, whatever the labels
    assert stored["loss_weights"] == [1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="--class-weights: 2 weights, the dataset has 3 classes"):
        statistics.weigh({"class_weights": [1.0, 2.0]}, Labels(), None)


FLAGS = (*QUICK, "--steps", 3, "--workers", 0, "--dataset", "folder")


@pytest.mark.parametrize("flags", [(), ("--class-weights", "auto"), ("--class-weights", "1,3.5"),
                                   ("--loss", "dice")], ids=" ".join)
def test_interrupted_and_resumed(cli, data, tmp_path, monkeypatch, flags):
    """The same bits, CSV files included, by the loss of the run; another loss is refused."""
    flags = (*FLAGS, "--data", data, *flags)
    assert cli("train", *flags, "--out", "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(stop.Stop, "requested", lambda *_: 2)
        assert cli("train", *flags, "--out", "cut")[0] == 130
    for contradiction in (("--class-weights", "5,1"), ("--loss", "dice")):
        if contradiction[1] not in flags:
            code, _, err = cli("train", "--resume", "--out", "cut", "--data", data, *contradiction)
            assert code == 2 and f"{contradiction[0]}: the run to resume has" in err
    code, _, err = cli("train", "--resume", "--out", "cut", "--data", data, "--workers", 0,
                       "--device", "cpu")
    assert code == 0, err
    whole, cut = (checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert differences(whole, cut) == []
    for name in ("log.csv", "loss.csv", "iou.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    stored = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert len(stored.get("loss_weights", [0, 0])) == 2


def test_every_loss_is_another_training(cli, data, tmp_path):
    """The flags reach the steps, and what is written is what was trained."""
    kinds, first = ((), ("--class-weights", "1,9"), ("--loss", "dice")), []
    for number, flags in enumerate(kinds):
        assert cli("train", *FLAGS, "--data", data, "--out", number, *flags)[0] == 0
        with open(tmp_path / str(number) / "loss.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        curve = checkpoint.load(tmp_path / str(number) / "last.pt")["curve"]
        assert [int(row["step"]) for row in rows] == [1, 2, 3]
        assert [float(row["loss"]) for row in rows] == pytest.approx(curve, rel=1e-5)
        first.append(curve[0])
        code, out, _ = cli("eval", str(number), "--data", data, "--device", "cpu")
        scored = (tmp_path / str(number) / "folder-val.csv").read_bytes()
        assert code == 0 and (tmp_path / str(number) / "iou.csv").read_bytes() == scored
    assert len({round(loss, 4) for loss in first}) == 3 and 0 < first[2] < 1.4


@pytest.mark.parametrize("paper,options,takes", [
    ("unept", ("boundary=true",), False), ("unept", (), True), ("lrformer", (), True),
    ("lrformer", ("loss_pixels=all",), False), ("psanet", (), True), ("psanet", ("aux=no",), True),
])
def test_networks_with_a_loss_of_their_own(paper, options, takes):
    from papers.options import build_model, parse

    config = {"paper": paper, "preset": "tiny", "options": parse(options, paper), "loss": "dice",
              "class_weights": None}
    choose = functools.partial(losses.choose, build_model(paper, "tiny", 2, config["options"]),
                               config, Recipe(crop_size=64))
    if takes:
        return choose()
    with pytest.raises(UserError, match=f"--loss, --class-weights: with these options {paper} has"):
        choose()


@pytest.mark.parametrize("flags,words", [
    (("--class-weights", "1,0"), "--class-weights 1,0: wanted auto or numbers"),
    (("--class-weights", "often"), "--class-weights often: wanted auto or numbers above 0"),
    (("--class-weights", "1,2,3"), "3 weights, the dataset has 2 classes: left, right"),
    (("--class-weights", "auto", "--loss", "dice"), "no effect with --loss dice"),
    (("--loss", "focal"), "'dice'"),
    (("--paper", "unept", "--set", "boundary=true", "--loss", "dice"), "loss of its own"),
])
def test_mistakes(cli, data, tmp_path, flags, words):
    code, out, err = cli("train", *FLAGS[4:], "--data", data, "--out", "new", *flags)
    assert code == 2 and out == "" and words in err and err.count("\n") == 1, err
    assert not (tmp_path / "new").exists()


def test_a_dry_run_tells_the_loss(cli):
    _, out, _ = cli("train", "--dry-run", "--class-weights", "1,2")
    assert " loss=cross-entropy class_weights=[1.0, 2.0]" in out


def test_what_comes_after_a_run(tmp_path):
    """Of an unfinished one only --resume is told."""
    for step, told in ((2, "add --resume to go on with it, or"), (3, "it is complete, 3 steps")):
        checkpoint.save(tmp_path / "last.pt", {
            "model": {}, "optimizer": {}, "config": {}, "recipe": {"steps": 3}, "log": [],
            "step": step})
        with pytest.raises(UserError, match=f"already holds a run .last.pt.: {told}"):
            runs.open_run(tmp_path, resume=False)


@pytest.mark.parametrize("low,high,wanted", [
    (0, 360, [0, 100, 200, 300]), (0, 1000, [0, 200, 400, 600, 800, 1000]), (0, 1, [
        0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 2.9, [0, 0.5, 1, 1.5, 2, 2.5]), (-0.3, 0.41, [
            -0.2, 0, 0.2, 0.4]), (0, 7, [0, 2, 4, 6]), (0, 3e-3, [0, 1e-3, 2e-3, 3e-3])])
def test_ticks_are_round_numbers(low, high, wanted):
    assert pictures.ticks(low, high) == wanted


def test_curves_stand_at_their_ticks():
    """The grid line of a value goes through the point that has it."""
    picture = np.asarray(pictures.curves([("", [("", [0, 100], [0.5, 0.5])])]))
    colour = (picture == pictures.SERIES[0]).all(-1)
    rows = np.flatnonzero(colour.sum(1) > 200)
    picture = np.asarray(pictures.curves([("", [("", [100], [0.5]), ("", [0], [0.5])])]))
    grid = np.flatnonzero((picture == pictures.GRID).all(-1).sum(1) > 300)
    assert len(grid) >= 3 and min(abs(grid - rows.mean())) <= 1
