"""Reading images, labels and lists from files, and saying which file is to blame when one is
wrong."""

import json
import os
import struct
import unicodedata
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from common.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
INVALID = 254  # in a table of stored ids: no such id. Never a class where ids are renumbered
ORIENTATION = 0x0112  # the mark of cameras in EXIF; above 4: turned by a quarter
TURNED = ("; the picture carries an orientation mark, which viewers apply and training does not: "
          "save it turned")
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a truncated file must be named, not filled with grey


class MissingSplit(UserError):
    """A split that a copy of the dataset may lack: not everybody has it."""


def regular(path, kind=""):
    """`path`; a UserError if something else than a file is there. A pipe would be read for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"cannot read {kind}{path}: it is a folder, a pipe or a device, no file")
    return path


def read_pixels(path):
    """A picture as pillow has it, loaded. Raises UserError that names the file."""
    regular(path, "image ")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata; what cannot be read raises
            with Image.open(path) as image:
                kind = image.tile[0][3] if image.tile else ""  # how the file stores its values
                image.load()
                image.info["stored"] = kind if isinstance(kind, str) else str((*kind, "")[0])
                return image
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image that can be read") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million "
                        "pixels; cut it up or save a smaller copy") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise UserError(
            f"cannot read image {path}: {getattr(error, 'strerror', None) or error}") from None


def read_image(path, upright=False):
    """RGB uint8 [H, W, 3]. Grey, palette, CMYK and transparent files are converted; 16-bit ones are
    refused.

    upright: apply a camera's orientation mark. Not where there is a label: it belongs to the pixels
    as they are stored.
    """
    image = read_pixels(path)
    if image.mode.startswith("I") or image.mode == "F" or ";16" in image.info["stored"]:
        mode = image.info["stored"] if ";16" in image.info["stored"] else image.mode
        raise UserError(
            f"{path} has mode {mode} (more than 8 bits); save it with 8 bits per channel")
    image = ImageOps.exif_transpose(image) if upright else image
    image.info.pop("transparency", None)  # with it, a palette image would convert with a warning
    # a copy: torch wants writable arrays
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_label(path):
    """The stored class ids, uint8 [H, W]. Never converts: a palette file's indices *are* the ids,
    and turning them into grey would replace them by brightnesses."""
    image = read_pixels(path)
    if image.mode not in ("L", "P", "1"):
        raise UserError(
            f"label {path} has mode {image.mode}, wanted one 8-bit channel with class ids (L or P)")
    # Pillow spreads grey levels of 4 and 2 bits over 0 to 255
    factor = {"L;4": 17, "L;2": 85}.get(image.info["stored"], 1) if image.mode == "L" else 1
    return np.asarray(image).astype(np.uint8) // np.uint8(factor)


class FilePairs:
    """Images and labels as pairs of files: what every dataset on disk comes down to.

    pairs: list of (image path, label path). Those of which a file is missing are left out of
        `self.pairs`; `self.missing` has a line about each. source: the list that named them, if one
        did.
    classes: names of the K classes. palette: K RGB triples.
    stored_ids: uint8 [K], what class k is called in the label files, for predictions in the
        dataset's own ids; default 0 to K - 1. ignored: further ids that become 255, as 255 itself
        always does.
    read_label: function from a label's path to its stored ids, uint8 [H, W].
    """

    def __init__(self, pairs, classes, palette, stored_ids=None, ignored=(), read_label=read_label,
                 source=None):
        self.classes, self.palette = tuple(classes), [tuple(colour) for colour in palette]
        self.read_label = read_label
        self.stored_ids = np.arange(len(classes)) if stored_ids is None else np.asarray(stored_ids)
        self.stored_ids = self.stored_ids.astype(np.uint8)
        self.table = np.full(256, INVALID, dtype=np.uint8)
        self.table[[*ignored, 255]] = 255
        self.table[self.stored_ids] = np.arange(len(classes))
        self.pairs, self.missing = [], []
        # one look into each folder, not two questions per pair: data often lie on network disks
        folders = {}
        for image, label in pairs:
            there = []
            for path in (image, label):
                folder, name = os.path.split(path)
                if folder not in folders:
                    folders[folder] = set(list_folder(folder))
                # Not every file system spells a name with accents as the list does, hence the
                # question.
                there.append(name in folders[folder] or os.path.lexists(path))
            if all(there):
                self.pairs.append((image, label))
            elif there[0]:
                self.missing.append(f"{image} has no label {label}")
            elif there[1]:
                self.missing.append(f"{label} has no image of that name in {image.parent}")
            else:
                self.missing.append(
                    f"{source or 'the list'} names {image.stem}: found neither {image} nor {label}")

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        """(image uint8 [H, W, 3], label uint8 [H, W]). Raises UserError that names the file at
        fault."""
        image_path, label_path = self.pairs[index]
        image, stored = read_image(image_path), self.read_label(label_path)
        if image.shape[:2] != stored.shape:
            sizes = f"{image.shape[1]}x{image.shape[0]} and {stored.shape[1]}x{stored.shape[0]}"
            turned = image.shape[1::-1] == stored.shape
            turned = turned and read_pixels(image_path).getexif().get(ORIENTATION, 1) > 4
            raise UserError(f"{image_path} and {label_path} differ in size ({sizes})"
                            + TURNED * turned)
        return image, self.translate(stored, label_path)

    def label(self, index):
        """The label alone, uint8 [H, W]. Raises UserError that names the file at fault."""
        path = self.pairs[index][1]
        return self.translate(self.read_label(path), path)

    def translate(self, stored, label_path):
        """Stored ids, uint8 [H, W], as classes."""
        label = np.take(self.table, stored)
        # in 8 bits 255 + 1 is 0, so only wrong ids are above
        if (label + np.uint8(1)).max() > len(self.classes):
            value = stored[(label >= len(self.classes)) & (label != 255)][0]
            raise UserError(f"{label_path} contains the value {value}; valid are {self._valid()} "
                            "and 255 = ignore")
        return label

    def _valid(self):
        """The stored ids below 255 as text: "0 to 10, 12 to 20"."""
        ids = [i for i in range(255) if self.table[i] < len(self.classes) or self.table[i] == 255]
        runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
        return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)

    def sample_name(self, index):
        """The image's file name without its ending."""
        return Path(self.pairs[index][0]).stem


def existing_folder(path, flag="--data"):
    """`path` as a Path, or a UserError that names the flag."""
    if path is None:
        raise UserError(f"this dataset lies on disk: give its folder with {flag} PATH")
    path = Path(path)
    if os.path.isfile(path):  # unlike Path.is_file, never an error
        raise UserError(f"{flag} {path} is a file; unpack it and give the folder")
    if not os.path.isdir(path):
        raise UserError(f"{flag} {path}: no such folder")
    return path


def find_folder(root, names, *markers):
    """`root` itself or the folder of one of these names in it: the first one that holds one of the
    markers."""
    root = existing_folder(root)
    for marker in markers:
        for folder in (root, *(root / name for name in names)):
            if os.path.exists(folder / marker):
                return folder
    raise UserError(
        f"--data {root}: {' or '.join(markers)} is missing; looked there and in {', '.join(names)}")


def make_folder(path, flag="--out"):
    """The folder `path`, made if need be. Raises UserError that names the flag, also where
    --dataset folder would read images or labels."""
    place = Path(os.path.realpath(path))
    for root in place.parents:
        inside = place.relative_to(root).parts[0] in ("images", "labels", "train", "val", "test")
        if inside and (root / "classes.txt").is_file():
            raise UserError(f"{flag} {path}: the dataset {root} has its files there; choose a "
                            "folder outside")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from None
    return path


def list_folder(path):
    """Names of the files in a folder; those of the system (.DS_Store, ._a.jpg) are left out. Raises
    UserError."""
    try:
        return [name for name in os.listdir(path) if not name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}") from None


def pair_up(images, labels, image_endings, label_ending):
    """Pairs of the files in two folders whose names agree but for the endings, sorted by name, as
    FilePairs wants them: a file without partner is paired with the name that its partner should
    have."""
    found = []
    for folder, endings in ((images, image_endings), (labels, (label_ending,))):
        files = {}
        for name in sorted(list_folder(folder)):
            for ending in endings:
                if name.lower().endswith(ending.lower()):
                    # a letter with an accent is one character or two, as the system has it
                    stem = unicodedata.normalize("NFC", name[: -len(ending)])
                    if stem in files:
                        raise UserError(
                            f"{folder} holds both {files[stem]} and {name}: one name, one file")
                    files[stem] = name
        if not files:
            raise UserError(f"{folder} holds no files that end in {', '.join(endings)}")
        found.append(files)
    images_of, labels_of = found
    return [
        (images / images_of.get(stem, stem + image_endings[0]),
         labels / labels_of.get(stem, stem + label_ending))
        for stem in sorted(images_of.keys() | labels_of.keys())
    ]


def read_list(path):
    """The lines of a list file without blank ones; a byte order mark and Windows line ends do not
    matter."""
    try:
        lines = regular(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8") from None
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty")
    return lines


def read_pairs(path, root):
    """A list with lines "image label" as pairs of paths in `root`. Only the last two parts of a
    path count: lists start theirs with "/" or with folders of their authors. Windows has "\\"."""
    pairs = []
    for line in read_list(path):
        words = line.replace("\\", "/").split()
        # Both names are the same but for the endings, so a name with a space has it twice.
        half = len(words) // 2
        if len(words) % 2:
            raise UserError(f"{path}: wanted 'image label', found {line!r}")
        columns = " ".join(words[:half]), " ".join(words[half:])
        pairs.append(tuple(root.joinpath(*PurePosixPath(column).parts[-2:]) for column in columns))
    return pairs


def class_table(name):
    """The content of datasets/classes/NAME.json: names, palette and, for some, ids = what they are
    called on disk."""
    return json.loads(
        (Path(__file__).parent / "classes" / f"{name}.json").read_text(encoding="utf-8"))
