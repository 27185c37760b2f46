"""python -m bench.shapes_table [--papers pysa ...] [--jobs 2]: what context is worth, in one table.

Trains every network of ROWS on `shapes` with three seeds, scores it on the 100 test scenes (never used for choosing
anything), writes docs/shapes.csv, one row per run, and prints the table of the front page. Runs lie in
runs/shapes-table/; finished ones are not repeated and interrupted ones go on, so the command can be stopped at will.
Also draws docs/context.png: the same scenes with and without context.
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

from common import checkpoint, pictures
from common.inference import evaluate, predict
from datasets.shapes import KEYS, Shapes, local_bound
from train import build_model, load_recipe

ROOT = Path(__file__).resolve().parent.parent
RUNS, CSV = ROOT / "runs" / "shapes-table", ROOT / "docs" / "shapes.csv"
SEEDS = (0, 1, 2)
# (paper, what, options, how many times the default number of steps)
ROWS = [
    ("pysa", "Series", (), 1),
    ("pysa", "Parallel", ("variant=parallel",), 1),
    ("pysa", "no context", ("context=False",), 1),
    ("pysa", "no context, five times as long", ("context=False",), 5),
]


def run_directory(row, seed):
    """Where the run of a row and seed lies."""
    paper, what, _, _ = row
    return RUNS / f"{paper}-{what.replace(', ', '-').replace(' ', '-')}-{seed}"


def train(job):
    """Run or go on with one training; returns (row, seed)."""
    row, seed, threads = job
    paper, _, options, longer = row
    out = run_directory(row, seed)
    steps = longer * load_recipe(paper, "shapes").steps
    last = out / "last.pt"
    if not (last.exists() and checkpoint.load(last)["step"] == steps):
        command = [sys.executable, "train.py", "--paper", paper, "--steps", str(steps), "--seed", str(seed),
                   "--device", "cpu", "--out", str(out), "--resume"]
        for option in options:
            command += ["--set", option]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-2000:]}")
    return row, seed


def load_best(out):
    """The best network of a run."""
    state = checkpoint.load_run(out)
    config = state["config"]
    model = build_model(config["paper"], config["preset"], config["num_classes"], config["options"])
    model.load_state_dict(state["model"])
    return model.eval()


def table(rows):
    """The lines of the Markdown table from the rows of the CSV."""
    groups = {}
    for row in rows:
        groups.setdefault((row["paper"], row["network"], row["steps"]), []).append(float(row["miou"]))
    lines = ["| paper | network | steps | mIoU on test scenes, mean (lowest to highest of three seeds) |", "|---|---|---|---|"]
    for (paper, network, steps), scores in groups.items():
        spread = f"{min(scores):.1%} to {max(scores):.1%}"
        lines.append(f"| {paper} | {network} | {steps} | **{np.mean(scores):.1%}** ({spread}) |")
    lines.append(f"| | bound for every network that cannot see the key | | {local_bound():.1%} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, the cores shared among them")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.papers or row[0] in arguments.papers]
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    jobs = [(row, seed, threads) for row in rows for seed in SEEDS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for _ in tqdm(pool.map(train, jobs), total=len(jobs), unit="run"):
            pass

    done = [] if not CSV.exists() else list(csv.DictReader(CSV.open(encoding="utf-8")))
    done = [row for row in done if arguments.papers and row["paper"] not in arguments.papers]
    test_scenes = Shapes("test")
    for row in rows:
        for seed in SEEDS:
            matrix, _ = evaluate(load_best(run_directory(row, seed)), test_scenes, len(test_scenes.classes))
            steps = row[3] * load_recipe(row[0], "shapes").steps
            done.append({"paper": row[0], "network": row[1], "steps": steps, "seed": seed, "miou": f"{matrix.miou:.4f}"})
    with CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["paper", "network", "steps", "seed", "miou"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(done)
    print("\n".join(table(list(csv.DictReader(CSV.open(encoding="utf-8"))))))

    networks = [load_best(run_directory(ROWS[index], 0)) for index in (0, 2)]
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
