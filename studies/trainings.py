"""Library: the networks that the studies compare, trained where they are missing.

A run is (directory, steps, flags of train.py). Finished runs are not repeated and interrupted ones
go on, so every study can be stopped and started again at will.
"""

import argparse
import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from common import checkpoint
from papers.options import build_model
from papers.settings import load_recipe

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
NAMES = {"pysa": "PySA", "unept": "UN-EPT", "pan": "PAN", "psanet": "PSANet",
         "lrformer": "LRFormer"}
ROWS = {paper: importlib.import_module(f"papers.{paper}.evidence.ablation").ROWS for paper in NAMES}


def run_of(paper, row, seed):
    """The run of a row of ROWS on `shapes`. The first row of a paper is its network as it is, the
    second the same without context."""
    what, options, longer = row
    name = f"{paper}-{what.replace(', ', '-').replace(' ', '-')}-{seed}"
    flags = ["--paper", paper, "--seed", str(seed), *set_flags(options)]
    return ROOT / "runs" / "shapes-table" / name, longer * load_recipe(paper, "shapes").steps, flags


def set_flags(options):
    """("a=1", "b=2") -> ["--set", "a=1", "--set", "b=2"]."""
    return [flag for option in options for flag in ("--set", option)]


def command(out, steps, flags):
    """What Python is given to do a run, or to go on with it; on the CPU unless the flags differ."""
    return ["train.py", "--device", "cpu", *flags, "--steps", str(steps), "--out", str(out),
            "--resume"]


def finished(out, steps):
    """Whether the run in a directory has done all its steps."""
    files = out / "last.pt", out / "best.pt"
    return all(file.exists() for file in files) and checkpoint.load_run(files[0])["step"] == steps


def train_all(runs, jobs=1):
    """Train all runs, `jobs` at a time, the cores shared among them. Raises RuntimeError."""
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def train(run):
        if finished(*run[:2]):
            return
        result = subprocess.run(
            [sys.executable, *command(*run)], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        if result.returncode:
            raise RuntimeError(f"python {' '.join(command(*run))}\n{result.stderr[-2000:]}")

    with ThreadPoolExecutor(jobs) as pool:
        for _ in tqdm(pool.map(train, runs), total=len(runs), unit="run"):
            pass


def load_best(run):
    """The best network of a run, in evaluation mode."""
    state = checkpoint.load_run(run[0])
    config = state["config"]
    model = build_model(config["paper"], config["preset"], config["num_classes"], config["options"])
    model.load_state_dict(state["model"])
    return model.eval()


def parser(description, papers=False, jobs=False):
    """An ArgumentParser that prints a module's docstring as it stands, with --papers and --jobs."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if papers:
        result.add_argument("--papers", nargs="*", choices=NAMES, default=[*NAMES],
                            help="only these")
    if jobs:
        result.add_argument("--jobs", type=int, default=1,
                            help="trainings at a time, the cores shared among them")
    return result
