"""Training augmentation: pure functions of (image, label, generator), uint8 in, uint8 out.

Images are resized by torch with half-pixel centres and no antialiasing, and labels by taking the
nearest pixel below: the rules of OpenCV, which the published recipes were made with. (Pillow's
bilinear averages when it shrinks, and differs from it by up to 62 grey levels.)

Two families of published recipes are covered: that of PSANet's authors (semseg: scale, rotate,
blur, flip, crop) and that of mmsegmentation (fit, crop with a bound on the share of one class,
flip, photometric distortion), which UN-EPT and LRFormer use. Both compute some steps in float; here
every step ends in bytes, one grey level apart at most.
"""

import functools
import inspect

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from common.inference import fitted_size
from common.metrics import IGNORE

MEAN_COLOUR = (124, 116, 104)  # of ImageNet, RGB: what borders are filled with


def resize(image, label, height, width):
    """Image bilinear, label nearest, to height x width."""
    # In uint8: torch then computes in integers, so the result cannot depend on the number of
    # threads.
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


def random_rotation(image, label, rng, degrees):
    """Every second time turned about the centre by an angle uniform in -degrees .. degrees; the
    size stays, corners become mean colour and label 255."""
    if rng.random() >= 0.5:
        return image, label
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    (height, width), cos, sin = label.shape, np.cos(angle), np.sin(angle)
    # OpenCV counts from the centre of the first pixel, pillow from its corner
    x, y = width / 2 + 0.5, height / 2 + 0.5
    # from output to input
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)

    def turn(array, how, fill):
        picture = Image.fromarray(np.ascontiguousarray(array))
        return np.asarray(picture.transform(picture.size, Image.Transform.AFFINE, matrix, how,
                                            fillcolor=fill))

    return turn(image, Image.Resampling.BILINEAR,
                MEAN_COLOUR), turn(label, Image.Resampling.NEAREST, IGNORE)


def random_blur(image, rng):
    """Every second time smoothed by the 5x5 binomial filter [1 4 6 4 1] / 16, mirrored at the
    border: what OpenCV's GaussianBlur does for size 5 and sigma 0."""
    if rng.random() >= 0.5 or min(image.shape[:2]) < 3:
        return image
    x = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect").astype(np.uint16)
    for _ in range(2):  # sums stay below 2^16: 255 * 16 * 16
        x = x[:-4] + x[4:] + 4 * (x[1:-3] + x[3:-1]) + 6 * x[2:-2]
        x = x.swapaxes(0, 1)
    return ((x + 128) >> 8).astype(np.uint8)


def random_flip(image, label, rng):
    """Mirrored left to right, every second time."""
    return (image[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (image, label)


def random_crop(image, label, rng, size, max_share=1.0):
    """A window of size x size pixels, cut short where the image is smaller.

    max_share: a window is drawn again, up to ten times, while it shows fewer than two classes or
    one class covers this share of its labelled pixels.
    """
    for _ in range(11 if max_share < 1 else 1):
        top, left = (int(rng.integers(max(0, side - size) + 1)) for side in label.shape)
        window = np.s_[top : top + size, left : left + size]
        if max_share < 1:
            counts = np.bincount(label[window].ravel(), minlength=256)[:IGNORE]
            if np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum():
                break
    return image[window], label[window]


def pad(image, label, size, centre=True):
    """At least size x size pixels, filled up with mean colour and label 255: on both sides, or
    (centre=False) at the bottom and right."""
    missing = [max(0, size - side) for side in label.shape]
    if not any(missing):
        return image, label
    widths = [(m // 2, m - m // 2) if centre else (0, m) for m in missing]
    channels = [np.pad(image[..., c], widths, constant_values=MEAN_COLOUR[c]) for c in range(3)]
    return np.stack(channels, axis=-1), np.pad(label, widths, constant_values=IGNORE)


def random_colour(image, rng, strength):
    """Brightness, contrast and saturation, each changed by a factor within 1 - strength .. 1 +
    strength."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = image.astype(np.float32) * brightness
    mean = x.mean()
    x = (x - mean) * contrast + mean
    grey = x.mean(-1, keepdims=True)
    return ((x - grey) * saturation + grey).clip(0, 255).astype(np.uint8)


def photometric_distortion(image, rng):
    """The distortion of SSD (Liu et al., 2016) as mmsegmentation has it, each step every second
    time: brightness + -32 .. 32, contrast * 0.5 .. 1.5 (before or after the next two), saturation *
    0.5 .. 1.5, hue + -36 .. 34 degrees."""
    def change(x, factor=1.0, offset=0.0):
        return (x * np.float32(factor) + np.float32(offset)).clip(0, 255).astype(np.uint8)

    def coin():
        return rng.random() < 0.5

    def change_hsv(image, saturation, hue):
        hsv = np.array(Image.fromarray(np.ascontiguousarray(image)).convert("HSV"))
        hsv[..., 0] += np.uint8(hue % 256)  # wraps round, as angles do
        hsv[..., 1] = change(hsv[..., 1], saturation)
        return np.asarray(Image.frombytes("HSV", hsv.shape[1::-1], hsv.tobytes()).convert("RGB"))

    if coin():
        image = change(image, offset=rng.uniform(-32, 32))
    contrast_first = coin()
    if contrast_first and coin():
        image = change(image, rng.uniform(0.5, 1.5))
    if coin():
        image = change_hsv(image, rng.uniform(0.5, 1.5), 0)
    if coin():
        # published in steps of 2 degrees
        image = change_hsv(image, 1.0, round(int(rng.integers(-18, 18)) * 256 / 180))
    if not contrast_first and coin():
        image = change(image, rng.uniform(0.5, 1.5))
    return image


def augmentation(recipe):
    """`augment` with the numbers of a `common.recipe.Recipe`: every argument that it has a field
    for."""
    names = [name for name in inspect.signature(augment).parameters if hasattr(recipe, name)]
    return functools.partial(
        augment, crop=recipe.crop_size, **{name: getattr(recipe, name) for name in names})


def augment(image, label, rng, crop, scale=(1.0, 1.0), flip=True, colour=0.0, fit=(), rotate=0.0,
            blur=False,
            max_share=1.0, photometric=False, centre=True):
    """Scale, rotate, blur, flip, crop, colour, pad, in this order: whichever of them the recipe has
    (common/recipe.py explains the arguments). Returns contiguous arrays of crop x crop pixels."""
    if fit:
        image, label = resize(image, label, *fitted_size(label.shape, fit, rng.uniform(*scale)))
    elif scale != (1.0, 1.0):
        image, label = random_scale(image, label, rng, *scale)
    if rotate:
        image, label = random_rotation(image, label, rng, rotate)
    if blur:
        image = random_blur(image, rng)
    if flip:
        image, label = random_flip(image, label, rng)
    image, label = random_crop(image, label, rng, crop, max_share)
    if colour:
        image = random_colour(image, rng, colour)
    if photometric:
        image = photometric_distortion(image, rng)
    image, label = pad(image, label, crop, centre)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)
