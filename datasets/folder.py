"""Your own data: images in one folder, labels of the same name in another.

    data/images/a.jpg   or   data/images/train/a.jpg   or   data/train/images/a.jpg
    data/labels/a.png        data/labels/train/a.png        data/train/labels/a.png
                             the same with val              the same with val
    data/classes.txt    one class name per line, in the order of the ids 0, 1, 2, ...

A label is a one-channel PNG that holds class ids; 255 is ignored. Or it has colours, and each line
of classes.txt ends with one: `road #804080` or `road 128 64 128`. Without train/ and val/ folders
every tenth image, in the order of the names, is kept for val. `python -m datasets.check folder
data` looks for files without partner, sizes that differ, values out of range and damaged files.
"""

import colorsys

from common.errors import UserError

from .colours import read_classes, reader
from .files import (
    IMAGE_SUFFIXES,
    FilePairs,
    MissingSplit,
    existing_folder,
    list_folder,
    pair_up,
)


def palette(count):
    """`count` colours that are easy to tell apart: golden-ratio steps round the hues, three
    lightnesses."""
    colours = []
    for number in range(count):
        rgb = colorsys.hls_to_rgb(number * 0.618034 % 1, (0.5, 0.7, 0.35)[number % 3], 0.75)
        colours.append(tuple(round(255 * part) for part in rgb))
    return colours


def divided(root):
    """{split: (its images, its labels)} of a folder with train and val, {} of one without."""
    images = root / "images"
    if images.is_dir():
        return {name: (images / name, root / "labels" / name) for name in list_folder(images)
                if (images / name).is_dir()}
    return {path.parent.name: (path, path.parent / "labels") for path in root.glob("*/images")}


def load(root, split):
    """The dataset of `split` ("train", "val" or "test") under `root`. Raises UserError."""
    root = existing_folder(root)
    if not (root / "classes.txt").is_file():
        above = root.resolve().parent
        cure = (f"is it {above} that you mean?" if (above / "classes.txt").is_file()
                else "write one class name per line, in the order of the ids 0, 1, 2, ...")
        raise UserError(f"--data {root}: {root / 'classes.txt'} is missing: {cure}")
    classes, colours = read_classes(root / "classes.txt")
    splits = divided(root)
    images, labels = splits.get(split) or (root / "images", root / "labels")
    if splits and split not in splits:
        error = MissingSplit if split == "test" else UserError
        where = images if images.is_dir() else root
        raise error(f"{where} has no folder {split}; it has: {', '.join(sorted(splits))}")
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"--data {root}: wanted the folders images and labels in it, or "
                            "train and val with these two in each")
    if not splits and split == "test":
        raise MissingSplit(
            f"{images} is not divided into train/, val/ and test/, so there is no test split")
    pairs = pair_up(images, labels, IMAGE_SUFFIXES, ".png")
    if not splits:
        pairs = [pair for number, pair in enumerate(pairs)
                 if (number % 10 == 9) == (split == "val")]
        if not pairs:
            raise UserError(
                f"{images} has fewer than ten images, too few to keep every tenth for "
                f"{split}; make the folders images/train, images/val and labels/train, labels/val")
    shown = sorted((number, colour) for colour, number in colours.items() if number < 255)
    shown = [colour for _, colour in shown] or palette(len(classes))
    return FilePairs(pairs, classes, shown, read_label=reader(colours))
