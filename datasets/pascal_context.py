"""PASCAL-Context: 4,998 train and 5,105 val images of VOC 2010, 59 classes, or 60 with the
background.

Mottaghi et al., CVPR 2014. Expected, one of three; VOC2010 as PATH, PATH/VOC2010 or
PATH/VOCdevkit/VOC2010:

    train/image/2008_000002.jpg     train/label/2008_000002.png     and val/: openseg's, 0 to 59
    VOC2010/JPEGImages/*.jpg        VOC2010/SegmentationClassContext/*.png, 0 to 59: by
        VOC2010/ImageSets/SegmentationContext/train.txt val.txt              mmsegmentation
    VOC2010/JPEGImages/*.jpg        trainval/*.mat: as published, 0 to 459; beside or in VOC2010, or
        VOC2010/ImageSets/Main/train.txt val.txt                             one folder deeper

With 60 classes the background, everything outside the 59, is a class like others; with 59 it is
ignored. The mistake most often made is to compare the two: the score of 59 is some points higher.
Others: the lists of VOC 2012, and class names in the order of 59_labels.txt, while the ids follow
the alphabet, as do the names here.
"""

import numpy as np

from common.errors import UserError

from .files import FilePairs, class_table, find_folder, pair_up, read_label, read_list
from .matlab import read_ids

TABLE = class_table("pascal_context")
NUMBER_OF_RAW = np.zeros(460, dtype=np.uint8)  # 0 to 459 as published -> 0 to 59
NUMBER_OF_RAW[TABLE["ids"]] = np.arange(60)


def read_raw(path):
    """The 460 ids of a published .mat file as 0 to 59, uint8 [H, W]."""
    return NUMBER_OF_RAW[read_ids(path, "LabelMap", highest=459)]


def load(root, split, classes):
    """The dataset of `split` ("train" or "val") under `root`, with 59 or 60 classes. Raises
    UserError."""
    root = find_folder(root, ("pascal_context", "VOC2010", "VOCdevkit/VOC2010"),
                       f"{split}/image", "ImageSets/SegmentationContext", "ImageSets/Main")
    if (root / split / "image").exists():
        return make(classes,
                    pair_up(root / split / "image", root / split / "label", (".jpg",), ".png"))
    if (root / "ImageSets" / "SegmentationContext").exists():
        source = root / "ImageSets" / "SegmentationContext"
        labels, ending = root / "SegmentationClassContext", ".png"
    else:
        source, labels, ending = root / "ImageSets" / "Main", find_raw(root), ".mat"
    source = source / f"{split}.txt"
    pairs = [(root / "JPEGImages" / f"{stem}.jpg", labels / f"{stem}{ending}")
             for stem in read_list(source)]
    return make(classes, pairs, source=source,
                read_label=read_raw if ending == ".mat" else read_label)


def make(classes, pairs, **options):
    """FilePairs for labels that hold 0 to 59. Without the background, class k is stored as k +
    1."""
    first = 60 - classes
    names, palette = TABLE["names"][first:], TABLE["palette"][first:]
    return FilePairs(pairs, names, palette, range(first, 60), ignored=range(first), **options)


def find_raw(voc):
    """The folder trainval/ with .mat files: in VOC2010 or up to two folders above it, or in a
    folder there."""
    for base in (voc, voc.parent, voc.parent.parent):
        for folder in (base / "trainval", *sorted(base.glob("*/trainval"))):
            if any(folder.glob("*.mat")):
                return folder
    raise UserError(f"{voc}: found neither SegmentationClassContext in it nor trainval/*.mat in it "
                    "or beside it; "
                    f"see datasets/pascal_context.py")
