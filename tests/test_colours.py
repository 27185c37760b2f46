"""Labels of the user's own: colours, 16 bits, and the two ways to divide a folder."""

import numpy as np
import pytest
from PIL import Image

import datasets
from common.errors import UserError
from datasets import check, colours

CLASSES = "ignore #000000\nroad #804080\nsmall car 0 0 142\n\ntree  107 142\t35\n"
COLOURS = np.array([(128, 64, 128), (0, 0, 142), (107, 142, 35), (0, 0, 0)], np.uint8)
IDS = np.random.default_rng(0).integers(4, size=(8, 6))
WANTED = np.array([0, 1, 2, 255], np.uint8)[IDS]


def save(root, label, classes=CLASSES, places=("images/train", "images/val")):
    """A folder dataset of two equal pairs."""
    for place in places:
        for part in ("images", "labels"):
            folder = root / place.replace("images", part)
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.zeros((8, 6, 3), np.uint8)) if part == "images" else label
            image.save(folder / "a.png")
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return root


def palette_label():
    """The same colours under indices that are not the ids: pillow's own choice, and a fixed one."""
    image = Image.fromarray(((IDS + 1) % 4).astype(np.uint8), "P")
    image.putpalette([*COLOURS[[3, 0, 1, 2]].ravel(), *[0] * 756])
    return image


@pytest.mark.filterwarnings("ignore:.*mode.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "L"])
def test_every_kind_of_label_is_read_by_colour(tmp_path, kind):
    rgb = Image.fromarray(COLOURS[IDS])
    label = {"P": palette_label, "L": lambda: Image.fromarray(WANTED)}.get(
        kind, lambda: rgb.convert(kind))()
    dataset = datasets.load("folder", save(tmp_path, label), "train")
    assert dataset.classes == ("road", "small car", "tree")
    assert dataset.palette == [tuple(colour) for colour in COLOURS[:3].tolist()]
    assert np.array_equal(dataset[0][1], WANTED)
    assert list(check.problems("folder", tmp_path)) == []


def test_an_unknown_colour_is_named(tmp_path):
    pixels = COLOURS[IDS]
    pixels[5, 2] = (255, 0, 1)
    save(tmp_path, Image.fromarray(pixels))
    words = r"a\.png: the colour #ff0001 of row 5, column 2 is not in classes\.txt"
    with pytest.raises(UserError, match=words):
        datasets.load("folder", tmp_path, "train")[0]
    assert any("#ff0001" in line for line in check.problems("folder", tmp_path))


@pytest.mark.parametrize("classes,words", [
    ("road #804080\ncar\n", "'car' has no colour"),
    ("road\ncar #804080\n", "'road' has no colour"),
    ("road #804080\ncar 128 64 128\n", "another line has this colour"),
    ("road 0 0 256\n", "0 to 255"),
    ("ignore #000000\n", "names 0 classes"),
])
def test_wrong_colours(tmp_path, classes, words):
    save(tmp_path, Image.fromarray(COLOURS[IDS]), classes)
    with pytest.raises(UserError, match=words):
        datasets.load("folder", tmp_path, "train")


def test_names_without_colours(tmp_path):
    """Numbers and signs may be part of a name; "ignore" is a class where it has no colour."""
    names = ["lane 1 2", "#3", "ignore", "C#"]
    (tmp_path / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    assert colours.read_classes(tmp_path / "classes.txt") == (names, {})


def test_palettes_keep_their_ids_without_colours(tmp_path):
    save(tmp_path, palette_label(), "a\nb\nc\nd\n")
    dataset = datasets.load("folder", tmp_path, "train")
    assert np.array_equal(dataset[0][1], (IDS + 1) % 4)


def test_labels_of_16_bits(tmp_path):
    save(tmp_path, Image.fromarray(WANTED.astype(np.uint16)))
    assert np.array_equal(datasets.load("folder", tmp_path, "val")[0][1], WANTED)
    save(tmp_path, Image.fromarray(WANTED.astype(np.uint16) + 1))
    with pytest.raises(UserError, match="a.png contains the value 256; class ids are 0 to 255"):
        datasets.load("folder", tmp_path, "val")[0]


def test_colours_are_asked_for(tmp_path):
    save(tmp_path, Image.fromarray(COLOURS[IDS]), "a\nb\n")
    with pytest.raises(UserError, match="has mode RGB, .* in classes.txt, such as: road #804080"):
        datasets.load("folder", tmp_path, "train")[0]


def test_train_images_and_images_train(tmp_path):
    label = Image.fromarray(WANTED)
    one = save(tmp_path / "one", label)
    other = save(tmp_path / "other", label, places=("train/images", "val/images"))
    for split in ("train", "val"):
        pairs = [datasets.load("folder", root, split)[0] for root in (one, other)]
        assert all(np.array_equal(*parts) for parts in zip(*pairs))
    for root, place in ((one, "images"), (other, "")):
        with pytest.raises(UserError, match="has no folder test; it has: train, val") as error:
            datasets.load("folder", root, "test")
        assert str(error.value).startswith(str(root / place))
    label.save(other / "train" / "labels" / "b.png")
    with pytest.raises(UserError, match="b.png has no image of that name"):
        datasets.load("folder", other, "train")
