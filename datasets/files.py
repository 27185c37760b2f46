"""Reading images and labels from files, and saying which file is to blame when one is wrong."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from common.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ImageFile.LOAD_TRUNCATED_IMAGES = False  # a truncated file must be named, not filled with grey


def _open(path):
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise UserError(f"{path} is not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UserError(f"cannot read image {path}: {error}") from None


def read_image(path):
    """RGB uint8 [H, W, 3]. Grey, palette, CMYK and transparent files are converted; 16-bit ones are refused."""
    image = _open(path)
    if image.mode.startswith("I") or image.mode == "F":
        raise UserError(f"{path} has mode {image.mode} (more than 8 bits); save it with 8 bits per channel")
    return np.array(image.convert("RGB"))  # a copy: torch wants writable arrays


def read_label(path):
    """The stored class ids, uint8 [H, W]. Never converts: a palette file's indices *are* the ids, and turning
    them into grey would replace them by brightnesses."""
    image = _open(path)
    if image.mode not in ("L", "P", "1"):
        raise UserError(f"label {path} has mode {image.mode}, wanted one 8-bit channel with class ids (L or P)")
    return np.asarray(image).astype(np.uint8)


class FilePairs:
    """Images and labels as pairs of files: what every dataset on disk comes down to.

    pairs: list of (image path, label path). classes: names. palette: RGB triples.
    table: 256 entries that map stored ids to 0..len(classes)-1 or 255 = ignore; None to keep them.
    """

    def __init__(self, pairs, classes, palette, table=None):
        self.pairs, self.classes, self.palette = pairs, tuple(classes), [tuple(colour) for colour in palette]
        self.table = np.arange(256, dtype=np.uint8) if table is None else np.asarray(table, dtype=np.uint8)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        """(image uint8 [H, W, 3], label uint8 [H, W]). Raises UserError that names the file at fault."""
        image_path, label_path = self.pairs[index]
        image, label = read_image(image_path), self.table[read_label(label_path)]
        if image.shape[:2] != label.shape:
            sizes = f"{image.shape[1]}x{image.shape[0]} and {label.shape[1]}x{label.shape[0]}"
            raise UserError(f"{image_path} and {label_path} differ in size ({sizes})")
        wrong = (label >= len(self.classes)) & (label != 255)
        if wrong.any():
            raise UserError(
                f"{label_path} contains the value {int(label[wrong][0])}; "
                f"valid are 0 to {len(self.classes) - 1} and 255 = ignore"
            )
        return image, label

    def sample_name(self, index):
        """The image's file name without its ending."""
        return Path(self.pairs[index][0]).stem


def existing_folder(path, flag="--data"):
    """`path` as a Path, or a UserError that names the flag."""
    if path is None:
        raise UserError(f"this dataset lies on disk: give its folder with {flag} PATH")
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{flag} {path}: no such folder")
    return path
