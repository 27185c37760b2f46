"""Damaged files: 500 mutations of valid pictures and checkpoints. Each is either read or a
UserError, at once. And 40 inputs of the long form, tests/fuzz.py."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from datasets.files import read_image, read_label
from datasets.shapes import make_scene
from tests import fuzz
from tests.crash import differences


def mutate(content, rng):
    """Valid bytes with a few of them changed, cut out, doubled, or with the end missing."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place, length = rng.randrange(len(content)), rng.randrange(1, 40)
        # Headers are short and decide most: half of all mutations are in the first and last hundred
        # bytes.
        if rng.random() < 0.5:
            place = rng.choice((place % 100, len(content) - 1 - place % 100)) % len(content)
        kind = rng.randrange(5)
        if kind == 0:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = content[place : place + length]
        else:
            del content[max(1, place) :]
        content = content or bytearray(b"\0")
    return bytes(content)


def picture(kind, **settings):
    """A scene as the bytes of an image file, and its label."""
    image, label = make_scene(0, "val", 0, 48, 64)
    files = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(files[0], kind, **settings)
    Image.fromarray(label).save(files[1], "PNG")
    return [file.getvalue() for file in files]


def checkpoint_bytes(legacy):
    """A small checkpoint of train.py's form."""
    state = {
        "model": {"conv.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)},
        "optimizer": {"state": {}},
        "config": {"paper": "pysa", "classes": ["a", "b"]}, "recipe": {"steps": 3},
        "log": [{"miou": 0.5}], "step": 2,
    }
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def survives(read, path, content, check):
    """True if the damaged file was read all the same. Anything but a result that passes `check`, or
    a UserError of one line that names the file, fails the test."""
    path.write_bytes(content)
    try:
        check(read(path))
        return True
    except UserError as error:
        assert str(path) in str(error)
        return False


def is_image(array):
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


def is_label(array):
    assert array.dtype == np.uint8 and array.ndim == 2


@pytest.mark.parametrize("kind,settings",
                         [("PNG", {}), ("JPEG", {"quality": 90}), ("JPEG", {"progressive": True})])
def test_pictures(tmp_path, kind, settings):
    image, label = picture(kind, **settings)
    rng, read = random.Random(0), 0
    for number in range(100):
        path = tmp_path / f"p{number % 3}.{kind.lower()}"
        if number % 4 == 3:
            read += survives(read_label, path, mutate(label, rng), is_label)
        else:
            read += survives(read_image, path, mutate(image, rng), is_image)
    assert 0 < read < 100  # mutations of both sorts happened


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_checkpoints(tmp_path, legacy):
    content, rng, read = checkpoint_bytes(legacy), random.Random(0), 0
    whole = torch.load(io.BytesIO(content), weights_only=True)

    def is_the_run(state):
        assert differences(state, whole) == []  # whatever else was in the file, the checksums tell

    for number in range(100):
        reader = checkpoint.load_run if number % 2 else checkpoint.load
        read += survives(reader, tmp_path / "a.pt", mutate(content, rng),
                         is_the_run if number % 2 else id)
    assert read < 60


def test_hostile_inputs(monkeypatch):
    """Of every kind that needs no process of its own; others than yesterday would be unfair."""
    monkeypatch.setattr(fuzz, "REAL", 0)
    kinds = ["flags", "options", "checkpoints", "folders", "tensors"]
    counts, failures = fuzz.fuzz(range(40), 0, kinds, report=id, bar=False)
    assert failures == [] and counts == dict.fromkeys(kinds, 8)


@pytest.mark.parametrize("mistake,words", [
    ("raise ZeroDivisionError", "ZeroDivisionError"),
    ("raise UserError('one\\ntwo')", ""),
    ("print('error: a', file=sys.stderr); raise UserError('b')", "not one line"),
    ("print('Traceback', file=sys.stderr)", "exit code 0"),
    ("sys.exit(3)", "exit code 3"), ("time.sleep(9)", "no end"),
    ("pathlib.Path('data/a.png').write_text('new')", "changed: data/a.png"),
    ("pathlib.Path('data/a.png').unlink()", "changed: data/a.png"),
    ("pathlib.Path('new').write_text('new')", "")])
def test_the_fuzzer_notices(tmp_path, monkeypatch, mistake, words):
    """What it looks for, planted into a program."""
    def main():
        exec(f"import pathlib, sys, time\nfrom common.errors import UserError\n{mistake}")

    monkeypatch.setattr(fuzz.train_program, "main", main)
    monkeypatch.setattr(fuzz, "LIMIT", 0.5)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_text("mine", encoding="utf-8")
    before = fuzz.state_of(tmp_path)
    with fuzz.called(tmp_path, "train", []) as (code, out, err):
        wrong = fuzz.judge(tmp_path, before, "train", [], code, out, err)
    assert words in wrong and bool(words) == bool(wrong), wrong
