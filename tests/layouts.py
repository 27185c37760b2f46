"""Tiny copies of the real datasets, in the layouts they are published or passed around in: for the
tests only.

Images are a few pixels wide, of odd sizes, some upright, one grey. The first row of every label
starts with chosen ids; its other pixels hold the first of them.
"""

import struct
import zlib

import numpy as np
from PIL import Image

SIZES = [(13, 37), (41, 36), (9, 40)]  # height, width; a row has room for all ids of Cityscapes

# ---------------------------------------------------------------------------- images, labels, lists


def write_images(folder, names, ending=".jpg"):
    """An image per name: all pixels hold its number; the second is a grey file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        shape = SIZES[number % 3] if number % 3 == 1 else (*SIZES[number % 3], 3)
        Image.fromarray(np.full(shape, 10 * number,
                                np.uint8)).save(folder / f"{name}{ending}", quality=95)


def label_array(number, row):
    """The label of image `number`: its first row starts with `row`."""
    label = np.full(SIZES[number % 3], row[0])
    label[0, : len(row)] = row
    return label


def write_labels(folder, names, row, ending=".png", coloured=False):
    """A label per name, that of write_images in size; `coloured` as a palette image, as VOC's
    are."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        label = Image.fromarray(label_array(number, row).astype(np.uint8))
        if coloured:
            label.putpalette(
                [value for index in range(256) for value in (index * 37 % 256, 90, 200)])
        label.save(folder / f"{name}{ending}")


def write_list(path, lines, windows=False):
    """A list file; `windows` with a byte order mark, Windows line ends and blank lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines) + "\n"
    if windows:
        text = "\ufeff\r\n" + "\r\n\r\n".join(lines) + "\r\n  \r\n"
    path.write_bytes(text.encode())


# ------------------------------------------------------------------------------------ MATLAB files

CLASSES = {"i1": 8, "u1": 9, "i2": 10, "u2": 11, "i4": 12, "u4": 13, "f4": 7, "f8": 6, "i8": 14,
           "u8": 15}
STORED = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12,
          "u8": 13}


def element(kind, payload, order="<"):
    """One data element of a MATLAB 5 file, in the small form where it fits."""
    if 0 < len(payload) <= 4:
        return struct.pack(f"{order}I", len(payload) << 16 | kind) + payload.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(payload)) + payload + b"\0" * (-len(payload) % 8)


def array(name, kind, shape, contents, order="<"):
    """An array element: flags, dimensions, name, contents."""
    head = element(6, struct.pack(f"{order}II", kind, 0),
                   order) + element(5, struct.pack(f"{order}2i", *shape), order)
    return element(14, head + element(1, name.encode(), order) + contents, order)


def matrix(name, values, kind="u1", stored=None, order="<"):
    """A variable that holds a matrix of class `kind`, its numbers stored as the type `stored`."""
    stored = stored or kind
    data = np.asarray(values).astype(f"{order}{stored}").tobytes(order="F")
    return array(name, CLASSES[kind], np.shape(values), element(STORED[stored], data, order), order)


def structure(name, fields, order="<"):
    """A struct variable; fields: name -> the array element of a variable without name."""
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    contents = element(5, struct.pack(f"{order}i", 32),
                       order) + element(1, names, order) + b"".join(fields.values())
    return array(name, 2, (1, 1), contents, order)


def mat_file(*variables, order="<", packed=True):
    """The bytes of a file with these variables."""
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100)
    head += {"<": b"IM", ">": b"MI"}[order]
    for variable in variables:
        packing = zlib.compress(variable)
        head += struct.pack(f"{order}II", 15, len(packing)) + packing if packed else variable
    return head


def sbd_file(label):
    """A file of SBD: struct GTcls with boundaries (a cell, to be skipped), the label, and the
    classes there are."""
    cell = array("", 1, (2, 1), matrix("", np.eye(3)) + matrix("", np.eye(4)))
    present = matrix("", [[1, 2]], "f8", "u1")
    fields = {"Boundaries": cell, "Segmentation": matrix("", label), "CategoriesPresent": present}
    return mat_file(structure("GTcls", fields))


def write_mats(folder, names, row, make):
    """A .mat label per name: make(label) gives its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / f"{name}.mat").write_bytes(make(label_array(number, row)))


# ------------------------------------------------------------------------------------ the datasets


def voc(root, windows=False):
    """VOC 2012: two images in train, two in val, and one that has no label, as most have none."""
    write_images(root / "JPEGImages",
                 ["2007_000003", "2007_000001", "2007_000002", "2007_000004", "2007_000009"])
    for split, names in (("train", ["2007_000003", "2007_000001"]),
                         ("val", ["2007_000002", "2007_000004"])):
        write_list(root / "ImageSets" / "Segmentation" / f"{split}.txt", names, windows)
    names = ["2007_000003", "2007_000001", "2007_000002", "2007_000004"]
    write_labels(root / "SegmentationClass", names, [0, 20, 255, 15], coloured=True)


# trainaug of the layouts below: the stems above and these; SBD also has labels for one of train and
# one of val
AUGMENTED = ["2008_000005", "2008_000006"]
AUGMENTED_ROW = [0, 19, 255, 14]


def voc_augmented(root):
    """VOC with the archive that is passed around: labels of train, val and SBD in
    SegmentationClassAug, no list."""
    voc(root)
    names = ["2007_000003", "2007_000001", "2007_000002", "2007_000004", "2007_000009", *AUGMENTED]
    write_images(root / "JPEGImages", names)
    write_labels(root / "SegmentationClassAug", names, AUGMENTED_ROW)
    (root / "SegmentationClassAug" / "2007_000009.png").unlink()


def voc_list(root, name, line):
    """The same with a list, whose lines are made from the stem."""
    voc_augmented(root)
    write_list(root / name, [line.format(stem) for stem in [AUGMENTED[1], "2007_000003",
                                                            AUGMENTED[0], "2007_000001"]])


def voc_mixed(root):
    """mmsegmentation's: SegmentationClassAug made from SBD, a list of what is not in VOC's
    train."""
    voc_augmented(root)
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "aug.txt", AUGMENTED[::-1])
    write_list(lists / "trainaug.txt", ["2007_000001", *AUGMENTED, "2007_000003"])


def voc_sbd(root, sbd):
    """SBD as published: its train has an image of VOC's val."""
    voc(root)
    names = ["2007_000003", "2007_000001", "2007_000002", "2007_000004", "2007_000009", *AUGMENTED]
    write_images(root / "JPEGImages", names)
    write_mats(sbd / "cls", names, [0, 18, 3], sbd_file)
    write_list(sbd / "train.txt", ["2007_000002", "2007_000001", AUGMENTED[1]])
    write_list(sbd / "val.txt", [AUGMENTED[0]])


def ade20k(root):
    """ADE20K with the shifted copies of detectron2's recipe beside it."""
    for split, folder in (("train", "training"), ("val", "validation")):
        names = [f"ADE_{split}_0000000{number}" for number in (1, 2, 3)]
        write_images(root / "images" / folder, names)
        write_labels(root / "annotations" / folder, names, [0, 1, 150, 7])
        write_labels(root / "annotations_detectron2" / folder, names, [255, 0, 149, 6])
    write_list(root / "objectInfo150.txt", ["1\t0.15\t11664\t1172\twall"])


def cityscapes(root):
    """Cityscapes with everything its archives hold, and what its preparation script adds."""
    for split, cities in (("train", ["ulm", "aachen"]), ("val", ["lindau"]), ("test", ["berlin"])):
        for city in cities:
            stems = [f"{city}_000000_00001{number}" for number in (9, 2)]
            write_images(root / "leftImg8bit" / split / city, stems, "_leftImg8bit.png")
            folder = root / "gtFine" / split / city
            write_labels(folder, stems, [0, 1, 2, 3] if split == "test" else range(34),
                         "_gtFine_labelIds.png")
            write_labels(folder, stems, [5], "_gtFine_labelTrainIds.png")
            for stem in stems:
                Image.new("RGBA", (5, 5)).save(folder / f"{stem}_gtFine_color.png")
                Image.fromarray(np.zeros((5, 5),
                                         np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
                (folder / f"{stem}_gtFine_polygons.json").write_text("{}", encoding="utf-8")


CONTEXT = {"train": ["2008_000002", "2008_000003"], "val": ["2008_000007", "2008_000001"]}


def context_published(voc2010, mats, row=(0, 2, 9, 18, 458, 1, 459)):
    """PASCAL-Context as published: .mat files with 459 classes."""
    for split, names in CONTEXT.items():
        write_images(voc2010 / "JPEGImages", names)
        write_list(voc2010 / "ImageSets" / "Main" / f"{split}.txt", names)
        write_mats(mats, names, row, lambda label: mat_file(matrix("LabelMap", label, "f8", "u2")))


def context_mmseg(voc2010, other_lists=True):
    """mmsegmentation's; the lists of VOC 2010 are mostly there as well."""
    for split, names in CONTEXT.items():
        write_images(voc2010 / "JPEGImages", names)
        if other_lists:
            write_list(voc2010 / "ImageSets" / "Main" / f"{split}.txt", ["another"])
        write_list(voc2010 / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)
        write_labels(voc2010 / "SegmentationClassContext", names, [0, 1, 2, 3, 59])


def context_openseg(root):
    """openseg's: folders instead of lists."""
    for split, names in CONTEXT.items():
        write_images(root / split / "image", names)
        write_labels(root / split / "label", names, [0, 1, 2, 3, 59])
        write_mats(root / split / "dt_offset", names, [0],
                   lambda label: mat_file(matrix("depth", label)))


def coco_164k(root, original=True, converted=True):
    """COCO-Stuff 164k; with the files of mmsegmentation's converter, which renumbers 12 to 11 and
    so on."""
    for split in ("train", "val"):
        names = [f"00000000000{number}" for number in (9, 1)]
        write_images(root / "images" / f"{split}2017", names)
        labels = root / "annotations" / f"{split}2017"
        if original:
            write_labels(labels, names, [0, 10, 12, 89, 91, 181, 255])
        if converted:
            write_labels(labels, names, [0, 10, 11, 79, 80, 170, 255], "_labelTrainIds.png")


def coco_10k(root):
    """COCO-Stuff 10k as published: variables besides the label, which is stored narrower than its
    class."""
    for split, names in (("train", ["COCO_train2014_02", "COCO_train2014_01"]),
                         ("test", ["COCO_train2014_03"])):
        write_images(root / "images", names)
        write_list(root / "imageLists" / f"{split}.txt", names)
        write_mats(root / "annotations", names, [0, 1, 11, 13, 90, 92, 182], coco_mat)


def coco_mat(label):
    """The bytes of an annotation: S, and what is to be skipped."""
    captions = array("captions", 1, (1, 1), array("", 4, (1, 5), element(16, b"a dog")))
    return mat_file(captions, matrix("S", label, "f8", "u1"),
                    matrix("regionMapStuff", label * 100, "f8", "u2"))


def coco_10k_converted(root):
    """After mmsegmentation's converter: 0 is unlabelled, 1 to 171 are the classes."""
    for split, names in (("train", ["COCO_train2014_02", "COCO_train2014_01"]),
                         ("test", ["COCO_train2014_03"])):
        write_images(root / "images" / f"{split}2014", names)
        write_labels(root / "annotations" / f"{split}2014", names, [0, 1, 11, 12, 80, 81, 171],
                     "_labelTrainIds.png")


def camvid(root, windows=False):
    """CamVid with the lists of the original release; every name has a space and an accent."""
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        names = [f"frame é {number}" for number in range(count)]
        write_images(root / split, names, ".png")
        write_labels(root / f"{split}annot", names, [0, 10, 11, 3])
        prefix = "/SegNet/CamVid"
        lines = [f"{prefix}/{split}/{name}.png {prefix}/{split}annot/{name}.png" for name in names]
        write_list(root / f"{split}.txt", lines, windows)


def folder(root, windows=False):
    """People's own data: two classes, twenty images, not divided."""
    names = [f"photo {number:02d}" for number in range(20)]
    write_images(root / "images", names)
    write_labels(root / "labels", names, [0, 1, 255])
    # a blank line would be a class without a name: refused, see test_silent.py
    start, end = ("\ufeff", "\r\n") if windows else ("", "\n")
    (root / "classes.txt").write_bytes(f"{start}ground{end}tree, small{end}".encode())
