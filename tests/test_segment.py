"""eval.py on pictures without labels, on the data of a run, and --summary."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.recipe import Recipe
from datasets import memory, pictures, predictions
from papers.describe import multiply_adds, short
from papers.options import build_model

PALETTE = [[10, 20, 30], [200, 100, 50]]


@pytest.fixture
def made(tmp_path):
    """A run of a network that was not trained, with ids 7 and 33 on disk; four pictures, of which
    one is broken; the data of the run."""
    torch.manual_seed(0)
    model = build_model("pysa", "tiny", 2, {"channels": 8})
    config = {"paper": "pysa", "preset": "tiny", "num_classes": 2, "options": {"channels": 8},
              "dataset": "folder", "classes": ["left", "right"], "palette": PALETTE,
              "stored_ids": [7, 33]}
    for name in ("run", "in"):
        (tmp_path / name).mkdir()
    checkpoint.save(tmp_path / "run" / "best.pt", {
        "model": model.state_dict(), "config": config, "recipe": vars(Recipe(crop_size=64)),
        "optimizer": {}, "log": [], "step": 0})
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "b.PNG"):
        pixels = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_text("no picture", encoding="utf-8")
    (tmp_path / "in" / "notes.txt").touch()
    for split in ("train", "val"):
        for part, pixels in (("images", np.zeros((40, 48, 3))), ("labels", np.zeros((40, 48)))):
            (tmp_path / "data" / split / part).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(
                tmp_path / "data" / split / part / "a.png")
    (tmp_path / "data" / "classes.txt").write_text("left\nright\n", encoding="utf-8")
    return tmp_path


def test_a_folder_of_pictures(cli, made):
    """One page each; the broken one is named at the end; masks in the dataset's ids and colours."""
    before = {path: path.read_bytes() for path in (made / "in").iterdir()}
    code, out, err = cli("eval", "run", "--image", "in", "--save-predictions", "--out", "new",
                         "--device", "cpu")
    assert code == 0 and "3 pictures: new" in out
    assert err.splitlines()[-1].startswith("left out: in/broken.jpg is not an image")
    pages = {path.name for path in (made / "new").glob("*.png")}
    assert pages == {f"{name}-segmented.png" for name in ("a.jpg", "a.png", "b")}
    for name in ("a.jpg", "a.png", "b"):
        with Image.open(made / "new" / "predictions" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (48, 40)
            assert {*np.unique(np.asarray(mask))} <= {7, 33}
            assert mask.getpalette()[3 * 33 : 3 * 34] == PALETTE[1]
    assert {path: path.read_bytes() for path in (made / "in").iterdir()} == before
    again = ("eval", "run", "--image", "in", "--save-predictions", "--out", "new")
    assert cli(*again)[0] == 0  # predictions may be replaced


def test_pictures_are_not_overwritten_by_masks(cli, made):
    before = (made / "in" / "b.PNG").read_bytes()
    shutil.copy(made / "in" / "b.PNG", made / "in" / "c.png")
    code, _, err = cli("eval", "run", "--image", "in/c.png", "--save-predictions", "in", "--out",
                       "new")
    assert code == 2 and "--save-predictions in: c.png is there" in err
    assert (made / "in" / "c.png").read_bytes() == before


def test_nothing_but_broken_pictures(cli, made):
    for name in ("a.jpg", "a.png", "b.PNG"):
        (made / "in" / name).write_text("no picture", encoding="utf-8")
    code, _, err = cli("eval", "run", "--image", "in", "--out", "new")
    assert code == 2 and "--image in: no picture can be read: in/a.jpg" in err


def test_255_stays_255(tmp_path):
    ids = np.array([[0, 255, 1]], np.uint8)
    predictions.write(tmp_path / "a.png", ids, {0: (1, 2, 3), 1: (4, 5, 6)})
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), ids)


def test_a_run_finds_its_data(cli, made):
    """As config.json names them, and not for another dataset."""
    settings = made / "run" / "config.json"
    settings.write_text(json.dumps({"data": str(made / "data")}), encoding="utf-8")
    code, out, err = cli("eval", "run", "--out", "new")
    assert code == 0 and "mIoU" in out and f"data: {made / 'data'}, those of" in out
    scores = (made / "new" / "folder-val.csv").read_text(encoding="utf-8")
    assert re.fullmatch(r"class,iou\nleft,[\d.]+\nright,(nan|0)\n", scores)
    code, _, err = cli("eval", "run", "--dataset", "camvid", "--out", "new")
    assert code == 2 and err.startswith("error: this dataset lies on disk")
    for text in (json.dumps({"data": "gone"}), json.dumps({"data": None}), "[]", "{", "{}"):
        settings.write_text(text, encoding="utf-8")
        code, _, err = cli("eval", "run", "--out", "new")
        assert code == 2 and "--data PATH" in err


def test_summary(cli, made):
    code, out, err = cli("eval", "run", "--summary", "--crop-size", 64, "--device", "cpu")
    assert code == 0 and err == "" and [path.name for path in (made / "run").iterdir()] == [
        "best.pt"]
    model = build_model("pysa", "tiny", 2, {"channels": 8})
    total = sum(p.numel() for p in model.parameters())
    last = out.splitlines()[-1]
    assert last.startswith("total") and "1 x 2 x 64 x 64" in last
    assert short(total) in last and last.endswith(short(multiply_adds(model, 64)[""]))
    assert re.search(r"^backbone\.\w+ .* 1 x \d+ x \d+ x \d+ ", out, re.M)


def test_names_with_commas(tmp_path):
    predictions.write_scores(tmp_path / "a.csv", ["sign, post", "road"], np.array([0.25, np.nan]))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == (
        'class,iou\n"sign, post",0.25\nroad,nan\n')


def test_a_picture_whose_scores_do_not_fit_is_refused(cli, made, monkeypatch):
    """With what to do instead, before the network runs; in windows it is segmented."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**4)
    monkeypatch.setattr("datasets.segment.predict", lambda *_: 1 / 0)
    for flags in ((), ("--scales", "0.5,1", "--protocol", "sliding")):
        code, _, err = cli("eval", "run", "--image", "in/b.PNG", "--out", "new", *flags)
        assert code == 2 and "in/b.PNG has 48 x 40 pixels" in err and "--protocol sliding" in err
    monkeypatch.undo()
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**4)
    monkeypatch.chdir(made)
    for flags in (("--protocol", "sliding"), ("--scales", "0.5")):
        assert cli("eval", "run", "--image", "in/b.PNG", "--out", "new", "--device", "cpu",
                   *flags)[0] == 0
    assert memory.free_memory("cpu")


def test_thin_pictures_are_drawn_small(made):
    """A row of 5000 pixels was drawn 160 pixels high and 800,000 wide."""
    for size in ((1, 5000), (5000, 1), (3, 4)):
        image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
        page = pictures.segmented(image, label, ["a"], [(1, 2, 3)])
        both = pictures.predictions([(image, label, label)], ["a"], [(1, 2, 3)])
        assert max(*page.size, *both.size) < 4 * 2100


def test_shares_of_classes():
    label = np.array([[0, 2], [2, 2]], np.uint8)
    assert pictures.shares(label, ["a", "b", "c"]) == "c 75%, a 25%"
