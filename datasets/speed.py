"""python -m studies.loader --data PATH [--dataset camvid]: how fast training images come, and what an evaluation needs.

Prints images per second and core (reading, decoding and augmentation to crops, by recipe), then the extra peak memory of
`multiscale` on a 2048 x 1024 image with 150 classes.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

import datasets
from common.inference import PROTOCOLS, predict
from datasets.transforms import augment

from .measure import peak_memory

FAMILIES = {
    "no augmentation but crop and flip": {},
    "scale, colour (ours)": dict(scale=(0.5, 2.0), colour=0.3),
    "scale, rotation, blur (PSANet)": dict(scale=(0.5, 2.0), rotate=10.0, blur=True),
    "fit, crop again, distortion (UN-EPT, LRFormer)": dict(
        scale=(0.5, 2.0), fit=(2048, 512), max_share=0.75, photometric=True, centre=False
    ),
}


class ManyClasses(nn.Module):
    """A network that costs next to nothing and answers with 150 classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 150, 1)

    def forward(self, images):
        return {"out": self.layer(nn.functional.avg_pool2d(images, 8))}


def multiscale():
    """What peak_memory measures."""
    model, image = ManyClasses(), np.zeros((1024, 2048, 3), np.uint8)
    return lambda: predict(model, image, PROTOCOLS["multiscale"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="camvid", choices=datasets.NAMES)
    parser.add_argument("--data", required=True, help="folder of the dataset")
    parser.add_argument("--crop-size", type=int, default=480)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker of the loader
    dataset = datasets.load(arguments.dataset, arguments.data, "train")
    print(f"| augmentation to {arguments.crop_size} x {arguments.crop_size} | images/s on one core |\n|---|---|")
    for name, settings in FAMILIES.items():
        started = time.perf_counter()
        for number in range(arguments.images):
            augment(*dataset[number % len(dataset)], np.random.default_rng(number), arguments.crop_size, **settings)
        print(f"| {name} | {arguments.images / (time.perf_counter() - started):.0f} |", flush=True)
    print(f"\nmultiscale, windows of 512, 2048 x 1024 pixels, 150 classes: {peak_memory(multiscale) / 1024:.2f} GiB")


if __name__ == "__main__":
    main()
