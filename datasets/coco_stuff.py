"""COCO-Stuff, 171 classes: 164k (118,287 train and 5,000 val images) and 10k (9,000 train and 1,000
test images).

Caesar, Uijlings, Ferrari, CVPR 2018. Expected for 164k, as PATH or PATH/coco_stuff164k:

    images/train2017/000000000009.jpg               annotations/train2017/000000000009.png
    images/val2017/000000000139.jpg                 annotations/val2017/000000000139.png

and for 10k (version 1.1), as PATH or PATH/coco_stuff10k, as published or after mmsegmentation's
converter:

    images/COCO_train2014_000000000077.jpg          annotations/COCO_train2014_000000000077.mat
    imageLists/train.txt test.txt
    images/train2014/*.jpg                          annotations/train2014/*_labelTrainIds.png
    images/test2014/*.jpg                           annotations/test2014/*_labelTrainIds.png

Ids: 91 things and 91 stuff classes, of which 11 things occur nowhere; without them 171 are left.
The images of 164k store id - 1 and 255 for unlabelled, the files of 10k the id and 0 for
unlabelled. The mistake most often made is to subtract one from both or from neither; the next, 182
classes of which 11 are dead. *_labelTrainIds.png beside the files of 164k are renumbered copies,
which are read (unchanged) only where the originals are gone.
"""

import functools

from .files import FilePairs, class_table, find_folder, list_folder, pair_up, read_list
from .matlab import read_ids

TABLE = class_table("coco_stuff")  # its ids are those of 164k: COCO-Stuff's own ids minus one
CONVERTED = "_labelTrainIds.png"
make = functools.partial(FilePairs, classes=TABLE["names"], palette=TABLE["palette"])


def read_mat(path):
    """The ids in a .mat file of 10k, 0 = unlabelled, uint8 [H, W]."""
    return read_ids(path, "S", highest=182).astype("uint8")


def load_164k(root, split):
    """The dataset of `split` ("train" or "val") under `root`. Raises UserError."""
    root = find_folder(root, ("coco_stuff164k",), "annotations")
    images, labels = (root / part / f"{split}2017" for part in ("images", "annotations"))
    names = list_folder(labels)
    if names and all(name.endswith(CONVERTED) for name in names):
        return make(pair_up(images, labels, (".jpg",), CONVERTED))
    pairs = pair_up(images, labels, (".jpg",), ".png")
    pairs = [(image, label) for image, label in pairs if not label.name.endswith(CONVERTED)]
    return make(pairs, stored_ids=TABLE["ids"])


def load_10k(root, split):
    """The dataset of `split` ("train", "val" or "test") under `root`; val and test are the same:
    the published test images, since there is no val. Raises UserError."""
    root = find_folder(root, ("coco_stuff10k",), "annotations")
    split = "train" if split == "train" else "test"
    images, labels = root / "images", root / "annotations"
    if (labels / f"{split}2014").is_dir():
        pairs = pair_up(images / f"{split}2014", labels / f"{split}2014", (".jpg",), CONVERTED)
        return make(pairs, stored_ids=range(1, 172), ignored=[0])
    source = root / "imageLists" / f"{split}.txt"
    pairs = [(images / f"{stem}.jpg", labels / f"{stem}.mat") for stem in read_list(source)]
    stored_ids = [value + 1 for value in TABLE["ids"]]
    return make(pairs, stored_ids=stored_ids, ignored=[0], read_label=read_mat, source=source)
