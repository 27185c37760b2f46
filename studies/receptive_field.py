"""python -m studies.receptive_field: which pixels have a say in the scores of the centre pixel.

The effective receptive field of Luo, Li, Urtasun and Zemel (NeurIPS 2016): the gradient of the
score of a random class at the centre pixel with respect to the input, its absolute value summed
over colours and averaged over test scenes. Draws docs/receptive-field.png from networks of `make
shapes-table`, which are trained first where they are missing.
"""

import numpy as np
import torch
from PIL import Image

from common.inference import normalise
from datasets import pictures
from datasets.shapes import Shapes
from papers.options import build_model

from .trainings import NAMES, ROOT, ROWS, load_best, parser, run_of, train_all

PICTURE = ROOT / "docs" / "receptive-field.png"
DECADES = 4  # of the colour scale


def receptive_field(model, images, classes):
    """Mean absolute gradient of one class score at the centre with respect to the input.

    images: uint8 [n, H, W, 3], classes: which score of each image, [n] -> [H, W], float64.
    """
    total = 0
    for image, number in zip(images, classes, strict=True):
        x = normalise(image)[None].requires_grad_()
        score = model(x)["out"][0, number, image.shape[0] // 2, image.shape[1] // 2]
        total = total + torch.autograd.grad(score, x)[0].abs().sum((0, 1)).double()
    return (total / len(images)).numpy()


def radius(field, share=0.9):
    """The smallest r so that the pixels at most r from the centre hold this share of the field."""
    rows, columns = (np.abs(np.arange(side) - side // 2) for side in field.shape)
    distance = np.maximum(rows[:, None], columns)
    held = np.bincount(distance.flatten(), field.flatten()).cumsum()
    return int(np.searchsorted(held, share * field.sum()))


def row_of(paper, runs, images, num_classes):
    """The captions and panels of one paper, before and after training. runs: {context: run}."""
    classes = np.random.default_rng(0).integers(num_classes, size=len(images))
    blank, row = np.full_like(images[0], 255), []
    for context, run in runs.items():
        torch.manual_seed(0)
        options = {} if context else {"context": False}
        before = build_model(paper, "tiny", num_classes, options).eval()
        after = load_best(run)
        for when, model in (("before", before), ("after", after)):
            field = receptive_field(model, images, classes)
            shown = (1 + np.log10(field.clip(1e-30) / field.max()) / DECADES).clip(0)
            caption = (f"{NAMES[paper]} {'with' if context else 'without'} context, {when} "
                       f"training; 90 % within {radius(field)} px")
            ends = (f"1/{10**DECADES:,}", "1")
            row.append((caption, pictures.map_panel(blank, shown, labels=ends)))
    return row


def main():
    flags = parser(__doc__, papers=True)
    flags.add_argument("--images", type=int, default=20, help="test scenes to average over")
    arguments = flags.parse_args()
    runs = {paper: {context: run_of(paper, ROWS[paper][0 if context else 1], 0)
                    for context in (False, True)} for paper in arguments.papers}
    train_all([run for pair in runs.values() for run in pair.values()])

    scenes = Shapes("test")
    images = [scenes[index][0] for index in range(arguments.images)]
    rows = [row_of(*item, images, len(scenes.classes)) for item in runs.items()]
    side = images[0].shape[0]
    page = pictures.sheet(
        "Which pixels have a say in what the network thinks of the centre pixel? Scenes of "
        f"{side} x {side} pixels; the class of an object depends on the colour of a badge in one "
        "of the corners. Colour: how strongly the scores of the centre react to a change of this "
        "pixel, as a fraction of the strongest reaction, on a logarithmic scale: yellow 1, dark "
        f"blue 1/{10**DECADES:,}, grey less than that or nothing. Mean of {len(images)} scenes. "
        "90 % within r px: so much of all reaction lies in the square that reaches r pixels from "
        "the centre.", rows,
    )
    pictures.save_png(PICTURE, page.quantize(256, Image.Quantize.FASTOCTREE))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
