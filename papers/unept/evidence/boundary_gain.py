"""python -m papers.unept.evidence.boundary_gain: what UN-EPT's boundary heads are worth at test time.

Takes the tiny network with boundary heads from runs/unept-boundary; if it is not there it is trained first, in a few
minutes on a laptop. Prints mIoU on the 100 test scenes, over all pixels and over those within 3 pixels of another
class, without refinement and with one or more steps of it, and what became of the pixels that changed their class.
Draws docs/unept-boundary.png: where the first scenes change most.
"""

import argparse
import subprocess
import sys

import numpy as np
import torch

from common import pictures
from common.inference import normalise
from common.metrics import IGNORE, ConfusionMatrix
from datasets.shapes import Shapes
from .. import boundary as rims

from studies.attention import finished
from studies.shapes_table import ROOT, load_best

OUT, PICTURE = ROOT / "runs" / "unept-boundary", ROOT / "docs" / "unept-boundary.png"
NEAR, STEPS, CROP, SHOWN = 3, (0, 1, 2, 4), 40, 4  # pixels, refinements one after another, pixels, scenes


@torch.inference_mode()
def predictions(network, image):
    """{steps of refinement: class ids [H, W]} and the probability of a boundary, [H, W]."""
    outputs = network(normalise(image)[None])
    mask, direction = rims.enlarge(outputs, image.shape[:2])
    scores, found = outputs["out"], {}
    for step in range(max(STEPS) + 1):
        found[step] = scores[0].argmax(0).numpy().astype(np.uint8)
        scores = rims.refine(scores, mask, direction)
    return found, mask[0].softmax(0)[1].numpy()


def busiest(changed):
    """The CROP x CROP window in which most pixels of a map changed, as a pair of slices."""
    windows = np.lib.stride_tricks.sliding_window_view(changed, (CROP, CROP)).sum((2, 3))
    top, left = np.unravel_index(windows.argmax(), windows.shape)
    return slice(top, top + CROP), slice(left, left + CROP)


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not finished(OUT):
        command = ["train.py", "--paper", "unept", "--set", "boundary=True", "--out", str(OUT), "--resume"]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    network, scenes, rows = load_best(OUT), Shapes("test"), []
    everywhere, near = ({step: ConfusionMatrix(len(scenes.classes)) for step in STEPS} for _ in range(2))
    fates = {step: np.zeros(3, dtype=np.int64) for step in STEPS}  # repaired, spoilt, wrong before and after
    heads = ConfusionMatrix(2)
    for index in range(len(scenes)):
        image, label = scenes[index]
        found, boundary = predictions(network, image)
        truth = torch.from_numpy(label)[None]
        at_edge = (rims.boundary_depth(truth, NEAR + 1)[0] <= NEAR).numpy()
        heads.update(boundary > 0.5, rims.boundary_targets(truth)[0][0])
        for step in STEPS:
            everywhere[step].update(found[step], label)
            near[step].update(found[step], np.where(at_edge, label, IGNORE))
            before, after, changed = found[0] == label, found[step] == label, found[0] != found[step]
            fates[step] += [(~before & after).sum(), (before & ~after).sum(), (changed & ~before & ~after).sum()]
        if index < SHOWN:
            window = busiest(found[0] != found[1])
            grey = (255 * boundary[..., None]).astype(np.uint8).repeat(3, axis=-1)
            labels = [pictures.colourise(ids, scenes.palette) for ids in (label, found[0], found[1])]
            rows.append([array[window] for array in (image, *labels, grey)])
    print(f"| steps of refinement | mIoU | mIoU within {NEAR} pixels of an edge | repaired | spoilt | wrong anyway |")
    print("|---|---|---|---|---|---|")
    for step in STEPS:
        counts = " | ".join(str(count) for count in fates[step])
        print(f"| {step} | {everywhere[step].miou:.2%} | {near[step].miou:.2%} | {counts} |")
    print(f"boundary mask: IoU {heads.iou[1]:.1%}, pixel accuracy {heads.pixel_accuracy:.1%}")
    headings = ["image", "truth", "without", "with one step", "boundary"]
    pictures.save_png(PICTURE, pictures.grid(headings, rows, scenes.classes, scenes.palette))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
