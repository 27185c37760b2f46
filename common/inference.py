"""From an image of any size to class scores and labels: whole image, sliding window, several scales.

All functions work on one image as [3, H, W], normalised, and return [num_classes, H, W].
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from .metrics import ConfusionMatrix

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, RGB in 0..1
SMALLEST = 32  # pixels per side that every network here accepts
PROTOCOLS = ("whole", "sliding", "multiscale")


def normalise(images, device="cpu"):
    """uint8 [..., H, W, 3] (array or tensor) -> float [..., 3, H, W], ImageNet-normalised."""
    images = torch.as_tensor(images, device=device).movedim(-1, -3).float() / 255
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]


def scores_of(model, images):
    """Scores of a batch as float32, at the size of the images (some networks answer at a lower resolution)."""
    scores = model(images)["out"].float()
    if scores.shape[-2:] != images.shape[-2:]:
        scores = F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)
    return scores


def whole(model, image):
    """The network on the whole image. Sides below 32 are padded at the right and bottom and cut again."""
    height, width = image.shape[-2:]
    pad = (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height))
    return scores_of(model, F.pad(image, pad)[None])[0, :, :height, :width]


def window_starts(size, crop, stride):
    """First pixels of windows that cover `size`: steps of `stride`, the last one moved back to end at the border."""
    if size <= crop:
        return [0]
    return [*range(0, size - crop, stride), size - crop]


def sliding(model, image, crop, stride=None, batch=4):
    """The network on overlapping windows of crop x crop pixels; scores are averaged where windows overlap.

    stride: pixels between windows, by default two thirds of the crop. Sides shorter than the crop are padded
    with zeros (the mean colour). Memory: one sum of the size of the image, `batch` windows.
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(0, crop - width), 0, max(0, crop - height)))
    stride = stride or max(1, crop * 2 // 3)
    starts = list(itertools.product(*(window_starts(side, crop, stride) for side in image.shape[-2:])))
    total, count = 0, image.new_zeros(image.shape[-2:])
    for first in range(0, len(starts), batch):
        windows = starts[first : first + batch]
        scores = scores_of(model, torch.stack([image[:, y : y + crop, x : x + crop] for y, x in windows]))
        if first == 0:
            total = scores.new_zeros(scores.shape[1], *image.shape[-2:])
        for (y, x), window in zip(windows, scores):
            total[:, y : y + crop, x : x + crop] += window
            count[y : y + crop, x : x + crop] += 1
    return (total / count)[:, :height, :width]


def multiscale(model, image, crop, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True):
    """Mean of the class probabilities over rescaled and mirrored copies, each by sliding window."""
    size = image.shape[-2:]
    total = 0
    for scale, mirrored in itertools.product(scales, (False, True) if flip else (False,)):
        scaled = [max(1, round(side * scale)) for side in size]
        copy = F.interpolate(image[None], scaled, mode="bilinear", align_corners=False)[0]
        scores = sliding(model, copy.flip(-1) if mirrored else copy, crop)
        scores = scores.flip(-1) if mirrored else scores
        total = total + F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0].softmax(0)
    return total


@torch.inference_mode()
def predict(model, image, protocol="whole", crop=None, scale=1.0, device="cpu"):
    """Class ids uint8 [H, W] of one image, uint8 [H, W, 3], by one of PROTOCOLS.

    crop: side of the windows. scale: the image is resized by this first; its scores are enlarged back.
    """
    x, size = normalise(image, device), image.shape[:2]
    if scale != 1.0:
        scaled = [max(1, round(side * scale)) for side in size]
        x = F.interpolate(x[None], scaled, mode="bilinear", align_corners=False)[0]
    if protocol == "whole":
        scores = whole(model, x)
    elif protocol == "sliding":
        scores = sliding(model, x, crop)
    else:
        scores = multiscale(model, x, crop)
    if scale != 1.0:
        scores = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    return scores.argmax(0).to("cpu", torch.uint8).numpy()


def evaluate(model, dataset, num_classes, protocol="whole", crop=None, scale=1.0, device="cpu", rank=0, world=1,
             keep=0, description="evaluate"):
    """Score a dataset. Returns (ConfusionMatrix, the first `keep` (image, label, prediction)).

    With several processes each takes every `world`-th image and the counts are added, so that every image
    counts exactly once. The network is put into evaluation mode and left there.
    """
    model.eval()
    matrix, kept = ConfusionMatrix(num_classes), []
    indices = range(rank, len(dataset), world)
    for index in tqdm(indices, desc=description, unit="image", leave=False, disable=rank > 0, delay=1):
        image, label = dataset[index]
        prediction = predict(model, image, protocol, crop, scale, device)
        matrix.update(prediction, label)
        if len(kept) < keep:
            kept.append((np.asarray(image), np.asarray(label), prediction))
    if world > 1:
        counts = torch.from_numpy(matrix.counts).to(device)
        torch.distributed.all_reduce(counts)
        matrix.counts = counts.cpu().numpy()
    return matrix, kept
