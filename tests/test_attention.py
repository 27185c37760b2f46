"""What `eval.py --attention` shows is what the network used, at the pixel that was asked for."""

import importlib
import types

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common import cli as cli_module
from common.errors import UserError
from datasets import pictures
from datasets.shapes import CLASSES, PALETTE, Shapes
from papers import attention, options
from studies import receptive_field
from studies.trainings import ROWS, command, finished, run_of
from tests.helpers import close

PAPERS = ("pysa", "unept", "pan", "psanet", "lrformer")
# not square, and 90 is no row: rows and columns cannot change places unnoticed
SIZE, PIXEL = (64, 96), (13, 90)
# layers that run in training only
UNUSED = ("aux_head",)


def network(paper, **options):
    """A tiny network in evaluation mode whose every parameter matters: nothing is zero or
    uniform."""
    torch.manual_seed(0)
    model = importlib.import_module(f"papers.{paper}.model").build(3, **options)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


# ------------------------------------------------------------------------------------ the mechanism


def test_recording_changes_nothing():
    model, images = network("pysa"), torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        before = model(images)["out"]
        with attention.record(model, ("head.levels.*.query", "head")) as record:
            assert torch.equal(model(images)["out"], before)
        queries = {f"head.levels.{number}.query" for number in range(4)}
        assert set(record) == {"head", *queries}
        record.clear()
        model(images)
    assert not record
    with pytest.raises(RuntimeError), attention.record(model, ("*",)):
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.modules())


def test_pixel_is_row_then_column():
    assert attention.parse_pixel("13,90", SIZE) == PIXEL
    assert attention.parse_pixel("63,95", SIZE) == (63, 95)
    for text in ("90,13", "64,0", "-1,0", "0,96"):
        with pytest.raises(UserError, match="rows 0 to 63 and columns 0 to 95"):
            attention.parse_pixel(text, SIZE)
    for text in ("13", "13,90,1", "a,b", "1.5,2", ""):
        with pytest.raises(UserError, match="ROW,COL"):
            attention.parse_pixel(text, SIZE)


@pytest.mark.parametrize("shape,scale,seen,place", [
    (SIZE, 1.0, SIZE, PIXEL), ((128, 192), 0.5, SIZE, (13, 90)),
    ((20, 50), 1.0, (32, 50), (13, 40)),
    ((100, 60), 0.5, (50, 32), (6, 29)),
])
def test_the_place_in_what_the_network_sees(shape, scale, seen, place):
    """The pixel goes through resizing; padding is cut off the maps again; points become fractions
    of the image."""
    pixel = {SIZE: PIXEL, (128, 192): (27, 181), (20, 50): (13, 40), (100, 60): (13, 59)}[shape]

    def look(model, record, size, found):
        assert size == seen and found == place
        mark = torch.zeros(size)
        mark[found] = 1
        return [("map", mark),
                ("points", {"a": torch.tensor([[found[1] + 0.5, found[0] + 0.5, 1.0]])}),
                ("bars", torch.arange(3.0))]

    image = np.zeros((*shape, 3), np.uint8)
    explain = types.SimpleNamespace(RECORD=("head",), explain=look)
    prediction, panels = attention.look(network("pysa", context=False), explain, image, pixel,
                                        scale)
    assert prediction.shape == shape
    (_, mark), (_, points), (_, bars) = panels
    scaled = [round(side * scale) for side in shape]
    assert mark.shape == tuple(scaled) and np.argwhere(mark).tolist() == [list(place)]
    assert np.allclose(points["a"],
                       [[(place[1] + 0.5) / scaled[1], (place[0] + 0.5) / scaled[0], 1]])
    assert bars.tolist() == [0, 1, 2]


@pytest.mark.parametrize("paper", PAPERS)
@torch.no_grad()
def test_the_recorder_names_every_intermediate(paper):
    """Every layer with weights, by name, with what it returned; the network is as it was."""
    known = importlib.import_module(f"papers.{paper}.model").DEFAULTS
    model = network(paper, **{"fast": False} if "fast" in known else {})
    images = torch.randn(1, 3, *SIZE)
    before = model(images)["out"]
    with attention.record(model) as seen:
        after = model(images)["out"]
    assert torch.equal(before, after) and torch.equal(after, seen[""][1]["out"])
    shapes = attention.shapes(seen)
    assert shapes[""] == {"out": (1, 3, *SIZE)}
    layers = {name for name, module in model.named_modules()
              if any(True for _ in module.parameters(recurse=False))}
    unseen = {name for name in layers - set(seen) if not name.startswith(UNUSED)}
    assert layers and not unseen, unseen
    with_weight = [name for name in layers & set(seen)
                   if isinstance(model.get_submodule(name), torch.nn.Conv2d)]
    for name in with_weight:
        assert shapes[name][:2] == (1, model.get_submodule(name).out_channels), name
    assert attention.shapes({"a": (None, [images, {"b": images}, 7])}) == {
        "a": [(1, 3, *SIZE), {"b": (1, 3, *SIZE)}, 7]}


def test_points_are_fractions_of_the_sides():
    """x = 4 of 8 columns, y = 3 of 12 rows, whatever the padding."""
    points = {"map": torch.tensor([[4.0, 3.0, 0.7]])}
    found = attention.fit(points, (12, 8), (16, 32))["map"]
    assert np.allclose(found, [[0.5, 0.25, 0.7]])


def test_no_context_is_said():
    image = np.zeros((*SIZE, 3), np.uint8)
    for paper in PAPERS:
        explain, model = importlib.import_module(f"papers.{paper}.explain"), network(
            paper, context=False)
        with pytest.raises(UserError, match="no context to look at"):
            attention.look(model, explain, image, PIXEL)


# ------------------------------------------------------------------------------------ the drawing


def brightest(panel):
    """(x, y) of the middle of the pure white of a panel's picture, without its foot."""
    pixels = np.asarray(panel)[: panel.height - pictures.FOOT]
    return np.argwhere((pixels == 255).all(-1)).mean(0)[::-1]


def test_the_ring_is_at_the_pixel():
    image = np.zeros((100, 200, 3), np.uint8)
    x, y = brightest(pictures.plain_panel(image, (20, 150)))
    assert abs(x - 150.5) < 1 and abs(y - 20.5) < 1  # a panel is 200 pixels wide


def test_a_map_is_drawn_where_it_lies():
    """One cell of 2 x 4 in yellow, the others, exactly zero, in grey."""
    values = np.zeros((2, 4))
    values[0, 3] = 0.25
    drawn = np.asarray(pictures.map_panel(np.zeros((100, 200, 3), np.uint8),
                                          values))[: 100].astype(int)
    coloured = np.argwhere(drawn.max(-1) - drawn.min(-1) > 30)
    assert coloured.min(0).tolist() == [0, 150] and coloured.max(0).tolist() == [49, 199]
    assert drawn[20, 180, 0] > drawn[20, 180, 2] + 100  # yellow


def test_points_are_drawn_where_they_lie_and_as_large_as_they_weigh():
    image = np.zeros((100, 200, 3), np.uint8)
    sizes = []
    for weight in (0.25, 1.0):
        points = {"near": np.array([[0.75, 0.5, weight]]), "outside": np.array([[1.5, 0.5, 1.0]])}
        drawn = np.asarray(pictures.points_panel(image, points))[: 100].astype(int)
        coloured = np.argwhere(drawn.max(-1) - drawn.min(-1) > 30)
        assert np.abs(coloured.mean(0) - (50, 150)).max() < 1
        sizes.append(np.ptp(coloured, axis=0).mean())
    assert abs(sizes[1] / sizes[0] - 2) < 0.1  # four times the area


def test_bars_stand_on_zero():
    drawn = np.asarray(pictures.bars_panel(np.array([-1.0, 3.0])))
    blue = (drawn == pictures.SERIES[0]).all(-1)
    left, right = blue[:, 60], blue[:, 180]
    assert (left[:148].all() and not left[152:200].any() and right[153:199].all()
            and not right[:148].any())


# ------------------------------------------------------------------------------------ the program


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints as train.py writes them, of untrained tiny networks, one per paper."""
    folder = tmp_path_factory.mktemp("attention")
    for paper in PAPERS:
        config = {"paper": paper, "preset": "tiny", "num_classes": len(CLASSES), "options": {},
                  "dataset": "shapes",
                  "classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE]}
        model = importlib.import_module(f"papers.{paper}.model").build(len(CLASSES))
        state = {"model": model.state_dict(), "config": config,
                 "recipe": {"crop_size": 128, "test_scale": 1.0}}
        checkpoint.save(folder / f"{paper}.pt", {**state, "optimizer": {}, "log": [], "step": 0})
    return folder


@pytest.mark.parametrize("paper", PAPERS)
def test_program(cli, saved, tmp_path, paper):
    code, out, err = cli("eval", saved / f"{paper}.pt", "--attention", "30,100", "--out", tmp_path,
                         "--device", "cpu")
    assert code == 0, err
    target = tmp_path / "val_00000-attention-30-100.png"
    assert str(target) in out
    with Image.open(target) as picture:
        page = np.asarray(picture.convert("RGB"))
    image = Shapes("val")[0][0]
    wanted = np.asarray(pictures.plain_panel(image, (30, 100)))
    found = [y for y in range(30, 140) if (page[y : y + 200, 14:214] == wanted[:200]).all()]
    assert len(found) == 1, "the first panel is the image with its ring"


def test_program_with_a_large_picture(cli, saved, tmp_path):
    """Made smaller for the network, and said so; asked for a scale, it is that."""
    photo = np.random.default_rng(0).integers(0, 255, (40, 1500, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "wide.png")
    run = ("eval", saved / "pysa.pt", "--image", tmp_path / "wide.png", "--out", tmp_path,
           "--device", "cpu")
    code, out, err = cli(*run, "--attention", "39,1499")
    assert (code == 0 and "1024 pixels" in out
            and (tmp_path / "wide-attention-39-1499.png").exists()), err
    code, out, err = cli(*run, "--attention", "3,149", "--scales", "0.8")
    assert code == 0 and "1024" not in out, err


@pytest.mark.parametrize("arguments,words", [
    (("--attention", "30"), ["--attention 30", "ROW,COL"]),
    (("--attention", "30,128"), ["--attention 30,128", "rows 0 to 127 and columns 0 to 127"]),
    (("--attention", "1,1", "--protocol", "sliding"), ["--attention", "whole"]),
    (("--attention", "1,1", "--scales", "1,2"), ["--attention", "one of --scales"]),
    (("--attention", "1,1", "--image", "nowhere.png"), ["nowhere.png"]),
])
def test_mistakes_are_one_line(cli, saved, tmp_path, arguments, words):
    code, out, err = cli("eval", saved / "pysa.pt", *arguments, "--out", tmp_path, "--device",
                         "cpu")
    assert (code == 2 and err.count("\n") == 1 and err.startswith("error: ")
            and not list(tmp_path.iterdir()))
    assert all(word in err for word in words), err


def test_a_paper_without_explanation_is_said(cli, saved, tmp_path, monkeypatch):
    load = cli_module.load_paper
    monkeypatch.setattr(attention, "load_paper",
                        lambda name, part="model": load(name, {"explain": "none"}.get(part, part)))
    code, _, err = cli("eval", saved / "pysa.pt", "--attention", "1,1", "--out", tmp_path,
                       "--device", "cpu")
    assert code == 2 and "papers/pysa has no explain.py" in err


# --------------------------------------------------------------------- pictures of trained networks


def test_receptive_field_of_a_convolution():
    """Of a convolution it is the absolute kernel."""
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, (3, 5), padding=(1, 2))

        def forward(self, images):
            return {"out": self.conv(images)}

    network, images = Network(), np.zeros((2, 20, 30, 3), np.uint8)
    field = torch.from_numpy(receptive_field.receptive_field(network, images, [0, 1])).float()
    wanted = torch.zeros(20, 30)
    wanted[9:12, 13:18] = network.conv.weight.abs().sum(1).mean(0)
    close(field, wanted)
    assert receptive_field.radius(field.numpy(), 0.99) == 2


def test_radius():
    """Of an even field: the square that holds 90 % of it."""
    # 97 * 97 / 101 / 101 = 92 %, 95 * 95: 88 %
    assert receptive_field.radius(np.ones((101, 101))) == 48
    assert receptive_field.radius(np.eye(1)) == 0


def test_commands_that_train_are_those_of_train_py(tmp_path, monkeypatch):
    import train
    for row, wanted in zip(ROWS["unept"], ({}, {"context": False}), strict=False):
        run = run_of("unept", row, 1)
        monkeypatch.setattr("sys.argv", command(*run))
        arguments = train.parse()
        assert options.parse(arguments.set, "unept") == wanted and arguments.resume
        assert (arguments.paper, arguments.seed, arguments.steps) == ("unept", 1, run[1])
        assert (arguments.out, arguments.device) == (run[0], "cpu")
    assert not finished(tmp_path, 3)
    for name in ("best.pt", "last.pt"):
        state = {"model": {}, "optimizer": {}, "config": {}, "recipe": {"steps": 3}, "log": [],
                 "step": 2}
        checkpoint.save(tmp_path / name, state)
    assert not finished(tmp_path, 3)
    checkpoint.save(tmp_path / "last.pt", {**state, "step": 3})
    assert finished(tmp_path, 3) and not finished(tmp_path, 4)


def test_weight_near_a_place():
    """Of points only those near the middle of the mask count; maps have none."""
    mask = np.zeros((4, 8), bool)
    mask[1, 2] = True                                           # the middle: x = 0.25, y = 0.25
    points = {"1/8": np.array([[0.25, 0.3, 0.5], [0.3, 0.9, 0.2]]),
              "1/16": np.array([[0.39, 0.25, 0.125], [0.41, 0.25, 0.175]])}
    assert attention.weight_near(points, mask) == 0.625
    assert attention.weight_near(np.ones((4, 8)), mask) == 0
