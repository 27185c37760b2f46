"""Both programs as a user calls them: from the first command to a segmented photo, and every
mistake as one line."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from papers import options
from tests.crash import differences
from tests.helpers import contents

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--steps", 2, "--batch-size", 2, "--crop-size", 32, "--set", "channels=8", "--device",
         "cpu")


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
    import train
    out = tmp_path_factory.mktemp("runs") / "first"
    before, sys.argv = sys.argv, ["train.py", *map(str, QUICK), "--dataset", "folder", "--data",
                                  str(data),
                                  "--out", str(out), "--workers", "0"]
    try:
        assert train.main() == 0
    finally:
        sys.argv = before
    return out


def test_run_directory(trained):
    assert {path.name for path in trained.iterdir()} == {
        "last.pt", "best.pt", "log.csv", "loss.csv", "iou.csv", "curves.png", "predictions.png",
        "config.json"}
    config = json.loads((trained / "config.json").read_text())
    assert (config["paper"] == "pysa" and config["options"] == {"channels": 8}
            and config["recipe"]["steps"] == 2)
    state = checkpoint.load(trained / "best.pt")
    assert state["config"]["classes"] == ["left", "right"]
    with Image.open(trained / "predictions.png") as picture:
        assert np.asarray(picture).std() > 10 and picture.height > 100


def test_evaluate(cli, trained, data):
    for checkpoint_path in (trained, trained / "last.pt"):
        code, out, err = cli("eval", checkpoint_path, "--data", data)
        assert code == 0 and "left" in out and "mIoU" in out and "1 images" in out, err
        assert re.search(r"^mIoU \d+\.\d%$", out, re.M)
    assert (trained / "folder-val.png").exists()


@pytest.mark.parametrize("protocol", ["sliding", "multiscale"])
def test_protocols(cli, trained, data, tmp_path, protocol):
    code, out, _ = cli("eval", trained, "--data", data, "--protocol", protocol, "--split", "train",
                       "--out", tmp_path)
    assert code == 0 and protocol in out and "11 images" in out


def test_scales_and_saved_predictions(cli, trained, data, tmp_path):
    code, out, err = cli("eval", trained, "--data", data, "--scales", "0.5,1.5",
                         "--save-predictions", "--out", tmp_path)
    assert code == 0, err
    with Image.open(tmp_path / "predictions" / "p09.png") as file:
        assert file.size == (48, 40) and set(np.unique(np.asarray(file))) <= {0, 1}
    code, *_ = cli("eval", trained, "--data", data, "--save-predictions", tmp_path / "mine ä")
    assert code == 0 and (tmp_path / "mine ä" / "p09.png").is_file()
    code, *_ = cli("eval", trained, "--data", data, "--save-predictions", tmp_path / "mine ä")
    assert code == 0  # again: predictions may be replaced


@pytest.mark.parametrize("folder", ["labels", "images", ".", "labels/../images", "labels/new"])
def test_the_data_are_not_overwritten(cli, trained, data, tmp_path, folder):
    before = contents(data)
    for flags in (("--save-predictions", data / folder), ("--out", data / folder)):
        code, out, err = cli("eval", trained, "--data", data, *flags)
        assert (code == 2 and out == ""
                and f"{flags[0]} {data / folder}: the dataset reads files there" in err), err
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--out",
                       data / folder)
    assert code == 2 and err.endswith(f"files there; choose a folder outside {data}\n"), err
    assert contents(data) == before


def test_two_pictures_of_one_name(cli, trained, tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / name)
        (tmp_path / "a.txt").touch()
    for name in ("a.jpg", "a.png"):
        code, out, _ = cli("eval", trained, "--image", tmp_path / name, "--out", tmp_path / "new")
        assert code == 0 and f"{name}-segmented.png" in out
    assert len(contents(tmp_path / "new")) == 2


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (50, 33)])
def test_one_picture(cli, trained, tmp_path, size):
    photo = tmp_path / "my photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255,
                                                      (*size, 4)).astype(np.uint8)).save(photo)
    code, out, _ = cli("eval", trained, "--image", photo, "--out", tmp_path / "new")
    assert code == 0 and "%" in out
    with Image.open(tmp_path / "new" / "my photo-segmented.png") as picture:
        assert picture.width > 200


def test_resume_needs_no_other_flags_and_extends_nothing(cli, trained, data):
    before = (trained / "last.pt").read_bytes()
    code, out, err = cli("train", "--resume", "--out", trained, "--data", data, "--device", "cpu",
                       "--workers", 0)
    assert "is complete, 2 steps: it is only scored again" in err and "Ctrl-C" not in err
    assert code == 0 and "mIoU" in out
    assert (trained / "last.pt").read_bytes() == before


def test_weights(cli, data, trained, tmp_path):
    state = checkpoint.load(trained / "last.pt")["model"]
    backbone = {name.removeprefix("backbone."): v for name, v in state.items()
                if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "weights.pth")
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--workers", 0,
                       "--out", tmp_path / "w",
                       "--weights", tmp_path / "weights.pth")
    assert code == 0 and "loaded" in err


def test_help(cli):
    for program in ("train", "eval"):
        code, out, _ = cli(program, "--help")
        assert code == 0 and "runs/" in out and len(out.splitlines()) > 30


@pytest.mark.parametrize("flags,paper", [((), "pysa"), (("--paper", "unept"), "unept"),
                                         (("--paper=pan",), "pan"), (("--paper", "no"), "pysa")])
def test_help_lists_what_there_is_for_the_paper(cli, flags, paper):
    _, out, _ = cli("train", *flags, "--help")
    module, text = options.load_paper(paper), " ".join(out.split())
    for names, flag in ((module.PRESETS, "size"), (module.DEFAULTS, "option")):
        assert re.search(rf"{flag}[^;]*; {paper} has {', '.join(names)}", text.replace("- ", "-"))
    assert "datasets.check" in text and "--options explains" in text


MISTAKES = [
    (("train", "--paper", "unet"), ["--paper unet", "pysa"]),
    (("train", "--preset", "huge"), ["--preset huge", "tiny, resnet50, resnet101"]),
    (("train", "--set", "chanels=8"), ["--set", "chanels", "channels"]),
    (("train", "--set", "channels"), ["--set channels", "OPTION=VALUE"]),
    (("train", "--set", "variant=both"), ["--set", "series, parallel"]),
    (("train", "--set", "channels=wide"), ["--set channels=wide", "whole number such as"]),
    (("train", "--set", "channels=True"), ["--set channels=True", "whole number"]),
    (("train", "--set", "channels=8.5"), ["--set channels=8.5", "whole number"]),
    (("train", "--set", "channels=-1"), ["--set channels=-1"]),
    (("train", "--set", "context=maybe"), ["--set context=maybe", "true or false"]),
    (("train", "--set", "regions=all"), ["--set regions=all", "values such as (1, 2, 4, 8)"]),
    (("train", "--paper", "lrformer", "--set", "drop_path=nan"),
     ["--set drop_path=nan", "a number such as"]),
    (("train", "--paper", "lrformer", "--set", "drop_path=1e999"),
     ["--set drop_path=1e999", "a number such as"]),
    (("train", "--resume", "--out", "RUN", "--set", "context=maybe"),
     ["--set context=maybe", "true or false"]),
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
    (("train", "--weights", "other.pth"), ["other.pth", "another backbone", "docs/weights.md"]),
    (("train", "--wights", "x"), ["--wights"]),
    (("train", "--out", "text.txt"), ["--out text.txt"]),
    (("eval",), ["CHECKPOINT", "--official"]),
    (("eval", "nowhere.pt"), ["no such file: nowhere.pt"]),
    (("eval", "text.txt"), ["text.txt", "not a PyTorch file"]),
    (("eval", "other.pth"), ["other.pth is not a checkpoint of train.py"]),
    (("eval", "empty"), ["best.pt"]),
    (("eval", "--official", "other.pth"), ["--official needs --paper"]),
    (("eval", "--official", "other.pth", "--paper", "pysa"),
     ["other.pth", "no official PySA", "docs/weights.md"]),
    (("eval", "RUN", "--image", "nowhere.jpg"), ["no such file: nowhere.jpg"]),
    (("eval", "RUN", "--image", "text.txt"), ["text.txt is not an image"]),
    (("eval", "RUN", "--protocol", "best"), ["--protocol", "multiscale"]),
    (("eval", "RUN", "--split", "all"), ["--split", "test"]),
    (("eval", "RUN", "--dataset", "shapes"), ["12 classes", "trained for 2"]),
    (("eval", "RUN", "--paper", "unet"), ["--paper unet"]),
    (("eval", "RUN/best.pt", "--dataset", "camvid"), ["--data PATH"]),
    (("train", "--workers", "-1"), ["--workers -1", "0 to 256"]),
    (("train", "--workers", "9999"), ["--workers 9999", "0 to 256"]),
    (("train", "--seed", str(2**63)), [f"--seed {2**63}", "below 2**63"]),
    (("train", "--lr", "1e308"), ["--lr 1e+308", "1e36"]),
    (("train", "--device", "cpu:foo"), ["--device cpu:foo", "valid: cpu"]),
    (("train", "--workers", "two"), ["--workers", "two"]),
    (("train", "--batch-size", "0"), ["--batch-size", "0"]),
    (("train", "--batch-size", "6", "--accumulate", "4"),
     ["--batch-size 6", "multiple of 4", "--accumulate 4"]),
    (("train", "--accumulate", "0"), ["--accumulate", "0"]),
    (("train", "--eval-every", "0"), ["--eval-every"]),
    (("train", "--seed", "one"), ["--seed", "one"]),
    (("train", "--schedule", "linear"), ["--schedule", "poly", "cosine"]),
    (("train", "--precision", "int8"), ["--precision", "bfloat16"]),
    (("train", "--precision", "float16", "--device", "cpu"),
     ["--precision float16", "CUDA", "bfloat16"]),
    (("train", "--device", "cuda:one"), ["--device cuda:one", "cpu"]),
    (("train", "--set", "=8"), ["--set =8", "OPTION=VALUE"]),
    (("train", "--set", "regions=()"), ["--set", "regions"]),
    (("train", "--paper", "psanet", "--set", "compact=True", "--steps", "1", "--crop-size", "64"),
     ["--crop-size 64"]),
    (("train", "--paper", "pan", "--batch-size", "1", "--steps", "1"),
     ["--batch-size 1", "at least 2 images"]),
    (("train", "--weights", "evil.pth"), ["evil.pth", "could run code"]),
    (("train", "--weights", "list.pth"), ["list.pth"]),
    (("train", "--resume", "--out", "broken"), ["broken", "damaged"]),
    (("train", "--out", "other.pth"), ["--out other.pth"]),
    (("train", "--dataset", "folder", "--data", "empty"),
     ["classes.txt is missing", "one class name per line"]),
    (("train", "--resume", "--out", "RUN", "--paper", "pan"), ["--paper", "has 'pysa', not 'pan'"]),
    (("train", "--resume", "--out", "RUN", "--set", "channels=16"), ["--set", "'channels': 8"]),
    (("train", "--resume", "--out", "RUN", "--data", "three classes"),
     ["three classes", "left, right"]),
    (("train", "--resume", "--out", "RUN", "--data", "fewer"),
     ["fewer", "1 training images", "has 11"]),
    (("train", "--resume", "--out", "RUN", "--data", "nowhere"),
     ["--data nowhere", "no such folder"]),
    (("train", "--out", "RUN"), ["already holds a run", "--resume"]),
    (("train", "--out", "RUN", "--set", "variant=x"), ["unknown variant 'x'", "parallel"]),
    (("train", "--out", "RUN", "--dataset", "shapes", "--data", "fewer"), ["--dataset folder"]),
    (("train", "--paper", "psanet", "--set", "shrink_factor=16"), ["shrink_factor 16", "128"]),
    (("train", "--paper", "psanet", "--set", "mask_size=5"), ["mask_size", "(rows, columns)"]),
    (("train", "--weights", "RUN/best.pt", "--steps", "1"), ["run of train.py", "--start-from"]),
    (("train", "--weights", "empty"), ["empty is a folder"]),
    (("eval", "RUN", "--image", "fewer/images/val", "--out", "fewer/images"),
     ["--out fewer/images", "dataset"]),
    (("eval", "RUN", "--image", "fewer/images/val", "--save-predictions", "fewer/labels"),
     ["--save-predictions fewer/labels", "dataset"]),
    (("eval", "--official", "RUN/best.pt", "--paper", "psanet"), ["run of train.py", "without"]),
    (("eval", "evil.pth"), ["evil.pth", "could run code"]),
    (("eval", "list.pth"), ["list.pth is not a checkpoint of train.py"]),
    (("eval", "broken"), ["no such file", "best.pt"]),
    (("eval", "RUN", "--crop-size", "-5"), ["--crop-size"]),
    (("eval", "RUN", "--image", "empty"), ["--image empty", "no pictures"]),
    (("eval", "RUN", "--image", "deep.png"), ["deep.png has mode I;16", "8 bits"]),
    (("eval", "RUN", "--dataset", "imagenet"), ["imagenet", "shapes, camvid"]),
    (("eval", "RUN", "--data", "nowhere"), ["--data nowhere", "no such folder"]),
    (("eval", "RUN", "--device", "tpu"), ["--device tpu", "cpu"]),
    (("eval", "RUN", "--official", "other.pth", "--paper", "pysa"), ["either", "CHECKPOINT"]),
    (("eval", "--official", "other.pth", "--paper", "unet"), ["--paper unet", "pysa"]),
    (("eval", "RUN", "--paper", "pan"), ["--paper pan", "holds pysa"]),
    (("eval", "RUN", "--out", "text.txt", "--data", "fewer"), ["--out text.txt"]),
    (("eval", "RUN", "--save-predictions", "text.txt", "--data", "fewer"),
     ["--save-predictions text.txt"]),
    (("eval", "RUN", "--protocol", "paper", "--data", "fewer"),
     ["--protocol paper", "on folder", "cityscapes"]),
    (("eval", "RUN", "--scales", "big"), ["--scales", "numbers above 0", "big"]),
    (("eval", "RUN", "--scales", "1,0"), ["--scales", "1,0"]),
    (("eval", "RUN", "--preset", "tiny"), ["--preset goes with --official"]),
    (("eval", "RUN", "--set", "channels=8"), ["--set goes with --official"]),
    (("eval", "RUN", "--data", "fewer", "--attention", "5"), ["--attention 5", "ROW,COL"]),
    (("train", "--train-split", "all"), ["--train-split", "trainaug"]),
    (("train", "--train-split", "trainaug"), ["unknown split 'trainaug'", "shapes"]),
]


@pytest.mark.parametrize("paper",
                         sorted(path.parent.name for path in ROOT.glob("papers/*/model.py")))
def test_booleans(paper):
    """Every boolean option of every paper."""
    names = [name for name, values in options.defaults(paper).items()
             if values and isinstance(values[0], bool)]
    assert "context" in names
    for name in names:
        for value, words in ((True, "true True TRUE yes on ON"), (False, "false False no No off")):
            assert [options.parse([f"{name}={word}"], paper) for word in words.split()] == (
                [{name: value}] * len(words.split()))
        for word in ("", "maybe", "nan", "1", "0", "None", "(True,)", "[]", "truefalse", "not"):
            with pytest.raises(UserError, match=f"--set {name}=.*: wanted true or false"):
                options.parse([f"{name}={word}"], paper)


def test_a_network_without_context(cli, data, tmp_path):
    cli("train", *QUICK, "--dataset", "folder", "--data", data, "--workers", 0, "--out", "run",
        "--set", "context=off")
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state["config"]["options"] == {"channels": 8, "context": False}
    assert not any("levels" in name for name in state["model"])


def make_pair(root, image, label, classes="left\nright\n"):
    """A folder dataset of two equal images, the second one for validation."""
    for split in ("train", "val"):
        for part, content in (("images", image), ("labels", label)):
            (root / part / split).mkdir(parents=True)
            Image.fromarray(content).save(root / part / split / "a.png")
    (root / "classes.txt").write_text(classes, encoding="utf-8")


class Evil:
    """What a malicious file holds: it runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


@pytest.fixture
def wrong_files(tmp_path):
    """Files and folders with which something is wrong, in the working directory of `cli`."""
    (tmp_path / "text.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "last.pt").write_bytes((tmp_path / "other.pth").read_bytes()[:100])
    image, label = np.zeros((40, 48, 3), np.uint8), np.ones((40, 48), np.uint8)
    Image.fromarray(label.astype(np.uint16)).save(tmp_path / "deep.png")
    make_pair(tmp_path / "fewer", image, label)
    make_pair(tmp_path / "three classes", image, label, "left\nmiddle\nright\n")


@pytest.mark.parametrize("arguments,words", MISTAKES,
                         ids=lambda value: " ".join(map(str, value))[:60])
def test_every_mistake_is_one_line(cli, trained, tmp_path, wrong_files, arguments, words):
    before = contents(tmp_path), contents(trained)
    program, *rest = [a.replace("RUN", str(trained)) for a in arguments]
    code, out, err = cli(program, *rest)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err, err
    assert (contents(tmp_path), contents(trained)) == before  # nothing written, nothing run


@pytest.mark.parametrize("kind", ["CMYK", "1", "P", "LA"])
def test_unusual_pictures_work(cli, trained, tmp_path, kind):
    """Printers' colours, black and white, palettes, transparency; the first frame of an animation;
    one pixel."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255,
                                                                (40, 48,
                                                                 3)).astype(np.uint8)).convert(kind)
    path = tmp_path / ("photo.jpg" if kind == "CMYK" else "photo.gif" if kind == "P"
                       else "photo.png")
    picture.save(path, **({"save_all": True, "append_images": [picture]} if kind == "P" else {}))
    code, out, err = cli("eval", trained, "--image", path, "--out", tmp_path)
    assert code == 0 and "%" in out, err


def test_images_of_one_pixel_can_be_trained_on(cli, tmp_path):
    make_pair(tmp_path / "dots", np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8))
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", "dots", "--workers", 0,
                       "--out", "run")
    assert code == 0, err


def test_a_damaged_last_checkpoint_names_the_good_one(cli, trained, data, tmp_path):
    """And what it says works: best.pt goes on from its step, to the same end."""
    shutil.copytree(trained, tmp_path / "run")
    last, best = tmp_path / "run" / "last.pt", tmp_path / "run" / "best.pt"
    whole, step = last.read_bytes(), checkpoint.load_run(best)["step"]
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # torch.load would not notice
    for content in (whole[:1000], b"", bytes(flipped), None):
        last.unlink()
        if content is not None:
            last.write_bytes(content)
        before = contents(tmp_path)
        code, out, err = cli("train", "--resume", "--out", "run", "--data", data)
        assert code == 2 and out == "" and err.count("\n") == 1
        assert f"best.pt beside it is whole: copy it to last.pt to go on from step {step}" in err
        assert contents(tmp_path) == before
        last.write_bytes(b"")
    shutil.copy(best, last)
    code, _, err = cli("train", "--resume", "--out", "run", "--data", data, "--device", "cpu",
                       "--workers", 0)
    assert code == 0, err
    assert differences(checkpoint.load(last), checkpoint.load(trained / "last.pt")) == []
    best.write_bytes(whole[:1000])
    last.write_bytes(whole[:1000])
    code, _, err = cli("train", "--resume", "--out", "run", "--data", data)
    assert code == 2 and "damaged" in err and "best.pt" not in err


def test_a_folder_that_cannot_be_written_to(cli, data, tmp_path, monkeypatch):
    """Simulated: the tests may run as root, who may write everywhere."""
    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    code, out, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--workers", 0,
                         "--out", "run")
    assert (code == 2 and out == "" and err.count("\n") == 1 and "Permission denied" in err
            and "run" in err)


def test_resume_may_come_before_the_first_checkpoint(cli, data, tmp_path):
    """A script can always say --resume."""
    code, out, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--workers", 0,
                         "--out", "run",
                         "--resume")
    assert code == 0 and "run holds no checkpoint yet: starting at step 0" in err and "mIoU" in out


def test_foreign_files_are_not_overwritten(cli, tmp_path):
    (tmp_path / "config.json").write_text("mine", encoding="utf-8")
    code, _, err = cli("train", "--steps", 1, "--out", ".")
    assert (code == 2 and "config.json" in err
            and (tmp_path / "config.json").read_text(encoding="utf-8") == "mine")


def test_an_existing_run_is_not_touched(cli, trained, data):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--out", trained)
    assert code == 2 and "already holds a run" in err and "--resume" in err
    for step in ("complete, 2 steps", f"eval.py {trained}", "--image", f"--start-from {trained}",
                 "--steps N --out DIR"):
        assert step in err
    code, _, err = cli("train", "--steps", 99, "--data", data, "--out", trained, "--resume")
    assert code == 2 and "--steps: the run to resume has 2, not 99" in err
    assert {path: path.read_bytes() for path in trained.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="its terminals have letters of their own")
def test_chinese_classes_on_an_ascii_terminal(data, tmp_path):
    """From the check to a segmented picture: files hold the letters, the terminal stands-ins."""
    names = ("天空", "道路")
    shutil.copytree(data, tmp_path / "数据")
    (tmp_path / "数据" / "classes.txt").write_text("\n".join(names), encoding="utf-8")

    def call(*words):
        result = subprocess.run(
            [sys.executable, *map(str, words)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
        assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
        return result.stdout

    out = call(ROOT / "train.py", *QUICK, "--dataset", "folder", "--data", "数据", "--out", "跑",
               "--workers", 0)
    assert "\\u5929\\u7a7a" in out  # 天空
    table = (tmp_path / "跑" / "iou.csv").read_text(encoding="utf-8")
    assert all(f"{name}," in table for name in names)
    call(ROOT / "eval.py", "跑", "--image", Path("数据", "images", "p00.jpg"))
    assert (tmp_path / "跑" / "p00-segmented.png").is_file()
