"""Training augmentation: pure functions of (image, label, generator), uint8 in, uint8 out.

Images are resized by torch with half-pixel centres and no antialiasing, and labels by taking the nearest
pixel below: the rules of OpenCV, which the published recipes were made with. (Pillow's bilinear averages
when it shrinks, and differs from it by up to 62 grey levels.)
"""

import numpy as np
import torch
import torch.nn.functional as F

MEAN_COLOUR = (124, 116, 104)  # of ImageNet, RGB: what borders are filled with


def resize(image, label, height, width):
    """Image bilinear, label nearest, to height x width."""
    # In uint8: torch then computes in integers, so the result cannot depend on the number of threads.
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)[0]
    rows = np.arange(height) * label.shape[0] // height
    columns = np.arange(width) * label.shape[1] // width
    return x.permute(1, 2, 0).numpy(), label[rows[:, None], columns]


def random_scale(image, label, rng, low, high):
    """Resize by one factor for both axes, uniform between `low` and `high`."""
    factor = rng.uniform(low, high)
    height, width = (max(1, round(side * factor)) for side in label.shape)
    return resize(image, label, height, width)


def random_crop(image, label, rng, size):
    """A size x size window. Smaller images are padded: half before, half after, mean colour and label 255."""
    missing = [max(0, size - side) for side in label.shape]
    if any(missing):
        pad = [(m // 2, m - m // 2) for m in missing]
        channels = [np.pad(image[..., c], pad, constant_values=MEAN_COLOUR[c]) for c in range(3)]
        image, label = np.stack(channels, axis=-1), np.pad(label, pad, constant_values=255)
    top, left = (int(rng.integers(side - size + 1)) for side in label.shape)
    return image[top : top + size, left : left + size], label[top : top + size, left : left + size]


def random_flip(image, label, rng):
    """Mirrored left to right, every second time."""
    return (image[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (image, label)


def random_colour(image, rng, strength):
    """Brightness, contrast and saturation, each changed by a factor within 1 - strength .. 1 + strength."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = image.astype(np.float32) * brightness
    mean = x.mean()
    x = (x - mean) * contrast + mean
    grey = x.mean(-1, keepdims=True)
    return ((x - grey) * saturation + grey).clip(0, 255).astype(np.uint8)


def augment(image, label, rng, crop, scale=(1.0, 1.0), flip=True, colour=0.0):
    """Scale, flip, crop, colour, in this order. Returns contiguous arrays of crop x crop pixels."""
    if scale != (1.0, 1.0):
        image, label = random_scale(image, label, rng, *scale)
    if flip:
        image, label = random_flip(image, label, rng)
    image, label = random_crop(image, label, rng, crop)
    if colour:
        image = random_colour(image, rng, colour)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
