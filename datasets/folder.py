"""Your own data: images in one folder, labels of the same name in another.

    data/images/a.jpg      or   data/images/train/a.jpg   data/images/val/b.jpg
    data/labels/a.png           data/labels/train/a.png   data/labels/val/b.png
    data/classes.txt            one class name per line, in the order of the ids 0, 1, 2, ...

A label is an 8-bit, one-channel PNG that holds class ids; 255 is ignored. Without train/ and val/ folders
every tenth image, in the order of the names, is kept for val. `python -m datasets.check folder data` looks
for files without partner, sizes that differ, values out of range and damaged files.
"""

import colorsys

from common.errors import UserError

from .files import IMAGE_SUFFIXES, FilePairs, existing_folder


def palette(count):
    """`count` colours that are easy to tell apart: golden-ratio steps round the hues, three lightnesses."""
    colours = []
    for number in range(count):
        rgb = colorsys.hls_to_rgb(number * 0.618034 % 1, (0.5, 0.7, 0.35)[number % 3], 0.75)
        colours.append(tuple(round(255 * part) for part in rgb))
    return colours


def read_classes(root):
    """The names in classes.txt. Raises UserError if there is none or it is empty."""
    path = root / "classes.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing: write one class name per line, in the order of the ids 0, 1, 2, ...")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [name for name in names if name]
    if not 1 <= len(names) <= 255:
        raise UserError(f"{path} names {len(names)} classes; 1 to 255 are possible")
    return names


def images_of(root, split):
    """The image files of a split, sorted by name, and the folder that holds their labels."""
    images, labels = root / "images", root / "labels"
    if not images.is_dir() or not labels.is_dir():
        raise UserError(f"--data {root}: wanted the folders images and labels in it")
    splits = sorted(path.name for path in images.iterdir() if path.is_dir())
    if splits and split not in splits:
        raise UserError(f"{images} has no folder {split}; it has: {', '.join(splits)}")
    if splits:
        images, labels = images / split, labels / split
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not splits:
        if split == "test":
            raise UserError(f"{images} is not divided into train/, val/ and test/, so there is no test split")
        files = [path for number, path in enumerate(files) if (number % 10 == 9) == (split == "val")]
    if not files:
        raise UserError(f"no images for the split {split} in {images} (endings: {', '.join(IMAGE_SUFFIXES)})")
    return files, labels


def load(root, split, complete=True):
    """The dataset of `split` under `root`. An image without a label is a UserError, or left out if not `complete`."""
    root = existing_folder(root)
    classes = read_classes(root)
    files, labels = images_of(root, split)
    pairs = [(path, labels / f"{path.stem}.png") for path in files]
    for image, label in pairs:
        if complete and not label.is_file():
            raise UserError(f"{image} has no label {label}; `python -m datasets.check folder {root}` lists them all")
    return FilePairs([pair for pair in pairs if pair[1].is_file()], classes, palette(len(classes)))
