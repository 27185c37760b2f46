"""ADE20K SceneParse150 (ADEChallengeData2016): 20,210 train and 2,000 val images, 150 classes.

Zhou et al., CVPR 2017. Expected, as PATH or PATH/ADEChallengeData2016:

    images/training/ADE_train_00000001.jpg          annotations/training/ADE_train_00000001.png
    images/validation/ADE_val_00000001.jpg          annotations/validation/ADE_val_00000001.png

Labels hold 1 to 150, and 0 for all the rest, which is ignored: class k is stored as k + 1. The
mistake most often made is to forget that (151 classes), or to shift twice: annotations_detectron2/
is shifted already and not read. Another: the full ADE20K release, one folder per scene with
*_seg.png, is another dataset.
"""

from .files import FilePairs, class_table, find_folder, pair_up

FOLDERS = {"train": "training", "val": "validation"}


def load(root, split):
    """The dataset of `split` ("train" or "val") under `root`. Raises UserError."""
    root = find_folder(root, ("ADEChallengeData2016",), "annotations")
    images, labels = (root / part / FOLDERS[split] for part in ("images", "annotations"))
    table = class_table("ade20k")
    pairs = pair_up(images, labels, (".jpg",), ".png")
    return FilePairs(pairs, table["names"], table["palette"], range(1, 151), ignored=[0])
