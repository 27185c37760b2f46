"""What a network looks at when it decides about one pixel: recorded during an ordinary forward pass, then drawn.

A paper says what to record and how to read it in papers/NAME/explain.py:

    RECORD = ("encoder.*.attention",)                      names of modules, as patterns
    explain(model, record, size, pixel) -> [(title, values), ...]

    record: {name: (positional arguments, output)} of the modules of RECORD, in the order in which they ran
    size: (H, W) of the image that the network was given. pixel: (row, column) in it
    values: a map [h, w] of any resolution that spans the H x W pixels, or a vector (drawn as bars), or
        {name: points [n, 3]}, each (x, y, weight) in pixels of the H x W image, the corner of the first being (0, 0)

An empty list means that this network has no context to look at.
"""

import contextlib
import fnmatch

import torch
import torch.nn.functional as F

from . import pictures
from .errors import UserError
from .inference import SMALLEST, normalise, scores_of

LONGEST = 1024  # pixels: what eval.py shrinks larger images to, where nobody says how large they should be


@contextlib.contextmanager
def recording(model, watch):
    """Within the `with`, remember what modules receive and return; the forward pass itself does not change.

    watch: patterns of names as in `model.named_modules()`. Yields {name: (positional arguments, output)}, which
    forward passes fill; of a module that runs twice the later call stays.
    """
    record = {}

    def remember(name):
        return lambda module, arguments, output: record.update({name: (arguments, output)})

    handles = [
        module.register_forward_hook(remember(name)) for name, module in model.named_modules()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in watch)
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def parse_pixel(text, size):
    """ "40,100" -> (40, 100). size: (height, width) of the image that it must lie in. Raises UserError."""
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--attention {text}: wanted ROW,COL, two whole numbers such as 40,100") from None
    if not (0 <= row < size[0] and 0 <= column < size[1]):
        raise UserError(
            f"--attention {text}: outside the image; valid are rows 0 to {size[0] - 1} and columns 0 to {size[1] - 1}"
        )
    return row, column


@torch.inference_mode()
def look(model, explain, image, pixel, scale=1.0, device="cpu"):
    """(prediction uint8 [H, W], panels) for one image, uint8 [H, W, 3], and pixel, (row, column) in it.

    explain: a paper's module `explain`. scale: the image is resized by this before the network, which sees it as a whole.
    Panels are (title, values) as of `explain.explain`, as NumPy arrays; maps are cut to the scaled image, points are
    fractions of its sides. Raises UserError where the network has no context.
    """
    height, width = scaled = [max(1, round(side * scale)) for side in image.shape[:2]]
    x = F.interpolate(normalise(image, device)[None], scaled, mode="bilinear", align_corners=False)
    x = F.pad(x, (0, max(0, SMALLEST - width), 0, max(0, SMALLEST - height)))
    with recording(model, explain.RECORD) as record:
        scores = scores_of(model, x)[..., :height, :width]
    scores = F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)
    prediction = scores[0].argmax(0).to("cpu", torch.uint8).numpy()
    size = tuple(x.shape[-2:])
    place = tuple((2 * p + 1) * n // (2 * side) for p, n, side in zip(pixel, scaled, image.shape))

    def fit(values):
        if isinstance(values, dict):
            sides = torch.tensor([width, height, 1.0])
            return {name: (points.cpu() / sides).numpy() for name, points in values.items()}
        values = values.float().cpu()
        if values.ndim == 2:
            rows, columns = (
                (2 * torch.arange(n) + 1) * cells // (2 * side) for n, cells, side in zip(scaled, values.shape, size)
            )
            values = values[rows[:, None], columns]
        return values.numpy()

    panels = [(title, fit(values)) for title, values in explain.explain(model, record, size, place)]
    if not panels:
        raise UserError("--attention: this network has no context to look at")
    return prediction, panels


def picture(image, pixel, prediction, panels, classes, palette, heading):
    """A PIL image of what `look` returns: the image, the prediction and every panel, with captions and legends."""
    cells = [
        ("the image; the ring is the pixel", pictures.plain_panel(image, pixel)),
        (f"prediction; at the pixel: {classes[prediction[pixel]]}",
         pictures.plain_panel(pictures.colourise(prediction, palette), pixel)),
    ]
    cells += [(title, pictures.panel(image, values, pixel)) for title, values in panels]
    per_row = -(-len(cells) // -(-len(cells) // 6))  # rows of about the same length, at most six
    rows = [cells[first : first + per_row] for first in range(0, len(cells), per_row)]
    seen = sorted(set(prediction.flatten().tolist()))
    return pictures.sheet(
        f"{heading} {legend(panels)}", rows, [classes[number] for number in seen], [palette[number] for number in seen]
    )


def legend(panels):
    """What colours and circles mean, in words."""
    text = ""
    if any(not isinstance(values, dict) and values.ndim == 2 for _, values in panels):
        text += "Colours: dark blue = little, yellow = the most in that panel (number at the right), grey = nothing. "
    if any(isinstance(values, dict) for _, values in panels):
        text += "Circles: the points that are read, area = weight, colour = on which map."
    return text.strip()
