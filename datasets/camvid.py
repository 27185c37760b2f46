"""CamVid, the 480x360 split of SegNet: 367 train, 101 val, 233 test road scenes, 11 classes and void.

Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008. Expected:

    camvid/train.txt val.txt test.txt      lines "train/X.png trainannot/X.png"
    camvid/train/  trainannot/  val/  valannot/  test/  testannot/

The lists of the original release start every path with /SegNet/CamVid/; only the last two parts count.
Val is one short dusk clip of nearly identical frames and says little about test.
"""

from pathlib import PurePosixPath

from common.errors import UserError

from .files import FilePairs, existing_folder

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian", "bicyclist",
)
PALETTE = [
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
]
TABLE = list(range(11)) + [255] * 245  # 11 is void


def load(root, split):
    """The dataset of `split` ("train", "val" or "test") under `root`. Raises UserError."""
    root = existing_folder(root)
    list_file = root / f"{split}.txt"
    if not list_file.is_file():
        raise UserError(f"--data {root}: {list_file.name} is missing; see datasets/camvid.py for the layout")
    pairs = []
    for number, line in enumerate(list_file.read_text(encoding="utf-8-sig").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2:
            raise UserError(f"{list_file}, line {number}: wanted 'image label', found {line!r}")
        pairs.append(tuple(root.joinpath(*PurePosixPath(part).parts[-2:]) for part in parts))
    if not pairs:
        raise UserError(f"{list_file} is empty")
    return FilePairs(pairs, CLASSES, PALETTE, TABLE)
