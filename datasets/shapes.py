"""Scenes made on the fly in which context is needed, provably: the default dataset, no download.

A scene holds one *key* near a corner (a ringed badge in one of three colours), several *objects*
(discs, blocks and triangles of very different sizes, in colours that mean nothing) and some thin
*wires*. The class of an object is its shape together with the colour of the key: the same disc is
an "amber disc" in one scene and a "violet disc" in the next. No pixel of an object is closer to the
key than half the shorter side of the image, measured along rows or columns, whichever is larger. So
a network whose receptive field is smaller than that cannot know the class, however long it trains:
see `local_bound`.

A scene is a pure function of (seed, split, index): nothing is stored, any number of workers in any
order make the same scenes.

The datasets shapes-direction, shapes-nearest, shapes-count and shapes-thin are probes: each asks
for one ability, see `make_probe`.
"""

import math

import numpy as np

KEYS = ("amber", "blue", "violet")
KEY_COLOURS = np.array([(250, 175, 25), (30, 120, 230), (190, 60, 190)], dtype=np.uint8)
KINDS = ("disc", "block", "triangle")
TINTS = np.array([(225, 120, 105), (120, 190, 130), (215, 200, 150)])  # of the kinds, before jitter
CLASSES = ("background", "wire", "key") + tuple(f"{key} {kind}" for kind in KINDS for key in KEYS)
# One hue per key, one lightness per kind; the hues stay apart for colour-blind readers (after Okabe
# and Ito).
PALETTE = [(38, 40, 46), (235, 235, 225), (0, 158, 115)] + [
    (255, 200, 70), (86, 160, 235), (230, 140, 215),
    (205, 130, 0), (25, 95, 185), (170, 60, 150),
    (125, 75, 0), (15, 50, 110), (95, 25, 85),
]
LENGTHS = {"train": 12000, "val": 100, "test": 100}
PROBES = {  # classes; the last ones are those that the question is about
    "direction": ("background", "cue", *KEYS),
    "nearest": ("background", "cue", *KEYS),
    "count": ("background", "cue", "one", "two", "three"),
    "thin": ("background", "blob", "dark wire", "light wire"),
}
PROBE_PALETTES = {name: [*PALETTE[:1], PALETTE[2], *PALETTE[3:6]] for name in PROBES}
PROBE_PALETTES["thin"] = [PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[1]]


def make_scene(seed, split, index, height=128, width=128):
    """One scene as (image uint8 [height, width, 3], label uint8 [height, width]), height and width
    >= 32.

    Source of randomness: a generator seeded by (seed, split, index), and nothing else.
    """
    rng = np.random.default_rng([seed, list(LENGTHS).index(split), index])
    side = min(height, width)
    reach = side / 2  # no object pixel is nearer to the key than this, in Chebyshev distance
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)

    # Things are painted as numbers on one canvas, later ones in front; colour and class come at the
    # end.
    canvas = np.zeros((height, width), dtype=np.uint8)
    colours = [rng.uniform(60, 105) + rng.uniform(-18, 18, 3)]
    classes = [CLASSES.index("background")]

    # Wires lie below everything else. They are thin: they need eyes, not context.
    for _ in range(rng.integers(1, 4)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.35, 0.35) * side
        half_width = side * rng.uniform(0.017, 0.022)
        across = (y - height / 2) * math.cos(angle) - ((x - width / 2) * math.sin(angle) + offset)
        canvas[np.abs(across) < half_width] = len(classes)
        colours.append([rng.uniform(5, 30)] * 3)
        classes.append(CLASSES.index("wire"))

    # The key: a badge with a light ring, within a tenth of the side from a corner.
    key = int(rng.integers(len(KEYS)))
    radius = side / 14
    lower, right = rng.integers(2, size=2)
    margin = radius + 1 + rng.uniform(0, side / 32, 2)
    key_y = height - 1 - margin[0] if lower else margin[0]
    key_x = width - 1 - margin[1] if right else margin[1]
    for fraction, colour in ((1.0, (245, 245, 240)), (0.72, KEY_COLOURS[key])):
        canvas[(y - key_y) ** 2 + (x - key_x) ** 2 <= (fraction * radius) ** 2] = len(classes)
        colours.append(colour)
        classes.append(CLASSES.index("key"))

    # Objects, somewhere on the ground that is far enough from the key.
    for _ in range(rng.integers(5, 9)):
        kind = int(rng.integers(len(KINDS)))
        size = side * 0.09 * (0.25 / 0.09) ** rng.uniform()  # log-uniform: from small to large
        extent = 1.3 * size  # no kind reaches further from its centre
        free = radius + reach + extent
        places = rng.random((2, 20)) * [[height], [width]]
        far = (np.abs(places[0] - key_y) > free) | (np.abs(places[1] - key_x) > free)
        if not far.any():
            continue
        centre_y, centre_x = places[:, far.argmax()]
        paint(canvas, len(classes), kind, size, rng.uniform(0, 2 * np.pi), centre_y, centre_x)
        colours.append(TINTS[kind] + rng.uniform(-25, 25, 3))
        classes.append(CLASSES.index(f"{KEYS[key]} {KINDS[kind]}"))

    return lit(canvas, colours, rng), np.take(np.array(classes, dtype=np.uint8), canvas)


def paint(canvas, number, kind, size, angle, centre_y, centre_x):
    """Write `number` into the pixels of an object. kind: index into KINDS, size and centre in
    pixels."""
    extent = 1.3 * size
    top, left = max(int(centre_y - extent), 0), max(int(centre_x - extent), 0)
    part = canvas[top : int(centre_y + extent) + 2, left : int(centre_x + extent) + 2]
    dy = np.arange(top, top + part.shape[0], dtype=np.float32)[:, None] - centre_y
    dx = np.arange(left, left + part.shape[1], dtype=np.float32) - centre_x
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = dy * cos + dx * sin, dx * cos - dy * sin
    if KINDS[kind] == "disc":
        inside = dy**2 + dx**2 <= size**2
    elif KINDS[kind] == "block":
        inside = np.maximum(np.abs(along), np.abs(across)) <= 0.9 * size
    else:
        inside = (along >= -0.6 * size) & (along + 1.6 * np.abs(across) <= 1.2 * size)
    part[inside] = number


def lit(canvas, colours, rng):
    """The image uint8 [H, W, 3] of a canvas [H, W] of things in colours: with a slope of light and
    grain."""
    height, width = canvas.shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    light = y * rng.uniform(-30, 30) / height + x * rng.uniform(-30, 30) / width
    light += 5 * rng.standard_normal((height, width), dtype=np.float32)
    image = np.take(np.array(colours, dtype=np.float32), canvas, axis=0)
    image += light[..., None]
    return image.clip(0, 255, out=image).astype(np.uint8)


def make_probe(task, seed, split, index, height=128, width=128):
    """One scene that asks for one ability, as (image, label) like `make_scene`'s.

    In direction, nearest and count, round cues stand one above the other close to the left or right
    edge, and the class of the objects on the far side, which is at least half the shorter side
    away, is
        direction  the colour of the next cue above the object: there may be a closer one below it
        nearest    the colour of the cue that is closest to the object
        count      the number of cues, whose colours mean nothing
    The objects' own shapes and colours mean nothing. Mirror images are scenes by the same rule. A
    network that does not see the cues can get a third of the objects' pixels right. One that knows
    which colours there are, but not where, gets half in the first two, which have two cues of
    different colours. In
        thin       wires of 1.5 to 3.5 pixels (of 128), dark or light, run over large blobs
    no context is needed, only detail.
    """
    rng = np.random.default_rng([seed, list(LENGTHS).index(split), index, list(PROBES).index(task)])
    side = min(height, width)
    canvas = np.zeros((height, width), dtype=np.uint8)
    colours, classes = [rng.uniform(60, 105) + rng.uniform(-18, 18, 3)], [0]

    def add(colour, name):
        colours.append(colour)
        classes.append(PROBES[task].index(name))
        return len(classes) - 1

    def blob(name, size, centre_y, centre_x):
        kind = int(rng.integers(len(KINDS)))
        number = add(TINTS[kind] + rng.uniform(-25, 25, 3), name)
        paint(canvas, number, kind, size, rng.uniform(0, 2 * np.pi), centre_y, centre_x)

    if task == "thin":
        y, x = np.arange(height)[:, None], np.arange(width)
        for _ in range(rng.integers(2, 5)):
            blob("blob", side * rng.uniform(0.12, 0.25), rng.uniform(0, height),
                 rng.uniform(0, width))
        for _ in range(rng.integers(4, 8)):
            angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.45, 0.45) * side
            across = (y - height / 2) * math.cos(angle) - (
                (x - width / 2) * math.sin(angle) + offset)
            kind, low = (("dark wire", 5), ("light wire", 220))[rng.integers(2)]
            canvas[np.abs(across) < side / 128 * rng.uniform(0.75, 1.75)] = add(
                [low + rng.uniform(0, 30)] * 3, kind)
        return lit(canvas, colours, rng), np.take(np.array(classes, dtype=np.uint8), canvas)

    radius, gap = side / 16, side / 5
    count = int(rng.integers(1, 4)) if task == "count" else 2
    cues = rng.integers(3, size=3) if task == "count" else rng.permutation(3)[:2]
    free = height - 2 * radius - 4 - (count - 1) * gap
    rows = radius + 2 + np.sort(rng.uniform(0, free, count)) + gap * np.arange(count)
    inward = radius + 1 + rng.uniform(0, side / 32)  # from the edge to the cues' centres
    right = bool(rng.integers(2))
    for cue, row in zip(cues, rows, strict=False):  # count: some of three cues
        for fraction, colour in ((1.0, (245, 245, 240)), (0.72, KEY_COLOURS[cue])):
            paint(canvas, add(colour, "cue"), 0, fraction * radius, 0, row,
                  width - 1 - inward if right else inward)

    for _ in range(rng.integers(6, 11)):
        size = side * 0.06 * (0.12 / 0.06) ** rng.uniform()
        centre_y = rng.uniform(0, height, 20)
        centre_x = rng.uniform(inward + radius + side / 2 + 1.3 * size, width)
        below = centre_y[:, None] - rows  # [20, cues], from cues down to the object
        distance = np.sort(np.abs(below))
        clear = np.full(20, True)
        # places whose class is beyond doubt: below a cue, and not at the height of one
        if task == "direction":
            clear = (below.max(1) > 0) & (distance[:, 0] > side / 16)
        elif task == "nearest":  # and here: no two cues at almost the same distance
            clear = distance[:, 1] - distance[:, 0] > side / 10
        if not clear.any():
            continue
        centre_y, below = centre_y[clear.argmax()], below[clear.argmax()]
        if task == "direction":
            name = KEYS[cues[np.where(below > 0, below, np.inf).argmin()]]
        elif task == "nearest":
            name = KEYS[cues[np.abs(below).argmin()]]
        else:
            name = PROBES["count"][1 + count]
        blob(name, size, centre_y, width - 1 - centre_x if right else centre_x)
    return lit(canvas, colours, rng), np.take(np.array(classes, dtype=np.uint8), canvas)


def local_bound(classes=CLASSES):
    """The best expected mIoU of a predictor that sees no key: a bound for every local network.

    It can do no better than to recognise background, wires, keys and the kinds of objects perfectly
    and to guess the key, K equally likely colours. Guessing colour k for a share f_k of the pixels
    of a kind gives IoU f/K / (f + 1/K - f/K), a concave function of f, so its mean is largest at f
    = 1/K: IoU 1 / (2K - 1).
    """
    decided = len(classes) - len(KEYS) * len(KINDS)
    return (decided + len(KEYS) * len(KINDS) / (2 * len(KEYS) - 1)) / len(classes)


class Shapes:
    """The dataset: len, [i] -> (image, label), classes, palette, sample_name(i). task: one of
    PROBES, "" for none."""

    classes = CLASSES
    palette = PALETTE

    def __init__(self, split="train", seed=0, height=128, width=128, task=""):
        self.split, self.seed, self.height, self.width, self.task = split, seed, height, width, task
        if task:
            self.classes, self.palette = PROBES[task], PROBE_PALETTES[task]
        self.stored_ids = np.arange(len(self.classes), dtype=np.uint8)

    def __len__(self):
        return LENGTHS[self.split]

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.task:
            return make_probe(self.task, self.seed, self.split, index, self.height, self.width)
        return make_scene(self.seed, self.split, index, self.height, self.width)

    def sample_name(self, index):
        """A readable name of sample `index`."""
        return f"{self.split}_{index:05d}"
