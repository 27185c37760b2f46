"""PASCAL VOC 2012: 1,464 train and 1,449 val images, 20 classes and background; 10,582 in trainaug.

Everingham et al., IJCV 2015. Expected, as PATH, PATH/VOC2012 or PATH/VOCdevkit/VOC2012:

    JPEGImages/2007_000032.jpg            SegmentationClass/2007_000032.png
    ImageSets/Segmentation/train.txt val.txt

trainaug adds the labels of SBD (Hariharan et al., ICCV 2011) to train, all images of val left out.
Any of:

    SegmentationClassAug/*.png: the archive that is passed around; every label of trainaug, maybe
        those of val.
        Its list, if there is one: ImageSets/Segmentation/trainaug.txt, or train_aug.txt there, in
        ImageSets/SegmentationAug/ or in list/, with names or with lines "/JPEGImages/X.jpg
        /SegmentationClassAug/X.png"
    SegmentationClassAug/*.png and ImageSets/Segmentation/aug.txt: mmsegmentation's; train keeps its
        own labels.
    benchmark_RELEASE/dataset/cls/*.mat train.txt val.txt: SBD as published, here or beside VOC2012.

The mistake most often made: converting labels to grey. They are palette images whose indices are
the ids, and 255 (the white contour) is ignored. The second: training on SBD's own train list, which
holds images of VOC's val.
"""

from common.errors import UserError

from .files import (
    FilePairs,
    MissingSplit,
    class_table,
    find_folder,
    list_folder,
    read_label,
    read_list,
    read_pairs,
)
from .matlab import read_ids

LISTS = ("ImageSets/Segmentation/trainaug.txt", "ImageSets/Segmentation/train_aug.txt",
         "ImageSets/SegmentationAug/train_aug.txt", "list/train_aug.txt")


def read_png_or_sbd(path):
    """Class ids uint8 [H, W] of a label image, or of one of SBD's .mat files."""
    if path.suffix != ".mat":
        return read_label(path)
    return read_ids(path, "GTcls", "Segmentation").astype("uint8")


def load(root, split):
    """The dataset of `split` ("train", "trainaug" or "val") under `root`. Raises UserError."""
    root = find_folder(root, ("VOC2012", "VOCdevkit/VOC2012"), "ImageSets/Segmentation")
    table = class_table("voc2012")
    if split == "trainaug":
        pairs, source = trainaug(root)
    else:
        source = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        pairs = own_pairs(root, read_list(source))
    return FilePairs(pairs, table["names"], table["palette"], read_label=read_png_or_sbd,
                     source=source)


def own_pairs(root, stems, labels="SegmentationClass"):
    """(image, label) of each stem, the label from one of VOC's folders."""
    return [(root / "JPEGImages" / f"{stem}.jpg", root / labels / f"{stem}.png") for stem in stems]


def trainaug(root):
    """(the pairs of the augmented training set in the order of the names, the list they come
    from)."""
    lists = root / "ImageSets" / "Segmentation"
    train, val = (read_list(lists / f"{split}.txt") for split in ("train", "val"))
    augmented = root / "SegmentationClassAug"
    source = next((root / name for name in LISTS if (root / name).is_file()), None)
    if source and "/" in read_list(source)[0]:
        pairs = read_pairs(source, root)
    elif augmented.is_dir() and (lists / "aug.txt").is_file():
        source = lists / "aug.txt"
        pairs = own_pairs(root, train) + own_pairs(root, read_list(source), augmented.name)
    elif augmented.is_dir():
        labelled = {name.removesuffix(".png") for name in list_folder(augmented)
                    if name.endswith(".png")}
        stems = read_list(source) if source else {*train, *labelled} - {*val}
        pairs = own_pairs(root, set(stems) & labelled,
                          augmented.name) + own_pairs(root, set(stems) - labelled)
    else:
        sbd = find_sbd(root)
        source = sbd / "train.txt"
        stems = {*read_list(source), *read_list(sbd / "val.txt")} - {*train, *val}
        pairs = own_pairs(root, train)
        pairs += [(root / "JPEGImages" / f"{stem}.jpg", sbd / "cls" / f"{stem}.mat")
                  for stem in stems]
    both = sorted({image.stem for image, _ in pairs} & {*val})
    if both:
        raise UserError(f"{source} names {both[0]}, which is in {lists / 'val.txt'}: training on "
                        "it would spoil val")
    return sorted(pairs), source


def find_sbd(root):
    """The folder of SBD that holds cls/, in VOC2012 or up to two folders above it."""
    for base in (root, root.parent, root.parent.parent):
        for name in ("benchmark_RELEASE/dataset", "VOCaug/dataset"):
            if (base / name / "cls").is_dir():
                return base / name
    raise MissingSplit(f"{root} has no trainaug: wanted SegmentationClassAug in it, or "
                       "benchmark_RELEASE/dataset/cls "
                       f"in it or beside it; see datasets/voc2012.py")
