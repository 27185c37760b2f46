"""Predictions as PNG files in a dataset's own ids, as the servers of the benchmarks want them, and
their scores as a table.

Nothing else is ever overwritten: every file of eval.py carries a mark, and a file without it is
not replaced. Nor is anything written among the files of a dataset.
"""

import csv
import io
import os
import sys
from pathlib import Path

from PIL import Image, PngImagePlugin

from common.checkpoint import write_atomically
from common.errors import UserError

from .files import regular

# a text in the PNG, which no reader of pixels sees
MARK = {"Software": "eval.py --save-predictions"}
# how other files that are written begin
BEGIN = {".csv": b"class,iou\n", ".html": b"<!DOCTYPE html>\n<!-- Made by `make explore`"}


def is_prediction(path):
    """Whether the file was written by eval.py."""
    try:
        if begin := BEGIN.get(path.suffix):
            with open(regular(path), "rb") as file:
                return file.read(len(begin)) == begin
        with Image.open(regular(path)) as image:
            return MARK.items() <= image.info.items()
    except (OSError, ValueError, SyntaxError):
        return False


def save_png(path, image, **settings):
    """Write a PIL image as a PNG with the mark, atomically. settings: of pillow's `save`."""
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in MARK.items():
        text.add_text(key, value)
    image.save(buffer, "PNG", pnginfo=text, **settings)
    write_atomically(path, buffer.getvalue())


def write(path, ids, colours=None):
    """Write stored ids, uint8 [H, W], as a PNG with the mark. colours: {id: RGB} of its palette;
    without, the PNG is grey."""
    image = Image.fromarray(ids)
    if colours:
        # 256 colours: with fewer pillow would store fewer bits, in which 255 is another id
        image.putpalette([part for id in range(256) for part in colours.get(id, (0, 0, 0))])
    save_png(path, image)


def check_free(path, flag="--out"):
    """`path`; a UserError if a file is there that was not written by eval.py."""
    if path.exists() and not is_prediction(path):
        raise UserError(f"{flag} {path.parent}: {path.name} is there and is no file of eval.py; "
                        "choose another folder")
    return path


def real(path):
    """The path without links; Path.resolve has its own error for links that point at themselves."""
    return Path(os.path.realpath(path))


def keep_out(dataset, root, folder, flag):
    """Raise UserError if `folder` is one from which the dataset, as of `datasets.load` under
    `root`, reads files.

    Those are `root` itself and, with all that is in it, the first folder below `root` on the way to
    any image or label.
    """
    root, inside = Path(root or "."), set()
    for parent in {path.parent for pair in getattr(dataset, "pairs", ())
                   for path in map(Path, pair)}:
        inside.add(real(parent))
        if parent.is_relative_to(root):
            inside.add(real(root.joinpath(*parent.relative_to(root).parts[:1])))
    inside, place = inside - {real(root)}, real(folder)
    if (inside and place == real(root)) or any(place.is_relative_to(other) for other in inside):
        raise UserError(
            f"{flag} {folder}: the dataset reads files there; choose a folder outside {root}")


def write_scores(path, classes, iou):
    """Write the IoU of every class, NaN for those that do not occur, as a CSV file."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("class", "iou"))
    rows.writerows((name, f"{x:.6g}") for name, x in zip(classes, iou, strict=True))
    write_atomically(path, text.getvalue().encode())


def writer(dataset, folder, root, flag="--save-predictions"):
    """A function save(index, prediction) that writes prediction uint8 [H, W] as `folder`/NAME.png.

    dataset: as of `datasets.load` under `root`. Raises UserError, before anything is written, if
    the dataset reads files in `folder`, if two images have the same name, and if a file is in the
    way that was not written here.
    """
    folder = Path(folder)
    keep_out(dataset, root, folder, flag)
    named = {}
    for index in range(len(dataset)):
        name = dataset.sample_name(index)
        key = name.casefold() if sys.platform in ("win32", "darwin") else name  # one file there
        if key in named:
            first, second = (dataset.pairs[i][0] for i in (named[key], index))
            raise UserError(
                f"{flag}: {first} and {second} would both be written as {name}.png; rename one")
        named[key] = index
        check_free(folder / f"{name}.png", flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder}: {error.strerror}") from None
    return lambda index, prediction: write(
        folder / f"{dataset.sample_name(index)}.png", dataset.stored_ids[prediction])
