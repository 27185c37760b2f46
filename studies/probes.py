"""python -m studies.probes [--papers pysa ...] [--jobs 2]: what can each mechanism express?

Trains every paper's tiny network with and without context, three seeds each, on scenes that ask for
one ability (datasets/shapes.py), scores it on the 100 test scenes, writes docs/probes.csv, prints
the table and draws docs/probes.png. Then trains those that have not learned a task four times as
long: docs/probes-longer.csv. The column `global` are networks of `make shapes-table`.
"""

import numpy as np
import torch
import torch.nn.functional as F

from common.inference import predict
from common.metrics import IGNORE, ConfusionMatrix
from datasets import pictures
from datasets.shapes import Shapes

from .measure import markdown, read_csv, spread, write_csv
from .trainings import NAMES, ROOT, ROWS, SEEDS, load_best, parser, run_of, set_flags, train_all

RUNS, CSV = ROOT / "runs" / "probes", ROOT / "docs" / "probes.csv"
# Task: steps; those of `global` are its recipe's.
STEPS = {"global": None, "direction": 300, "nearest": 300, "count": 300, "thin": 100}
COLUMNS = ("paper", "context", "task", "seed", "score")
# What is trained for LONG steps as well: name, task, paper, options.
LONG, LONG_CSV = 1200, ROOT / "docs" / "probes-longer.csv"
LONG_COLUMNS = ("network", "task", "steps", "seed", "score")
LONGER = [(NAMES[paper], task, paper, ())
          for task in ("nearest", "direction") for paper in ("pysa", "pan", "lrformer")]
LONGER.append(("PySA, position=True", "nearest", "pysa", ("position=True",)))
NEAR = 2  # pixels
SHOWN = 1  # of the test scenes


def probe_run(paper, context, task, seed):
    """The run of one cell of the table."""
    if task == "global":
        return run_of(paper, ROWS[paper][0 if context else 1], seed)
    out = RUNS / f"{paper}-{'context' if context else 'none'}-{task}-{seed}"
    return out, STEPS[task], flags_of(paper, [f"context={context}"], task, seed, STEPS[task])


def longer_run(name, task, paper, options, seed):
    """The run of one of the longer trainings."""
    out = RUNS / f"longer-{name.replace(', ', '-')}-{task}-{seed}"
    return out, LONG, flags_of(paper, options, task, seed, LONG)


def flags_of(paper, options, task, seed, steps):
    """For train.py; evaluated once, at the end."""
    return ["--paper", paper, *set_flags(options), "--dataset", f"shapes-{task}",
            "--seed", str(seed), "--eval-every", str(steps)]


def edges(label):
    """The label [H, W] without the pixels that have no other class within NEAR rows and columns."""
    values = torch.from_numpy(label)[None].float()
    highest, lowest = (s * F.max_pool2d(s * values, 2 * NEAR + 1, 1, NEAR) for s in (1, -1))
    return np.where((highest != lowest)[0].numpy(), label, IGNORE)


def score(network, task):
    """thin: mIoU of the pixels at edges. Others: the share of objects' pixels that are right."""
    dataset = Shapes("test", task=task.replace("global", ""))
    matrix = ConfusionMatrix(len(dataset.classes))
    for index in range(len(dataset)):
        image, label = dataset[index]
        matrix.update(predict(network, image), edges(label) if task == "thin" else label)
    if task == "thin":
        return matrix.miou
    # Before the objects come background, wire and key; in the other tasks background and cue.
    objects = slice(3 if task == "global" else 2, None)
    return float(matrix.counts.diagonal()[objects].sum() / matrix.counts[objects].sum())


def table(rows):
    """The lines of a Markdown table from rows of the CSV."""
    found = {}
    for row in rows:
        what = row["paper"], row["context"], row["task"]
        found.setdefault(what, []).append(float(row["score"]))
    lines = []
    for paper in ROWS:
        for context in ("True", "False"):
            scores = (found.get((paper, context, task)) for task in STEPS)
            lines.append([NAMES[paper] + ", no context" * (context == "False"),
                          *(spread(s, 0) if s else "" for s in scores)])
    return markdown(["", *STEPS], lines)


def longer_table(rows):
    """The lines of a Markdown table from rows of the CSV of the longer trainings."""
    found = {}
    for row in rows:
        found.setdefault((row["network"], row["task"]), []).append(float(row["score"]))
    return markdown(["", "task", "steps", "pixels of objects right"],
                    [[name, f"`{task}`", LONG, spread(found[name, task], 0)]
                     for name, task, _, _ in LONGER])


def draw(tasks):
    """The picture: a scene of each task and what the networks of the first seed make of it."""
    rows = []
    for task in tasks:
        dataset = Shapes("test", task=task.replace("global", ""))
        image, label = dataset[SHOWN]
        networks = (load_best(probe_run(paper, True, task, 0)) for paper in ROWS)
        labels = (label, *(predict(network, image) for network in networks))
        rows.append([image, *(pictures.colourise(ids, dataset.palette) for ids in labels)])
    page = pictures.grid(["image", "truth", *NAMES.values()], rows)
    pictures.save_png(ROOT / "docs" / "probes.png", page)


def longer(jobs):
    """The longer trainings: CSV and table."""
    wanted = [(row, seed) for seed in SEEDS for row in LONGER]
    train_all([longer_run(*row, seed) for row, seed in wanted], jobs)
    rows = []
    for row, seed in wanted:
        result = score(load_best(longer_run(*row, seed)), row[1])
        rows.append(dict(zip(LONG_COLUMNS, (*row[:2], LONG, seed, f"{result:.4f}"), strict=True)))
    write_csv(LONG_CSV, rows)
    print("\n".join(["", *longer_table(rows)]))


def main():
    flags = parser(__doc__, papers=True, jobs=True)
    flags.add_argument("--tasks", nargs="*", choices=STEPS, default=list(STEPS), help="only these")
    arguments = flags.parse_args()
    wanted = [(paper, context, task, seed) for task in arguments.tasks for seed in SEEDS
              for paper in arguments.papers for context in (True, False)]
    train_all([probe_run(*what) for what in wanted], arguments.jobs)

    found = {tuple(row[name] for name in COLUMNS[:4]): row["score"] for row in read_csv(CSV)}
    for paper, context, task, seed in wanted:
        result = score(load_best(probe_run(paper, context, task, seed)), task)
        found[paper, str(context), task, str(seed)] = f"{result:.4f}"
    rows = [dict(zip(COLUMNS, (*what, value), strict=True))
            for what, value in sorted(found.items())]
    write_csv(CSV, rows)
    print("\n".join(table(rows)))

    if set(arguments.papers) == set(ROWS):
        draw(arguments.tasks)
        longer(arguments.jobs)


if __name__ == "__main__":
    main()
