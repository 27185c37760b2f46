"""The real datasets in every layout they come in: the right files, in the right order, with the
right ids."""

import functools
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import datasets
from common.errors import UserError
from datasets import coco_stuff, files, matlab, pascal_context
from tests import layouts
from tests.layouts import element, mat_file, matrix

NESTED = "VOCdevkit/VOC2012"
COCO_ROW, COCO_IDS = [0, 10, 12, 89, 91, 181], [0, 10, 11, 79, 80, 170]
CITYSCAPES_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11,
                              12, 13, 14, 15,
                              255, 255, 16, 17, 18]


def at(path, write, **options):
    """A layout written into a folder of the root that the loader is given."""
    return lambda root: write(root / path, **options)


def sbd(root, place):
    """VOC2012 in `root`, and SBD in `place`."""
    layouts.voc_sbd(root / NESTED, root / place)


def context(root, voc, mats):
    """PASCAL-Context as published, the label folder in `mats`."""
    layouts.context_published(root / voc, root / mats)


VOC = ["2007_000003", "2007_000001"], [0, 20, 255, 15]
TRAINAUG = ["2007_000001", "2007_000003", *layouts.AUGMENTED]
AUGMENTED = TRAINAUG, [0, 19, 255, 14]
STEMS = [f"00000000000{number}" for number in (1, 9)]

# name of the layout: (dataset, how it is written, split, names in order, ids in the first row of
# the label)
LAYOUTS = {
    "voc": ("voc2012", at("", layouts.voc), "train", *VOC),
    "voc in VOCdevkit": ("voc2012", at(NESTED, layouts.voc), "train", *VOC),
    "voc in VOC2012, Windows lists": ("voc2012", at("VOC2012", layouts.voc, windows=True), "train",
                                      *VOC),
    "voc val": ("voc2012", at("", layouts.voc), "val", ["2007_000002", "2007_000004"], VOC[1]),
    "trainaug without list": ("voc2012", at("", layouts.voc_augmented), "trainaug", *AUGMENTED),
    "trainaug, list of names": ("voc2012", functools.partial(
        layouts.voc_list, name="ImageSets/Segmentation/trainaug.txt", line="{}"), "trainaug",
        *AUGMENTED),
    "trainaug, list of pairs": ("voc2012", functools.partial(
        layouts.voc_list, name="list/train_aug.txt",
        line="/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"),
        "trainaug", *AUGMENTED),
    "trainaug, another folder of lists": ("voc2012", functools.partial(
        layouts.voc_list, name="ImageSets/SegmentationAug/train_aug.txt",
        line="JPEGImages/{0}.jpg SegmentationClassAug/{0}.png"), "trainaug", *AUGMENTED),
    "trainaug, mmsegmentation, SBD": ("voc2012", at("", layouts.voc_mixed), "trainaug", *AUGMENTED),
    "trainaug, mmsegmentation, VOC": ("voc2012", at("", layouts.voc_mixed), "trainaug", TRAINAUG,
                                      VOC[1]),
    "trainaug, SBD inside": ("voc2012",
                             functools.partial(sbd, place=f"{NESTED}/benchmark_RELEASE/dataset"),
                             "trainaug", TRAINAUG, [0, 18, 3]),
    "trainaug, SBD beside": ("voc2012", functools.partial(sbd, place="benchmark_RELEASE/dataset"),
                             "trainaug", TRAINAUG, [0, 18, 3]),
    "ade20k": ("ade20k", at("", layouts.ade20k), "train",
               [f"ADE_train_0000000{i}" for i in (1, 2, 3)], [255, 0, 149, 6]),
    "ade20k in its folder": ("ade20k", at("ADEChallengeData2016", layouts.ade20k), "val",
                             [f"ADE_val_0000000{i}" for i in (1, 2, 3)], [255, 0, 149, 6]),
    "cityscapes": ("cityscapes", at("", layouts.cityscapes), "train", [
        f"{city}_000000_00001{i}_leftImg8bit" for city in ("aachen", "ulm") for i in (2, 9)],
        CITYSCAPES_IDS),
    "cityscapes test": ("cityscapes", at("cityscapes", layouts.cityscapes), "test",
                        [f"berlin_000000_00001{i}_leftImg8bit" for i in (2, 9)], [255] * 34),
    "context 59": ("pascal_context59", functools.partial(context, voc="VOC2010", mats="trainval"),
                   "train",
                   layouts.CONTEXT["train"], [255, 0, 1, 2, 58, 255, 255]),
    "context 60": ("pascal_context60", functools.partial(context, voc="", mats="trainval"), "val",
                   layouts.CONTEXT["val"], [0, 1, 2, 3, 59, 0, 0]),
    "context deeper": ("pascal_context60",
                       functools.partial(context, voc="VOCdevkit/VOC2010", mats="context/trainval"),
                       "train", layouts.CONTEXT["train"], [0, 1, 2, 3, 59, 0, 0]),
    "context mmseg 59": ("pascal_context59", at("VOCdevkit/VOC2010", layouts.context_mmseg), "val",
                         layouts.CONTEXT["val"], [255, 0, 1, 2, 58]),
    "context mmseg 60": ("pascal_context60", at("", layouts.context_mmseg, other_lists=False),
                         "train",
                         layouts.CONTEXT["train"], [0, 1, 2, 3, 59]),
    "context openseg 59": ("pascal_context59", at("", layouts.context_openseg), "train",
                           layouts.CONTEXT["train"], [255, 0, 1, 2, 58]),
    "context openseg 60": ("pascal_context60", at("pascal_context", layouts.context_openseg), "val",
                           sorted(layouts.CONTEXT["val"]), [0, 1, 2, 3, 59]),
    "164k": ("coco_stuff164k", at("", layouts.coco_164k, converted=False), "train", STEMS,
             COCO_IDS + [255]),
    "164k and copies": ("coco_stuff164k", at("coco_stuff164k", layouts.coco_164k), "val", STEMS,
                        COCO_IDS + [255]),
    "164k, copies only": ("coco_stuff164k", at("", layouts.coco_164k, original=False), "train",
                          STEMS,
                          COCO_IDS + [255]),
    "10k": ("coco_stuff10k", at("", layouts.coco_10k), "train",
            ["COCO_train2014_02", "COCO_train2014_01"],
            [255] + COCO_IDS),
    "10k val is test": ("coco_stuff10k", at("coco_stuff10k", layouts.coco_10k), "val",
                        ["COCO_train2014_03"],
                        [255] + COCO_IDS),
    "10k converted": ("coco_stuff10k", at("", layouts.coco_10k_converted), "train",
                      ["COCO_train2014_01", "COCO_train2014_02"], [255] + COCO_IDS),
    "10k converted test": ("coco_stuff10k", at("", layouts.coco_10k_converted), "test",
                           ["COCO_train2014_03"],
                           [255] + COCO_IDS),
    "camvid": ("camvid", at("", layouts.camvid), "train", [f"frame é {i}" for i in range(3)],
               [0, 10, 255, 3]),
    "camvid, Windows lists": ("camvid", at("CamVid", layouts.camvid, windows=True), "test",
                              ["frame é 0"],
                              [0, 10, 255, 3]),
    "folder": ("folder", at("", layouts.folder, windows=True), "val", ["photo 09", "photo 19"],
               [0, 1, 255]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(tmp_path, layout):
    name, write, split, names, row = LAYOUTS[layout]
    write(tmp_path)
    dataset = datasets.load(name, tmp_path, split)
    assert [dataset.sample_name(i) for i in range(len(dataset))] == names
    rows = []
    for image, label in (dataset[i] for i in range(len(dataset))):
        assert (image.dtype == label.dtype == np.uint8 and image.shape == (*label.shape, 3)
                and image.flags.writeable)
        assert label.shape in layouts.SIZES and len(np.unique(image)) == 1
        assert (label[1:] == label[0, 0]).all()  # so no transposed or shuffled label passes
        rows.append(label[0, : len(row)].tolist())
    # the labels of VOC come from one folder, the others from another
    if "mmsegmentation" in layout:
        rows = rows[:2] if layout.endswith("VOC") else rows[2:]
    elif "SBD" in layout:
        assert [r[:3] for r in rows[:2]] == [VOC[1][:3]] * 2
        rows = rows[2:]
    assert rows == [row] * len(rows)


@pytest.mark.parametrize("name,count", [
    ("camvid", 11), ("voc2012", 21), ("ade20k", 150), ("cityscapes", 19), ("pascal_context59", 59),
    ("pascal_context60", 60), ("coco_stuff164k", 171), ("coco_stuff10k", 171),
])
def test_classes_and_stored_ids(tmp_path, name, count):
    write = next(write for dataset, write, *_ in LAYOUTS.values() if dataset == name)
    write(tmp_path)
    dataset = datasets.load(name, tmp_path, "train")
    assert len(dataset.classes) == len(dataset.palette) == len(set(dataset.classes)) == count
    assert all(isinstance(c, str) and c == c.strip() for c in dataset.classes)
    assert all(len(c) == 3 and all(0 <= part <= 255 for part in c) for c in dataset.palette)
    assert dataset.stored_ids.shape == (count,) and dataset.stored_ids.dtype == np.uint8
    assert (dataset.table[dataset.stored_ids] == np.arange(count)).all()
    assert (np.isin(dataset.table, np.arange(count)).sum()) == count  # nothing else becomes a class
    assert dataset.table[255] == 255


def loaded(tmp_path, layout):
    """The dataset of one of LAYOUTS."""
    name, write, split, *_ = LAYOUTS[layout]
    write(tmp_path)
    return datasets.load(name, tmp_path, split)


# ----------------------------------------------------------------------------- the published tables


def test_published_counts():
    """Where images of two releases or of a wrong list would show."""
    counts = datasets.SAMPLES
    assert counts["voc2012"] == {"train": 1464, "val": 1449, "trainaug": 10582}
    assert counts["ade20k"] == {"train": 20210, "val": 2000}
    assert counts["cityscapes"] == {"train": 2975, "val": 500, "test": 1525}
    assert counts["pascal_context59"] == counts["pascal_context60"] == {"train": 4998, "val": 5105}
    assert counts["coco_stuff164k"] == {"train": 118287, "val": 5000}
    assert counts["coco_stuff10k"] == {"train": 9000, "val": 1000, "test": 1000}
    assert counts["camvid"] == {"train": 367, "val": 101, "test": 233}


def test_cityscapes_ids_both_ways(tmp_path):
    dataset = loaded(tmp_path, "cityscapes")
    assert dataset.table[:34].tolist() == CITYSCAPES_IDS
    assert dataset.stored_ids.tolist() == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    assert dict(zip(dataset.classes, dataset.stored_ids.tolist(), strict=True))["train"] == 31


def test_coco_stuff_rule():
    """train id = value - number of dead values below it; things before stuff."""
    dead = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    ids = coco_stuff.TABLE["ids"]
    assert ids == [value for value in range(182) if value not in dead]
    assert all(ids.index(value) == value - sum(d < value for d in dead) for value in ids)
    assert [ids.index(value) for value in (12, 89, 91, 181)] == [11, 79, 80, 170]
    names = coco_stuff.TABLE["names"]
    assert (names[79], names[80], names[170]) == ("toothbrush", "banner", "wood")


def test_context_rule():
    """The 59 kept ids, sorted, are 1 to 59; the alphabet orders the names."""
    ids, names = pascal_context.TABLE["ids"], pascal_context.TABLE["names"]
    assert ids == sorted(ids) and len(ids) == 60 and ids[0] == 0 and names[1:] == sorted(names[1:])
    assert [names[i] for i in (0, 1, 3, 4, 59)] == ["background", "aeroplane", "bed", "bedclothes",
                                                    "wood"]
    assert (pascal_context.NUMBER_OF_RAW > 0).sum() == 59
    assert pascal_context.NUMBER_OF_RAW[[2, 458, 457]].tolist() == [1, 59, 0]


def test_class_names(tmp_path):
    """Where an id off by one would show."""
    for layout, number, name in [
        ("voc", 20, "tvmonitor"), ("ade20k", 0, "wall"), ("cityscapes", 18, "bicycle"),
        ("context 59", 0, "aeroplane"),
        ("context 60", 0, "background"), ("164k", 0, "person"), ("camvid", 10, "bicyclist"),
    ]:
        assert loaded(tmp_path / layout, layout).classes[number] == name


def test_colours_tell_classes_apart(tmp_path):
    """VOC's palette is computable: bits of the index, interleaved."""
    palette = loaded(tmp_path, "voc").palette
    for index, colour in enumerate(palette):
        expected = [sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
                    for channel in range(3)]
        assert list(colour) == expected


# ---------------------------------------------------------------------------- what people trip over


def test_trainaug_never_holds_val(tmp_path):
    layouts.voc_list(tmp_path, "ImageSets/Segmentation/trainaug.txt", "{}")
    path = tmp_path / "ImageSets" / "Segmentation" / "trainaug.txt"
    path.write_text(path.read_text(encoding="utf-8") + "2007_000004\n", encoding="utf-8")
    with pytest.raises(UserError, match="trainaug.txt names 2007_000004, which is in .*val.txt"):
        datasets.load("voc2012", tmp_path, "trainaug")


@pytest.mark.parametrize("name,layout,split,valid", [
    ("voc2012", "voc", "test", "train, val, trainaug"),
    ("ade20k", "ade20k", "test", "train, val"),
    ("coco_stuff164k", "164k", "test", "train, val"),
    ("pascal_context59", "context 59", "test", "train, val"),
    ("ade20k", "ade20k", "trainaug", "train, val"),
])
def test_splits_without_labels(tmp_path, name, layout, split, valid):
    LAYOUTS[layout][1](tmp_path)
    with pytest.raises(UserError, match=f"unknown split '{split}'; valid: {valid}"):
        datasets.load(name, tmp_path, split)


@pytest.mark.parametrize(
    "name", [name for name in datasets.NAMES if name in datasets.LOADERS and name != "folder"])
def test_an_empty_folder_says_what_was_looked_for(tmp_path, name):
    with pytest.raises(UserError) as error:
        datasets.load(name, tmp_path, "train")
    assert (f"--data {tmp_path}" in str(error.value)
            and " is missing; looked there and in " in str(error.value))


def test_trainaug_without_sbd(tmp_path):
    layouts.voc(tmp_path)
    with pytest.raises(files.MissingSplit, match="has no trainaug: wanted SegmentationClassAug"):
        datasets.load("voc2012", tmp_path, "trainaug")


def test_orientation_marks_are_not_applied(tmp_path):
    """A camera's mark says how to hold the picture; the label does not know of it."""
    mark = Image.Exif()
    mark[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=mark)
    assert files.read_image(tmp_path / "a.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("mode,ending", [
    ("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png")])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, ending):
    path = tmp_path / f"a.{ending}"
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path, **options)
    image = files.read_image(path)
    assert image.shape == (4, 5, 3) and (image >= 250).all() and image.flags.writeable


def test_system_files_are_no_samples(tmp_path):
    layouts.ade20k(tmp_path)
    for name in ("._ADE_train_00000001.jpg", ".DS_Store"):
        (tmp_path / "images" / "training" / name).write_bytes(b"\0")
    assert len(datasets.load("ade20k", tmp_path, "train")) == 3


def test_as_many_classes_as_there_are_ids():
    """0 to 254 may all be classes; what lies between them and 255 is refused."""
    for count in (1, 253, 254, 255):
        names = [f"class {number}" for number in range(count)]
        dataset = files.FilePairs([], names, [(0, 0, 0)] * count)
        assert dataset.table[:count].tolist() == list(range(count)) and dataset.table[255] == 255
        assert ((dataset.table[count:255] + np.uint8(1)) > count).all()


def test_reading_costs_little_beyond_decoding(tmp_path):
    """A guard against accidents only (the target is 2 ms): generous, because machines are busy."""
    Image.new("RGB", (480, 360)).save(tmp_path / "a.jpg")
    Image.new("L", (480, 360)).save(tmp_path / "b.png")
    dataset = files.FilePairs([(tmp_path / "a.jpg", tmp_path / "b.png")], "ab", [(0, 0, 0)] * 2)

    def seconds(read):
        best = []
        for _ in range(10):
            start = time.process_time()
            read()
            best.append(time.process_time() - start)
        return min(best)

    def decode():
        return np.array(Image.open(tmp_path / "a.jpg")), np.array(Image.open(tmp_path / "b.png"))

    assert seconds(lambda: dataset[0]) - seconds(decode) < 0.01


# ------------------------------------------------------------------------------------ MATLAB files

IDS = np.arange(15).reshape(3, 5)  # not square: rows taken for columns would show


def write(tmp_path, data):
    """A .mat file."""
    path = tmp_path / "label.mat"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind,stored", [
    ("u1", "u1"), ("f8", "u1"), ("f8", "f8"), ("f8", "u2"), ("f4", "f4"), ("i1", "i1"),
    ("i4", "i2"), ("u8", "u8"),
    ("i8", "i8"), ("u4", "u4")])
def test_mat_numbers(tmp_path, order, packed, kind, stored):
    """The stored type decides how bytes are read, not the class; columns come first; other
    variables are skipped."""
    other = matrix("other", np.eye(3), "f8", order=order)
    path = write(tmp_path, mat_file(other, matrix("S", IDS, kind, stored, order), other,
                                    order=order, packed=packed))
    ids = matlab.read_ids(path, "S")
    assert ids.dtype == np.uint16 and ids.tolist() == IDS.tolist()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("values", [[[7]], [[1, 2]], [[1], [2], [3]], [[1, 2], [3, 4]]])
def test_mat_small_elements(tmp_path, order, values):
    """One to four bytes lie inside the tag."""
    data = matrix("S", values, order=order)
    assert len(data) == 8 + 16 + 16 + 8 + 8
    assert matlab.read_ids(write(tmp_path, mat_file(data, order=order)), "S").tolist() == values


@pytest.mark.parametrize("order", ["<", ">"])
def test_mat_struct(tmp_path, order):
    fields = {"First": matrix("", np.eye(4), "f8", order=order),
              "Segmentation": matrix("", IDS, order=order)}
    path = write(tmp_path, mat_file(layouts.structure("GTcls", fields, order), order=order))
    assert matlab.read_ids(path, "GTcls", "Segmentation").tolist() == IDS.tolist()
    with pytest.raises(UserError, match="label.mat: it has no field Other"):
        matlab.read_ids(path, "GTcls", "Other")
    with pytest.raises(UserError, match="label.mat: GTcls does not hold numbers"):
        matlab.read_ids(path, "GTcls")


def test_mat_ids_above_255(tmp_path):
    path = write(tmp_path, mat_file(matrix("LabelMap", [[0, 256, 459]], "f8", "u2")))
    assert matlab.read_ids(path, "LabelMap", highest=459).tolist() == [[0, 256, 459]]
    with pytest.raises(UserError, match="label.mat contains the value 459; valid are 0 to 458"):
        matlab.read_ids(path, "LabelMap", highest=458)


@pytest.mark.parametrize("values", [[[0.5]], [[-1.0]], [[np.nan, 1]], [[np.inf, 1]]])
def test_mat_what_is_no_id(tmp_path, values):
    with pytest.raises(UserError, match="label.mat contains the value"):
        matlab.read_ids(write(tmp_path, mat_file(matrix("S", values, "f8"))), "S")


GOOD = mat_file(matrix("S", IDS), packed=False)
SHAPE = struct.pack("<2i", 3, 5)
BROKEN = {
    "HDF5": (b"MATLAB 7.3 MAT-file".ljust(126) + b"IM" + b"\x89HDF\r\n" * 9,
             "7.3 file; load it in MATLAB"),
    "bare HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, "7.3 file"),
    "text": (b"not a label " * 30, "is not a MATLAB 5 file"),
    "empty": (b"", "is not a MATLAB 5 file"),
    "header only": (GOOD[:128], "it has no variable S"),
    "other variable": (mat_file(matrix("T", IDS)), "it has no variable S"),
    "cut in the numbers": (GOOD[:-9], "it is cut short or damaged"),
    "cut in a packed one": (mat_file(matrix("S", IDS))[:-9], "it is cut short or damaged"),
    "cut inside packing": (GOOD[:128] + struct.pack("<II", 15, 20) + zlib.compress(GOOD[128:])[:20],
                           "cut short"),
    "garbage packed": (GOOD[:128] + struct.pack("<II", 15, 20) + b"\1" * 20, "Error"),
    "text variable": (mat_file(layouts.array("S", 4, (1, 2), element(16, b"ab"))),
                      "S does not hold numbers"),
    "huge shape": (GOOD.replace(SHAPE, struct.pack("<2i", 2**31 - 1, 2**31 - 1)),
                   "15 numbers for the shape"),
    "negative shape": (GOOD.replace(SHAPE, struct.pack("<2i", -3, -5)), "15 numbers for the shape"),
    "huge size": (GOOD[:132] + struct.pack("<I", 2**32 - 1) + GOOD[136:],
                  "it is cut short or damaged"),
    "no numbers": (mat_file(matrix("S", np.zeros((0, 0)))), "wanted [height, width]"),
    "packed in packed": (mat_file(mat_file(matrix("S", IDS))[128:]), "it has no variable S"),
    "zeros": (mat_file(b"\0" * 1_000_000), "it is cut short or damaged"),
    "more than fits": (mat_file(matrix("S", np.zeros((1000, 1000)))), "it is cut short or damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_mat_broken(tmp_path, monkeypatch, case):
    monkeypatch.setattr(matlab, "LIMIT", 900_000)
    data, message = BROKEN[case]
    with pytest.raises(UserError) as error:
        matlab.read_ids(write(tmp_path, data), "S")
    assert (message in str(error.value) and "label.mat" in str(error.value)
            and "\n" not in str(error.value))


def test_mat_damaged_anywhere(tmp_path):
    """Cut at every byte, and with single bytes changed: numbers or a UserError, never anything
    else."""
    rng = np.random.default_rng(0)
    for data, arguments in [(GOOD, ("S",)), (layouts.sbd_file(IDS), ("GTcls", "Segmentation"))]:
        changed = [data[:end] for end in range(0, len(data), 5)]
        for _ in range(300):
            copy = bytearray(data)
            copy[rng.integers(126, len(data))] = rng.integers(256)
            changed.append(bytes(copy))
        for number, copy in enumerate(changed):
            path = tmp_path / f"{arguments[0]}{number}.mat"  # a new one: overwriting files is slow
            path.write_bytes(copy)
            try:
                assert matlab.read_ids(path, *arguments).ndim == 2
            except UserError as error:
                assert path.name in str(error) and "\n" not in str(error)
