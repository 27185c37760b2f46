"""From an image of any size to scores and labels: whole, in sliding windows, at several scales.

Prediction and label meet at the label's own size: scores are enlarged, never the label or classes.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import processes
from .metrics import ConfusionMatrix

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB in 0..1
SMALLEST = 32  # pixels per side that every network here accepts
PIXELS_AT_ONCE = 512 * 512  # in a batch of windows
STRIP = 16  # rows, of what is decided or added at once: few enough for the cache
SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass
class Protocol:
    """How an image becomes scores. The defaults run the network once on the image as it is.

    Images smaller than a window are padded with the mean colour. `average` is what is averaged
    where windows overlap; with "probabilities" it is the windows that are mirrored, with "logits"
    the whole image is.
    """

    fit: tuple = ()  # (long, short): resized to just fit into this box first; () = its own size
    multiple: int = 1  # after the scales: each side is resized up to a multiple of this
    scales: tuple = (1.0,)  # factors on that size; their probabilities are added
    flip: bool = False  # whether the mirror image of each joins in
    crop: int = 0  # side of the windows in pixels, 0 = the whole image at once
    stride: int = 0  # pixels between windows, 0 = two thirds of the crop, rounded up
    average: str = "logits"  # or "probabilities"
    centre: bool = False  # padded on both sides; False: at the bottom and right


PROTOCOLS = {
    "whole": Protocol(), "sliding": Protocol(crop=512),
    "multiscale": Protocol(crop=512, scales=SIX_SCALES, flip=True, average="probabilities"),
}


def normalise(images, device="cpu"):
    """uint8 [..., H, W, 3] (array or tensor) -> float [..., 3, H, W], ImageNet-normalised."""
    images = torch.as_tensor(images, device=device).movedim(-1, -3).float() / 255
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]


def fitted_size(size, fit, factor=1.0):
    """The (height, width) that keeps the aspect ratio of `size` and just fits into a box: its long
    side is at most factor * fit[0] and its short side at most factor * fit[1] pixels."""
    longest, shortest = (int(side * factor) for side in fit)
    scale = min(longest / max(size), shortest / min(size))
    return tuple(max(1, int(side * scale + 0.5)) for side in size)


def resize(images, size):
    """Bilinear, half-pixel centres, no antialiasing, as OpenCV. [B, C, H, W] -> [B, C, *size]."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def scores_of(model, images):
    """Scores of a batch [B, 3, H, W] as float32 [B, K, H, W]; some networks answer at less."""
    return resize(model(images)["out"].float(), images.shape[-2:])


def window_starts(size, crop, stride):
    """First pixels of windows that cover `size`: steps of `stride`, the last one moved back."""
    return [*range(0, size - crop, stride), max(0, size - crop)]


def window_scores(model, windows, protocol):
    """What is averaged over windows: logits or probabilities. [B, 3, h, w] -> [B, K, h, w]."""
    scores = scores_of(model, windows)
    if protocol.average == "logits":
        return scores
    scores = scores.softmax(1)
    if protocol.flip:
        scores += scores_of(model, windows.flip(-1)).softmax(1).flip(-1)
        scores /= 2
    return scores


def whole_scores(model, image, size, protocol):
    """Those of a copy of an image in one pass. [3, h, w] -> [K, *size]."""
    (height, width), (image, (top, left)) = image.shape[-2:], pad(image, SMALLEST, protocol.centre)
    scores = window_scores(model, image[None], protocol)
    return resize(scores[..., top : top + height, left : left + width], size)[0]


def pad(image, crop, centre):
    """(at least crop x crop pixels, filled up with the mean colour; where `image` begins)."""
    missing = [max(0, crop - side) for side in image.shape[-2:]]
    top, left = before = [m // 2 if centre else 0 for m in missing]
    if any(missing):
        image = F.pad(image, (left, missing[1] - left, top, missing[0] - top))
    return image, before


def window_cells(model, image, size, protocol):
    """Run the windows of a copy of an image, average where they overlap, resize to `size`.

    image: [3, h, w]. Yields ((row, column) of the first pixel, scores [K, h, w]) of each cell, the
    pixels of the result between edges of windows, once its last window is in: what waits is where
    windows overlap. Resizing is linear, so windows are added at the final resolution.
    """
    sides, crop = tuple(image.shape[-2:]), protocol.crop
    image, before = pad(image, crop, protocol.centre)
    stride = min(crop, protocol.stride or math.ceil(crop * 2 / 3))  # no gaps
    starts = [window_starts(side, crop, stride) for side in image.shape[-2:]]
    rows, columns = (cut(some, crop, *lengths)
                     for some, *lengths in zip(starts, sides, size, before, strict=True))
    over = [sum(F.pad(image.new_ones(crop), (n, side - crop - n)) for n in some)
            for some, side in zip(starts, image.shape[-2:], strict=True)]
    corners, cells = list(itertools.product(*starts)), {}
    if sides[1] > sides[0]:  # along the shorter side, so that few cells wait at a time
        corners.sort(key=lambda corner: corner[::-1])
    missing = Counter(key for y, x in corners for key in itertools.product(rows[y], columns[x]))
    batch = max(1, PIXELS_AT_ONCE // crop**2)
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        windows = torch.stack([image[:, y : y + crop, x : x + crop] for y, x in part])
        for (y, x), scores in zip(part, window_scores(model, windows, protocol), strict=True):
            scores /= over[0][y : y + crop, None] * over[1][x : x + crop]
            for key in itertools.product(rows[y], columns[x]):
                places = rows[y][key[0]], columns[x][key[1]]
                if key not in cells:
                    cells[key] = scores.new_zeros(*map(len, places), len(scores)).movedim(-1, 0)
                cells[key] += look_up(scores, *places, size == sides)
                missing[key] -= 1
                if not missing[key]:
                    yield key, cells.pop(key)
        del scores  # or the next windows would be computed beside these


def cut(starts, crop, side, target, before):
    """Where the pixels of cells lie in windows, along one axis of a result of `target` pixels and a
    copy of `side` pixels that begins at `before`: {start of a window: {start of a cell: places}}.
    """
    places = (torch.arange(target, dtype=torch.float64) + 0.5) * side / target - 0.5
    places = places.clamp(0, side - 1) + before
    reach = [[int((places <= n - 1).sum()), int((places < n + crop).sum())] for n in starts]
    edges = sorted({*sum(reach, [])})
    return {start: {a: places[a:b] - start for a, b in itertools.pairwise(edges) if low <= a < high}
            for start, (low, high) in zip(starts, reach, strict=True)}


def look_up(scores, y, x, same_size):
    """Scores [K, h, w] at places: bilinear, zeros around. same_size: places are whole numbers."""
    top, left, more = int(y[0]), int(x[0]), 1 if same_size else 2
    scores = scores[:, top : int(y[-1]) + more, left : int(x[-1]) + more]
    if same_size:
        return scores
    y, x = ((2 * places + 1) / side - 1
            for places, side in zip((y - top, x - left), scores.shape[-2:], strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(scores)
    return F.grid_sample(scores[None], grid[None], align_corners=False)[0]


def copies(protocol):
    """(scale, whether it is mirrored) of the copies of an image that a network sees one by one."""
    whole = protocol.flip and protocol.average == "logits"
    return list(itertools.product(protocol.scales, (False, True) if whole else (False,)))


@torch.inference_mode()
def parts(model, image, protocol, device):
    """Yields ((row, column) of the first pixel, scores [K, h, w]): added up, those of the image."""
    if (str(image.dtype)[-5:], image.shape[2:]) != ("uint8", (3,)):
        raise ValueError(f"wanted uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    x, size, seen = normalise(image, device), tuple(image.shape[:2]), copies(protocol)
    for scale, mirrored in seen:
        scaled = (fitted_size(size, protocol.fit, scale) if protocol.fit
                  else [max(1, round(side * scale)) for side in size])
        stretched = [math.ceil(n / protocol.multiple) * protocol.multiple for n in scaled]
        copy = resize(resize(x[None], scaled), stretched)[0]
        copy = copy.flip(-1) if mirrored else copy
        found = (window_cells(model, copy, size, protocol) if protocol.crop
                 else [((0, 0), whole_scores(model, copy, size, protocol))])
        for (row, column), whole in found:
            column = size[1] - column - whole.shape[-1] if mirrored else column
            for number, part in enumerate(whole.split(STRIP, dim=1)):
                if len(seen) > 1 and protocol.average == "logits":
                    part = part.movedim(0, -1).softmax(-1).movedim(-1, 0)
                yield (row + number * STRIP, column), part.flip(-1) if mirrored else part


def scores(model, image, protocol=PROTOCOLS["whole"], device="cpu"):
    """Scores of one image, uint8 [H, W, 3] -> float32 [K, H, W]: logits, or sums of probabilities
    where several copies of the image or windows by probability are asked for."""
    total = None
    for (row, column), part in parts(model, image, protocol, device):
        if total is None:  # with the classes last in memory, as networks leave them: fast
            total = part.new_zeros(*image.shape[:2], len(part)).movedim(-1, 0)
        total[:, row : row + part.shape[1], column : column + part.shape[2]] += part
    return total


def predict(model, image, protocol=PROTOCOLS["whole"], device="cpu"):
    """Class ids uint8 [H, W] of one image, uint8 [H, W, 3]. Where it is seen in one copy, the
    scores of the whole image never exist at once."""
    result, one = np.empty(image.shape[:2], np.uint8), len(copies(protocol)) == 1
    for (row, column), part in (parts(model, image, protocol, device) if one
                                else [((0, 0), scores(model, image, protocol, device))]):
        ids = part.max(0).indices.to("cpu", torch.uint8)  # as argmax, in half the time
        result[row : row + len(ids), column : column + ids.shape[1]] = ids
    return result


def evaluate(model, dataset, num_classes, protocol=PROTOCOLS["whole"], device="cpu", keep=0,
             description="evaluate", save=None):
    """Score a dataset. Returns (ConfusionMatrix, the first `keep` (image, label, prediction)).

    Every image counts exactly once, however many processes share them. The network is left in
    evaluation mode. save(index, prediction) is called for each image, if given.
    """
    model.eval()
    matrix, kept, rank = ConfusionMatrix(num_classes), [], processes.rank()
    indices = range(rank, len(dataset), processes.count())
    for index in tqdm(indices, description, unit="image", leave=False, disable=rank > 0, delay=1):
        image, label = dataset[index]
        prediction = predict(model, image, protocol, device)
        matrix.update(prediction, label)
        if len(kept) < keep:
            kept.append((np.asarray(image), np.asarray(label), prediction))
        if save:
            save(index, prediction)
    if processes.count() > 1:
        matrix.counts = processes.agree(torch.from_numpy(matrix.counts).to(device)).cpu().numpy()
    return matrix, kept
