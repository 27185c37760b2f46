"""Predictions as files: right ids, and nothing that is not a prediction is ever overwritten."""

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from common.errors import UserError
from common.inference import evaluate, normalise
from datasets import predictions
from datasets.files import FilePairs
from tests import layouts
from tests.helpers import contents

NAMES = ("ade20k", "cityscapes", "voc", "camvid", "folder")


class Bright(torch.nn.Module):
    """The class of a pixel is how bright it is: five steps."""

    def forward(self, images):
        middles = normalise(torch.arange(25, 256,
                                         51)[:, None, None, None].expand(5, 1, 1, 3))[:, :1]
        return {"out": -(images[:, :1] - middles.view(1, 5, 1, 1)).abs()}


class Dataset:
    """Three images of which each pixel is as bright as its class says."""

    classes, palette = ("a", "b", "c", "d", "e"), [(0, 0, 0)] * 5
    stored_ids = np.array([7, 8, 11, 12, 33], np.uint8)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        label = np.random.default_rng(index).integers(0, 5, (33, 40)).astype(np.uint8)
        return np.repeat(25 + 51 * label[..., None], 3, axis=2).astype(np.uint8), label

    def sample_name(self, index):
        return f"münchen {index}"


def test_predictions_carry_the_datasets_own_ids(tmp_path):
    save = predictions.writer(Dataset(), tmp_path, None)
    matrix, kept = evaluate(Bright(), Dataset(), 5, keep=2, save=save)
    assert matrix.miou == 1.0 and len(kept) == 2
    assert sorted(path.name
                  for path in tmp_path.iterdir()) == [f"münchen {index}.png" for index in range(3)]
    for index in range(3):
        with Image.open(tmp_path / f"münchen {index}.png") as file:
            assert (file.mode == "L"
                    and np.array_equal(np.asarray(file), Dataset.stored_ids[Dataset()[index][1]]))


@pytest.mark.parametrize("name", NAMES)
def test_no_folder_of_a_dataset_is_written_to(tmp_path, monkeypatch, name):
    """Its root, every folder in it that holds files, new ones below, by link and by another
    spelling."""
    root = tmp_path / "data"
    getattr(layouts, name)(root)
    name = {"voc": "voc2012"}.get(name, name)
    dataset = datasets.load(name, root, "val")
    read = {path.parent for pair in dataset.pairs for path in pair}
    (tmp_path / "link").symlink_to(next(iter(read)), target_is_directory=True)
    monkeypatch.chdir(root)
    before = contents(tmp_path)
    spelled = [root / "x" / ".." / folder.relative_to(root) for folder in read]
    for folder in [root, ".", *read, *spelled, tmp_path / "link",
                   *(folder / "new" / "deep" for folder in read)]:
        with pytest.raises(UserError,
                           match="--save-predictions .*: the dataset reads files there"):
            predictions.writer(dataset, folder, root)
    assert contents(tmp_path) == before and not any(path.name == "new" for path in root.rglob("*"))
    predictions.writer(dataset, tmp_path / "elsewhere", root)
    predictions.writer(dataset, root / "my predictions", root)


def test_what_is_no_prediction_is_not_overwritten(tmp_path):
    for content in (b"", b"a text", None):
        if content is None:
            Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "münchen 1.png")
        else:
            (tmp_path / "münchen 1.png").write_bytes(content)
        before = contents(tmp_path)
        with pytest.raises(UserError,
                           match="münchen 1.png is there and is no file of eval.py"):
            predictions.writer(Dataset(), tmp_path, None)
        assert contents(tmp_path) == before
    (tmp_path / "münchen 1.png").unlink()
    for value in (1, 3):  # but predictions are, by new ones
        predictions.writer(Dataset(), tmp_path, None)(1, np.full((33, 40), value, np.uint8))
        with Image.open(tmp_path / "münchen 1.png") as file:
            assert np.asarray(file).max() == Dataset.stored_ids[value]


def test_a_full_disk_leaves_the_old_prediction(tmp_path, monkeypatch):
    save = predictions.writer(Dataset(), tmp_path, None)
    save(0, np.zeros((33, 40), np.uint8))
    before = contents(tmp_path)

    def fsync(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError,
                       match="No space left on device; what was there before is untouched"):
        save(0, np.ones((33, 40), np.uint8))
    assert contents(tmp_path) == before


def test_two_images_of_one_name(tmp_path):
    for path in ("train/x0.png", "val/x0.png"):
        (tmp_path / path).parent.mkdir()
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / path)
    dataset = FilePairs([(tmp_path / f"{part}/x0.png",) * 2 for part in ("train", "val")], ["a"],
                        [(0, 0, 0)])
    with pytest.raises(UserError,
                       match="train.x0.png and .*val.x0.png would both be written as x0.png"):
        predictions.writer(dataset, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
