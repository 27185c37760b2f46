"""python -m studies.shapes_table [--papers pysa ...] [--jobs 2]: what context is worth, and every part of it.

Trains every network of ROWS on `shapes` with three seeds, scores it on the 100 test scenes (never used for choosing
anything), writes docs/shapes.csv, one row per run, and prints the table of each paper's notes.
Runs lie in runs/shapes-table/; finished ones are not repeated and interrupted ones go on, so the command can be
stopped at will. Also draws docs/context.png: the same scenes with and without context.
"""

import argparse
import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import checkpoint
from common.cli import build_model, load_recipe
from common.inference import evaluate, predict
from datasets import pictures
from datasets.shapes import KEYS, Shapes

from .measure import write_csv

ROOT = Path(__file__).resolve().parent.parent
RUNS, CSV = ROOT / "runs" / "shapes-table", ROOT / "docs" / "shapes.csv"
SEEDS = (0, 1, 2)
FPA_ONLY, GAU_ONLY = ("gate=none",), ("attention=none", "global_pool=False")
# paper: [(what, options, how many times the default number of steps)]. The first row of a paper is its default, the
# second the same network without context.
ROWS = {
    "pysa": [
        ("Series", (), 1),
        ("no context", ("context=False",), 1),
        ("no context, five times as long", ("context=False",), 5),
        ("Parallel", ("variant=parallel",), 1),
    ],
    "unept": [
        ("UN-EPT", (), 1),
        ("no context", ("context=False",), 1),
        ("one level", ("levels=1",), 1),
        ("one level, 16 points", ("levels=1", "points=16"), 1),
        ("one level, 64 points", ("levels=1", "points=64"), 1),
        ("16 points", ("points=16",), 1),
        ("no spatial branch", ("spatial=False",), 1),
        ("64 points", ("points=64",), 1),
    ],
    "pan": [
        ("PAN", (), 1),
        ("no context", ("context=False",), 1),
        ("SE", ("attention=se", "global_pool=False", *FPA_ONLY), 1),
        ("C333, max", ("kernels=3,3,3", "pool=max", "global_pool=False", *FPA_ONLY), 1),
        ("C333, average", ("kernels=3,3,3", "global_pool=False", *FPA_ONLY), 1),
        ("C357, average", ("global_pool=False", *FPA_ONLY), 1),
        ("FPA", FPA_ONLY, 1),
        ("GAU 1x1", (*GAU_ONLY, "low_kernel=1"), 1),
        ("GAU 3x3", GAU_ONLY, 1),
        ("PAN, spatial gate", ("gate=spatial",), 1),
    ],
    "psanet": [
        ("collect and distribute", (), 1),
        ("no context", ("context=False",), 1),
        ("collect", ("psa_type=collect",), 1),
        ("distribute", ("psa_type=distribute",), 1),
    ],
    "lrformer": [
        ("LRFormer", (), 1),
        ("no context", ("context=False",), 1),
    ],
}


def run_directory(paper, what, seed):
    """Where the run of a row and seed lies."""
    return RUNS / f"{paper}-{what.replace(', ', '-').replace(' ', '-')}-{seed}"


def train(out, steps, flags, threads):
    """Run or go on with one training of train.py, if its directory does not hold the result yet."""
    last = out / "last.pt"
    if not (last.exists() and checkpoint.load(last)["step"] == steps):
        command = [sys.executable, "train.py", "--device", "cpu", *flags, "--steps", str(steps), "--out", str(out),
                   "--resume"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-2000:]}")


def train_all(runs, jobs):
    """Do all (run directory, steps, flags), `jobs` at a time, the cores shared among them."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        for _ in tqdm(pool.map(lambda run: train(*run, threads), runs), total=len(runs), unit="run"):
            pass


def run_of(paper, row, seed):
    """(run directory, steps, flags) of one training of the table."""
    what, options, longer = row
    flags = ["--paper", paper, "--seed", str(seed), *(flag for option in options for flag in ("--set", option))]
    return run_directory(paper, what, seed), longer * load_recipe(paper, "shapes").steps, flags


def load_best(out):
    """The best network of a run."""
    state = checkpoint.load_run(out)
    config = state["config"]
    model = build_model(config["paper"], config["preset"], config["num_classes"], config["options"])
    model.load_state_dict(state["model"])
    return model.eval()


def table(rows):
    """The lines of a Markdown table from rows of the CSV."""
    groups = {}
    for row in rows:
        groups.setdefault((row["paper"], row["network"], row["steps"]), []).append(float(row["miou"]))
    lines = ["| paper | network | steps | mIoU on test scenes, mean (lowest to highest of three seeds) |", "|---|---|---|---|"]
    for (paper, network, steps), scores in groups.items():
        spread = f"{min(scores):.1%} to {max(scores):.1%}"
        lines.append(f"| {paper} | {network} | {steps} | **{np.mean(scores):.1%}** ({spread}) |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="*", choices=ROWS, default=list(ROWS), help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, the cores shared among them")
    arguments = parser.parse_args()
    rows = ((paper, row, seed) for paper in arguments.papers for row in ROWS[paper] for seed in SEEDS)
    train_all([run_of(*row) for row in rows], arguments.jobs)

    before = [] if not CSV.exists() else list(csv.DictReader(CSV.open(encoding="utf-8")))
    done, test_scenes = [], Shapes("test")
    for paper in ROWS:
        if paper not in arguments.papers:
            done += [row for row in before if row["paper"] == paper]
            continue
        for what, _, longer in ROWS[paper]:
            for seed in SEEDS:
                network = load_best(run_directory(paper, what, seed))
                matrix, _ = evaluate(network, test_scenes, len(test_scenes.classes))
                done.append({"paper": paper, "network": what, "steps": str(longer * load_recipe(paper, "shapes").steps),
                             "seed": seed, "miou": f"{matrix.miou:.4f}"})
    write_csv(CSV, done)
    for paper in arguments.papers:
        print(f"\n{paper}\n" + "\n".join(table(row for row in done if row["paper"] == paper)))

    if "pysa" not in arguments.papers:
        return
    networks = [load_best(run_directory("pysa", row[0], 0)) for row in ROWS["pysa"][:2]]
    pictures_of = []
    for key in range(len(KEYS)):  # the first scene of each key that shows several classes
        scenes = (test_scenes[index] for index in range(len(test_scenes)))
        image, label = next(s for s in scenes if len(np.unique(s[1])) > 5 and (s[1].max() - 3) % len(KEYS) == key)
        guesses = [pictures.colourise(predict(network, image), test_scenes.palette) for network in networks]
        pictures_of.append([image, pictures.colourise(label, test_scenes.palette), *guesses])
    headings = ["image", "truth", "with context (PySA)", "without"]
    picture = pictures.grid(headings, pictures_of, test_scenes.classes, test_scenes.palette)
    pictures.save_png(ROOT / "docs" / "context.png", picture)


if __name__ == "__main__":
    main()
