"""Pictures of what a network does, drawn with Pillow: predictions beside the truth, curves of a
run."""

import math
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.checkpoint import write_atomically
from common.metrics import IGNORE

from .predictions import save_png as save_marked

INK, PAPER, GRID = (30, 30, 35), (255, 255, 255), (225, 225, 230)
# colour-blind safe (Okabe and Ito)
SERIES = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)]
WIDEST = 2000  # pixels of a picture in a grid


def font(size=14):
    """The font that ships with Pillow, so pictures look the same everywhere."""
    return ImageFont.load_default(size)


def save_png(path, image):
    """Write a PIL image as a small PNG, see `predictions.save_png`."""
    save_marked(path, image, optimize=True)


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
    box = 14
    cell = max(int(text.getlength(name)) for name in classes) + box + 22
    per_row = max(1, width // cell)
    rows = -(-len(classes) // per_row)
    picture = Image.new("RGB", (width, rows * 22 + 8), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(zip(classes, palette, strict=True)):
        x, y = number % per_row * cell + 6, number // per_row * 22 + 6
        draw.rectangle((x, y, x + box, y + box), fill=tuple(colour), outline=INK)
        draw.text((x + box + 6, y - 1), name, fill=INK, font=text)
    return picture


def grid(columns, rows, classes=None, palette=None, height=192, gap=6):
    """A table of pictures: `columns` are the headings, `rows` lists of uint8 arrays, one per
    column. Every row is scaled to the same height, or where that would be wider to the width
    WIDEST; with `classes` the legend stands below."""
    scaled = []
    for row in rows:
        factor = min(height / row[0].shape[0], WIDEST / row[0].shape[1])
        size = [max(1, round(side * factor)) for side in row[0].shape[1::-1]]
        scaled.append([Image.fromarray(a).resize(size, Image.Resampling.NEAREST) for a in row])
    cell = max(picture.width for row in scaled for picture in row)
    width = len(columns) * (cell + gap) + gap
    key = legend(classes, palette, width) if classes else None
    canvas = Image.new("RGB", (width, 26 + len(rows) * (height + gap) + (key.height if key else 0)),
                       PAPER)
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
        [image, colourise(label, palette), colourise(prediction, palette),
         errors(prediction, label)]
        for image, label, prediction in samples
    ]
    return grid(["image", "truth", "prediction", "errors"], rows, classes, palette)


def draw_run(out, classes, palette, log, curve, samples):
    """Write curves.png, predictions.png and loss.csv into a run directory. log, curve: of a
    `common.run.Run`, the losses drawn as means over stretches. samples: (image, label, prediction)
    triples."""
    write_losses(out, curve)
    stretch = math.ceil(len(curve) / 60)
    ends = range(stretch, len(curve) + 1, stretch)
    means = [sum(curve[end - stretch : end]) / stretch for end in ends]
    steps = [row["step"] for row in log]
    scores = [(name, steps, [row[key] for row in log])
              for name, key in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"))]
    panels = [("training loss", [("", list(ends), means)]), ("validation", scores)]
    save_png(out / "curves.png", curves(panels))
    save_png(out / "predictions.png", predictions(samples, classes, palette))


def write_losses(out, curve):
    """Write loss.csv, the loss of every step, into a run directory."""
    rows = "".join(f"{step},{loss:.6g}\n" for step, loss in enumerate(curve, 1))
    write_atomically(out / "loss.csv", f"step,loss\n{rows}".encode())


def segmented(image, prediction, classes, palette):
    """image | segmentation | both, with a legend of the classes that occur."""
    height, seen = max(160, min(480, image.shape[0])), seen_classes(prediction, classes, palette)
    factor = min(height / image.shape[0], WIDEST / image.shape[1])
    if factor < 1:  # before it is painted: a photo of many pixels would be copied many times
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image, prediction = (np.asarray(Image.fromarray(a).resize(size, Image.Resampling.NEAREST))
                             for a in (image, prediction))
    cells = [image, colourise(prediction, palette), overlay(image, prediction, palette)]
    return grid(["image", "segmentation", "both"], [cells], *seen, height=height)


def ticks(low, high):
    """Two to seven round numbers from low to high, ascending: the multiples of a step that is 1, 2
    or 5 times a power of ten. low < high."""
    magnitude = 10.0 ** math.floor(math.log10(high - low))
    step = next(s for s in (magnitude / 5, magnitude / 2, magnitude, 2 * magnitude)
                if (high - low) / s < 6)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def curves(panels, width=460, height=300):
    """Line plots side by side. `panels`: [(title, [(name, xs, ys), ...]), ...]."""
    canvas = Image.new("RGB", (width * len(panels), height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (title, lines) in enumerate(panels):
        left, right, top, bottom = number * width + 58, (number + 1) * width - 16, 34, height - 34
        draw.text((left, 8), title, fill=INK, font=font(15))
        finite = [(x, y) for _, xs, ys in lines
                  for x, y in zip(xs, ys, strict=True) if np.isfinite(y)]
        if not finite:
            continue
        x_most = max(x for x, _ in finite) or 1
        low, high = min(min(y for _, y in finite), 0), max(y for _, y in finite) * 1.05
        high = high if high > low else low + 1
        for value in ticks(low, high):
            y = bottom - (bottom - top) * (value - low) / (high - low)
            draw.line((left, y, right, y), fill=GRID)
            draw.text((left - 8, y), f"{value:g}", fill=INK, font=font(11), anchor="rm")
        for value in ticks(0, x_most):
            x = left + (right - left) * value / x_most
            draw.text((x, bottom + 6), f"{value:g}", fill=INK, font=font(11), anchor="ma")
        for index, (name, xs, ys) in enumerate(lines):
            points = [
                (left + (right - left) * x / x_most,
                 bottom - (bottom - top) * (y - low) / (high - low))
                for x, y in zip(xs, ys, strict=True) if np.isfinite(y)
            ]
            colour = SERIES[index % len(SERIES)]
            draw.line(points, fill=colour, width=2, joint="curve")
            for x, y in points:
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
            draw.text((right, bottom - 20 - 16 * index), name, fill=colour, font=font(13),
                      anchor="ra")
        draw.text((right, height - 4), "step", fill=INK, font=font(11), anchor="rs")
    return canvas


def log_panel(canvas, curves, colours, box):
    """Curves over the side of a map, both axes logarithmic. curves: {name: {side: value}}. colours:
    {name: colour}. box: left, top, right, bottom in pixels."""
    draw, (left, top, right, bottom) = ImageDraw.Draw(canvas), box
    values = [value for curve in curves.values() for value in curve.values()]
    sides = sorted({side for curve in curves.values() for side in curve})
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))

    def place(side, value):
        across = math.log(side / sides[0]) / math.log(sides[-1] / sides[0])
        up = (math.log10(value) - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for power in range(low, high + 1):
        _, y = place(sides[0], 10.0**power)
        draw.line((left, y, right, y), fill=GRID)
        draw.text((left - 8, y), f"{10.0**power:g}", INK, font(12), "rm")
    for side in sides:
        x, _ = place(side, 10.0**low)
        draw.text((x, bottom + 8), f"{side} x {side}", INK, font(12), "ma")
    below = top
    for name in sorted(curves, key=lambda name: -max(curves[name].values())):
        points = [place(*point) for point in sorted(curves[name].items())]
        draw.line(points, fill=colours[name], width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colours[name])
        x, y = points[-1]
        if x < right:
            draw.text((x, y - 8), name, colours[name], font(13), "mb")
            continue
        below = max(below, y)  # labels from the top down, never on top of one another
        draw.text((right + 10, below), name, colours[name], font(13), "lm")
        below += 16


# -------------------------------------------------------------------------- what a network looks at

# From little to much, for colour-blind readers and in grey too (five stops of matplotlib's
# "plasma").
INTENSITY = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)])
# of a panel: most pixels of its picture per side, height of the legend below it
SIDE, FOOT = 200, 24


def intensity(values):
    """Numbers 0 .. 1 of any shape -> RGB uint8 [..., 3], dark blue to yellow."""
    stops = np.linspace(0, 1, len(INTENSITY))
    return np.stack([np.interp(values, stops, channel) for channel in INTENSITY.T],
                    axis=-1).astype(np.uint8)


def backdrop(image):
    """The image in a few pale greys, uint8 [H, W, 3]: what colours are drawn over."""
    return (image.mean(-1, keepdims=True) // 16 * 8 + 100).astype(np.uint8).repeat(3, axis=-1)


def plain_panel(image, pixel=None):
    """An RGB array [H, W, 3] scaled to fit SIDE x SIDE, with room below; pixel: (row, column) to
    mark with a ring."""
    factor = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    canvas = Image.new("RGB", (SIDE, height + FOOT), PAPER)
    smooth = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
    canvas.paste(Image.fromarray(image).resize((width, height), smooth))
    if pixel is not None:
        y, x = ((p + 0.5) * factor for p in pixel)
        for radius, colour, thick in ((8, INK, 4), (7, PAPER, 2)):
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(canvas).ellipse(box, outline=colour, width=thick)
    return canvas


def panel(image, values, pixel=None):
    """One panel of `papers.attention.look`: a map as colours over the image, points as circles over
    it, or bars."""
    if isinstance(values, dict):
        return points_panel(image, values, pixel)
    return bars_panel(values) if values.ndim == 1 else map_panel(image, values, pixel)


def map_panel(image, values, pixel=None, labels=None):
    """values [h, w] >= 0 in colours over the image, the largest in yellow; no colour where exactly
    0. Below, the scale: its two labels, by default 0 and the largest value."""
    rows, columns = (np.arange(n) * values.shape[axis] // n
                     for axis, n in enumerate(image.shape[:2]))
    pale, fine = backdrop(image), values[rows[:, None], columns][..., None]
    colours = pale * 0.3 + intensity(fine[..., 0] / max(values.max(), 1e-30)) * 0.7
    canvas = plain_panel(np.where(fine > 0, colours, pale).astype(np.uint8), pixel)
    draw, low, high = ImageDraw.Draw(canvas), *(labels or ("0", f"{values.max():.2g}"))
    left, right = 6 + font(12).getlength(low), SIDE - 6 - font(12).getlength(high)
    y = canvas.height - FOOT
    scale = intensity(np.linspace(0, 1, round(right - left))[None].repeat(10, 0))
    canvas.paste(Image.fromarray(scale), (round(left), y + 7))
    draw.text((0, y + 4), low, fill=INK, font=font(12))
    draw.text((SIDE, y + 4), high, fill=INK, font=font(12), anchor="ra")
    return canvas


def points_panel(image, groups, pixel=None):
    """{name: points [n, 3]} as circles over the image, one colour per name; (x, y) are fractions of
    its sides, the area of a circle is the point's weight. Points outside the image are not
    drawn."""
    canvas = plain_panel(backdrop(image), pixel)
    draw, left, (height, width) = ImageDraw.Draw(canvas), 0, image.shape[:2]
    for points, colour in zip(groups.values(), SERIES, strict=False):
        for x, y, weight in points[((points[:, :2] >= 0) & (points[:, :2] <= 1)).all(1)]:
            x, y = (SIDE * part * side / max(width, height)
                    for part, side in ((x, width), (y, height)))
            radius = max(1.0, SIDE * 0.16 * weight**0.5)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    top = canvas.height - FOOT
    draw.rectangle((0, top, SIDE, canvas.height), fill=PAPER)  # over what reached beyond the image
    for name, colour in zip(groups, SERIES, strict=False):
        draw.ellipse((left, top + 8, left + 8, top + 16), fill=colour)
        draw.text((left + 12, top + 4), name, fill=INK, font=font(12))
        left += 22 + font(12).getlength(name)
    return canvas


def bars_panel(values):
    """A vector [n] as bars from zero, the largest first."""
    canvas, values = Image.new("RGB", (SIDE, SIDE + FOOT), PAPER), np.sort(values)[::-1]
    draw, left, high, low = ImageDraw.Draw(canvas), 34, max(values[0], 1e-30), min(values[-1], 0)
    zero = SIDE * high / (high - low)
    for x in range(left, SIDE):
        value = values[(x - left) * len(values) // (SIDE - left)]
        draw.line((x, zero, x, zero - SIDE * value / (high - low)), fill=SERIES[0])
    draw.line((left, zero, SIDE, zero), fill=INK)
    draw.text((left - 4, 0), f"{high:.2g}", fill=INK, font=font(12), anchor="ra")
    draw.text((left - 4, zero), "0", fill=INK, font=font(12), anchor="rb")
    draw.text((left, SIDE + 4), f"{len(values)} channels, sorted", fill=INK, font=font(12))
    return canvas


def sheet(heading, rows, classes=None, palette=None, gap=14):
    """A page of panels: a heading, then rows of (caption, panel), then with `classes` their
    legend."""
    width = max(3, max(map(len, rows))) * (SIDE + gap) + gap
    heading = textwrap.fill(heading, (width - 2 * gap) // 7)
    rows = [[(textwrap.fill(caption, 30), picture) for caption, picture in row] for row in rows]
    captions = [17 * max(caption.count("\n") + 1 for caption, _ in row) + 6 for row in rows]
    heights = [above + max(p.height for _, p in row) + gap
               for above, row in zip(captions, rows, strict=True)]
    key = legend(classes, palette, width) if classes else Image.new("RGB", (1, 1), PAPER)
    y = 22 + 19 * (heading.count("\n") + 1)
    canvas = Image.new("RGB", (width, y + sum(heights) + key.height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.multiline_text((gap, 10), heading, fill=INK, font=font(14))
    for row, above, height in zip(rows, captions, heights, strict=True):
        for number, (caption, picture) in enumerate(row):
            draw.multiline_text((gap + number * (SIDE + gap), y), caption, fill=INK, font=font(13))
            canvas.paste(picture, (gap + number * (SIDE + gap), y + above))
        y += height
    canvas.paste(key, (gap // 2, y))
    return canvas


def attention_page(image, pixel, prediction, panels, classes, palette, heading):
    """A page of what `papers.attention.look` returns: the image, the prediction and every panel,
    with captions and legends."""
    cells = [
        ("the image; the ring is the pixel", plain_panel(image, pixel)),
        (f"prediction; at the pixel: {classes[prediction[pixel]]}",
         plain_panel(colourise(prediction, palette), pixel)),
    ]
    cells += [(title, panel(image, values, pixel)) for title, values in panels]
    # rows of about the same length, at most six
    per_row = math.ceil(len(cells) / math.ceil(len(cells) / 6))
    rows = [cells[first : first + per_row] for first in range(0, len(cells), per_row)]
    names, colours = seen_classes(prediction, classes, palette)
    return sheet(f"{heading} {panels_legend(panels)}", rows, names, colours)


def seen_classes(label, classes, palette):
    """(names, colours) of the classes that occur in a label [H, W]."""
    seen = np.unique(label)
    return [classes[number] for number in seen], [palette[number] for number in seen]


def shares(label, classes):
    """The classes that occur in a label [H, W] as text, with their shares of it, largest first."""
    numbers, counts = np.unique(label, return_counts=True)
    shares = zip(numbers, counts / label.size, strict=True)
    found = sorted(((share, classes[n]) for n, share in shares), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in found)


def panels_legend(panels):
    """What colours and circles mean, in words."""
    text = ""
    if any(not isinstance(values, dict) and values.ndim == 2 for _, values in panels):
        text += ("Colours: dark blue = little, yellow = the most in that panel (number at the "
                 "right), grey = nothing. ")
    if any(isinstance(values, dict) for _, values in panels):
        text += "Circles: the points that are read, area = weight, colour = on which map."
    return text.strip()
