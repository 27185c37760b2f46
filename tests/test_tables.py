"""The tables of the datasets: names, ids and colours as published. A digest stands for the long
ones, so that whoever changes an entry has to say so twice."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

import datasets
from common.errors import UserError
from datasets import camvid, files, folder, shapes

CLASSES = {
    "cityscapes": "road sidewalk building wall fence pole light sign vegetation terrain sky person "
                  "rider car truck bus train motorcycle bicycle",
    "voc2012": "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable "
               "dog horse motorbike person pottedplant sheep sofa train tvmonitor",
}
CITYSCAPES_COLOURS = [
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
]
CONTEXT_IDS = [
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
]
# of all names, ids and colours, in order
DIGESTS = {
    "ade20k": "a1eacb9ceb9ac49c",
    "cityscapes": "3f7942a63adde6a9",
    "coco_stuff": "1d0e4f9340ab7ccc",
    "pascal_context": "2ae67fa9f82598f6",
    "voc2012": "a5ad56694cc80141",
}


def digest(name):
    table = files.class_table(name)
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "coco_stuff", "pascal_context",
                                  "voc2012"])
def test_no_entry_changes_unnoticed(name):
    assert digest(name) == DIGESTS[name], "if wanted, write the new digest into DIGESTS"


def test_short_tables():
    cityscapes, voc = files.class_table("cityscapes"), files.class_table("voc2012")
    assert [name.split()[-1] for name in cityscapes["names"]] == CLASSES["cityscapes"].split()
    assert voc["names"] == CLASSES["voc2012"].split()
    assert cityscapes["ids"] == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert [tuple(colour) for colour in cityscapes["palette"]] == CITYSCAPES_COLOURS
    assert files.class_table("pascal_context")["ids"] == CONTEXT_IDS
    assert camvid.CLASSES == (
        "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car",
        "pedestrian", "bicyclist")
    assert camvid.PALETTE == [
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
        (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)]


def test_lengths_of_the_scenes():
    assert shapes.LENGTHS == {"train": 12000, "val": 100, "test": 100}


@pytest.mark.parametrize("count", [2, 20, 150])
def test_colours_of_other_classes_differ(count):
    colours = np.array(folder.palette(count)).astype(int)
    distance = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(count, dtype=int)
    assert distance.min() > (20 if count <= 20 else 0)


# ------------------------------------------------------------------------------ the one door


def test_a_run_is_validated_on_val(monkeypatch):
    """And its configuration tells of the training set."""
    asked = []

    def load(name, root, split, seed=0):
        asked.append((name, root, split))
        return shapes.Shapes("val" if split == "val" else "train")

    monkeypatch.setattr(datasets, "load", load)
    config = {"dataset": "folder"}
    train, val = datasets.load_pair(config, "here", "trainaug")
    assert asked == [("folder", "here", "trainaug"), ("folder", "here", "val")]
    assert (len(train), len(val)) == (12000, 100) and config["train_images"] == 12000
    assert config["classes"] == list(shapes.CLASSES) and config["num_classes"] == 12


def test_scenes_depend_on_seed_split_and_task():
    one = datasets.load("shapes", split="val", seed=0)[0][0]
    for other in (datasets.load("shapes", split="val", seed=1),
                  datasets.load("shapes", split="test"), datasets.load("shapes", split="train")):
        assert not np.array_equal(one, other[0][0])
    for task in shapes.PROBES:
        assert datasets.load(f"shapes-{task}").task == task


def test_one_file_without_partner_is_said(tmp_path):
    """A line of a list that names an image and a label that are not there."""
    dataset = files.FilePairs([(tmp_path / "a.png", tmp_path / "b.png")], "ab", [(0, 0, 0)] * 2)
    assert len(dataset) == 0 and len(dataset.missing) == 1
    (tmp_path / "images").mkdir(), (tmp_path / "labels").mkdir()
    for number in range(12):
        for part in ("images", "labels"):
            (tmp_path / part / f"{number:02d}.png").write_bytes(b"")
    (tmp_path / "labels" / "03.png").unlink()
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="03.png has no label"):
        datasets.load("folder", tmp_path, "train")


def test_names_of_files(tmp_path):
    """Endings in any case; nothing of the system; a turned label is refused."""
    (tmp_path / "i").mkdir(), (tmp_path / "l").mkdir()
    Image.new("RGB", (6, 8)).save(tmp_path / "i" / "A.JPG")
    Image.new("L", (8, 6)).save(tmp_path / "l" / "A.PNG")
    (tmp_path / "i" / "._A.JPG").write_bytes(b"")
    pairs = files.pair_up(tmp_path / "i", tmp_path / "l", (".jpg",), ".png")
    assert [(image.name, label.name) for image, label in pairs] == [("A.JPG", "A.PNG")]
    with pytest.raises(UserError, match="differ in size .6x8 and 8x6."):
        files.FilePairs(pairs, "ab", [(0, 0, 0)] * 2)[0]


def test_a_list_made_on_windows(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf/of/its/author/i/a.jpg /of/l/a.png\r\n")
    assert files.read_pairs(tmp_path / "list.txt", tmp_path) == [
        (tmp_path / "i" / "a.jpg", tmp_path / "l" / "a.png")]


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        files.read_image(tmp_path / "a.png")
