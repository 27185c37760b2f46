"""python -m studies.attention: one scene, one pixel, five ways of looking at it.

Draws docs/attention.png from networks of `make shapes-table`, which are trained first where they
are missing. One network alone: python eval.py RUN --split test --attention ROW,COL.
"""

import importlib

from PIL import Image

from datasets import pictures
from datasets.shapes import CLASSES, Shapes
from papers import attention

from .trainings import NAMES, ROOT, ROWS, load_best, parser, run_of, train_all

PICTURE = ROOT / "docs" / "attention.png"
SCENE, PIXEL = 2, (110, 119)  # of the test scenes; (row, column) inside an object


def row_of(paper, run, scenes):
    """Captions and panels of a paper: its prediction; the last four, or those nearest the badge."""
    explain, (image, label) = importlib.import_module(f"papers.{paper}.explain"), scenes[SCENE]
    prediction, panels = attention.look(load_best(run), explain, image, PIXEL)
    badge = label == CLASSES.index("key")
    panels.sort(key=lambda panel: attention.weight_near(panel[1], badge))  # all others stay
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
    rows = [[("the scene; the ring is the pixel", pictures.plain_panel(image, PIXEL)),
             (f"the truth: {scenes.classes[label[PIXEL]]}", pictures.plain_panel(truth, PIXEL))]]
    rows += [row_of(paper, run, scenes) for paper, run in runs.items()]
    seen = sorted({*label.flatten().tolist()})
    page = pictures.sheet(
        "Where does a network look to name the shape under the ring? The outline is right there; "
        "only the badge in the corner tells the colour of the class. Maps: dark blue = little, "
        "yellow = the most in that map (number at the right), grey = nothing. Circles: the points "
        "that are read, area = weight, colour = on which map; of UN-EPT the four panels with most "
        "weight at the badge.",
        rows, [scenes.classes[i] for i in seen], [scenes.palette[i] for i in seen],
    )
    pictures.save_png(PICTURE, page.quantize(256, Image.Quantize.FASTOCTREE))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
