"""Labels of the user's own: class ids, or colours that classes.txt names.

    road #804080
    car 0 0 142
    ignore #000000        the colour of pixels without a label; not a class
"""

import functools
import re

import numpy as np

from common.errors import UserError

from .files import read_list, read_pixels

COLOUR = re.compile(r"(.*\S)\s+(?:#([0-9a-fA-F]{6})|(\d+)\s+(\d+)\s+(\d+))")


def read_classes(path):
    """(names, {colour: id}, {} if no class has one) of a classes.txt; id 255 is the colour that is
    ignored. Raises UserError."""
    names, colours, lines = [], {}, read_list(path)
    for line in lines:
        found = COLOUR.fullmatch(line)
        if not found:
            names.append(line)
            continue
        name, code, *numbers = found.groups()
        colour = tuple(bytes.fromhex(code)) if code else tuple(map(int, numbers))
        if max(colour) > 255:
            raise UserError(f"{path}: {line!r}: wanted a colour of numbers 0 to 255")
        if colour in colours:
            raise UserError(f"{path}: {line!r}: another line has this colour")
        colours[colour] = 255 if name == "ignore" else len(names)
        names += [name] * (name != "ignore")
    whole = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    if not colours and len(lines) < len(whole):  # colours say the ids themselves
        blank = 1 + next(number for number, line in enumerate(whole) if not line.strip())
        raise UserError(f"{path}: line {blank} is blank; every line is a class, in the order of "
                        "the ids 0, 1, 2, ...")
    if not 1 <= len(names) <= 255:
        raise UserError(f"{path} names {len(names)} classes; 1 to 255 are possible")
    if colours and {*colours.values()} - {255} != {*range(len(names))}:
        missing = next(name for number, name in enumerate(names) if number not in colours.values())
        raise UserError(f"{path}: {missing!r} has no colour, other classes have one")
    return names, colours


def reader(colours):
    """A function from the path of a label file to its class ids, uint8 [H, W]. colours: as of
    `read_classes`; files with one channel and no palette hold ids in any case."""
    return functools.partial(read_label, colours=colours)


def read_label(path, colours):
    """The class ids of a label file, uint8 [H, W]: of one channel with 8 or 16 bits, or, with
    `colours`, of an RGB, RGBA or palette file. Raises UserError for a colour that is not known."""
    image = read_pixels(path)
    if image.mode in ("RGB", "RGBA", "P") and colours:
        return ids_of(np.asarray(image.convert("RGB")), colours, path)
    if image.mode in ("L", "P", "1") or image.mode.startswith("I"):
        ids = np.asarray(image)
        if ids.max() > 255 or ids.min() < 0:
            wrong = ids[(ids > 255) | (ids < 0)][0]
            raise UserError(f"{path} contains the value {wrong}; class ids are 0 to 255")
        return ids.astype(np.uint8)
    raise UserError(f"label {path} has mode {image.mode}, wanted one channel with class ids, or a "
                    "colour for each class in classes.txt, such as: road #804080")


def ids_of(pixels, colours, path):
    """Colours uint8 [H, W, 3] -> ids uint8 [H, W]."""
    codes = pixels.astype(np.int64) @ [65536, 256, 1]
    known = np.array(sorted(colours)) @ [65536, 256, 1]
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    if (wrong := known[places] != codes).any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(f"label {path}: the colour #{codes[row, column]:06x} of row {row}, column "
                        f"{column} is not in classes.txt (`ignore #{codes[row, column]:06x}` there "
                        "leaves such pixels out)")
    return np.array([colours[colour] for colour in sorted(colours)], np.uint8)[places]
