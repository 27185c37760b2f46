"""Nothing is silently wrong: masks of 0 and 255, labels of four bits, turned photos, lost lines."""

import numpy as np
import pytest
from PIL import Image

import datasets
from common.errors import UserError
from common.metrics import ConfusionMatrix
from datasets import check, statistics
from datasets.files import read_image, read_label
from tests.test_cli import QUICK

LEFT = np.repeat(np.arange(2, dtype=np.uint8), 24)[None].repeat(40, 0)  # two classes, half each


def write(root, labels, images=None, names="left\nright\n"):
    """A folder dataset: {split: labels}."""
    for split, arrays in labels.items():
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        for number, label in enumerate(arrays):
            Image.fromarray(label).save(root / "labels" / split / f"{number}.png")
            image = np.zeros((*label.shape, 3), np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{number}.png")
    (root / "classes.txt").write_text(names, encoding="utf-8")
    return root


BINARY = LEFT * np.uint8(255)
VOID = np.where(np.arange(48) < 20, 255, LEFT).astype(np.uint8)
CASES = {  # labels of train, of val, words of the warnings
    "nothing": ([LEFT] * 3, [LEFT] * 5, []),
    "0 and 255": ([BINARY] * 3, [BINARY] * 5,
                  ["train: 3 labels looked at, none holds right", "50% of their pixels are 255",
                   "train: the labels hold 0 and 255 alone", "save it as 1", "one class only"]),
    "void": ([VOID] * 3, [LEFT] * 5, ["train: 3 labels looked at, 42% of their pixels are 255"]),
    "other classes": ([LEFT * 0] * 3, [LEFT] * 5, ["val holds right, the labels looked at of train",
                                                   "train: 3 labels looked at, they hold one class",
                                                   "none holds right"]),
    "few": ([LEFT] * 3, [LEFT] * 4, ["val: 4 images are too few"]),
}


@pytest.mark.parametrize("case", CASES)
def test_warnings(tmp_path, capsys, case):
    """The same from datasets.check and from what a training prints."""
    train, val, words = CASES[case]
    root = write(tmp_path, {"train": train, "val": val})
    assert list(check.problems("folder", root)) == []
    printed = capsys.readouterr().out
    assert "class    pixels  images" in printed
    lines = list(statistics.warnings(*(datasets.load("folder", root, split)
                                       for split in ("train", "val"))))
    for text in (printed, "\n".join(lines)):
        assert all(word in text for word in words), text
    assert (lines == []) == (words == []) == ("warning: " not in printed)


def test_shares(tmp_path):
    found = statistics.Statistics("train", ["left", "right"]).add(LEFT).add(VOID)
    assert found.table() == ["class    pixels  images", "left      29.2%  100.0%",
                             "right     50.0%  100.0%", "ignored   20.8%   50.0%"]


def test_training_warns(cli, tmp_path):
    root = write(tmp_path / "data", {"train": [BINARY] * 2, "val": [BINARY]})
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", root, "--workers", 0,
                       "--out", "run")
    assert code == 0 and "warning: train: the labels hold 0 and 255 alone" in err, err


def test_a_large_dataset_is_sampled():
    class Many:
        classes = ("left", "right")
        looked = 0

        def __len__(self):
            return 10**9

        def label(self, index):
            self.looked += 1
            return LEFT

    many = Many()
    assert list(statistics.warnings(many, many)) == [] and many.looked == 2 * statistics.AT_MOST


def png(path, bits, rows):
    """A grey PNG of so many bits per pixel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body
                + struct.pack(">I", zlib.crc32(kind + body)))

    lines = [b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes()
             for row in rows]
    header = struct.pack(">IIBBBBB", rows.shape[1], len(rows), bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_of_few_bits(tmp_path, bits):
    ids = np.random.default_rng(0).integers(0, 2**bits, (5, 16)).astype(np.uint8)
    png(tmp_path / "a.png", bits, ids)
    assert np.array_equal(read_label(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_per_channel_are_refused(tmp_path, channels):
    import struct
    import zlib
    kind = {3: 2, 4: 6}[channels]
    body = zlib.compress(b"".join(b"\0" + bytes(2 * channels * 4) for _ in range(3)))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 16, kind, 0, 0, 0)), (b"IDAT", body),
             (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts))
    with pytest.raises(UserError, match="a.png has mode RGBA?;16B .more than 8 bits"):
        read_image(tmp_path / "a.png")


def photo(path):
    """40 x 20 pixels as stored, left half white, to be shown turned to the right."""
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(path, exif=exif, quality=95)


def test_orientation(tmp_path):
    """Applied to a photo that is looked at; in a dataset the stored pixels count."""
    photo(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (20, 40, 3)
    upright = read_image(tmp_path / "a.jpg", upright=True)
    assert upright.shape == (40, 20, 3) and upright[:18].min() > 200 and upright[22:].max() < 50
    root = write(tmp_path / "data", {"train": [LEFT[:40, :20] * 0], "val": [LEFT]})
    (root / "images" / "train" / "0.png").unlink()
    photo(root / "images" / "train" / "0.jpg")
    with pytest.raises(UserError, match="0.jpg .* differ in size .40x20 and 20x40.; the picture "
                                        "carries an orientation mark"):
        datasets.load("folder", root, "train")[0]


@pytest.mark.parametrize("text,line", [("left\n\nright\n", 2), ("\nleft\nright", 1),
                                       ("left\n  \n", None), ("left\nright\n\n\n", None)])
def test_a_blank_line_shifts_no_ids(tmp_path, text, line):
    root = write(tmp_path, {"train": [LEFT], "val": [LEFT]}, names=text)
    if line is None:
        assert datasets.load("folder", root, "train").classes[0] == "left"
    else:
        with pytest.raises(UserError, match=f"classes.txt: line {line} is blank"):
            datasets.load("folder", root, "train")


def test_the_matrix_takes_whole_numbers_alone():
    for wrong in (np.array([0.5]), np.array([1.0]), np.array(["a"]), np.array([1 + 0j])):
        for pair in ((wrong, np.array([0])), (np.array([0]), wrong)):
            with pytest.raises(ValueError, match="wanted whole numbers"):
                ConfusionMatrix(2).update(*pair)
    for count in (0, -1, 256, 300):
        with pytest.raises(ValueError, match="1 to 255 are possible"):
            ConfusionMatrix(count)
    assert ConfusionMatrix(255).update(np.array([254]), np.array([254])).miou == 1
    matrix = ConfusionMatrix(2)
    matrix.counts[:] = 2**62
    assert matrix.miou == pytest.approx(1 / 3) and matrix.pixel_accuracy == 0.5
