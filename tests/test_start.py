"""Start from a trained network, freeze a part of it, change numbers of the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from papers import options, start, weights
from papers.options import build_model
from papers.psanet.evidence.test_psanet import official_state

QUICK = ("--steps", 2, "--batch-size", 2, "--crop-size", 32, "--device", "cpu", "--workers", 0,
         "--dataset", "folder")


def folder(root, *classes):
    """A dataset of two pictures, the second one for validation, with as many stripes as classes."""
    label = (np.arange(48) * len(classes) // 48).astype(np.uint8)[None].repeat(40, 0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
            Image.fromarray(label).save(root / part / split / "a.png")
    (root / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return root


@pytest.fixture
def first(cli, tmp_path):
    """A run of PySA with two classes, and the data of another with three."""
    data = folder(tmp_path / "two", "left", "right")
    folder(tmp_path / "three", "left", "middle", "right")
    code, _, err = cli("train", *QUICK, "--data", data, "--set", "channels=8", "--out", "first")
    assert code == 0, err
    return tmp_path / "first"


def weights_of(run, name="last.pt"):
    return checkpoint.load_run(run / name)["model"]


def test_other_classes(cli, first, tmp_path, monkeypatch):
    """All but the classifiers is taken, and named; paper, preset and options are those of the
    run."""
    begun = []
    monkeypatch.setattr(start, "freeze", lambda model, part: begun.append(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}))
    code, _, err = cli("train", *QUICK, "--data", "three", "--start-from", "first", "--out", "new")
    assert code == 0, err
    old, (new,) = weights_of(first, "best.pt"), begun
    same = {name for name in new if torch.equal(new[name], old[name])}
    assert {*new} - same == {name for name in new if new[name].shape != old[name].shape}
    assert {name.rpartition(".")[0] for name in {*new} - same} == {"head.classifier", "aux_head.3"}
    shape = new["head.classifier.weight"].shape
    assert shape[0] == 3
    assert f"new: head.classifier.weight, {start.sizes(torch.zeros(shape))} here, 2 x" in err
    assert f"first: {len(same)} of {len(new)} tensors taken" in err and "not used" not in err
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["options"] == {"channels": 8}


def test_a_longer_training_and_another_option(cli, first, tmp_path):
    for flags, new in ((("--steps", 3), False), (("--set", "cells=1"), False),
                       (("--set", "channels=16"), True)):
        code, _, err = cli("train", *QUICK, "--data", "two", "--start-from", "first/last.pt",
                           "--out", f"new {flags[1]}", *flags)
        assert code == 0 and ("new: head" in err) == new, err


@pytest.mark.parametrize("flags,words", [
    (("--paper", "pan"), ["--paper pan", "holds pysa"]),
    (("--preset", "resnet50"), ["--preset resnet50", "holds tiny"]),
    (("--start-from", "nowhere"), ["--start-from nowhere", "no such file"]),
    (("--start-from", "two"), ["--start-from two", "best.pt"]),
    (("--start-from", "other.pth"), ["--start-from other.pth", "needs --paper"]),
    (("--start-from", "other.pth", "--paper", "pan"), ["--start-from other.pth: ", "PAN"]),
    (("--start-from", "torn.pt"), ["--start-from torn.pt", "damaged"]),
    (("--set", "chanels=8"), ["chanels"]),
    (("--freeze", "head"), ["--freeze", "backbone"]),
])
def test_mistakes(cli, first, tmp_path, flags, words):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    content = bytearray((first / "best.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "torn.pt").write_bytes(content)
    flags = flags if "--start-from" in flags else ("--start-from", "first", *flags)
    code, out, err = cli("train", *QUICK, "--data", "two", "--out", "new", *flags)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert all(word in err for word in words) and not (tmp_path / "new").exists(), err


def test_a_file_of_nothing_that_fits():
    arguments = type("Flags", (), {"start_from": Path("x.pt")})
    with pytest.raises(UserError, match="--start-from x.pt: no tensor fits"):
        start.begin(build_model("pysa", "tiny", 2, {}), {"weight": torch.ones(2)}, arguments)


def test_official_files(tmp_path, monkeypatch):
    """By the rules of --official: the file itself tells the preset. Its tensors have no content."""
    arguments = type("Flags", (), {
        "start_from": tmp_path / "x.pth", "paper": "psanet", "preset": None, "set": []})()
    torch.save({}, arguments.start_from)
    monkeypatch.setattr(weights, "read", lambda paper, path: official_state()[1])
    state = start.read(arguments)
    assert arguments.preset == "resnet50" and arguments.inherited
    with torch.device("meta"):
        assert state.keys() == build_model("psanet", "resnet50", 2, {}).state_dict().keys()


def test_a_frozen_backbone_stays_as_it_is(cli, first, tmp_path):
    """Weights and statistics of BatchNorm, also after --resume."""
    flags = (*QUICK, "--data", "two", "--start-from", "first", "--freeze", "backbone", "--out",
             "new")
    assert cli("train", *flags)[0] == 0
    old, new = weights_of(first, "best.pt"), weights_of(tmp_path / "new")
    for name in new:
        changed = not torch.equal(new[name], old[name])
        if name.startswith("backbone."):
            assert not changed, name
    assert any(not torch.equal(new[name], old[name]) for name in new)
    config = checkpoint.load_run(tmp_path / "new")["config"]
    assert config["freeze"] == "backbone"
    code, _, err = cli("train", "--resume", "--out", "first", "--data", "two", "--freeze",
                       "backbone")
    assert code == 2 and "--freeze: the run to resume has None" in err


def test_a_random_backbone_is_not_frozen(cli, tmp_path):
    code, out, err = cli("train", *QUICK, "--data", "two", "--out", "new", "--freeze", "backbone")
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert "--freeze backbone" in err and "--start-from" in err and not (tmp_path / "new").exists()


def test_freezing_outlives_train():
    model = build_model("pysa", "tiny", 2, {})
    start.freeze(model, None)
    assert model.train().backbone.training
    start.freeze(model, "backbone")
    model.train()
    assert not any(module.training for module in model.backbone.modules()) and model.head.training
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_numbers_of_the_recipe(cli, first, tmp_path):
    """Stored, used, and kept by --resume."""
    code, _, err = cli("train", *QUICK, "--data", "two", "--set", "channels=8", "--out", "new",
                       "--recipe", "flip=off", "--recipe", "scale=0.5,2", "--recipe",
                       "weight_decay=0")
    assert code == 0, err
    recipe = json.loads((tmp_path / "new" / "config.json").read_text())["recipe"]
    assert (recipe["flip"], recipe["scale"], recipe["weight_decay"]) == (False, [0.5, 2], 0)
    group = checkpoint.load_run(tmp_path / "new")["optimizer"]["param_groups"][0]
    assert group["weight_decay"] == 0
    resume = ("train", "--resume", "--out", "new", "--data", "two", "--recipe")
    assert cli(*resume, "scale=0.5,2")[0] == 0
    code, _, err = cli(*resume, "flip=on")
    assert code == 2 and "--recipe flip: the run to resume has False, not True" in err


@pytest.mark.parametrize("pair", [
    "flip=maybe", "steps=0", "steps=1.5", "steps=None", "lr=0", "lr=-1", "lr=inf", "lr=None",
    "scale=1", "scale=2,1", "scale=0,1", "scale=a", "fit=5", "fit=0,5", "fit=1.5,1",
    "optimizer=adam", "schedule=3", "weight_decay=-1", "no_decay=5", "max_share=0", "drop_at=2",
    "momentum=1", "warmup_steps=-1", "test_scale=0", "train_split=3", "flip", "speed=3", "=3",
])
def test_wrong_numbers(pair):
    name = pair.partition("=")[0]
    with pytest.raises(UserError, match=f"--recipe {name}"):
        options.parse_recipe([pair])


def test_right_numbers():
    pairs = ["flip=no", "scale=1,1", "fit=()", "fit=[9,5]", "max_share=1", "warmup_steps=0",
             "no_decay=('norm',)", "optimizer=sgd", "clip_norm=35", "train_split=trainaug"]
    assert options.parse_recipe(pairs) == dict(
        flip=False, scale=(1, 1), fit=(9, 5), max_share=1, warmup_steps=0, no_decay=("norm",),
        optimizer="sgd", clip_norm=35, train_split="trainaug")
