"""Pictures of what a network does, drawn with Pillow: predictions beside the truth, curves of a run."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .checkpoint import write_atomically
from .metrics import IGNORE

INK, PAPER, GRID = (30, 30, 35), (255, 255, 255), (225, 225, 230)
SERIES = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)]  # colour-blind safe (Okabe and Ito)


def font(size=14):
    """The font that ships with Pillow, so pictures look the same everywhere."""
    return ImageFont.load_default(size)


def save_png(path, image):
    """Write a PIL image, atomically."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def colourise(label, palette):
    """Class ids [H, W] -> RGB uint8 [H, W, 3]; ignored pixels are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table[label]


def overlay(image, label, palette, opacity=0.6):
    """The image with its classes painted over it, uint8 [H, W, 3]."""
    return (image * (1 - opacity) + colourise(label, palette) * opacity).astype(np.uint8)


def errors(prediction, label):
    """Right pixels pale, wrong ones red, ignored ones black."""
    picture = np.full((*label.shape, 3), 235, dtype=np.uint8)
    picture[prediction != label] = (213, 60, 30)
    picture[label == IGNORE] = 0
    return picture


def legend(classes, palette, width):
    """A PIL image `width` wide that names the colour of every class."""
    text = font()
    columns, box = [], 14
    cell = max(int(text.getlength(name)) for name in classes) + box + 22
    per_row = max(1, width // cell)
    rows = -(-len(classes) // per_row)
    picture = Image.new("RGB", (width, rows * 22 + 8), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(zip(classes, palette)):
        x, y = number % per_row * cell + 6, number // per_row * 22 + 6
        draw.rectangle((x, y, x + box, y + box), fill=tuple(colour), outline=INK)
        draw.text((x + box + 6, y - 1), name, fill=INK, font=text)
    return picture


def grid(columns, rows, classes=None, palette=None, height=192, gap=6):
    """A table of pictures: `columns` are the headings, `rows` lists of uint8 arrays, one per column.
    Every row is scaled to the same height; with `classes` the legend stands below."""
    scaled = []
    for row in rows:
        factor = height / row[0].shape[0]
        size = (max(1, round(row[0].shape[1] * factor)), height)
        scaled.append([Image.fromarray(a).resize(size, Image.Resampling.NEAREST) for a in row])
    cell = max(picture.width for row in scaled for picture in row)
    width = len(columns) * (cell + gap) + gap
    key = legend(classes, palette, width) if classes else None
    canvas = Image.new("RGB", (width, 26 + len(rows) * (height + gap) + (key.height if key else 0)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for c, name in enumerate(columns):
        draw.text((gap + c * (cell + gap), 5), name, fill=INK, font=font(15))
    for r, row in enumerate(scaled):
        for c, picture in enumerate(row):
            canvas.paste(picture, (gap + c * (cell + gap), 26 + r * (height + gap)))
    if key:
        canvas.paste(key, (0, canvas.height - key.height))
    return canvas


def predictions(samples, classes, palette):
    """image | truth | prediction | errors, a row for each (image, label, prediction)."""
    rows = [
        [image, colourise(label, palette), colourise(prediction, palette), errors(prediction, label)]
        for image, label, prediction in samples
    ]
    return grid(["image", "truth", "prediction", "errors"], rows, classes, palette)


def curves(panels, width=460, height=300):
    """Line plots side by side. `panels`: [(title, [(name, xs, ys), ...]), ...]."""
    canvas = Image.new("RGB", (width * len(panels), height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (title, lines) in enumerate(panels):
        left, right, top, bottom = number * width + 58, (number + 1) * width - 16, 34, height - 34
        draw.text((left, 8), title, fill=INK, font=font(15))
        finite = [(x, y) for _, xs, ys in lines for x, y in zip(xs, ys) if np.isfinite(y)]
        if not finite:
            continue
        x_most = max(x for x, _ in finite) or 1
        low, high = min(min(y for _, y in finite), 0), max(y for _, y in finite) * 1.05
        high = high if high > low else low + 1
        for tick in range(5):
            value = low + (high - low) * tick / 4
            y = bottom - (bottom - top) * tick / 4
            draw.line((left, y, right, y), fill=GRID)
            draw.text((left - 8, y), f"{value:.3g}", fill=INK, font=font(11), anchor="rm")
            x = left + (right - left) * tick / 4
            draw.text((x, bottom + 6), f"{x_most * tick / 4:.0f}", fill=INK, font=font(11), anchor="ma")
        for index, (name, xs, ys) in enumerate(lines):
            points = [
                (left + (right - left) * x / x_most, bottom - (bottom - top) * (y - low) / (high - low))
                for x, y in zip(xs, ys) if np.isfinite(y)
            ]
            colour = SERIES[index % len(SERIES)]
            draw.line(points, fill=colour, width=2, joint="curve")
            for x, y in points:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
            draw.text((right, bottom - 20 - 16 * index), name, fill=colour, font=font(13), anchor="ra")
        draw.text((right, height - 4), "step", fill=INK, font=font(11), anchor="rs")
    return canvas
