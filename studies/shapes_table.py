"""python -m studies.shapes_table [--papers pysa ...] [--jobs 2]: what every part is worth.

Trains the networks of each paper's evidence/ablation.py on `shapes`, three seeds each, scores
them on the 100 test scenes (never used for choosing anything), writes docs/shapes.csv, one row per
run, and prints the table of each paper's notes. Also draws docs/context.png: the same scenes with
and without context.
"""

import numpy as np

from common.inference import evaluate, predict
from datasets import pictures
from datasets.shapes import KEYS, Shapes

from .measure import markdown, read_csv, spread, write_csv
from .trainings import ROOT, ROWS, SEEDS, load_best, parser, run_of, train_all

CSV = ROOT / "docs" / "shapes.csv"


def table(rows):
    """The lines of a Markdown table from rows of the CSV."""
    groups = {}
    for row in rows:
        network = row["paper"], row["network"], row["steps"]
        groups.setdefault(network, []).append(float(row["miou"]))
    headings = ["paper", "network", "steps",
                "mIoU on test scenes, mean (lowest to highest of three seeds)"]
    return markdown(headings, [[*network, spread(scores)] for network, scores in groups.items()])


def scored(paper, row, seed, scenes):
    """The row of the CSV for one run."""
    run = run_of(paper, row, seed)
    matrix, _ = evaluate(load_best(run), scenes, len(scenes.classes))
    return {"paper": paper, "network": row[0], "steps": str(run[1]), "seed": seed,
            "miou": f"{matrix.miou:.4f}"}


def draw(scenes):
    """docs/context.png: for each colour of the key the first scene that shows several classes."""
    networks = [load_best(run_of("pysa", row, 0)) for row in ROWS["pysa"][:2]]
    rows = []
    for key in range(len(KEYS)):
        pairs = (scenes[index] for index in range(len(scenes)))
        image, label = next((image, label) for image, label in pairs
                            if len(np.unique(label)) > 5 and (label.max() - 3) % len(KEYS) == key)
        labels = (label, *(predict(network, image) for network in networks))
        rows.append([image, *(pictures.colourise(ids, scenes.palette) for ids in labels)])
    headings = ["image", "truth", "with context (PySA)", "without"]
    page = pictures.grid(headings, rows, scenes.classes, scenes.palette)
    pictures.save_png(ROOT / "docs" / "context.png", page)


def main():
    arguments = parser(__doc__, papers=True, jobs=True).parse_args()
    train_all([run_of(paper, row, seed) for paper in arguments.papers for row in ROWS[paper]
               for seed in SEEDS], arguments.jobs)
    scenes = Shapes("test")
    done = [row for row in read_csv(CSV) if row["paper"] not in arguments.papers]
    done += [scored(paper, row, seed, scenes)
             for paper in arguments.papers for row in ROWS[paper] for seed in SEEDS]
    write_csv(CSV, sorted(done, key=lambda row: list(ROWS).index(row["paper"])))
    for paper in arguments.papers:
        print("\n".join(["", paper, *table(row for row in done if row["paper"] == paper)]))
    if "pysa" in arguments.papers:
        draw(scenes)


if __name__ == "__main__":
    main()
