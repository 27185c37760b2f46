"""Nothing is silently wrong: masks of 0 and 255, labels of four bits, turned photos, lost lines."""

import itertools
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from common import checkpoint
from common import cli as cli_module
from common.errors import UserError
from common.metrics import ConfusionMatrix
from datasets import check, files, predictions, statistics
from datasets.files import read_image, read_label
from papers import contents, options, runs
from tests import crash
from tests.helpers import contents as contents_of
from tests.test_cli import QUICK, data, trained  # noqa: F401, fixtures

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


def test_other_classes_of_the_same_number(cli, trained, tmp_path):
    root = write(tmp_path / "data", {"train": [LEFT], "val": [LEFT]}, names="right\nleft\n")
    code, _, err = cli("eval", trained, "--data", root)
    wanted = "has other classes, right, left; the checkpoint was trained for left"
    assert code == 2 and wanted in err


def test_weights_that_are_not_numbers(cli, trained, tmp_path):
    state = checkpoint.load(trained / "best.pt")
    next(iter(state["model"].values()))[0] = float("nan")
    checkpoint.save(tmp_path / "nan.pt", state)
    code, _, err = cli("eval", "nan.pt", "--image", "x.png")
    assert code == 2 and "nan.pt: " in err and "not finite" in err


@pytest.mark.parametrize("damage", ["missing", "other network", "text"])
def test_resume_needs_the_best_weights(cli, trained, data, tmp_path, damage):
    """Said at once, not in the end; and what it says works."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    (out / "best.pt").unlink()
    if damage == "other network":
        state = checkpoint.load(trained / "best.pt")
        state["model"].popitem()
        checkpoint.save(out / "best.pt", state)
    elif damage == "text":
        (out / "best.pt").write_text("hello")
    code, _, err = cli("train", "--resume", "--out", out, "--data", data)
    assert code == 2 and "best.pt is needed" in err and err.count("\n") == 1, err
    shutil.copy(out / "last.pt", out / "best.pt")
    code, _, err = cli("train", "--resume", "--out", out, "--data", data, "--workers", 0)
    assert code == 0, err


USELESS = [  # flags of which one leaves the other without effect
    ("--image", "x.png", "--data", "."),
    ("--image", "x.png", "--split", "val"), ("--attention", "1,1", "--save-predictions"),
    ("--crop-size", 64), ("--crop-size", 64, "--image", "x.png"),
    ("--crop-size", 1, "--protocol", "sliding"), ("--crop-size", 31, "--protocol", "multiscale"),
]


@pytest.mark.parametrize("flags", USELESS, ids=lambda flags: " ".join(map(str, flags)))
def test_every_flag_works_or_is_refused(cli, trained, flags):
    code, out, err = cli("eval", trained, *flags)
    assert code == 2 and out == "" and err.count("\n") == 1 and flags[0 if "crop" in flags[0]
                                                                      else 2] in err, err


FLAGS = {"--dataset": ["folder"], "--data": ["."], "--split": ["val"], "--protocol": ["sliding"],
         "--crop-size": [64], "--scales": ["0.5,1"], "--save-predictions": [], "--image": ["x.png"],
         "--summary": [], "--attention": ["1,1"], "--explore": [], "--out": ["new"],
         "--device": ["cpu"], "--paper": ["pysa"], "--preset": ["tiny"], "--set": ["cells=1"]}
NEEDS = {"--crop-size": {"--protocol", "--summary"}, "--preset": {"--official"},
         "--set": {"--official"}}  # one of them
BESIDE = {"--summary": {"--dataset", "--data", "--split", "--protocol", "--scales", "--image",
                        "--save-predictions", "--attention", "--explore", "--out"},
          "--explore": {"--attention", "--save-predictions", "--protocol", "--scales"},
          "--attention": {"--save-predictions"}, "--image": {"--data", "--split", "--dataset"}}


def test_every_pair_of_flags_of_eval(cli, trained, monkeypatch):
    """Refused where one needs another or has no effect beside it, else something is done."""
    def act(*_):
        done.append(1)

    for name in ("score", "segment", "attend", "explore"):
        monkeypatch.setattr(f"eval.{name}", act)
    monkeypatch.setattr("papers.describe.print_summary", act)
    _, out, _ = cli("eval", "--help")
    assert {*re.findall(r"^  (--[a-z-]+)", out, re.M)} == {*FLAGS, "--official"}
    for one, other in itertools.combinations(FLAGS, 2):
        done = []
        code, _, err = cli("eval", trained, one, *FLAGS[one], other, *FLAGS[other])
        useless = (other in BESIDE.get(one, ()) or one in BESIDE.get(other, ())
                   or any(other not in NEEDS.get(one, {other}) for one, other in
                          ((one, other), (other, one))))
        assert (code, len(done)) == ((2, 0) if useless else (0, 1)), (one, other, err)
        assert not useless or one in err or other in err, err


@pytest.mark.parametrize("flags,words", [
    (("--start-from", "RUN", "--weights", "w.pth"), "--weights has no effect with --start-from"),
    (("--lr", 0.1, "--recipe", "lr=0.2"), "--recipe lr=0.2: --lr says 0.1"),
    (("--data", "."), "--data .: shapes has no folder"),
    (("--loss", "dice", "--class-weights", "auto"), "--class-weights has no effect with --loss")])
def test_pairs_of_flags_of_train(cli, trained, tmp_path, flags, words):
    before = contents_of(tmp_path)
    code, out, err = cli("train", *(trained if word == "RUN" else word for word in flags))
    assert code == 2 and out == "" and words in err and err.count("\n") == 1, err
    assert contents_of(tmp_path) == before


def test_start_from_is_not_for_resuming(cli, trained, data):
    code, _, err = cli("train", "--resume", "--out", trained, "--data", data, "--start-from",
                       trained)
    assert code == 2 and "--start-from has no effect with --resume" in err


def test_every_flag_wants_a_value(cli, trained):
    """`--lr=--` is an empty list to argparse, whatever the type."""
    for program in ("train", "eval"):
        flags = re.findall(r"^  (--[a-z-]+)[ \[]+[A-Z{]", cli(program, "--help")[1], re.M)
        assert len(flags) > 12
        for flag in flags:
            code, out, err = cli(program, *[trained] * (program == "eval"), f"{flag}=--")
            assert code == 2 and out == "" and err == f"error: {flag}: wanted a value\n", err


def test_names_of_any_length(cli, trained, data, tmp_path):
    """And whatever else the system refuses: one line that names the file."""
    long = "n" * 300
    for flags in (("train", "--out", long), ("train", "--weights", long), ("eval", long),
                  ("eval", trained, "--image", long), ("train", "--start-from", long),
                  ("train", "--dataset", "folder", "--data", long),
                  ("eval", trained, "--data", data, "--out", long),
                  ("eval", trained, "--data", data, "--save-predictions", long, "--out", "x")):
        code, out, err = cli(*flags)
        assert code == 2 and err.count("\n") == 1 and long in err and "Errno" not in err, err


def test_weights_are_not_for_resuming(cli, trained, data):
    code, _, err = cli("train", "--resume", "--out", trained, "--data", data, "--weights", "x")
    assert code == 2 and "--weights has no effect with --resume" in err


@pytest.mark.parametrize("variables", [
    {"RANK": "1"}, {"RANK": "x"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "2"},
    {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, {"RANK": "-1"},
    {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}])
def test_variables_of_torchrun_go_together(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="torchrun sets RANK, WORLD_SIZE, MASTER_ADDR"):
        runs.world()
    for name in variables:
        monkeypatch.delenv(name)
    assert runs.world() == 1


@pytest.mark.parametrize("name", [*contents.FIELDS,
                                  *(f"config/{name}" for name in contents.CONFIG)])
def test_every_field_of_a_checkpoint_is_checked(trained, tmp_path, name):
    whole = checkpoint.load(trained / "last.pt")
    contents.check_fields(whole, "a.pt")
    field, _, key = name.partition("/")
    for wrong in (None, object, b"", torch.zeros(1), 1j):
        state = {**whole, "config": dict(whole["config"])}
        (state[field] if key else state).__setitem__(key or field, wrong)
        with pytest.raises(UserError, match=f"a.pt: the field {key or field} is missing") as error:
            contents.check_fields(state, "a.pt")
        assert len(str(error.value)) < 300
    for count in (-1, 0, 3, 300):
        state = {**whole, "config": {**whole["config"], "num_classes": count}}
        with pytest.raises(UserError, match="that does not go together"):
            contents.check_fields(state, "a.pt")


INSIDE = [  # where in a run, what stands there then
    (("model", "head.classifier.bias"), 0.5), (("log", 0, "miou"), None), (("log", 0), (1, 2)),
    (("step",), -1), (("step",), True), (("running",), [1.0]), (("curve", 0), "high"),
    (("curve",), []), (("recipe", "steps"), {}), (("recipe", "lr"), float("inf")),
    (("recipe", "scale"), (2, 1)), (("recipe", "flip"), 1), (("config", "palette", 0), [1, 2]),
    (("config", "palette", 0, 0), 256), (("config", "classes", 0), None),
    (("config", "precision"), "int8"), (("config", "freeze"), "head"), (("config", "seed"), "0"),
    (("config", "stored_ids"), [-1, 0]), (("config", "train_sizes"), None),
    (("optimizer", "param_groups", 0), 3), (("optimizer", "param_groups", 0, "eps"), "small"),
    (("optimizer", "param_groups"), []), (("optimizer", "state", 0), {}),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(2)),
    (("optimizer", "state", 0, "exp_avg"), None),
]


@pytest.mark.parametrize("path,value", INSIDE, ids=lambda value: "/".join(map(str, value))
                         if isinstance(value, tuple) else None)
def test_what_a_run_holds_is_checked_to_the_bottom(cli, trained, data, tmp_path, path, value):
    """Before anything is written."""
    shutil.copytree(trained, tmp_path / "run")
    state = inside = checkpoint.load(trained / "last.pt")
    *way, last = path
    for part in way:
        inside = inside[part]
    inside[last] = value
    checkpoint.save(tmp_path / "run" / "last.pt", state)
    before = contents_of(tmp_path)
    code, out, err = cli("train", "--resume", "--out", "run", "--data", data, "--workers", 0)
    assert code == 2 and out == "" and err.count("\n") == 1 and "last.pt: " in err, err
    assert len(err) < 500 and contents_of(tmp_path) == before


def test_a_run_that_lacks_a_tensor_can_be_started_from(cli, trained, data, tmp_path):
    state = checkpoint.load(trained / "best.pt")
    del state["model"]["head.classifier.bias"]
    checkpoint.save(tmp_path / "a.pt", state)
    code, _, err = cli("train", *QUICK, "--dataset", "folder", "--data", data, "--workers", 0,
                       "--start-from", "a.pt", "--out", "run")
    assert code == 0 and "new: head.classifier.bias, 2\n" in err, err


OPTIONS = [
    ("pysa", "cells=1.5"), ("pysa", "channels=-1"), ("pysa", "channels=0"), ("pysa", "regions=4"),
    ("pysa", "regions=(1, 2.5)"), ("pysa", "variant=[1]"), ("pysa", "cells=1e999"),
    ("unept", "heads=0"), ("unept", "depth=1000000000"), ("unept", "dropout=2"),
    ("unept", "levels={1: 2}"), ("psanet", "crop_size=1e999"), ("psanet", "mask_size=wide"),
    ("psanet", "mask_size=(1, -1)"), ("psanet", "normalization_factor=0"),
    ("pan", "output_stride=16.5"), ("pan", "kernels={7, 5, 3}"), ("lrformer", "init_std=0"),
    ("lrformer", "drop_path=2"), ("lrformer", "drop_path=-0.1"), ("lrformer", "drop_path=nan"),
    ("lrformer", "embed_dims=(1, 2, 3, 10**9)"),
]


@pytest.mark.parametrize("paper,pair", OPTIONS)
def test_options_have_types_and_ranges(paper, pair):
    with pytest.raises(UserError, match=f"--set {pair.partition('=')[0]}=.*: wanted "):
        options.parse([pair], paper)


@pytest.mark.parametrize("paper", cli_module.papers())
def test_every_value_of_the_presets_is_in_range(paper):
    for name, values in options.defaults(paper).items():
        for value in values:
            assert options.parse([f"{name}={value!r}".replace("'", "")], paper) == {name: value}


PROGRAM = "from common.errors import run\ndef main():\n  {}\nrun(main)"


@pytest.mark.skipif(os.name == "nt", reason="starts a shell")
@pytest.mark.parametrize("code,after,wanted", [
    ("print('\u9053\u8def')", "", (0, 0)), ("print('x')", "> /dev/full", (2, 1)),
    ("print('x' * 10**6)", "| true", (0, 1)), ("open('nowhere')", "", (2, 1))])
def test_output_that_cannot_be_written(code, after, wanted):
    """Letters that the terminal lacks, a full disk, a closed pipe, a file of any kind: one line."""
    shell = f"{sys.executable} -c \"$CODE\" {after}"
    result = subprocess.run(shell, shell=True, capture_output=True, text=True, check=False,
                            cwd=crash.ROOT, env={**os.environ, "CODE": PROGRAM.format(code),
                                                 "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr.count("\n")) == wanted, result.stderr
    assert "Traceback" not in result.stderr


def test_data_replaced_before_resuming(cli, data, trained, tmp_path):
    """As many images of the same names: other ones are refused, a mended one is told."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    words = ("train", "--resume", "--out", "run", "--data", "data", "--workers", 0)
    images = sorted((tmp_path / "data" / "images").iterdir())
    images[0].write_bytes(images[0].read_bytes() + b" ")
    code, _, err = cli(*words)
    assert code == 0 and "warning: 2 of 20 images or labels are not what they were" in err, err
    for path in images:
        path.write_bytes(path.read_bytes() + b"  ")
    code, _, err = cli(*words)
    assert code == 2 and "--data data: other images than those of the run to resume" in err, err


@pytest.mark.parametrize("kind,words", [
    (torch.eye(3).to_sparse(), "sparse"), (torch.eye(3) * 1j, "complex"),
    (torch.empty(3, 3, device="meta"), "without content")])
def test_tensors_that_are_no_plain_numbers(cli, trained, tmp_path, kind, words):
    """In weights, official files and runs: named, before anything is built."""
    torch.save({"state_dict": {"conv1.weight": kind}}, tmp_path / "w.pth")
    state = checkpoint.load(trained / "best.pt")
    checkpoint.save(tmp_path / "run.pt", {**state, "model": {**state["model"], "extra": kind}})
    for flags in (("train", "--weights", "w.pth"), ("eval", "run.pt", "--image", "x.png"),
                  ("eval", "--official", "w.pth", "--paper", "lrformer", "--image", "x.png"),
                  ("train", "--start-from", "run.pt")):
        code, out, err = cli(*flags)
        assert code == 2 and out == "" and err.count("\n") == 1, err
        assert ("conv1.weight" in err or "extra" in err) and words in err, err


def test_a_file_that_holds_itself(tmp_path):
    state = {"model": {}}
    state["more"] = [state]
    contents.check_tensors(state, "a.pt")


def test_safetensors_are_named(cli, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    for flags in (("train", "--weights", "a.safetensors"), ("eval", "a.safetensors"),
                  ("eval", "--official", "a.safetensors", "--paper", "lrformer")):
        code, _, err = cli(*flags)
        cure = 'torch.save(safetensors.torch.load_file("a.safetensors"), "a.pth")'
        assert code == 2 and cure in err and "damaged" not in err, err


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes in folders")


@needs_pipes
@pytest.mark.parametrize("place", ["image", "checkpoint", "weights", "label", "list", "config",
                                   "prediction"])
def test_a_pipe_in_place_of_a_file(cli, trained, data, tmp_path, place):
    """It would be read for ever."""
    pipe, words = tmp_path / "pipe.png", ("pipe.png",)
    if place == "image":
        flags = ("eval", trained, "--image", pipe)
    elif place == "checkpoint":
        flags = ("eval", pipe)
    elif place == "weights":
        flags = ("train", "--weights", pipe)
    elif place in ("label", "list"):
        shutil.copytree(data, tmp_path / "data")
        pipe = tmp_path / "data" / ("classes.txt" if place == "list" else "labels/p09.png")
        pipe.unlink()
        flags, words = ("eval", trained, "--data", "data"), (pipe.name,)
    elif place == "config":
        pipe = tmp_path / "run" / "config.json"
        shutil.copytree(trained, tmp_path / "run")
        pipe.unlink()
        flags, words = ("eval", "run"), ("--data PATH",)
    else:
        pipe = tmp_path / "p09.png"
        flags = ("eval", trained, "--data", data, "--save-predictions", ".", "--out", "new")
        words = ("p09.png",)
    os.mkfifo(pipe)
    code, _, err = cli(*flags)
    assert code == 2 and err.count("\n") == 1 and all(word in err for word in words), err


@pytest.mark.parametrize("name,flags", [
    ("folder-val.png", ()), ("folder-val.csv", ()), ("p09.png", ("--save-predictions", "mine")),
    ("p09-attention-1-1.png", ("--attention", "1,1")), ("p09-explore.html", ("--explore",)),
    ("p09-segmented.png", ("--image", "p09.jpg"))])
def test_files_of_the_users_own_stay(cli, data, trained, tmp_path, name, flags):
    """Where they have the name that eval.py would give its own, which are replaced."""
    shutil.copy(data / "images" / "p09.jpg", tmp_path)
    where = () if "--image" in flags else ("--data", data)
    command = ("eval", trained, *where, *flags, "--out", "mine")
    assert cli(*command)[0] == 0 and (tmp_path / "mine" / name).exists()
    assert cli(*command)[0] == 0
    (tmp_path / "mine" / name).write_bytes(b"my own")
    code, _, err = cli(*command)
    assert code == 2 and f"{name} is there and is no file of eval.py" in err, err
    assert (tmp_path / "mine" / name).read_bytes() == b"my own"


def test_more_pixels_than_pillow_takes(tmp_path, monkeypatch):
    Image.new("1", (200, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    with pytest.raises(UserError, match="a.png has more than 0 million pixels; cut it up"):
        read_image(tmp_path / "a.png")


def test_lists_from_windows(tmp_path):
    (tmp_path / "a.txt").write_bytes("images\\a b.png labels\\a b.png\r\n".encode())
    assert files.read_pairs(tmp_path / "a.txt", tmp_path) == [
        (tmp_path / "images" / "a b.png", tmp_path / "labels" / "a b.png")]


def test_accents_are_one_character_or_two(tmp_path):
    """As Windows and macOS write them: the same name."""
    root = write(tmp_path, {"train": [LEFT], "val": [LEFT]})
    (root / "images" / "train" / "0.png").rename(root / "images" / "train" / "\u00e9.png")
    (root / "labels" / "train" / "0.png").rename(root / "labels" / "train" / "e\u0301.png")
    assert len(datasets.load("folder", root, "train")) == 1


@pytest.mark.parametrize("system,refused", [("linux", False), ("win32", True), ("darwin", True)])
def test_names_that_differ_by_case(tmp_path, monkeypatch, system, refused):
    """Are one file on Windows and macOS: the second prediction would replace the first."""
    class Two:
        pairs, stored_ids = [("A.png", ""), ("a.png", "")], np.arange(2)

        def __len__(self):
            return 2

        def sample_name(self, index):
            return "Aa"[index]

    monkeypatch.setattr(sys, "platform", system)
    if refused:
        with pytest.raises(UserError, match="A.png and a.png would both be written as a.png"):
            predictions.writer(Two(), tmp_path / "new", None)
    else:
        predictions.writer(Two(), tmp_path / "new", None)


NEWCOMER = [  # what is typed, what the line says
    (("train", "--dataset", "folders"), "--dataset folders: unknown; valid: shapes, camvid"),
    (("train", "--dataset", "folder", "--data", "DATA/images"), "is it DATA that you mean?"),
    (("train", "--epochs", 10), "unrecognized arguments: --epochs 10; --help lists the flags"),
    (("train", "--set", "context", "false"), "unrecognized arguments: false"),
    (("train", "--lr", "0,01"), "--lr 0,01: wanted a number above 0"),
    (("train", "--steps", "1e4"), "--steps 1e4: wanted a whole number above 0"),
    (("train", "--batch-size", "-4"), "--batch-size -4: wanted a whole number above 0"),
    (("train", "--workers", "two"), "--workers two: wanted a whole number"),
    (("eval", "RUN", "--image", "https://example.org/a.jpg"), "--image: no such file: https:"),
    (("eval", "RUN", "--scales", "1e308"), "--scales 1e308: wanted numbers above 0, at most 10000"),
    (("eval", "RUN", "--split", "valid"), "--split: invalid choice: 'valid' (choose from"),
    (("train", "--recipe", "test_scale=1e308"), "wanted more than 0, at most 10000"),
]


@pytest.mark.parametrize("flags,words", NEWCOMER)
def test_what_a_newcomer_types(cli, trained, data, tmp_path, flags, words):
    given = [str(flag).replace("RUN", str(trained)).replace("DATA", str(data)) for flag in flags]
    code, out, err = cli(*given)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert words.replace("DATA", str(data)) in err, err
    assert list(tmp_path.iterdir()) == []
