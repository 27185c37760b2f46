"""Cityscapes, fine annotations: 2,975 train, 500 val, 1,525 test images of 2048 x 1024, 19 classes.

Cordts et al., CVPR 2016. Expected, as PATH or PATH/cityscapes; both archives unpacked into the same
folder:

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

Labels hold the original ids (7 road, 8 sidewalk, 11 building, ...) and are renumbered here. The
mistake most often made is to take them for class numbers. Files *_labelTrainIds.png, which a script
of the dataset makes, are neither needed nor read. The labels of test are hidden: everything there
is 255, and the server that scores predictions wants the original ids, `stored_ids`.
"""

from common.errors import UserError

from .files import FilePairs, MissingSplit, class_table, find_folder, list_folder, pair_up


def load(root, split):
    """The dataset of `split` ("train", "val" or "test") under `root`. Raises UserError."""
    root = find_folder(root, ("cityscapes",), "leftImg8bit")
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if split == "test" and not images.is_dir():
        raise MissingSplit(f"{images}: no such folder")
    pairs = []
    for city in sorted({*list_folder(images), *list_folder(labels)}):
        if (images / city).is_dir() or (labels / city).is_dir():
            pairs += pair_up(images / city, labels / city, ("_leftImg8bit.png",),
                             "_gtFine_labelIds.png")
    if not pairs:
        raise UserError(f"{images} holds no folders of cities")
    table = class_table("cityscapes")
    ignored = set(range(34)) - set(table["ids"])
    return FilePairs(pairs, table["names"], table["palette"], table["ids"], ignored)
