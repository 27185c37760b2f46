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
STRIP = 2**19  # numbers that are decided or added at once: few enough for the cache
SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass
class Protocol:
    """How an image becomes scores. The defaults run the network once on the image as it is.

    Images smaller than a window are padded with the mean colour. Where windows overlap, `average`
    is averaged; `flip` mirrors every window ("probabilities") or the whole image ("logits").
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
    """What is averaged over windows: logits or probabilities. [B, 3, h, w] -> [B, h, w, K]."""
    scores = scores_of(model, windows).movedim(1, -1)
    if protocol.average == "logits":
        return scores
    mirrored = scores_of(model, windows.flip(-1)).movedim(1, -1) if protocol.flip else scores
    rows = max(1, STRIP // scores[:, 0].numel())
    for strip, mirror in zip(scores.split(rows, 1), mirrored.split(rows, 1), strict=True):
        strip.copy_(strip.softmax(-1))  # in place: fresh memory takes longer than softmax
        if protocol.flip:
            strip.add_(mirror.softmax(-1).flip(-2)).div_(2)
    return scores


def pad(image, least, centre):
    """(an image of at least `least` pixels, filled up with the mean colour; where it begins)."""
    missing = [max(0, wanted - side) for wanted, side in zip(least, image.shape[-2:], strict=True)]
    top, left = before = [m // 2 if centre else 0 for m in missing]
    if any(missing):
        image = F.pad(image, (left, missing[1] - left, top, missing[0] - top))
    return image, before


def window_strips(model, image, size, protocol):
    """Run the windows of a copy of an image, average where they overlap, resize to `size`.

    image: [3, h, w]. Yields the `strips` of a cell, the pixels of the result between edges of
    windows, once its last window is in. Until then it waits, in the size of the copy."""
    sides = image.shape[-2:]
    crops = height, width = [protocol.crop or max(side, SMALLEST) for side in sides]
    image, before = pad(image, crops, protocol.centre)
    strides = [min(crop, protocol.stride or math.ceil(crop * 2 / 3)) for crop in crops]  # no gaps
    starts = [*map(window_starts, image.shape[-2:], crops, strides)]
    (places_y, in_y), (places_x, in_x) = map(cut, starts, crops, sides, size, before)
    counts = [sum(F.pad(image.new_ones(crop), (n, side - crop - n)) for n in begin)
              for begin, crop, side in zip(starts, crops, image.shape[-2:], strict=True)]
    # Along the shorter side; the last two lines, which overlap most, as one: few cells wait.
    axis, cells = int(sides[1] > sides[0]), {}
    corners = sorted(itertools.product(*starts),
                     key=lambda yx: (min(yx[axis], *starts[axis][-2:]), yx[1 - axis]))
    awaited = Counter(key for y, x in corners for key in itertools.product(in_y[y], in_x[x]))
    batch = max(1, PIXELS_AT_ONCE // (height * width))
    for first in range(0, len(corners), batch):
        together = corners[first : first + batch]
        windows = torch.stack([image[:, y : y + height, x : x + width] for y, x in together])
        for (y, x), scores in zip(together, window_scores(model, windows, protocol), strict=True):
            if len(corners) > 1:
                scores /= counts[0][y : y + height, None, None] * counts[1][x : x + width, None]
            for key in itertools.product(in_y[y], in_x[x]):
                awaited[key], at = awaited[key] - 1, (places_y[key[0]], places_x[key[1]])
                (to_y, from_y), (to_x, from_x) = in_y[y][key[0]], in_x[x][key[1]]
                piece = scores[from_y, from_x]
                if awaited[key] and key not in cells:  # it needs other windows, too
                    cells[key] = piece.new_zeros(*(math.ceil(p[-1]) + 1 for p in at), piece.size(2))
                if key in cells:
                    cells[key][to_y, to_x] += piece
                if not awaited[key]:
                    yield from strips(cells.pop(key, piece), key, *at)
        scores = piece = None  # or the next windows would be computed beside these


def cut(starts, crop, side, target, before):
    """The cells along an axis, by their first pixel, of a result of `target` pixels and a copy of
    `side` pixels that begins at `before`: {cell: places of its pixels, from the first one that it
    needs}, and {start of a window: {cell: (where in what waits, where in the window)}}."""
    where = (torch.arange(target, dtype=torch.float64) + 0.5) * side / target - 0.5
    where, cells, windows = where.clamp(0, side - 1) + before, {}, {start: {} for start in starts}
    # What lies between two pixels of a copy of another size needs both.
    edges = {edge for n in starts for edge in (n - (side != target), n, n + crop)}
    bounds = torch.searchsorted(where, torch.tensor(sorted(edges), dtype=where.dtype)).tolist()
    for a, b in itertools.pairwise(sorted({*bounds})):
        low, high = int(where[a]), math.ceil(where[b - 1]) + 1
        cells[a] = where[a:b] - low
        for n in starts:
            if n < high and low < n + crop:  # slices end where cell or window ends
                windows[n][a] = (slice(max(n - low, 0), n + crop - low),
                                 slice(max(low - n, 0), high - n))
    return cells, windows


def strips(scores, corner, y, x):
    """Yields ((row, column) of the first pixel, scores [K, rows, columns]) of strips of a result
    that begins at `corner`: scores [h, w, K] at places y, x, bilinear. `F.grid_sample` is slow."""
    rows = max(1, STRIP // (len(x) * scores.shape[-1]))
    for number, lines in enumerate(y.split(rows)):
        strip = scores[int(lines[0]) : math.ceil(lines[-1]) + 1]
        for axis, where in enumerate((lines - lines[0].floor(), x)):
            if not where.equal(torch.arange(strip.shape[axis], dtype=where.dtype)):
                low, high = (strip.index_select(axis, pixels.long().to(strip.device))
                             for pixels in (where.floor(), where.ceil()))
                weight = where.frac().float().to(strip.device).view(-1, *[1] * (2 - axis))
                strip = low.lerp_(high, weight)
        yield (corner[0] + number * rows, corner[1]), strip.movedim(-1, 0)


def copies(protocol):
    """(scale, whether it is mirrored) of the copies of an image that a network sees one by one."""
    whole = protocol.flip and protocol.average == "logits"
    return list(itertools.product(protocol.scales, (False, True) if whole else (False,)))


def parts(model, image, protocol, device):
    """Yields ((row, column) of the first pixel, scores [K, h, w]) to add; a copy's are disjoint."""
    if (str(image.dtype)[-5:], image.shape[2:]) != ("uint8", (3,)):
        raise ValueError(f"wanted uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    size, seen = tuple(image.shape[:2]), copies(protocol)
    x = normalise(np.ascontiguousarray(image), device)
    for scale, mirrored in seen:
        scaled = (fitted_size(size, protocol.fit, scale) if protocol.fit
                  else [max(1, round(side * scale)) for side in size])
        stretched = [math.ceil(n / protocol.multiple) * protocol.multiple for n in scaled]
        copy = resize(resize(x[None], scaled), stretched)[0]
        copy = copy.flip(-1) if mirrored else copy
        for (row, column), part in window_strips(model, copy, size, protocol):
            if len(seen) > 1 and protocol.average == "logits":
                part = part.movedim(0, -1).softmax(-1).movedim(-1, 0)
            if mirrored:
                part, column = part.flip(-1), size[1] - column - part.shape[-1]
            yield (row, column), part
            part = None  # a view would keep all scores of a window, here and in what follows


@torch.no_grad()
def scores(model, image, protocol=PROTOCOLS["whole"], device="cpu"):
    """Scores of one image, uint8 [H, W, 3] -> float32 [K, H, W]: logits, or sums of probabilities
    where several copies of the image or windows by probability are asked for."""
    total = None
    for (row, column), part in parts(model, image, protocol, device):
        if total is None:  # with the classes last in memory, as networks leave them: fast
            total = part.new_zeros(*image.shape[:2], len(part)).movedim(-1, 0)
        total[:, row : row + part.shape[1], column : column + part.shape[2]] += part
        part = None
    return total


@torch.inference_mode()
def predict(model, image, protocol=PROTOCOLS["whole"], device="cpu"):
    """Class ids uint8 [H, W] of one image, uint8 [H, W, 3]. Of one copy no scores are kept."""
    result, one = np.empty(image.shape[:2], np.uint8), len(copies(protocol)) == 1
    for (row, column), part in (parts(model, image, protocol, device) if one
                                else [((0, 0), scores(model, image, protocol, device))]):
        ids = part.numpy().argmax(0) if part.is_cpu else part.argmax(0).cpu()  # NumPy's is fast
        result[row : row + len(ids), column : column + ids.shape[1]] = ids
        part = None
    return result


def evaluate(model, dataset, num_classes, protocol=PROTOCOLS["whole"], device="cpu", keep=0,
             description="evaluate", save=None):
    """Score a dataset that all processes share. Returns (ConfusionMatrix, the first `keep` (image,
    label, prediction) of this process). Calls save(index, prediction). Evaluation mode stays on."""
    model.eval()
    matrix, kept, rank = ConfusionMatrix(num_classes), [], processes.rank()
    for index in tqdm(range(rank, len(dataset), processes.count()), description, unit="image",
                      leave=False, disable=rank > 0, delay=1):
        image, label = dataset[index]
        prediction = predict(model, image, protocol, device)
        matrix.update(prediction, label)
        if len(kept) < keep:
            kept.append((np.asarray(image), np.asarray(label), prediction))
        if save:
            save(index, prediction)
    matrix.counts = processes.agree(torch.from_numpy(matrix.counts).to(device)).cpu().numpy()
    return matrix, kept
