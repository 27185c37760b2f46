"""Scenes made on the fly in which context is needed, provably: the default dataset, no download.

A scene holds one *key* near a corner (a ringed badge in one of three colours), several *objects* (discs,
blocks and triangles of very different sizes, in colours that mean nothing) and some thin *wires*. The class of
an object is its shape together with the colour of the key: the same disc is an "amber disc" in one scene
and a "violet disc" in the next. No pixel of an object is closer to the key than half the shorter side of the
image, measured along rows or columns, whichever is larger. So a network whose receptive field is smaller
than that cannot know the class, however long it trains: see `local_bound`.

A scene is a pure function of (seed, split, index): nothing is stored, any number of workers in any order
make the same scenes.
"""

import math

import numpy as np

KEYS = ("amber", "blue", "violet")
KEY_COLOURS = np.array([(250, 175, 25), (30, 120, 230), (190, 60, 190)], dtype=np.uint8)
KINDS = ("disc", "block", "triangle")
TINTS = np.array([(225, 120, 105), (120, 190, 130), (215, 200, 150)])  # of the kinds, before jitter
CLASSES = ("background", "wire", "key") + tuple(f"{key} {kind}" for kind in KINDS for key in KEYS)
# One hue per key, one lightness per kind; the hues stay apart for colour-blind readers (after Okabe and Ito).
PALETTE = [(38, 40, 46), (235, 235, 225), (0, 158, 115)] + [
    (255, 200, 70), (86, 160, 235), (230, 140, 215),
    (205, 130, 0), (25, 95, 185), (170, 60, 150),
    (125, 75, 0), (15, 50, 110), (95, 25, 85),
]
LENGTHS = {"train": 12000, "val": 100, "test": 100}


def make_scene(seed, split, index, height=128, width=128):
    """One scene as (image uint8 [height, width, 3], label uint8 [height, width]), height and width >= 32.

    Source of randomness: a generator seeded by (seed, split, index), and nothing else.
    """
    rng = np.random.default_rng([seed, list(LENGTHS).index(split), index])
    side = min(height, width)
    reach = side / 2  # no object pixel is nearer to the key than this, in Chebyshev distance
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)

    # Things are painted as numbers on one canvas, later ones in front; colour and class come at the end.
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
        angle = rng.uniform(0, 2 * np.pi)
        rows = slice(max(int(centre_y - extent), 0), int(centre_y + extent) + 2)
        columns = slice(max(int(centre_x - extent), 0), int(centre_x + extent) + 2)
        dy, dx = y[rows] - centre_y, x[columns] - centre_x
        cos, sin = math.cos(angle), math.sin(angle)
        along, across = dy * cos + dx * sin, dx * cos - dy * sin
        if KINDS[kind] == "disc":
            inside = dy**2 + dx**2 <= size**2
        elif KINDS[kind] == "block":
            inside = np.maximum(np.abs(along), np.abs(across)) <= 0.9 * size
        else:
            inside = (along >= -0.6 * size) & (along + 1.6 * np.abs(across) <= 1.2 * size)
        canvas[rows, columns][inside] = len(classes)
        colours.append(TINTS[kind] + rng.uniform(-25, 25, 3))
        classes.append(CLASSES.index(f"{KEYS[key]} {KINDS[kind]}"))

    # A slope of light over the whole scene, and grain.
    light = y * rng.uniform(-30, 30) / height + x * rng.uniform(-30, 30) / width
    light += 5 * rng.standard_normal((height, width), dtype=np.float32)
    image = np.take(np.array(colours, dtype=np.float32), canvas, axis=0)
    image += light[..., None]
    return image.clip(0, 255, out=image).astype(np.uint8), np.take(np.array(classes, dtype=np.uint8), canvas)


def local_bound(classes=CLASSES):
    """The best expected mIoU of a predictor that sees no key: a bound for every local network.

    It can do no better than to recognise background, wires, keys and the kinds of objects perfectly and to
    guess the key, K equally likely colours. Guessing colour k for a share f_k of the pixels of a kind gives
    IoU f/K / (f + 1/K - f/K), a concave function of f, so its mean is largest at f = 1/K: IoU 1 / (2K - 1).
    """
    decided = len(classes) - len(KEYS) * len(KINDS)
    return (decided + len(KEYS) * len(KINDS) / (2 * len(KEYS) - 1)) / len(classes)


class Shapes:
    """The dataset: len, [i] -> (image, label), classes, palette, sample_name(i)."""

    classes = CLASSES
    palette = PALETTE
    stored_ids = np.arange(len(CLASSES), dtype=np.uint8)

    def __init__(self, split="train", seed=0, height=128, width=128):
        self.split, self.seed, self.height, self.width = split, seed, height, width

    def __len__(self):
        return LENGTHS[self.split]

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        return make_scene(self.seed, self.split, index, self.height, self.width)

    def sample_name(self, index):
        """A readable name of sample `index`."""
        return f"{self.split}_{index:05d}"
