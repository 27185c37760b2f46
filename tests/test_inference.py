"""Whole images, windows, scales, mirror images: identities that hold for every network, and the
published rules."""

import dataclasses
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.inference import (
    PROTOCOLS,
    Protocol,
    fitted_size,
    normalise,
    predict,
    scores,
    window_starts,
    window_strips,
)

WHOLE = PROTOCOLS["whole"]


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


class Pointwise(nn.Module):
    """Scores that depend on the pixel's own colour only: any window gives the same."""

    def __init__(self, num_classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, num_classes, 1)

    def forward(self, images):
        return {"out": self.layer(images)}


class Surroundings(Pointwise):
    """Scores that depend on the neighbourhood, on the place in the window and on its size,
    differently left and right."""

    def forward(self, images):
        places = torch.linspace(0, 1, images.shape[-1]) + 0.01 * images.shape[-2]
        return {"out": self.layer(F.avg_pool2d(images, 3, 1, 1)) + torch.arange(5.0)[:, None, None]
                * places}


class Coarse(Pointwise):
    """Answers at an eighth of the resolution."""

    def forward(self, images):
        return {"out": self.layer(F.avg_pool2d(images, 8, ceil_mode=True))}


@pytest.mark.parametrize("size", [(40, 56), (33, 47), (64, 64)])
@pytest.mark.parametrize("network", [Pointwise, Surroundings, Coarse])
def test_a_window_as_large_as_the_image_is_the_whole_image(network, size):
    image, model = picture(*size), network()
    if size[0] == size[1]:
        assert torch.equal(scores(model, image, Protocol(crop=size[0])), scores(model, image))
    expected = model(normalise(image)[None])["out"]
    if expected.shape[-2:] != image.shape[:2]:
        expected = F.interpolate(expected, image.shape[:2], mode="bilinear", align_corners=False)
    assert torch.equal(scores(model, image), expected[0])


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("crop,stride", [(32, 0), (32, 32), (40, 7), (100, 0), (32, 50)])
def test_windows_do_not_matter_to_a_pointwise_network(average, crop, stride):
    image, model = picture(45, 70), Pointwise()
    expected = scores(model, image)
    if average == "probabilities":
        expected = expected.softmax(0)
    for centre in (False, True):
        got = scores(model, image,
                     Protocol(crop=crop, stride=stride, average=average, centre=centre))
        assert torch.allclose(got, expected, atol=1e-5)


def test_a_constant_image_does_not_depend_on_the_stride():
    image, model = np.full((50, 90, 3), 77, np.uint8), Pointwise()
    assert all(torch.allclose(scores(model, image, Protocol(crop=32, stride=s)),
                              scores(model, image), atol=1e-6)
               for s in (4, 5, 32))


@pytest.mark.parametrize("protocol", [
    Protocol(crop=32), Protocol(crop=32, average="probabilities", flip=True),
    Protocol(crop=32, scales=(0.5, 1.5), flip=True),
])
def test_the_number_of_windows_at_a_time_does_not_matter(protocol, monkeypatch):
    image, model, found = picture(60, 75), Surroundings(), []
    for batch in (1, 2, 5, 1000):
        monkeypatch.setattr("common.inference.PIXELS_AT_ONCE", batch * protocol.crop**2)
        found.append(scores(model, image, protocol))
        assert torch.allclose(found[-1], found[0], atol=1e-5)


@pytest.mark.parametrize("protocol", [
    WHOLE, Protocol(crop=32), Protocol(crop=40, scales=(1.3,), centre=True),
    Protocol(crop=32, average="probabilities", flip=True),
    Protocol(crop=32, scales=(0.5, 1.5), flip=True), Protocol(flip=True),
])
def test_classes_are_the_highest_scores(protocol, monkeypatch):
    """Decided cell by cell and strip by strip, here of a few rows."""
    image, model = picture(60, 75), Surroundings()
    expected = scores(model, image, protocol).argmax(0)
    monkeypatch.setattr("common.inference.STRIP", 2000)
    assert torch.equal(torch.from_numpy(predict(model, image, protocol)).long(), expected)


@pytest.mark.parametrize("size,crop,stride", [
    ((60, 75), 32, 22), ((60, 75), 32, 7), ((64, 64), 32, 32), ((90, 33), 32, 5), ((7, 9), 32, 0)])
@pytest.mark.parametrize("scale", [1.0, 0.6, 1.7])
def test_cells_cover_the_result_once(size, crop, stride, scale):
    """And none is larger than a window."""
    copy = torch.zeros(3, *(round(side * scale) for side in size))
    covered = torch.zeros(size)
    with torch.inference_mode():
        cells = [*window_strips(Pointwise(), copy, size, Protocol(crop=crop, stride=stride))]
    for (row, column), part in cells:
        assert part.shape[0] == 5 and max(part.shape[1:]) <= math.ceil(crop / scale) + 1
        covered[row : row + part.shape[1], column : column + part.shape[2]] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("sides", [(256, 208), (208, 256), (252, 210)])
def test_what_waits_is_where_windows_overlap(sides, scale, flip, monkeypatch):
    """Never more pixels wait than the overlap of two rows of windows and one window have, and no
    cell is made twice, nor for one window alone."""
    alive, most, new_zeros = weakref.WeakSet(), [], torch.Tensor.new_zeros

    def count(tensor, *size):
        made = new_zeros(tensor, *size)
        if size[-1] == 5:  # a cell
            alive.add(made)
            most.append(sum(cell[..., 0].numel() for cell in alive))
        return made

    monkeypatch.setattr(torch.Tensor, "new_zeros", count)
    protocol = Protocol(crop=32, scales=(scale,), average="probabilities", flip=flip)
    predict(Pointwise(), picture(*(round(side / scale) for side in sides)), protocol)
    covered = []
    for side in sides:
        starts = window_starts(side, 32, 22)
        edges = sorted({edge for n in starts for edge in (n, n + 32)})
        covered.append([sum(n <= edge < n + 32 for n in starts) for edge in edges[:-1]])
    if scale == 1:
        assert len(most) == sum(a * b > 1 for a, b in itertools.product(*covered))
    # Two rows more where a pixel lies between two of the copy; the overlap of the last two rows'
    # windows, which run together; and a cell that is just decided.
    assert max(most) <= (10 + 2 * (scale != 1)) * (min(sides) + 2 * 32) + 32 * 32 + 12 * 12


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_scores_of_a_window_are_gone_before_the_next_one(average, monkeypatch):
    """They are as large as all that waits. Only a mirrored window runs beside those of its own."""
    monkeypatch.setattr("common.inference.PIXELS_AT_ONCE", 1)
    alive, left, model = weakref.WeakSet(), [], Pointwise()
    model.register_forward_pre_hook(lambda *_: left.append(len(alive)))
    model.register_forward_hook(lambda module, inputs, output: alive.add(output["out"]))
    for compute in (predict, scores):
        for protocol in (Protocol(crop=32), Protocol(scales=(1.0, 0.5), flip=True)):
            compute(model, picture(80, 120), dataclasses.replace(protocol, average=average))
            windows = left[:: 2 if protocol.flip and average == "probabilities" else 1]
            assert len(windows) > 1 and set(windows) == {0} and max(left) <= 1
            left.clear()


@pytest.mark.parametrize("protocol", [
    Protocol(flip=True), Protocol(flip=True, average="probabilities"),
    Protocol(flip=True, scales=(0.5, 1.25)),
])
def test_mirror_images(protocol):
    """A mirrored image gives the mirrored answer, which one direction alone does not."""
    image, model = picture(48, 40), Surroundings()
    answer = scores(model, image, protocol)
    assert torch.allclose(scores(model, image[:, ::-1].copy(), protocol).flip(-1), answer,
                          atol=1e-5)
    alone = dataclasses.replace(protocol, flip=False)
    assert not torch.allclose(scores(model, image[:, ::-1].copy(), alone).flip(-1),
                              scores(model, image, alone), atol=1e-2)


def test_a_picture_mirrored_by_numpy():
    """It runs backwards in memory, which PyTorch refuses."""
    image, model = picture(48, 40), Surroundings()
    for mirrored in (image[:, ::-1], image[::-1], image[..., ::-1]):
        assert np.array_equal(predict(model, mirrored), predict(model, mirrored.copy()))


@pytest.mark.parametrize("size,crop,stride", [(100, 32, 21), (465, 465, 310), (466, 465, 310),
                                              (1, 32, 5), (96, 32, 32)])
def test_window_starts(size, crop, stride):
    """Every pixel is covered, windows end at the border, and their number is that of both published
    codes."""
    starts = window_starts(size, crop, stride)
    covered = np.zeros(max(size, crop), int)
    for start in starts:
        covered[start : start + crop] += 1
    assert covered.min() >= 1 and max(starts) + crop == max(size, crop)
    assert len(starts) == max(size - crop + stride - 1, 0) // stride + 1  # mmsegmentation
    assert len(starts) == max(int(np.ceil((size - crop) / stride)), 0) + 1  # semseg


def test_windows_overlap_by_a_third_of_the_crop_rounded_up(monkeypatch):
    """Crop 32, so strides of 22: windows from 0, 22 and 44 cover 76 pixels, and no fourth one."""
    monkeypatch.setattr("common.inference.PIXELS_AT_ONCE", 1)
    seen, model = [], Pointwise()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = picture(32, 76)
    scores(model, image, Protocol(crop=32))
    x = normalise(image)[None]
    assert len(seen) == 3
    assert all(torch.equal(window, x[..., s : s + 32]) for window, s in zip(seen, (0, 22, 44)))


def test_sizes_that_the_network_sees():
    """Half of 79 and 97 is rounded to 40 and 48; a picture of a few pixels is padded with 0, the
    mean colour, at the bottom and right."""
    seen, model = [], Pointwise()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    scores(model, picture(79, 97), Protocol(scales=(0.5,)))
    assert seen[0].shape == (1, 3, 40, 48)
    scores(model, picture(5, 7))
    assert seen[1].shape == (1, 3, 32, 32) and seen[1][..., :5, :7].abs().min() > 0
    assert seen[1][..., 5:, :].abs().max() == seen[1][..., 7:].abs().max() == 0


def test_sliding_by_hand():
    """Two windows of 32 on 32 x 48: the mean of their logits where they overlap."""
    image, model = picture(32, 48), Surroundings()
    x = normalise(image)[None]
    left, right = (model(x[..., start : start + 32])["out"][0] for start in (0, 16))
    expected = torch.cat([left[..., :16], (left[..., 16:] + right[..., :16]) / 2, right[..., 16:]],
                         dim=-1)
    assert torch.allclose(scores(model, image, Protocol(crop=32, stride=16)), expected, atol=1e-6)


def semseg(model, image, base, crop, scales):
    """The test of PSANet's authors, as they wrote it: one window, one map per scale at the scale's
    own size."""
    size, total = image.shape[:2], 0
    for scale in scales:
        long = round(scale * base)
        scaled = [round(long / max(size) * side) for side in size]
        x = F.interpolate(normalise(image)[None], scaled, mode="bilinear", align_corners=False)
        pad = [max(crop - side, 0) for side in scaled]
        before = [p // 2 for p in pad]
        x = F.pad(x, (before[1], pad[1] - before[1], before[0], pad[0] - before[0]))
        stride = int(np.ceil(crop * 2 / 3))
        grid = [int(np.ceil((side - crop) / stride)) + 1 for side in x.shape[-2:]]
        probability, count = torch.zeros(1, 5, *x.shape[-2:]), torch.zeros(x.shape[-2:])
        for i in range(grid[0]):
            for j in range(grid[1]):
                bottom, right = min(i * stride + crop,
                                    x.shape[-2]), min(j * stride + crop, x.shape[-1])
                window = (..., slice(bottom - crop, bottom), slice(right - crop, right))
                both = model(torch.cat([x[window], x[window].flip(-1)]))["out"].softmax(1)
                probability[window] += ((both[0] + both[1].flip(-1)) / 2)[None]
                count[window[1:]] += 1
        rows, columns = (slice(b, b + side) for b, side in zip(before, scaled, strict=True))
        probability = (probability / count)[..., rows, columns]
        total = total + F.interpolate(probability, size, mode="bilinear", align_corners=False)[0]
    return total


@pytest.mark.parametrize("size", [(37, 53), (90, 61), (20, 80)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)])
def test_protocol_of_psanet(size, scales):
    """Windows that go straight into the final resolution give what averaging first and resizing
    then gives."""
    from papers.psanet.recipe import windows
    image, model = picture(*size), Surroundings()
    protocol = dataclasses.replace(windows(33, 64), scales=scales)
    with torch.no_grad():
        expected = semseg(model, image, 64, 33, scales)
    assert torch.allclose(scores(model, image, protocol), expected, atol=2e-5)


def mmseg(model, image, fit, crop, stride, ratios):
    """Windows, ratios and mirror images as mmsegmentation 0.x has them: logits averaged, then
    resized, then softmax."""
    size, total = image.shape[:2], 0
    for ratio in ratios:
        box = [int(side * ratio) for side in fit]
        factor = min(max(box) / max(size), min(box) / min(size))
        scaled = [int(side * factor + 0.5) for side in size]
        resized = F.interpolate(normalise(image)[None], scaled, mode="bilinear",
                                align_corners=False)
        for flip in (False, True):
            x = resized.flip(-1) if flip else resized
            x = F.pad(x, (0, max(0, crop - x.shape[-1]), 0, max(0, crop - x.shape[-2])))
            grid = [max(side - crop + stride - 1, 0) // stride + 1 for side in x.shape[-2:]]
            logits, count = torch.zeros(1, 5, *x.shape[-2:]), torch.zeros(x.shape[-2:])
            for i in range(grid[0]):
                for j in range(grid[1]):
                    bottom, right = min(i * stride + crop,
                                        x.shape[-2]), min(j * stride + crop, x.shape[-1])
                    window = (..., slice(max(bottom - crop, 0), bottom),
                              slice(max(right - crop, 0), right))
                    logits[window] += model(x[window])["out"]
                    count[window[1:]] += 1
            logits = (logits / count)[..., : scaled[0], : scaled[1]]
            probability = F.interpolate(logits, size, mode="bilinear",
                                        align_corners=False).softmax(1)[0]
            total = total + (probability.flip(-1) if flip else probability)
    return total


@pytest.mark.parametrize("size", [(37, 53), (90, 61), (20, 80)])
def test_protocol_of_unept(size):
    from papers.unept.recipe import windows
    image, model, ratios = picture(*size), Surroundings(), (0.5, 1.0, 1.75)
    protocol = dataclasses.replace(windows((200, 50), 48, 16), scales=ratios)
    with torch.no_grad():
        expected = mmseg(model, image, (200, 50), 48, 16, ratios)
    assert torch.allclose(scores(model, image, protocol), expected, atol=2e-5)


def test_protocol_of_lrformer():
    """Whole image, sides stretched up to multiples of 32 by a second resize."""
    seen = []
    model = Surroundings()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = picture(37, 53)
    answer = scores(model, image, Protocol(fit=(2048, 50), multiple=32))
    first = F.interpolate(normalise(image)[None], (50, 72), mode="bilinear", align_corners=False)
    assert torch.equal(seen[0],
                       F.interpolate(first, (64, 96), mode="bilinear", align_corners=False))
    expected = F.interpolate(model(seen[0])["out"], (37, 53), mode="bilinear",
                             align_corners=False)[0]
    assert torch.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("size,fit,factor,expected", [
    ((512, 683), (2048, 512), 1.0, (512, 683)), ((256, 256), (2048, 512), 1.0, (512, 512)),
    ((100, 1000), (2048, 512), 1.0, (205, 2048)), ((375, 500), (520, 520), 1.0, (390, 520)),
    ((375, 500), (520, 520), 0.75, (293, 390)), ((1024, 2048), (2048, 1024), 0.5, (512, 1024)),
])
def test_fitted_size(size, fit, factor, expected):
    assert fitted_size(size, fit, factor) == expected
    assert fitted_size(size[::-1], fit, factor) == expected[::-1]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 33), (200, 3)])
@pytest.mark.parametrize("protocol", [
    WHOLE, Protocol(crop=32), Protocol(scales=(0.5,)),
    Protocol(fit=(64, 48), crop=32, average="probabilities", flip=True),
    PROTOCOLS["multiscale"], Protocol(fit=(2048, 8), multiple=32),
])
def test_every_size(size, protocol):
    prediction = predict(Pointwise(), picture(*size),
                         dataclasses.replace(protocol, crop=min(protocol.crop, 40)))
    assert prediction.shape == size and prediction.dtype == np.uint8


def test_a_smaller_answer_than_the_windows():
    """Images larger than their labels do not occur, but copies at large scales do: windows may
    touch no pixel."""
    assert torch.allclose(
        scores(Pointwise(), np.full((4, 5, 3), 9, np.uint8), Protocol(scales=(40.0,), crop=32)),
        scores(Pointwise(), np.full((4, 5, 3), 9, np.uint8)), atol=1e-5)


def test_every_paper_protocol_is_possible():
    import importlib
    from pathlib import Path

    import datasets
    for path in Path(__file__).parent.parent.glob("papers/*/recipe.py"):
        recipe = importlib.import_module(f"papers.{path.parent.name}.recipe")
        for name, protocol in recipe.PROTOCOLS.items():
            assert name.removesuffix("_l") in datasets.NAMES and name in recipe.RECIPES
            assert (protocol.average in ("logits", "probabilities")
                    and protocol.stride <= (protocol.crop or 1))
