"""python -m studies.receptive_field: which pixels have a say in the class scores of the centre pixel, as one picture.

The effective receptive field of Luo, Li, Urtasun and Zemel (NeurIPS 2016): the gradient of the score of a random class
at the centre pixel with respect to the input, its absolute value summed over colours and averaged over test scenes.
For every paper's tiny network with and without its context, before and after training. Writes
docs/receptive-field.png. Needs the trained networks and otherwise prints the commands that make them;
--train runs those first.
"""

import argparse

import numpy as np
import torch
from PIL import Image

from common.cli import build_model
from common.errors import UserError, run
from common.inference import normalise
from datasets import pictures
from datasets.shapes import Shapes

from .attention import NAMES, finished, train_missing, training
from .shapes_table import ROOT, load_best

PICTURE = ROOT / "docs" / "receptive-field.png"
DECADES = 4  # of the colour scale


def receptive_field(model, images, classes):
    """Mean absolute gradient of one class score at the centre with respect to the input. images: uint8 [n, H, W, 3],
    classes: which score of each image, [n] -> [H, W], float64."""
    total = 0
    for image, number in zip(images, classes):
        x = normalise(image)[None].requires_grad_()
        score = model(x)["out"][0, number, image.shape[0] // 2, image.shape[1] // 2]
        total = total + torch.autograd.grad(score, x)[0].abs().sum((0, 1)).double()
    return (total / len(images)).numpy()


def radius(field, share=0.9):
    """The smallest r so that the pixels at most r rows and columns from the centre hold this share of the field."""
    distance = [np.abs(np.arange(side) - side // 2) for side in field.shape]
    distance = np.maximum(distance[0][:, None], distance[1])
    return int(np.searchsorted(np.bincount(distance.flatten(), field.flatten()).cumsum(), share * field.sum()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="*", choices=NAMES, default=list(NAMES), help="only these")
    parser.add_argument("--images", type=int, default=20, help="test scenes to average over")
    parser.add_argument("--train", action="store_true", help="train what is missing first")
    arguments = parser.parse_args()
    wanted = [(paper, context) for paper in arguments.papers for context in (False, True)]
    if arguments.train:
        train_missing(wanted)
    missing = [training(*pair) for pair in wanted if not finished(training(*pair)[0])]
    if missing:
        commands = "; ".join(f"python {' '.join(command)}" for _, command in missing)
        raise UserError(f"{len(missing)} networks are not trained yet: add --train, or run {commands}")

    scenes = Shapes("test")
    images = [scenes[index][0] for index in range(arguments.images)]
    classes = np.random.default_rng(0).integers(len(scenes.classes), size=len(images))
    blank = np.full_like(images[0], 255)
    rows = []
    for paper in arguments.papers:
        row = []
        for context in (False, True):
            torch.manual_seed(0)
            before = build_model(paper, "tiny", len(scenes.classes), {} if context else {"context": False}).eval()
            for when, model in (("before", before), ("after", load_best(training(paper, context)[0]))):
                field = receptive_field(model, images, classes)
                shown = (1 + np.log10(field.clip(1e-30) / field.max()) / DECADES).clip(0)
                caption = (f"{NAMES[paper]} {'with' if context else 'without'} context, {when} training; "
                           f"90 % within {radius(field)} px")
                row.append((caption, pictures.map_panel(blank, shown, labels=(f"1/{10**DECADES:,}", "1"))))
        rows.append(row)
    side = images[0].shape[0]
    page = pictures.sheet(
        f"Which pixels have a say in what the network thinks of the centre pixel? Scenes of {side} x {side} pixels; "
        "the class of an object depends on the colour of a badge in one of the corners. Colour: how strongly the scores "
        "of the centre react to a change of this pixel, as a fraction of the strongest reaction, on a logarithmic "
        f"scale: yellow 1, dark blue 1/{10**DECADES:,}, grey less than that or nothing. Mean of {len(images)} scenes. "
        "90 % within r px: so much of all reaction lies in the square that reaches r pixels from the centre.", rows,
    )
    pictures.save_png(PICTURE, page.quantize(256, Image.Quantize.FASTOCTREE))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    run(main)
