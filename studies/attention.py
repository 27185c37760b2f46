"""python -m studies.attention: one scene, one pixel, five ways of looking at it, side by side in docs/attention.png.

Takes the trained networks from runs/shapes-table (see studies/shapes_table.py) or runs/PAPER-tiny-shapes. Those that are
missing are trained first, with a line that says so, in a few minutes each on a laptop; the command can be stopped and
given again at will. One paper alone, with everything it looks at: python eval.py RUN --split test --attention ROW,COL.
"""

import argparse
import importlib
import subprocess
import sys

from PIL import Image

from common import checkpoint
from datasets import pictures
from datasets.shapes import Shapes
from papers import attention

from .shapes_table import ROOT, ROWS, load_best, run_directory

PICTURE = ROOT / "docs" / "attention.png"
SCENE, PIXEL = 2, (110, 119)  # of the test scenes; (row, column) inside an object
NAMES = {"pysa": "PySA", "unept": "UN-EPT", "pan": "PAN", "psanet": "PSANet", "lrformer": "LRFormer"}


def training(paper, context=True):
    """(run directory, command that trains it or goes on) of a paper's tiny network on `shapes`: the run of `make
    shapes-table` if there is one, which is the same training, else one of its own."""
    table = run_directory(paper, ROWS[paper][0 if context else 1][0], 0)
    out = f"runs/{paper}-tiny-shapes" if context else f"runs/{paper}-no-context"
    options = [] if context else ["--set", "context=False"]
    command = ["train.py", "--paper", paper, *options, "--device", "cpu", "--out", out, "--resume"]
    return table if finished(table) else ROOT / out, command


def finished(out):
    """Whether the run in a directory has done all its steps."""
    if not (out / "last.pt").exists() or not (out / "best.pt").exists():
        return False
    state = checkpoint.load_run(out / "last.pt")
    return state["step"] >= state["recipe"]["steps"]


def train_missing(wanted):
    """Train the runs that are not finished. wanted: (paper, context) pairs."""
    for paper, context in wanted:
        out, command = training(paper, context)
        if not finished(out):
            print(f"{out.name} is not trained yet: python {' '.join(command)}", flush=True)
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def row_of(paper, scenes, scene, pixel):
    """The captions and panels of one paper: its prediction and the last four things that it looks at."""
    explain = importlib.import_module(f"papers.{paper}.explain")
    image = scenes[scene][0]
    prediction, panels = attention.look(load_best(training(paper)[0]), explain, image, pixel)
    cells = [(f"{NAMES[paper]} predicts: {scenes.classes[prediction[pixel]]}",
              pictures.plain_panel(pictures.colourise(prediction, scenes.palette), pixel))]
    return cells + [(title, pictures.panel(image, values, pixel)) for title, values in panels[-4:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="*", choices=NAMES, default=list(NAMES), help="only these")
    parser.add_argument("--scene", type=int, default=SCENE, help="number of the test scene")
    parser.add_argument("--pixel", default="{},{}".format(*PIXEL), metavar="ROW,COL")
    arguments = parser.parse_args()
    scenes = Shapes("test")
    image, label = scenes[arguments.scene]
    pixel = attention.parse_pixel(arguments.pixel, image.shape)
    train_missing((paper, True) for paper in arguments.papers)
    rows = [[
        ("the scene; the ring is the pixel", pictures.plain_panel(image, pixel)),
        (f"the truth: {scenes.classes[label[pixel]]}", pictures.plain_panel(
            pictures.colourise(label, scenes.palette), pixel)),
    ]]
    rows += [row_of(paper, scenes, arguments.scene, pixel) for paper in arguments.papers]
    seen = sorted({*label.flatten().tolist()})
    page = pictures.sheet(
        "Where does a network look to name the shape under the ring? Its outline is right there; the colour of its "
        "class is that of the badge in the corner, and only there. Maps: dark blue = little, yellow = the most in that "
        "map (number at the right), grey = nothing. Circles: the points that are read, area = weight, colour = on "
        "which map.",
        rows, [scenes.classes[number] for number in seen], [scenes.palette[number] for number in seen],
    )
    pictures.save_png(PICTURE, page.quantize(256, Image.Quantize.FASTOCTREE))
    print(f"picture: {PICTURE}")


if __name__ == "__main__":
    main()
