"""Both programs as a user calls them: from the first command to a segmented photo, and every mistake as one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint

QUICK = ("--steps", 2, "--batch-size", 2, "--crop-size", 32, "--set", "channels=8", "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder dataset of twelve small pictures: two classes, left and right."""
    root = tmp_path_factory.mktemp("my data ä")
    for part in ("images", "labels"):
        (root / part).mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        label = np.zeros((40, 48), np.uint8)
        label[:, 24:] = 1
        image = (label[..., None] * 120 + rng.integers(0, 100, (40, 48, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"p{number:02d}.jpg", quality=95)
        Image.fromarray(label).save(root / "labels" / f"p{number:02d}.png")
    (root / "classes.txt").write_text("left\nright\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run directory made by train.py."""
    import sys

    import train
    out = tmp_path_factory.mktemp("runs") / "first"
    before, sys.argv = sys.argv, ["train.py", *map(str, QUICK), "--dataset", "folder", "--data", str(data),
                                  "--out", str(out), "--workers", "0"]
    try:
        assert train.main() == 0
    finally:
        sys.argv = before
    return out


def test_run_directory(trained):
    assert {path.name for path in trained.iterdir()} == {
        "last.pt", "best.pt", "log.csv", "curves.png", "predictions.png", "config.json"}
    config = json.loads((trained / "config.json").read_text())
    assert config["paper"] == "pysa" and config["options"] == {"channels": 8} and config["recipe"]["steps"] == 2
    state = checkpoint.load(trained / "best.pt")
    assert state["config"]["classes"] == ["left", "right"]
    with Image.open(trained / "predictions.png") as picture:
        assert np.asarray(picture).std() > 10 and picture.height > 100


def test_evaluate(cli, trained, data):
    for checkpoint_path in (trained, trained / "last.pt"):
        code, out, err = cli("eval", checkpoint_path, "--data", data)
        assert code == 0 and "left" in out and "mean" in out and "1 images" in out, err
    assert (trained / "folder-val.png").exists()


@pytest.mark.parametrize("protocol", ["sliding", "multiscale"])
def test_protocols(cli, trained, data, tmp_path, protocol):
    code, out, _ = cli("eval", trained, "--data", data, "--protocol", protocol, "--split", "train", "--out", tmp_path)
    assert code == 0 and protocol in out and "11 images" in out


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (50, 33)])
def test_one_picture(cli, trained, tmp_path, size):
    photo = tmp_path / "my photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 4)).astype(np.uint8)).save(photo)
    code, out, _ = cli("eval", trained, "--image", photo, "--out", tmp_path / "new")
    assert code == 0 and "%" in out
    with Image.open(tmp_path / "new" / "my photo-segmented.png") as picture:
        assert picture.width > 200


def test_resume_needs_no_other_flags_and_extends_nothing(cli, trained, data):
    before = (trained / "last.pt").read_bytes()
    code, out, _ = cli("train", "--resume", "--out", trained, "--data", data, "--device", "cpu", "--workers", 0)
    assert code == 0 and "mean" in out
    assert (trained / "last.pt").read_bytes() == before


def test_weights(cli, data, trained, tmp_path):
    state = checkpoint.load(trained / "last.pt")["model"]
    backbone = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "weights.pth")
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--workers", 0, "--out", tmp_path / "w",
                       "--weights", tmp_path / "weights.pth")
    assert code == 0 and "loaded" in err


def test_help(cli):
    for program in ("train", "eval"):
        code, out, _ = cli(program, "--help")
        assert code == 0 and "runs/" in out and len(out.splitlines()) > 30


MISTAKES = [
    (("train", "--paper", "unet"), ["--paper unet", "pysa"]),
    (("train", "--preset", "huge"), ["--preset huge", "tiny, resnet50, resnet101"]),
    (("train", "--set", "chanels=8"), ["--set", "chanels", "channels"]),
    (("train", "--set", "channels"), ["--set channels", "OPTION=VALUE"]),
    (("train", "--set", "variant=both"), ["--set", "series, parallel"]),
    (("train", "--set", "channels=wide"), ["--set"]),
    (("train", "--dataset", "imagenet"), ["imagenet", "shapes, camvid"]),
    (("train", "--dataset", "camvid"), ["--data PATH"]),
    (("train", "--dataset", "camvid", "--data", "nowhere"), ["--data nowhere", "no such folder"]),
    (("train", "--dataset", "camvid", "--data", "."), ["train.txt is missing"]),
    (("train", "--dataset", "folder", "--data", "."), ["classes.txt is missing"]),
    (("train", "--steps", "0"), ["--steps", "0"]),
    (("train", "--steps", "many"), ["--steps", "many"]),
    (("train", "--lr", "-1"), ["--lr"]),
    (("train", "--lr", "nan"), ["--lr"]),
    (("train", "--batch-size", "1.5"), ["--batch-size"]),
    (("train", "--crop-size", "16"), ["--crop-size 16", "32"]),
    (("train", "--seed", "-1"), ["--seed -1"]),
    (("train", "--optimizer", "adam"), ["--optimizer", "sgd", "adamw"]),
    (("train", "--device", "tpu"), ["--device tpu", "cpu"]),
    (("train", "--device", "cuda:99"), ["--device cuda:99"]),
    (("train", "--weights", "nowhere.pth"), ["no such file: nowhere.pth"]),
    (("train", "--weights", "text.txt"), ["text.txt", "not a PyTorch file"]),
    (("train", "--weights", "other.pth"), ["other.pth", "another backbone"]),
    (("train", "--wights", "x"), ["--wights"]),
    (("train", "--out", "text.txt"), ["--out text.txt"]),
    (("eval",), ["CHECKPOINT", "--official"]),
    (("eval", "nowhere.pt"), ["no such file: nowhere.pt"]),
    (("eval", "text.txt"), ["text.txt", "not a PyTorch file"]),
    (("eval", "other.pth"), ["other.pth is not a checkpoint of train.py"]),
    (("eval", "empty"), ["best.pt"]),
    (("eval", "--official", "other.pth"), ["--official needs --paper"]),
    (("eval", "--official", "other.pth", "--paper", "pysa"), ["other.pth", "no official PySA"]),
    (("eval", "RUN", "--image", "nowhere.jpg"), ["no such file: nowhere.jpg"]),
    (("eval", "RUN", "--image", "text.txt"), ["text.txt is not an image"]),
    (("eval", "RUN", "--protocol", "best"), ["--protocol", "multiscale"]),
    (("eval", "RUN", "--split", "all"), ["--split", "test"]),
    (("eval", "RUN", "--dataset", "shapes"), ["12 classes", "trained for 2"]),
    (("eval", "RUN", "--paper", "unet"), ["--paper unet"]),
    (("eval", "RUN"), ["--data PATH"]),
]


@pytest.mark.parametrize("arguments,words", MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_every_mistake_is_one_line(cli, trained, tmp_path, arguments, words):
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    before = sorted(tmp_path.iterdir())
    program, *rest = [str(trained) if a == "RUN" else a for a in arguments]
    code, out, err = cli(program, *rest)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err, err
    assert sorted(tmp_path.iterdir()) == before  # nothing written


def test_an_existing_run_is_not_touched(cli, trained, data):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--out", trained)
    assert code == 2 and "already holds a run" in err and "--resume" in err
    code, _, err = cli("train", "--steps", 99, "--data", data, "--out", trained, "--resume")
    assert code == 2 and "--steps: the run to resume has 2, not 99" in err
    assert {path: path.read_bytes() for path in trained.iterdir()} == before
