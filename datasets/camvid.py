"""CamVid, the 480x360 split of SegNet: 367 train, 101 val, 233 test road scenes, 11 classes and
void.

Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008. Expected, as PATH or PATH/CamVid:

    train.txt val.txt test.txt             lines "train/X.png trainannot/X.png"
    train/  trainannot/  val/  valannot/  test/  testannot/

The lists of the original release start every path with /SegNet/CamVid/; only the last two parts
count. Labels hold 0 to 10, and 11 for void, which is ignored. The mistake most often made is to
count void as a class; the next, to report val: one short dusk clip of nearly identical frames that
says little about test. The release with 960 x 720 pixels and 32 classes as colours is another
dataset.
"""

from .files import FilePairs, find_folder, read_pairs

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car",
    "pedestrian", "bicyclist",
)
PALETTE = [
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
]


def load(root, split):
    """The dataset of `split` ("train", "val" or "test") under `root`. Raises UserError."""
    root = find_folder(root, ("CamVid", "camvid"), f"{split}.txt")
    source = root / f"{split}.txt"
    return FilePairs(read_pairs(source, root), CLASSES, PALETTE, ignored=[11], source=source)
