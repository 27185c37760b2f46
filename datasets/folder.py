"""Your own data: images in one folder, labels of the same name in another.

    data/images/a.jpg      or   data/images/train/a.jpg   data/images/val/b.jpg
    data/labels/a.png           data/labels/train/a.png   data/labels/val/b.png
    data/classes.txt            one class name per line, in the order of the ids 0, 1, 2, ...

A label is an 8-bit, one-channel PNG that holds class ids; 255 is ignored. Without train/ and val/
folders every tenth image, in the order of the names, is kept for val. `python -m datasets.check
folder data` looks for files without partner, sizes that differ, values out of range and damaged
files. The mistake most often made is to save labels as colours.
"""

import colorsys

from common.errors import UserError

from .files import (
    IMAGE_SUFFIXES, FilePairs, MissingSplit, existing_folder, list_folder, pair_up, read_list,
)


def palette(count):
    """`count` colours that are easy to tell apart: golden-ratio steps round the hues, three
    lightnesses."""
    colours = []
    for number in range(count):
        rgb = colorsys.hls_to_rgb(number * 0.618034 % 1, (0.5, 0.7, 0.35)[number % 3], 0.75)
        colours.append(tuple(round(255 * part) for part in rgb))
    return colours


def read_classes(root):
    """The names in classes.txt. Raises UserError if there is none or it is empty."""
    path = root / "classes.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing: write one class name per line, in the order of the "
                        "ids 0, 1, 2, ...")
    names = read_list(path)
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if blank:
        raise UserError(f"{path}: line {blank[0]} is blank; every line is a class, in the order of "
                        "the ids 0, 1, 2, ...")
    if not 1 <= len(names) <= 255:
        raise UserError(f"{path} names {len(names)} classes; 1 to 255 are possible")
    return names


def load(root, split):
    """The dataset of `split` ("train", "val" or "test") under `root`. Raises UserError."""
    root = existing_folder(root)
    classes = read_classes(root)
    images, labels = root / "images", root / "labels"
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"--data {root}: wanted the folders images and labels in it")
    splits = sorted(name for name in list_folder(images) if (images / name).is_dir())
    if splits and split not in splits:
        error = MissingSplit if split == "test" else UserError
        raise error(f"{images} has no folder {split}; it has: {', '.join(splits)}")
    if splits:
        pairs = pair_up(images / split, labels / split, IMAGE_SUFFIXES, ".png")
    elif split == "test":
        raise MissingSplit(
            f"{images} is not divided into train/, val/ and test/, so there is no test split")
    else:
        pairs = pair_up(images, labels, IMAGE_SUFFIXES, ".png")
        pairs = [pair for number, pair in enumerate(pairs)
                 if (number % 10 == 9) == (split == "val")]
        if not pairs:
            raise UserError(
                f"{images} has fewer than ten images, too few to keep every tenth for {split}")
    return FilePairs(pairs, classes, palette(len(classes)))
