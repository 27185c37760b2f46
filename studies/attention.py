"""python -m studies.attention: one scene, one pixel, five ways of looking at it.

Draws docs/attention.png from networks of `make shapes-table`, which are trained first where they
are missing. One network alone: python eval.py RUN --split test --attention ROW,COL.
"""

import importlib

import numpy as np
from PIL import Image

from datasets import pictures
from datasets.shapes import CLASSES, Shapes
from papers import attention

from .trainings import NAMES, ROOT, ROWS, load_best, parser, run_of, train_all

PICTURE = ROOT / "docs" / "attention.png"
SCENE, PIXEL = 2, (110, 119)  # of the test scenes; (row, column) inside an object


def near(values, place):
    """The weight that points have near a place, (x, y) in 0 .. 1; other panels have none."""
    points = np.concatenate(list(values.values())) if isinstance(values, dict) else np.zeros((1, 3))
    return points[np.hypot(*(points[:, :2] - place).T) < 0.15, 2].sum()


def row_of(paper, run, scenes):
    """The captions and panels of one paper: its prediction, and the last four things it looks at,
    or those with most points near the badge."""
    explain, (image, label) = importlib.import_module(f"papers.{paper}.explain"), scenes[SCENE]
    prediction, panels = attention.look(load_best(run), explain, image, PIXEL)
    row, column = np.argwhere(label == CLASSES.index("key")).mean(0) / len(label)
    panels.sort(key=lambda panel: near(panel[1], (column, row)))  # keeps the order of all others
    colours = pictures.colourise(prediction, scenes.palette)
    return [
        (f"{NAMES[paper]} predicts: {scenes.classes[prediction[PIXEL]]}",
         pictures.plain_panel(colours, PIXEL)),
        *((title, pictures.panel(image, values, PIXEL)) for title, values in panels[-4:])]


def main():
    parser(__doc__).parse_args()
    scenes = Shapes("test")
    image, label = scenes[SCENE]
    runs = {paper: run_of(paper, ROWS[paper][0], 0) for paper in NAMES}
    train_all(list(runs.values()))
    truth = pictures.colourise(label, scenes.palette)
    rows = [[
        ("the scene; the ring is the pixel", pictures.plain_panel(image, PIXEL)),
        (f"the truth: {scenes.classes[label[PIXEL]]}", pictures.plain_panel(truth, PIXEL)),
    ]]
    rows += [row_of(paper, run, scenes) for paper, run in runs.items()]
    seen = sorted({*label.flatten().tolist()})
    page = pictures.sheet(
        "Where does a network look to name the shape under the ring? The outline is right there; "
        "only the badge in the corner tells the colour of the class. Maps: dark blue = little, "
        "yellow = the most in that map (number at the right), grey = nothing. Circles: the points "
        "that are read, area = weight, colour = on which map; the four heads that look most at the "
        "badge.",
        rows, [scenes.classes[i] for i in seen], [scenes.palette[i] for i in seen],
    )
    pictures.save_png(PICTURE, page.quantize(256, Image.Quantize.FASTOCTREE))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
