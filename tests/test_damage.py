"""What goes wrong with files: each damage is one readable line that names the file, from check and
from load alike."""

import os
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

import datasets
from common.errors import UserError, run
from datasets import check
from tests import layouts

# The tiny copies have other numbers of images than the originals.
TINY = {
    "ade20k": {"train": 3, "val": 3}, "voc2012": {"train": 2, "val": 2, "trainaug": 4},
    "cityscapes": {"train": 4, "val": 2, "test": 2},
    "coco_stuff10k": {"train": 2, "val": 1, "test": 1},
    "coco_stuff164k": {"train": 2, "val": 2}, "camvid": {"train": 3, "val": 2, "test": 1},
    "pascal_context59": {"train": 2, "val": 2},
    "folder": {"train": None, "val": None, "test": None},
}
WRITE = {
    "ade20k": layouts.ade20k, "voc2012": layouts.voc, "cityscapes": layouts.cityscapes,
    "coco_stuff10k": layouts.coco_10k, "coco_stuff164k": layouts.coco_164k,
    "camvid": layouts.camvid,
    "pascal_context59": lambda root: layouts.context_published(root, root / "trainval"),
    "folder": layouts.folder,
}

ADE_IMAGE = "images/training/ADE_train_00000002.jpg"
ADE_LABEL = "annotations/training/ADE_train_00000002.png"
CITY_LABEL = "gtFine/train/ulm/ulm_000000_000012_gtFine_labelIds.png"
MAT = "annotations/COCO_train2014_02.mat"
VOC_LIST, VOC_LABEL = "ImageSets/Segmentation/train.txt", "SegmentationClass/2007_000003.png"
FOLDER_LABEL = "labels/photo 03.png"

# what is done to a file: each takes its path


def truncate(path):
    """Half of it, as after a broken download."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_pixels(path):
    """The last third is missing, so that everything but some rows of pixels is there."""
    with Image.open(path) as image:
        noise = np.random.default_rng(0).integers(0, 150, (*image.size[::-1], 3))
        Image.fromarray(noise.astype(np.uint8)).convert(image.mode).save(path)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def fill(value, mode=np.uint8, shape=None):
    """A picture of the same size (or another) that holds one value everywhere."""
    def damage(path):
        with Image.open(path) as image:
            size = image.size[::-1]
        Image.fromarray(np.full(shape or size, value, mode)).save(path)
    return damage


def convert(mode):
    """Saved again in another mode."""
    def damage(path):
        with Image.open(path) as image:
            image.convert(mode).save(path)
    return damage


def write(data):
    """Other content."""
    return lambda path: path.write_bytes(data)


def replace_by_folder(path):
    """A folder of the same name."""
    path.unlink()
    path.mkdir()


def loop(path):
    """A link that points at itself."""
    path.unlink()
    try:
        path.symlink_to(path.name)
    except OSError:
        pytest.skip("no symbolic links here")


def lock(path):
    """Nobody may read it."""
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("every file can be read here")


def transpose(path):
    """Width and height exchanged."""
    with Image.open(path) as image:
        image.transpose(Image.Transpose.TRANSPOSE).save(path)


def empty(path):
    """Everything in the folder is gone."""
    for file in path.iterdir():
        file.unlink()


# name: (dataset, file or folder, what is done to it, words of the line)
DAMAGE = {
    "truncated JPEG": ("ade20k", ADE_IMAGE, truncate, ["cannot read image"]),
    "truncated PNG": ("ade20k", ADE_LABEL, truncate, []),
    "JPEG without its last rows": ("ade20k", ADE_IMAGE, truncate_pixels,
                                   ["cannot read image", "truncated"]),
    "PNG without its last rows": ("ade20k", ADE_LABEL, truncate_pixels,
                                  ["cannot read image", "truncated"]),
    "empty file": ("ade20k", ADE_IMAGE, write(b""), ["is not an image"]),
    "text renamed": ("ade20k", ADE_IMAGE, write(b"<html>404</html>"), ["is not an image"]),
    "label as RGB": ("ade20k", ADE_LABEL, convert("RGB"), ["has mode RGB", "one 8-bit channel"]),
    "label as RGBA": ("cityscapes", CITY_LABEL, convert("RGBA"), ["has mode RGBA"]),
    "16-bit label": ("ade20k", ADE_LABEL, fill(3, np.uint16), ["has mode I;16"]),
    "16-bit image": ("camvid", "train/frame é 1.png", fill(3, np.uint16),
                     ["I;16", "save it with 8 bits"]),
    "label turned grey": ("voc2012", VOC_LABEL, fill(220),
                          ["value 220", "valid are 0 to 20 and 255"]),
    "one grey pixel": ("voc2012", VOC_LABEL, convert("L"),
                       ["contains the value", "valid are 0 to 20 and 255"]),
    "value beyond 19 classes": ("cityscapes", CITY_LABEL, fill(200),
                                ["value 200", "valid are 0 to 33 and 255"]),
    "value beyond 150": ("ade20k", ADE_LABEL, fill(151),
                         ["value 151", "valid are 0 to 150 and 255"]),
    "dead class": ("coco_stuff164k", "annotations/train2017/000000000009.png", fill(11),
                   ["value 11", "valid are 0 to 10, 12 to 24", "91 to 181 and 255"]),
    "value beyond two classes": ("folder", FOLDER_LABEL, fill(2),
                                 ["value 2", "valid are 0 to 1 and 255"]),
    "void twice": ("camvid", "testannot/frame é 0.png", fill(12),
                   ["value 12", "valid are 0 to 11 and 255"]),
    "another size": ("ade20k", ADE_LABEL, fill(1, shape=(5, 7)),
                     ["ADE_train_00000002.jpg", "36x41 and 7x5"]),
    "upright label": ("folder", FOLDER_LABEL, transpose,
                      ["photo 03.jpg", "differ in size (37x13 and 13x37)"]),
    "missing label": ("ade20k", ADE_LABEL, os.remove, ["has no label"]),
    "missing image": ("ade20k", ADE_IMAGE, os.remove,
                      ["ADE_train_00000002.png has no image of that name"]),
    "missing label, list": ("voc2012", VOC_LABEL, os.remove, ["2007_000003.jpg has no label"]),
    "missing image, list": ("voc2012", "JPEGImages/2007_000003.jpg", os.remove,
                            ["2007_000003.png has no image"]),
    "missing image, city": ("cityscapes", "leftImg8bit/train/ulm/ulm_000000_000012_leftImg8bit.png",
                            os.remove,
                            ["000012_gtFine_labelIds.png has no image"]),
    "missing .mat": ("coco_stuff10k", MAT, os.remove, ["COCO_train2014_02.jpg has no label"]),
    "missing label of one's own": ("folder", FOLDER_LABEL, os.remove,
                                   ["photo 03.jpg has no label"]),
    "missing image of one's own": ("folder", "images/photo 03.jpg", os.remove,
                                   ["photo 03.png has no image"]),
    "list of another dataset": ("voc2012", VOC_LIST, write(b"2007_000003\nimg_17\n"),
                                ["names img_17", "neither"]),
    "list of three columns": ("camvid", "train.txt", write(b"a.png b.png c.png\n"),
                              ["'image label'", "c.png"]),
    "empty list": ("voc2012", VOC_LIST, write(b"\r\n\n"), ["is empty"]),
    "binary list": ("voc2012", VOC_LIST, write(b"\xff\xfe2\x000\x00"),
                    ["is not a text file in UTF-8"]),
    "missing list": ("voc2012", VOC_LIST, os.remove, ["cannot read", "No such file"]),
    "empty folder": ("ade20k", "annotations/training", empty, ["holds no files that end in .png"]),
    "folder for a file": ("ade20k", ADE_IMAGE, replace_by_folder, ["cannot read image"]),
    "folder for a .mat": ("coco_stuff10k", MAT, replace_by_folder, ["cannot read"]),
    "link to itself": ("ade20k", ADE_LABEL, loop, ["cannot read image"]),
    "locked file": ("ade20k", ADE_IMAGE, lock, ["cannot read image", "Permission denied"]),
    "locked .mat": ("coco_stuff10k", MAT, lock, ["cannot read", "Permission denied"]),
    "truncated .mat": ("coco_stuff10k", MAT, truncate, ["cut short or damaged"]),
    "garbage .mat": ("coco_stuff10k", MAT, write(b"garbage" * 99), ["is not a MATLAB 5 file"]),
    "HDF5 .mat": ("coco_stuff10k", MAT, write(b"MATLAB 7.3 MAT-file, HDF5".ljust(600)),
                  ["MATLAB 7.3", "-v7"]),
    "value in a .mat": ("coco_stuff10k", MAT, write(layouts.coco_mat(np.full((13, 37), 183))),
                        ["value 183", "valid are 0 to 182"]),
    "value in a .mat of 459": ("pascal_context59", "trainval/2008_000002.mat", write(
        layouts.mat_file(layouts.matrix("LabelMap", np.full((13, 37), 460), "u2"))),
        ["value 460", "0 to 459"]),
    "another variable": ("coco_stuff10k", MAT, write(layouts.mat_file(layouts.matrix("T", [[1]]))),
                         ["no variable S"]),
    "two images of one name": ("folder", "images/photo 03.png", write(b""),
                               ["photo 03.jpg and photo 03.png"]),
    "no classes": ("folder", "classes.txt", os.remove,
                   ["is missing: write one class name per line"]),
    "no class": ("folder", "classes.txt", write(b"\n"), ["is empty"]),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The counts of the tiny copies in the place of the published ones."""
    for name, counts in TINY.items():
        monkeypatch.setitem(datasets.SAMPLES, name, counts)


def first_error(name, root):
    """What somebody who uses the dataset reads: the first complaint of load or of a sample."""
    for split in datasets.SAMPLES[name]:
        try:
            dataset = datasets.load(name, root, split)
            for index in range(len(dataset)):
                dataset[index]
        except datasets.files.MissingSplit:
            continue
        except UserError as error:
            return str(error)
    return None


@pytest.mark.parametrize("name", WRITE)
def test_no_damage_no_complaint(tmp_path, name):
    WRITE[name](tmp_path)
    assert list(check.problems(name, tmp_path)) == [] and first_error(name, tmp_path) is None


@pytest.mark.parametrize("case", DAMAGE)
def test_damage(tmp_path, case):
    name, file, damage, words = DAMAGE[case]
    root = tmp_path / "my dätä"
    WRITE[name](root)
    damage(root / file)
    lines = list(check.problems(name, root))
    assert len(lines) == 1, lines
    error = first_error(name, root)
    assert lines[0].partition(": ")[2] == error
    assert "\n" not in error and len(error) < 250 + 3 * len(str(root)), error
    stem = os.path.basename(file).partition(".")[0].removesuffix("_leftImg8bit")
    for word in [stem, *words]:
        assert word in error, error


@pytest.mark.parametrize("case", DAMAGE)
def test_training_says_the_same(tmp_path, cli, case):
    """In one line, before anything is written."""
    name, file, damage, _ = DAMAGE[case]
    root = tmp_path / "my dätä"
    WRITE[name](root)
    damage(root / file)
    wanted = ""
    try:
        dataset = datasets.load(name, root, "train")
        for index in range(len(dataset)):
            dataset[index]
    except UserError as error:
        wanted = str(error)
    if not wanted:
        pytest.skip("no training image is damaged")
    code, out, err = cli(
        "train", "--dataset", name, "--data", root, "--batch-size", 8, "--crop-size", 32, "--set",
        "channels=8", "--device", "cpu", "--workers", 0, "--out", tmp_path / "run")
    assert code == 2 and out == "" and err == f"error: {wanted}\n"
    assert not (tmp_path / "run").exists()


def test_every_file_is_named(tmp_path):
    """check goes on after a problem, load says how many there are."""
    layouts.ade20k(tmp_path)
    for number in (1, 3):
        (tmp_path / f"annotations/training/ADE_train_0000000{number}.png").unlink()
    truncate(tmp_path / "images/validation/ADE_val_00000003.jpg")
    lines = list(check.problems("ade20k", tmp_path))
    assert len(lines) == 3
    numbers = ("train_00000001", "train_00000003", "val_00000003")
    assert all(number in line for number, line in zip(numbers, lines, strict=True))
    message = r"ADE_train_00000001.*\(2 such; `python -m datasets.check ade20k .*` lists them"
    with pytest.raises(UserError, match=message):
        datasets.load("ade20k", tmp_path, "train")


def test_counts_are_compared(tmp_path, monkeypatch):
    layouts.ade20k(tmp_path)
    monkeypatch.setitem(datasets.SAMPLES, "ade20k", {"train": 20210, "val": 3})
    assert list(check.problems("ade20k", tmp_path)) == ["train: 3 images, published are 20210"]


def test_what_not_everybody_has_is_no_problem(tmp_path, capsys):
    """VOC without SBD, Cityscapes without test, one's own data without test."""
    layouts.voc(tmp_path)
    assert list(check.problems("voc2012", tmp_path)) == []
    assert "trainaug: not here" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [truncate, os.remove])
def test_files_of_two_splits_are_looked_at_once(tmp_path, damage):
    layouts.coco_10k(tmp_path)
    damage(tmp_path / "images" / "COCO_train2014_03.jpg")
    lines = list(check.problems("coco_stuff10k", tmp_path))
    assert len(lines) == 1 and lines[0].startswith("val: ")


@pytest.mark.parametrize("name", WRITE)
def test_an_archive_in_the_place_of_a_folder(tmp_path, name):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(UserError,
                       match="--data .*data.zip is a file; unpack it and give the folder"):
        datasets.load(name, path, "train")


def program(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of `python -m datasets.check`."""
    monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        run(check.main)
    return exit_.value.code, *capsys.readouterr()


def test_exit_codes(tmp_path, monkeypatch, capsys):
    layouts.camvid(tmp_path / "good")
    code, out, _ = program(monkeypatch, capsys, "camvid", tmp_path / "good")
    assert code == 0 and "no problem found" in out and "test: 1 pairs looked at" in out
    (tmp_path / "good" / "test" / "frame é 0.png").unlink()
    code, out, _ = program(monkeypatch, capsys, "camvid", tmp_path / "good")
    assert code == 1 and "1 problem\n" in out
    code, _, err = program(monkeypatch, capsys, "camvid", tmp_path / "nowhere")
    assert code == 2 and err.count("\n") == 1 and "PATH" in err
