"""python -m papers.unept.evidence.boundary_gain: what UN-EPT's boundary heads are worth.

Takes the tiny network with boundary heads from runs/unept-boundary, which is trained first if it is
not there, in a few minutes on a laptop. Prints mIoU on the 100 test scenes, over all pixels and
over those within 3 pixels of another class, without refinement and with one or more steps of it,
and what became of the pixels that changed their class. Draws docs/unept-boundary.png: where the
first scenes change most.
"""

import numpy as np
import torch

from common.inference import normalise
from common.metrics import IGNORE, ConfusionMatrix
from datasets import pictures
from datasets.shapes import Shapes
from studies.measure import markdown
from studies.trainings import ROOT, load_best, parser, run_of, train_all

from .. import boundary as rims

PICTURE = ROOT / "docs" / "unept-boundary.png"
# Pixels, refinements one after another, pixels, scenes.
NEAR, STEPS, CROP, SHOWN = 3, (0, 1, 2, 4), 40, 4


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


def crops(image, label, found, boundary, palette):
    """Image, truth, both predictions and the boundary where the first step changes most."""
    window = busiest(found[0] != found[1])
    grey = (255 * boundary[..., None]).astype(np.uint8).repeat(3, axis=-1)
    labels = [pictures.colourise(ids, palette) for ids in (label, found[0], found[1])]
    return [array[window] for array in (image, *labels, grey)]


def fate(label, before, after):
    """Numbers of pixels [3] that were repaired, spoilt, and wrong before and after a change."""
    was, now, changed = before == label, after == label, before != after
    return np.array([(~was & now).sum(), (was & ~now).sum(), (changed & ~was & ~now).sum()])


def main():
    parser(__doc__).parse_args()
    _, steps, flags = run_of("unept", ("", ("boundary=True",), 1), 0)
    run = ROOT / "runs" / "unept-boundary", steps, flags
    train_all([run])
    network, scenes, rows = load_best(run), Shapes("test"), []
    total, near = ({step: ConfusionMatrix(len(scenes.classes)) for step in STEPS} for _ in range(2))
    fates, heads = dict.fromkeys(STEPS, 0), ConfusionMatrix(2)
    for index in range(len(scenes)):
        image, label = scenes[index]
        found, boundary = predictions(network, image)
        truth = torch.from_numpy(label)[None]
        at_edge = (rims.boundary_depth(truth, NEAR + 1)[0] <= NEAR).numpy()
        heads.update(boundary > 0.5, rims.boundary_targets(truth)[0][0])
        for step in STEPS:
            total[step].update(found[step], label)
            near[step].update(found[step], np.where(at_edge, label, IGNORE))
            fates[step] = fates[step] + fate(label, found[0], found[step])
        if index < SHOWN:
            rows.append(crops(image, label, found, boundary, scenes.palette))
    print("\n".join(markdown(
        ["steps of refinement", "mIoU", f"mIoU within {NEAR} pixels of an edge", "repaired",
         "spoilt", "wrong anyway"],
        [[step, f"{total[step].miou:.2%}", f"{near[step].miou:.2%}", *fates[step]]
         for step in STEPS])))
    print(f"boundary mask: IoU {heads.iou[1]:.1%}, pixel accuracy {heads.pixel_accuracy:.1%}")
    headings = ["image", "truth", "without", "with one step", "boundary"]
    pictures.save_png(PICTURE, pictures.grid(headings, rows, scenes.classes, scenes.palette))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
