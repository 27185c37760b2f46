"""python -m studies.probes [--papers pysa ...] [--jobs 2]: what can each mechanism express?

Trains every paper's tiny network with and without context, three seeds each, on scenes that ask for one ability
(datasets/shapes.py), scores it on the 100 test scenes, writes docs/probes.csv, prints the table and draws
docs/probes.png. Then trains those that have not learned a task four times as long: docs/probes-longer.csv.
Runs lie in runs/probes/; finished ones are not repeated and interrupted ones go on. The column `global` are the
networks of `make shapes-table`, which are trained first where they are missing.
"""

import argparse
import csv

import numpy as np
import torch
import torch.nn.functional as F

from common.inference import evaluate, predict
from common.metrics import IGNORE
from datasets import pictures
from datasets.shapes import Shapes

from .attention import NAMES
from .measure import write_csv
from .shapes_table import ROOT, ROWS, SEEDS, load_best, run_of, train_all

RUNS, CSV, PICTURE = ROOT / "runs" / "probes", ROOT / "docs" / "probes.csv", ROOT / "docs" / "probes.png"
STEPS = {"global": None, "direction": 300, "nearest": 300, "count": 300, "thin": 100}  # global: as its recipe says
COLUMNS = ("paper", "context", "task", "seed", "score")
# What is trained for LONG steps as well: name, task, paper, options.
LONG, LONG_CSV = 1200, ROOT / "docs" / "probes-longer.csv"
LONG_COLUMNS = ("network", "task", "steps", "seed", "score")
LONGER = (
    *((NAMES[paper], task, paper, ()) for task in ("nearest", "direction") for paper in ("pysa", "pan", "lrformer")),
    ("PySA, position=True", "nearest", "pysa", ("position=True",)),
)
NEAR = 2  # pixels
SHOWN = 1  # of the test scenes


def probe_run(paper, context, task, seed):
    """(run directory, steps, flags) of one training."""
    if task == "global":
        return run_of(paper, ROWS[paper][0 if context else 1], seed)
    flags = ["--paper", paper, "--set", f"context={context}", "--dataset", f"shapes-{task}", "--seed", str(seed)]
    flags += ["--eval-every", str(STEPS[task])]
    return RUNS / f"{paper}-{'context' if context else 'none'}-{task}-{seed}", STEPS[task], flags


def longer_run(name, task, paper, options, seed):
    """(run directory, steps, flags) of one of the longer trainings."""
    flags = ["--paper", paper, "--dataset", f"shapes-{task}", "--seed", str(seed), "--eval-every", str(LONG)]
    flags += [flag for option in options for flag in ("--set", option)]
    return RUNS / f"longer-{name.replace(', ', '-')}-{task}-{seed}", LONG, flags


def scenes(task):
    """The test scenes of a task."""
    return Shapes("test", task=task.replace("global", ""))


class Edges:
    """A dataset in which only pixels within NEAR rows and columns of another class count."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        values = torch.from_numpy(label)[None].float()
        highest, lowest = (sign * F.max_pool2d(sign * values, 2 * NEAR + 1, 1, NEAR) for sign in (1, -1))
        return image, np.where((highest != lowest)[0].numpy(), label, IGNORE)

    def sample_name(self, index):
        """The name of sample `index`."""
        return self.dataset.sample_name(index)


def score(network, task):
    """thin: mIoU of the pixels at edges. Others: the share of the objects' pixels whose class is right."""
    dataset = scenes(task)
    if task == "thin":
        return evaluate(network, Edges(dataset), len(dataset.classes))[0].miou
    counts = evaluate(network, dataset, len(dataset.classes))[0].counts
    objects = slice(3 if task == "global" else 2, None)  # behind background, wire and key or background and cue
    return float(counts.diagonal()[objects].sum() / counts[objects].sum())


def table(rows):
    """The lines of a Markdown table from rows of the CSV."""
    lines = ["| | " + " | ".join(STEPS) + " |", "|---" * (1 + len(STEPS)) + "|"]
    for paper in ROWS:
        for context in ("True", "False"):
            cells = []
            for task in STEPS:
                scores = [float(row["score"]) for row in rows
                          if (row["paper"], row["context"], row["task"]) == (paper, context, task)]
                cells.append(f"**{np.mean(scores):.0%}** ({min(scores):.0%} to {max(scores):.0%})" if scores else "")
            lines.append(f"| {NAMES[paper]}{', no context' * (context == 'False')} | {' | '.join(cells)} |")
    return lines


def longer_table(rows):
    """The lines of a Markdown table from rows of the CSV of the longer trainings."""
    lines = ["| | task | steps | pixels of objects right |", "|---|---|---|---|"]
    for name, task, _, _ in LONGER:
        scores = [float(row["score"]) for row in rows if (row["network"], row["task"]) == (name, task)]
        cell = f"**{np.mean(scores):.0%}** ({min(scores):.0%} to {max(scores):.0%})"
        lines.append(f"| {name} | `{task}` | {LONG} | {cell} |")
    return lines


def draw(tasks):
    """The picture: a scene of each task and what the networks of the first seed make of it."""
    cells = []
    for task in tasks:
        dataset = scenes(task)
        image, label = dataset[SHOWN]
        networks = (load_best(probe_run(paper, True, task, 0)[0]) for paper in ROWS)
        labels = (label, *(predict(network, image) for network in networks))
        cells.append([image, *(pictures.colourise(ids, dataset.palette) for ids in labels)])
    pictures.save_png(PICTURE, pictures.grid(["image", "truth", *NAMES.values()], cells))


def longer(jobs):
    """The longer trainings: CSV and table."""
    wanted = [(row, seed) for seed in SEEDS for row in LONGER]
    train_all([longer_run(*row, seed) for row, seed in wanted], jobs)
    rows = []
    for row, seed in wanted:
        result = score(load_best(longer_run(*row, seed)[0]), row[1])
        rows.append(dict(zip(LONG_COLUMNS, (*row[:2], LONG, seed, f"{result:.4f}"))))
    write_csv(LONG_CSV, rows)
    print("\n" + "\n".join(longer_table(rows)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="*", choices=ROWS, default=list(ROWS), help="only these")
    parser.add_argument("--tasks", nargs="*", choices=STEPS, default=list(STEPS), help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, the cores shared among them")
    arguments = parser.parse_args()
    wanted = [(paper, context, task, seed) for task in arguments.tasks for seed in SEEDS for paper in arguments.papers
              for context in (True, False)]
    train_all([probe_run(*what) for what in wanted], arguments.jobs)

    before = list(csv.DictReader(CSV.open(encoding="utf-8"))) if CSV.exists() else []
    found = {(row["paper"], row["context"], row["task"], row["seed"]): row["score"] for row in before}
    for paper, context, task, seed in wanted:
        result = score(load_best(probe_run(paper, context, task, seed)[0]), task)
        found[paper, str(context), task, str(seed)] = f"{result:.4f}"
    rows = [dict(zip(COLUMNS, (*what, value))) for what, value in sorted(found.items())]
    write_csv(CSV, rows)
    print("\n".join(table(rows)))

    if set(arguments.papers) == set(ROWS):
        draw(arguments.tasks)
        longer(arguments.jobs)


if __name__ == "__main__":
    main()
