"""What the two programs make of their flags: the loop and the scoring are replaced by functions
that note what they are given, so each test takes a moment."""

import argparse
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from common import checkpoint, cli, loop
from common.errors import UserError
from common.inference import PROTOCOLS
from common.metrics import ConfusionMatrix
from common.recipe import Recipe
from datasets import segment
from datasets.shapes import CLASSES
from papers import options, settings, weights

eval_program, train_program = importlib.import_module("eval"), importlib.import_module("train")


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """trained(flags) -> (what `train` is given, the exit code) by train.py; `returns` is what it
    returns."""
    monkeypatch.chdir(tmp_path)
    given = {}
    names = ("model", "stream", "val_set", "recipe", "config", "out")

    def note(*arguments, **named):
        given.update(zip(names, arguments, strict=True), **named)
        return call.returns

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["train.py", "--device", "cpu", *map(str, flags)])
        given.clear()
        code = train_program.main()
        return types.SimpleNamespace(**given), code

    monkeypatch.setattr(train_program, "train", note)
    monkeypatch.setattr(train_program, "rehearse", lambda *_: None)
    call.returns = ConfusionMatrix(len(CLASSES)).update(np.zeros(3, int), np.zeros(3, int))
    return call


def first_batch(given):
    with given.stream(0) as found:
        return next(iter(found))[0]


def parsed(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    return train_program.resolve(train_program.parse(), None)


# ---------------------------------------------------------------------------------------- train.py


def test_flags_reach_the_loop(trained):
    given, code = trained(
        "--lr", 0.5, "--accumulate", 2, "--batch-size", 4, "--steps", 7, "--seed", 3, "--crop-size",
        32, "--precision", "bfloat16", "--compile", "--set", "channels=8", "--optimizer", "sgd",
        "--schedule", "poly", "--eval-every", 5, "--out", "here")
    recipe = given.recipe
    assert (recipe.lr, recipe.accumulate, recipe.batch_size, recipe.steps) == (0.5, 2, 4, 7)
    assert (recipe.optimizer, recipe.schedule, recipe.eval_every) == ("sgd", "poly", 5)
    assert (given.seed, given.precision, given.compile, given.out) == (
        3, "bfloat16", True, Path("here"))
    assert given.config["options"] == {"channels": 8} and given.resume is None and code == 0
    assert given.model.head.classifier.in_channels == 8
    assert first_batch(given).shape == (4, 32, 32, 3) and len(given.val_set) == 100


def test_one_seed_is_one_run(trained):
    """Fresh weights and the order of the images depend on --seed and on nothing else."""
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        given, _ = trained("--seed", seed, "--batch-size", 2, "--crop-size", 32, "--out", number)
        runs.append((given.model.state_dict(), first_batch(given)))
    for (one, images), same in zip(runs, (None, True, False)):
        if same is not None:
            assert torch.equal(images, runs[0][1]) == same
            name = "head.classifier.weight"
            assert torch.equal(one[name], runs[0][0][name]) == same


@pytest.mark.parametrize("flags,crop", [
    (["--dataset", "camvid"], 160), (["--dataset", "camvid", "--preset", "resnet50"], 288),
    (["--dataset", "cityscapes", "--preset", "resnet50"], 769),
    (["--dataset", "cityscapes"], 160), (["--dataset", "shapes-count"], 128),
    (["--dataset", "camvid", "--crop-size", "99"], 99),
])
def test_the_recipe_belongs_to_dataset_and_size(monkeypatch, flags, crop):
    config, recipe = parsed(monkeypatch, "--paper", "pysa", *flags)
    assert recipe.crop_size == crop and config["dataset"] == flags[1]
    assert recipe.steps == {"camvid": 4000 if crop == 288 else 5000, "shapes-count": 360,
                            "cityscapes": 40000 if crop == 769 else 1000}[flags[1]]


@pytest.mark.parametrize("paper", cli.papers())
def test_small_networks_are_trained_in_minutes(paper):
    """On every dataset: the recipe for `shapes`, a bit longer, on real pictures."""
    shapes = settings.load_recipe(paper, "shapes")
    for name in {*datasets.LOADERS} - {"camvid"}:
        recipe = settings.load_recipe(paper, name, "tiny")
        assert (recipe.steps, recipe.eval_every, recipe.crop_size, recipe.batch_size) == (
            1000, 100, 160, 8)
        assert recipe.lr == shapes.lr and recipe.train_split == "train"
    assert settings.load_recipe(paper, "camvid", "tiny").test_scale == 0.5  # its own


def test_large_lrformer_has_a_recipe_of_its_own():
    assert settings.load_recipe("lrformer", "ade20k", "l").crop_size == 640
    assert settings.load_recipe("lrformer", "ade20k", "b").crop_size == 512
    assert settings.load_recipe("lrformer", None).crop_size == 512


@pytest.mark.parametrize("recipe,world,precision,message", [
    (dict(batch_size=6, accumulate=4), 1, "float32", "--batch-size 6: wanted a multiple of 4"),
    (dict(batch_size=6), 4, "float32", "--batch-size 6: wanted a multiple of 4"),
    (dict(batch_size=6, accumulate=2), 2, "float32", "--batch-size 6: wanted a multiple of 4"),
    (dict(crop_size=31), 1, "float32", "--crop-size 31: wanted at least 32"),
    ({}, 1, "float16", "--precision float16: on CUDA only"),
])
def test_numbers_that_do_not_go_together(recipe, world, precision, message):
    config, arguments = {"seed": 0, "precision": precision}, argparse.Namespace(workers=None)
    with pytest.raises(UserError, match=message):
        train_program.check(arguments, config, Recipe(**recipe), "cpu", world)
    train_program.check(arguments, config, Recipe(batch_size=8, accumulate=2, crop_size=32),
                        "cuda" if precision == "float16" else "cpu", 4)


def test_a_signal_is_the_exit_code(trained, monkeypatch):
    trained.returns = 15
    monkeypatch.setattr(train_program.checkpoint, "load", lambda path: {"curve": [0.5]})
    assert trained("--out", "run")[1] == 143


@pytest.mark.parametrize("flags,split", [([], "trainaug"), (["--train-split", "train"], "train")])
def test_the_split_is_the_recipes_or_the_flags(monkeypatch, flags, split):
    class Seen(Exception):
        pass

    def load_pair(config, root, train_split, resumed):
        raise Seen(train_split)

    monkeypatch.setattr(datasets, "load_pair", load_pair)
    monkeypatch.setattr(sys, "argv", ["train.py", "--paper", "pan", "--dataset", "voc2012",
                                      "--preset", "resnet50", "--device", "cpu", *flags])
    with pytest.raises(Seen, match=f"^{split}$"):
        train_program.main()


def test_resuming(trained, monkeypatch, tmp_path):
    """The own numbers and weights of the run; a flag that says something else is refused."""
    flags = ("--out", "run", "--lr", 0.25, "--steps", 1, "--batch-size", 2, "--crop-size", 32,
             "--set", "channels=8")
    with monkeypatch.context() as patch:
        best = types.SimpleNamespace(miou=0.5, pixel_accuracy=0.5, iou=np.zeros(len(CLASSES)),
                                     table=lambda classes: "")
        patch.setattr(loop, "evaluate", lambda *_, **__: (best, []))
        patch.setattr(train_program, "train", loop.train)
        patch.setattr(train_program, "draw_run", lambda *_: None)
        assert trained(*flags)[1] == 0
    given, _ = trained("--out", "run", "--resume")
    assert given.resume["step"] == 1 and given.recipe.lr == 0.25
    assert given.config["options"] == {"channels": 8}
    for contradiction in (("--lr", 0.5), ("--seed", 1), ("--set", "channels=9"),
                          ("--dataset", "camvid")):
        with pytest.raises(UserError, match=f"{contradiction[0]}: the run to resume has"):
            trained("--out", "run", "--resume", *contradiction)
    with pytest.raises(UserError, match="already holds a run"):
        trained(*flags)


# ------------------------------------------------------------------------------------------ eval.py


def flags_of_eval(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["eval.py", "run", *map(str, flags)])
    return eval_program.parse()


def test_what_eval_takes_without_flags(monkeypatch):
    arguments = flags_of_eval(monkeypatch)
    assert (arguments.split, arguments.protocol, arguments.save_predictions) == (
        "val", "whole", None)


@pytest.mark.parametrize("flags,wanted", [
    ((), dict(crop=0, scales=(0.5,))),
    (("--protocol", "sliding"), dict(crop=96, scales=(0.5,))),
    (("--protocol", "sliding", "--crop-size", 64), dict(crop=64)),
    (("--protocol", "multiscale"), dict(crop=96, scales=(0.25, 0.375, 0.5, 0.625, 0.75, 0.875))),
    (("--scales", "1,2"), dict(scales=(1.0, 2.0))),
    (("--protocol", "paper"), dict(fit=(2048, 512), multiple=32, crop=0, scales=(1.0,))),
    (("--protocol", "paper", "--dataset", "cityscapes"), dict(crop=1024, stride=768)),
    (("--protocol", "paper", "--dataset", "cityscapes", "--crop-size", 512), dict(crop=512)),
    (("--protocol", "paper", "--scales", "1,2"), dict(scales=(1.0, 2.0))),
])
def test_protocols(monkeypatch, flags, wanted):
    """Of a network trained on crops of 96 pixels at half resolution."""
    config = {"paper": "lrformer", "dataset": "ade20k", "preset": "t"}
    protocol = eval_program.choose_protocol(
        flags_of_eval(monkeypatch, *flags), config, Recipe(crop_size=96, test_scale=0.5))
    assert {name: getattr(protocol, name) for name in wanted} == wanted


def test_the_paper_protocol_belongs_to_dataset_and_size(monkeypatch):
    arguments = flags_of_eval(monkeypatch, "--protocol", "paper")
    config = {"paper": "lrformer", "dataset": "ade20k", "preset": "l"}
    assert eval_program.choose_protocol(arguments, config, Recipe()).fit == (2560, 640)
    with pytest.raises(UserError, match="none is known for lrformer on camvid"):
        eval_program.choose_protocol(arguments, {**config, "dataset": "camvid"}, Recipe())
    arguments.crop_size = 256
    with pytest.raises(UserError, match="--crop-size: lrformer has no windows on ade20k"):
        eval_program.choose_protocol(arguments, config, Recipe())


def test_scoring(monkeypatch, tmp_path, capsys):
    """The split and the dataset of the flags, the protocol as it was chosen, four rows of pictures,
    every prediction saved."""
    given = {}

    def note(model, dataset, num_classes, protocol, device, **named):
        given.update(dataset=dataset, protocol=protocol, num_classes=num_classes, **named)
        matrix = ConfusionMatrix(num_classes)
        return matrix.update(np.zeros(1, int), np.zeros(1, int)), [
            (*dataset[0], dataset[0][1])]

    monkeypatch.setattr(eval_program, "evaluate", note)
    arguments = flags_of_eval(monkeypatch, "--split", "test", "--dataset", "shapes",
                              "--save-predictions", tmp_path / "saved")
    config = {"paper": "pysa", "dataset": "camvid", "num_classes": 12}
    protocol = PROTOCOLS["multiscale"]
    eval_program.score(None, config, arguments, protocol, tmp_path / "out", "cpu")
    assert given["protocol"] is protocol and given["keep"] == 4 and given["num_classes"] == 12
    assert given["dataset"].split == "test" and (tmp_path / "out" / "shapes-test.png").is_file()
    given["save"](3, np.zeros((4, 4), np.uint8))
    assert (tmp_path / "saved" / "test_00003.png").is_file()
    with pytest.raises(UserError, match="has 12 classes, the checkpoint was trained for 11"):
        eval_program.score(None, {**config, "num_classes": 11}, arguments, protocol, tmp_path,
                           "cpu")


@pytest.mark.parametrize("others,name", [
    ((), "a-segmented.png"), (("a.txt", "b.png"), "a-segmented.png"),
    (("a.png",), "a.jpg-segmented.png"), (("a.PNG", "a.bmp"), "a.jpg-segmented.png"),
])
def test_names_of_segmented_pictures(monkeypatch, tmp_path, others, name):
    (tmp_path / "in").mkdir()
    for other in others:
        (tmp_path / "in" / other).touch()
    Image.new("RGB", (8, 6)).save(tmp_path / "in" / "a.jpg")
    monkeypatch.setattr(segment, "predict", lambda *_: np.zeros((6, 8), np.uint8))
    arguments = argparse.Namespace(image=tmp_path / "in" / "a.jpg", save_predictions=None)
    config = {"classes": ["ground"], "palette": [[9, 9, 9]]}
    segment.segment(None, config, arguments, PROTOCOLS["whole"], tmp_path / "out", "cpu")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


# ----------------------------------------------------------------------------- networks and options


def saved_run(folder, **changes):
    config = {"paper": "pysa", "preset": "tiny", "num_classes": 3, "options": {"channels": 8},
              "dataset": "shapes", "classes": list("abc"), "palette": [[0, 0, 0]] * 3}
    model = options.build_model("pysa", "tiny", 3, {"channels": 8})
    state = {"model": model.state_dict(), "config": config, "recipe": {"crop_size": 96},
             "optimizer": {}, "log": [], "step": 0}
    checkpoint.save(folder / "best.pt", {**state, **changes})
    return model


@pytest.mark.parametrize("name", ["", "best.pt"])
def test_networks_are_loaded_for_evaluation(tmp_path, name):
    model = saved_run(tmp_path)
    loaded, config, recipe, out = weights.load_network(
        tmp_path / name, None, None, None, (), None)
    assert not any(module.training for module in loaded.modules())
    assert out == tmp_path and recipe.crop_size == 96 and config["options"] == {"channels": 8}
    assert torch.equal(loaded.head.classifier.weight, model.head.classifier.weight)


def test_official_files_have_the_recipe_of_their_size(monkeypatch, tmp_path):
    """A stand-in for a converted file of the large LRFormer."""
    official = types.SimpleNamespace(
        build_arguments=lambda state, **told: {"preset": "l", "num_classes": 150, **told},
        convert=lambda state, **told: state)
    monkeypatch.setattr(weights, "load_paper", lambda name, part: official)
    monkeypatch.setattr(options, "parse", lambda pairs, paper: dict(pairs))
    checkpoint.save(tmp_path / "file.pth", {})
    config, _, recipe = weights.load_official(
        tmp_path / "file.pth", "lrformer", None, [("heads", 2)], "ade20k")
    assert recipe.crop_size == 640 and config["options"] == {"heads": 2}
    assert (config["preset"], config["num_classes"], config["dataset"]) == ("l", 150, "ade20k")
    with pytest.raises(UserError, match="--preset t: .* holds l"):
        weights.load_official(tmp_path / "file.pth", "lrformer", "t", (), "ade20k")


@pytest.mark.parametrize("pair,paper,value", [
    ("context=off", "pysa", False), ("context=No", "pysa", False), ("context=true", "pysa", True),
    ("channels=8", "pysa", 8), ("normalization_factor=2", "psanet", 2),
])
def test_options(pair, paper, value):
    found = options.parse([pair], paper)
    assert found == {pair.partition("=")[0]: value} and [*found.values()][0] is value


@pytest.mark.parametrize("pair,paper", [
    ("channels=8.5", "pysa"), ("normalization_factor=1e999", "psanet"), ("context=2", "pysa"),
    ("channels", "pysa"),
])
def test_options_of_another_kind(pair, paper):
    with pytest.raises(UserError, match=f"--set {pair}: wanted"):
        options.parse([pair], paper)


def test_options_reach_the_network():
    model = options.build_model("pysa", "tiny", 3, {"channels": 8})
    assert model.head.classifier.in_channels == 8
    with pytest.raises(UserError, match="--set: .*chanels"):
        options.build_model("pysa", "tiny", 3, {"chanels": 8})


def test_devices(monkeypatch):
    """The best there is, if none is asked for; never one that is not there."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.pick_device(None) == "cpu"
    with pytest.raises(UserError, match="--device cuda: not available here; valid: cpu"):
        cli.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cli.pick_device(None) == "cuda" and cli.pick_device("cuda:0") == "cuda:0"
    assert cli.pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="there are 1 CUDA devices"):
        cli.pick_device("cuda:1")


@pytest.mark.parametrize("kind,text", [
    (options.positive(int), "0"), (options.positive(int), "-3"), (options.positive(float), "inf"),
    (options.positive(float), "nan"), (options.factors, "0.5,0"), (options.factors, "1,-1"),
])
def test_numbers_that_are_none(kind, text):
    with pytest.raises(ValueError):
        kind(text)
    assert options.positive(int)("1") == 1 and eval_program.factors("0.5,2") == (0.5, 2.0)
