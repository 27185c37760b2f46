"""python -m datasets.speed NAME PATH: how fast training images come.

Prints images per second and core: reading, decoding and augmentation to crops, by recipe; beside
one of them a pipeline of pillow alone, which checks nothing of what it reads.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.errors import run

from . import LOADERS, load
from .transforms import augment

FAMILIES = {
    "no augmentation but crop and flip": {},
    "scale, crop, flip": dict(scale=(0.5, 2.0)),
    "the same by pillow alone": None,
    "scale, colour (ours)": dict(scale=(0.5, 2.0), colour=0.3),
    "scale, rotation, blur (PSANet)": dict(scale=(0.5, 2.0), rotate=10.0, blur=True),
    "fit, crop again, distortion (UN-EPT, LRFormer)": dict(
        scale=(0.5, 2.0), fit=(2048, 512), max_share=0.75, photometric=True, centre=False
    ),
}


def by_pillow(image, label, random, side):
    """A pair of files -> arrays, scaled, mirrored and cropped, or padded with black."""
    parts, factor = [Image.open(image).convert("RGB"), Image.open(label)], random.uniform(0.5, 2.0)
    size = [round(length * factor) for length in parts[1].size]
    parts = [part.resize(size, how) for part, how in zip(
        parts, (Image.Resampling.BILINEAR, Image.Resampling.NEAREST), strict=True)]
    if random.random() < 0.5:
        parts = [part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in parts]
    left, top = (int(random.integers(max(0, length - side) + 1)) for length in size)
    return [np.asarray(part.crop((left, top, left + side, top + side))) for part in parts]


def main():
    parser = argparse.ArgumentParser(
        prog="python -m datasets.speed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=LOADERS, help="the dataset")
    parser.add_argument("root", type=Path, metavar="PATH", help="its folder")
    parser.add_argument("--crop-size", type=int, default=480)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of the loader
    dataset, side = load(arguments.name, arguments.root, "train"), arguments.crop_size
    print(f"| augmentation to {side} x {side} | images/s |\n|---|---|")
    for name, settings in FAMILIES.items():
        started = time.perf_counter()
        for number in range(arguments.images):
            random, index = np.random.default_rng(number), number % len(dataset)
            if settings is None:
                by_pillow(*dataset.pairs[index], random, side)
            else:
                augment(*dataset[index], random, side, **settings)
        rate = arguments.images / (time.perf_counter() - started)
        print(f"| {name} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    run(main)
