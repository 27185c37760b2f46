"""What a network looks at when it decides about one pixel: recorded in an ordinary forward pass.

A paper says what to record and how to read it in papers/NAME/explain.py:

    RECORD = ("encoder.*.attention",)                     names of modules, as patterns
    explain(model, record, size, pixel) -> [(title, values), ...]

    record: {name: (positional arguments, output)} of the modules of RECORD, in the order in which
        they ran
    size: (H, W) of the image that the network was given. pixel: (row, column) in it
    values: a map [h, w] of any resolution that spans the H x W pixels, or a vector (drawn as bars),
        or {name: points [n, 3]}, each (x, y, weight) in pixels of the H x W image, the corner of
        the first being (0, 0)

An empty list means that this network has no context to look at.
"""

import contextlib
import fnmatch

import numpy as np
import torch
import torch.nn.functional as F

from common.cli import load_paper
from common.errors import UserError
from common.inference import SMALLEST, normalise, scores_of

# pixels: what larger images are shrunk to, where nobody says how large they should be
LONGEST = 1024


@contextlib.contextmanager
def record(model, patterns=("*",)):
    """Within the `with`, remember what modules receive and return; the pass itself does not change.

        with record(model) as seen:
            model(images)
        print("\\n".join(f"{name:40} {shape}" for name, shape in shapes(seen).items()))

    patterns: of names as in `model.named_modules()`; by default all. Yields {name: (positional
    arguments, output)}, in the order in which modules return, which forward passes fill; of a
    module that runs twice the later call stays. Built with fast=False, a network calls its every
    layer.
    """
    seen = {}

    def remember(name):
        return lambda module, arguments, output: seen.update({name: (arguments, output)})

    handles = [
        module.register_forward_hook(remember(name)) for name, module in model.named_modules()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def shapes(seen):
    """{name: shape of the output} of a `record`: a tuple of numbers for a tensor; lists and
    dictionaries of outputs become those of their shapes, and what is no tensor stays."""
    return {name: shape_of(output) for name, (_, output) in seen.items()}


def shape_of(output):
    """The shape of one output, see `shapes`."""
    if isinstance(output, torch.Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        return {key: shape_of(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        return [shape_of(value) for value in output]
    return output


def parse_pixel(text, size):
    """ "40,100" -> (40, 100), a pixel of an image of size (height, width). Raises UserError."""
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--attention {text}: wanted ROW,COL, two whole numbers such as 40,100") from None
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise UserError(f"--attention {text}: outside the image; valid are rows 0 to {size[0] - 1} "
                        f"and columns 0 to {size[1] - 1}")
    return row, column


def explanation(paper):
    """A paper's module `explain`. Raises UserError if it has none."""
    try:
        return load_paper(paper, "explain")
    except ModuleNotFoundError:
        raise UserError(f"--attention: papers/{paper} has no explain.py") from None


def fitting_scale(image, scale):
    """`scale`, or what makes the image LONGEST pixels long if it were longer; then it says so."""
    if max(image.shape) * scale <= LONGEST:
        return scale
    scale = LONGEST / max(image.shape)
    print(f"the network sees the image at {scale:.0%} of its size, {LONGEST} pixels long "
          "(or: --scales)")
    return scale


@torch.inference_mode()
def look(model, explain, image, pixel, scale=1.0, device="cpu"):
    """(prediction uint8 [H, W], panels) for an image, uint8 [H, W, 3], and pixel, (row, column).

    explain: a paper's module `explain`. scale: the image is resized by this before the network,
    which sees it as a whole. Panels are (title, values) as of `explain.explain`, as NumPy arrays;
    maps are cut to the scaled image, points are fractions of its sides. Raises UserError where the
    network has no context.
    """
    height, width = scaled = [max(1, round(side * scale)) for side in image.shape[:2]]
    x = normalise(image, device)[None]
    x = F.interpolate(x, scaled, mode="bilinear", align_corners=False)
    x = F.pad(x, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)))
    with record(model, explain.RECORD) as seen:
        scores = scores_of(model, x)[..., :height, :width]
    scores = F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)
    prediction = scores[0].argmax(0).to("cpu", torch.uint8).numpy()
    place = tuple((2 * p + 1) * n // (2 * side)
                  for p, n, side in zip(pixel, scaled, image.shape[:2], strict=True))
    found = explain.explain(model, seen, tuple(x.shape[-2:]), place)
    if not found:
        raise UserError("--attention: this network has no context to look at")
    return prediction, [(title, fit(values, scaled, x.shape[-2:])) for title, values in found]


def fit(values, scaled, size):
    """Values for an image of `size` as NumPy arrays for its part of `scaled` pixels: the rest is
    padding."""
    height, width = scaled
    if isinstance(values, dict):
        sides = torch.tensor([width, height, 1.0])
        return {name: (points.cpu() / sides).numpy() for name, points in values.items()}
    values = values.float().cpu()
    if values.ndim == 2:
        rows, columns = (
            (2 * torch.arange(n) + 1) * cells // (2 * side)
            for n, cells, side in zip(scaled, values.shape, size, strict=True)
        )
        values = values[rows[:, None], columns]
    return values.numpy()


def weight_near(values, mask, radius=0.15):
    """The weight that points of `look` have near the middle of a mask, bool [H, W]: at most
    `radius` away, a fraction of the sides. Maps and vectors have none."""
    if not isinstance(values, dict):
        return 0
    row, column = np.argwhere(mask).mean(0) / mask.shape
    x, y, weight = np.concatenate(list(values.values())).T
    return weight[np.hypot(x - column, y - row) < radius].sum()
