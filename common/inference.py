"""From an image of any size to scores and labels: whole, in sliding windows, at several scales.

Prediction and label meet at the label's own size: scores are enlarged, never the label or classes.
"""

import itertools
import math
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
SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@dataclass
class Protocol:
    """How an image becomes scores. The defaults run the network once on the image as it is.

    Images smaller than a window are padded with the mean colour. `average` is what is averaged
    where windows overlap; with "probabilities" it is the windows that are mirrored, with "logits"
    the whole image is.
    """

    fit: tuple = ()  # (long, short): resized to just fit into this box first; () = its own size
    multiple: int = 1  # then each side is resized up to a multiple of this
    scales: tuple = (1.0,)  # factors on that size; the probabilities of all are averaged
    flip: bool = False  # whether the mirror image of each joins in
    crop: int = 0  # side of the windows in pixels, 0 = the whole image at once
    stride: int = 0  # pixels between windows, 0 = two thirds of the crop, rounded up
    average: str = "logits"  # or "probabilities"
    centre: bool = False  # padded on both sides; False: at the bottom and right


PROTOCOLS = {
    "whole": Protocol(),
    "sliding": Protocol(crop=512),
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


def add_windows(total, model, image, size, protocol, batch):
    """Run the windows of a copy of an image, average where they overlap, resize to `size`, add.

    total: [K, *size], or 0 to make it. image: [3, h, w]. batch: as in `scores`. Returns total.
    Memory: resizing is linear, so every window goes into `total` at its final resolution; the
    averaged map at that of the copy, at scale 1.75 three times the image, never exists.
    """
    sides = image.shape[-2:]
    crops = [protocol.crop or max(SMALLEST, side) for side in sides]
    missing = [max(0, crop - side) for crop, side in zip(crops, sides, strict=True)]
    before = [m // 2 if protocol.centre else 0 for m in missing]
    if any(missing):
        (top, bottom), (left, right) = ((b, m - b) for b, m in zip(before, missing, strict=True))
        image = F.pad(image, (left, right, top, bottom))
    starts, axes = [], []
    lengths = zip(image.shape[-2:], crops, sides, size, before, strict=True)
    for padded, crop, side, target, offset in lengths:
        starts.append(window_starts(padded, crop, protocol.stride or math.ceil(crop * 2 / 3)))
        count = torch.zeros(padded, device=image.device)  # of windows over each pixel
        for start in starts[-1]:
            count[start : start + crop] += 1
        # Where the pixels of the result lie in the padded copy.
        places = (torch.arange(target, dtype=torch.float64) + 0.5) * side / target - 0.5
        axes.append((places.clamp(0, side - 1) + offset, count))
    corners = list(itertools.product(*starts))
    batch = batch or max(1, PIXELS_AT_ONCE // (crops[0] * crops[1]))
    for first in range(0, len(corners), batch):
        part = corners[first : first + batch]
        windows = torch.stack([image[:, y : y + crops[0], x : x + crops[1]] for y, x in part])
        for corner, scores in zip(part, window_scores(model, windows, protocol), strict=True):
            if isinstance(total, int):
                total = scores.new_zeros(len(scores), *size)
            add_window(total, scores, [
                (places - start, count[start : start + crop])
                for (places, count), start, crop in zip(axes, corner, crops, strict=True)])
        del scores  # or the next windows would be computed beside these
    return total


def add_window(total, scores, axes):
    """Add one window, divided by how many windows lie over its pixels. scores: [K, h, w], changed.
    axes: for either, (where the pixels of `total` lie in the window, number of windows)."""
    scores /= axes[0][1][:, None] * axes[1][1]
    (rows, top), (columns, left) = (in_window(places, len(count)) for places, count in axes)
    for some in range(0, len(scores), 16):  # classes: to keep the intermediate results small
        enlarged = interpolate(interpolate(scores[some : some + 16], top).mT, left).mT
        total[some : some + 16, rows, columns] += enlarged


def in_window(places, crop):
    """Which pixels of the result a window touches, as a slice, and where they lie in it, counted
    from one pixel before its first. places: increasing float64 [n], from its first pixel."""
    rows = slice(int((places <= -1).sum()), int((places < crop).sum()))
    return rows, places[rows] + 1


def interpolate(x, places):
    """Linear, along the columns of a window framed by zeros: [K, h, w], float64 [n] -> [K, n,
    w]."""
    lower = places.floor().long()
    x = F.pad(x, (0, 0, 1, 1))
    fraction = (places - lower).to(x)[:, None]
    lower = lower.to(x.device)
    return torch.lerp(x[:, lower], x[:, lower + 1], fraction)


@torch.inference_mode()
def scores(model, image, protocol=PROTOCOLS["whole"], device="cpu", batch=None):
    """Scores of one image, uint8 [H, W, 3] -> float32 [K, H, W]: logits, or sums of probabilities
    where several copies of the image or windows by probability are asked for. batch: windows at a
    time, None = as many as have PIXELS_AT_ONCE pixels."""
    x, size, total = normalise(image, device), image.shape[:2], 0
    by_copy = protocol.average == "logits" and (len(protocol.scales) > 1 or protocol.flip)
    for scale in protocol.scales:
        scaled = [max(1, round(side * scale)) for side in size]
        copy = resize(x[None], fitted_size(size, protocol.fit, scale) if protocol.fit else scaled)
        step = protocol.multiple
        copy = resize(copy, [math.ceil(side / step) * step for side in copy.shape[-2:]])[0]
        if not by_copy:
            total = add_windows(total, model, copy, size, protocol, batch)
            continue
        for mirrored in (False, True) if protocol.flip else (False,):
            seen = copy.flip(-1) if mirrored else copy
            part = add_windows(0, model, seen, size, protocol, batch).softmax(0)
            total = total + (part.flip(-1) if mirrored else part)
    return total


def predict(model, image, protocol=PROTOCOLS["whole"], device="cpu"):
    """Class ids uint8 [H, W] of one image, uint8 [H, W, 3]."""
    return scores(model, image, protocol, device).argmax(0).to("cpu", torch.uint8).numpy()


def evaluate(model, dataset, num_classes, protocol=PROTOCOLS["whole"], device="cpu", keep=0,
             description="evaluate", save=None):
    """Score a dataset. Returns (ConfusionMatrix, the first `keep` (image, label, prediction)).

    With several processes each takes its share of the images and the counts are added, so every
    image counts exactly once. The network is put into evaluation mode and left there.
    save(index, prediction) is called for each image, if given.
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
        counts = torch.from_numpy(matrix.counts).to(device)
        matrix.counts = processes.agree(counts).cpu().numpy()
    return matrix, kept
