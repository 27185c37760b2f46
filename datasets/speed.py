"""python -m datasets.speed NAME PATH: how fast training images come.

Prints images per second and core: reading, decoding and augmentation to crops, by recipe.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from common.errors import run

from . import LOADERS, load
from .transforms import augment

FAMILIES = {
    "no augmentation but crop and flip": {},
    "scale, colour (ours)": dict(scale=(0.5, 2.0), colour=0.3),
    "scale, rotation, blur (PSANet)": dict(scale=(0.5, 2.0), rotate=10.0, blur=True),
    "fit, crop again, distortion (UN-EPT, LRFormer)": dict(
        scale=(0.5, 2.0), fit=(2048, 512), max_share=0.75, photometric=True, centre=False
    ),
}


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
    print(f"| augmentation to {side} x {side} | images/s on one core |\n|---|---|")
    for name, settings in FAMILIES.items():
        started = time.perf_counter()
        for number in range(arguments.images):
            random = np.random.default_rng(number)
            augment(*dataset[number % len(dataset)], random, side, **settings)
        rate = arguments.images / (time.perf_counter() - started)
        print(f"| {name} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    run(main)
