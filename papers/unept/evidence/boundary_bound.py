"""python -m papers.unept.evidence.boundary_bound: what UN-EPT's refinement could gain at best.

Trains no network. The scores of a few test scenes are free numbers, one per cell of 8 x 8 pixels as
in the network; mask and direction are free numbers on a grid of cells of 8, 4, 2 or 1 pixels. All
are fitted, by the losses of the network, to the truth of the scenes that they are tested on, which
no trained network knows. Prints the mIoU within 3 pixels of an edge after steps of refinement.
"""

import numpy as np
import torch
import torch.nn.functional as F

from common.metrics import IGNORE, ConfusionMatrix
from datasets.shapes import Shapes
from studies.measure import markdown
from studies.trainings import parser

from .. import boundary as rims

SCENES, CELL, FIT, RATE = 16, 8, 150, 0.5  # FIT: steps of the fit, RATE: its highest learning rate
NEAR, STEPS = 3, (0, 1, 2, 4)  # pixels; refinements one after another
GRIDS, TASKS = (8, 4, 2, 1), ("", "thin")


def fit(channels, size, loss):
    """Numbers [B, channels, h, w] that make loss(numbers) small. size: (B, h, w)."""
    values = torch.zeros(size[0], channels, *size[1:], requires_grad=True)
    optimiser = torch.optim.Adam([values], RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=FIT)
    for _ in range(FIT):
        optimiser.zero_grad()
        loss(values).backward()
        optimiser.step()
        schedule.step()
    return values.detach()


def best_scores(label, classes):
    """The scores [B, classes, H, W] of one number per class and cell of 8 x 8 pixels."""
    count, *sides = label.shape

    def enlarge(values):
        return F.interpolate(values, sides, mode="bilinear")

    return enlarge(fit(classes, (count, *(side // CELL for side in sides)),
                       lambda values: rims.mean_cross_entropy(enlarge(values), label)))


def best_heads(label, cell):
    """The scores of mask [B, 2, H, W] and direction [B, 8, H, W] of numbers per cell x cell."""
    count, *sides = label.shape
    mask, direction = rims.boundary_targets(label)
    direction = direction.where(mask == 1, rims.VOID)

    def enlarge(values):
        maps = dict(zip(("mask", "direction"), values.split((2, 8), 1), strict=True))
        return rims.enlarge(maps, sides)

    def loss(values):
        pairs = zip(enlarge(values), (mask, direction), strict=True)
        return sum(rims.balanced_cross_entropy(scores, target) for scores, target in pairs)

    return enlarge(fit(10, (count, *(side // cell for side in sides)), loss))


def scores_of_steps(scores, heads, label, classes):
    """mIoU near an edge after every number of steps of STEPS."""
    near = (rims.boundary_depth(label.to(torch.uint8), NEAR + 1) <= NEAR).numpy()
    truth, found = np.where(near, label.numpy(), IGNORE), []
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            matrix = ConfusionMatrix(classes)
            matrix.update(scores.argmax(1).numpy(), truth)
            found.append(f"{matrix.miou:.1%}")
        scores = rims.refine(scores, *heads)
    return found


def main():
    parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = []
    for task in TASKS:
        scenes = Shapes("test", task=task)
        label = torch.from_numpy(np.stack([scenes[i][1] for i in range(SCENES)])).long()
        scores = best_scores(label, len(scenes.classes))
        for cell in GRIDS:
            heads = best_heads(label, cell)
            rows.append([f"`{task or 'shapes'}`", f"{cell} x {cell}",
                         *scores_of_steps(scores, heads, label, len(scenes.classes))])
    print("\n".join(markdown(
        ["scenes", "pixels per number of the heads", *(f"{n} steps" for n in STEPS)], rows)))


if __name__ == "__main__":
    main()
