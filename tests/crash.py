"""python -m tests.crash [--kills N] [--seed N]: kill training again and again and see that nothing
is lost.

Trains a small PySA on made-up scenes once without interruption, and once more while it is killed
(SIGKILL, no chance to react) and resumed N times: at random moments between its start and its next
checkpoints, and in every second case while a file of the run directory is being written, which the
half-written .part file left behind proves. Then the two run directories are compared bit by bit:
weights, optimiser, best score, the loss of every step (and with it the order of the data), log,
pictures. Exit code 1 if anything differs.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from common import checkpoint
from common.run import FILES
from datasets.shapes import CLASSES, make_scene

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("while last.pt is written", "between checkpoints", "while any file is written",
         "at any time")


def make_data(folder, count=10, side=64):
    """A folder dataset of made-up scenes."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        pictures = make_scene(0, "train", number, side, side)
        for part, picture in zip(("images", "labels"), pictures, strict=True):
            Image.fromarray(picture).save(folder / part / f"{number}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")


def start(data, out, steps, *more, **settings):
    """train.py in a process of its own; the same command starts a run and resumes it. settings: of
    Popen."""
    command = [sys.executable, ROOT / "train.py", "--dataset", "folder", "--data", data, "--steps",
               steps, "--batch-size", 2, "--crop-size", 48, "--eval-every", 3,
               "--set", "channels=8",
               "--device", "cpu",
               "--out", out, "--resume", *more]
    return subprocess.Popen([str(part) for part in command],
                            env={**os.environ, "OMP_NUM_THREADS": "1"},
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings)


def wait_for(process, condition, pause=0.0):
    """Wait until `condition()` holds or the process has ended. pause: seconds between two looks."""
    while not condition() and process.poll() is None:
        time.sleep(pause)


def step_of(out):
    """The step of last.pt, which must be whole whenever it exists; -1 before there is one."""
    return checkpoint.load_run(out / "last.pt")["step"] if (out / "last.pt").exists() else -1


def half_written(out):
    """The files that a killed process left, with their times."""
    return {(path, path.stat().st_mtime_ns) for path in out.glob("*.part")}


def kill_once(process, out, kind, rng):
    """Kill the process at a moment of this kind. True if it was that moment."""
    last, writing = out / "last.pt", kind.startswith("while")
    pattern = "*.part" if "any" in kind else "last.pt.*.part"
    if kind == "at any time":
        time.sleep(rng.uniform(0, 5))
    else:
        before = last.stat().st_mtime_ns if last.exists() else None
        wait_for(process, lambda: last.exists() and last.stat().st_mtime_ns != before, pause=0.005)
        time.sleep(rng.uniform(0, 0.2))
    if writing:
        wait_for(process, lambda: any(out.glob(pattern)))
    process.kill()
    _, error = process.communicate()
    if process.returncode == 0:
        raise RuntimeError("training ended before it could be killed")
    if process.returncode == 2:
        raise RuntimeError(error.decode())
    return not writing or any(out.glob(pattern))


def differences(a, b, where=""):
    """The places where two nested values are not the same bits."""
    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [place for key in a for place in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [place for n, pair in enumerate(zip(a, b, strict=True))
                for place in differences(*pair, f"{where}/{n}")]
    return [] if a == b or (a != a and b != b) else [f"{where}: {a} and {b}"]


def kill_and_resume(folder, kills, seed=0, report=print):
    """Run it all under `folder`. Returns what differs in the end, and how many kills left a
    half-written file. Raises RuntimeError if training fails, or ends before it could be killed that
    often."""
    rng, steps = random.Random(seed), 18 * (kills + 1)
    make_data(folder / "data")
    tried = done = hit = 0
    while done < kills:
        kind = KINDS[done % len(KINDS)]
        process = start(folder / "data", folder / "killed", steps, "--workers", tried % 3)
        before, parts = step_of(folder / "killed"), half_written(folder / "killed")
        tried += 1
        if not kill_once(process, folder / "killed", kind, rng) and tried < 4 * kills:
            # the file was finished a moment before the signal came; the run goes on all the same
            continue
        left = [path.name for path, _ in half_written(folder / "killed") - parts]
        done, hit = done + 1, hit + bool(left)
        report(f"kill {done:2d} {kind:25s} step {before:3d} -> {step_of(folder / 'killed'):3d}"
               f"   {'half-written: ' + ', '.join(left) if left else ''}")
    for name in ("killed", "whole"):
        process = start(folder / "data", folder / name, steps, "--workers", 0)
        _, error = process.communicate()
        if process.returncode:
            return [f"{name}: exit code {process.returncode}, {error.decode()}"], hit
    found = []
    for name in FILES:
        one, other = (folder / run / name for run in ("killed", "whole"))
        if one.suffix == ".pt":
            found += differences(checkpoint.load(one), checkpoint.load(other), name)
        elif one.read_bytes() != other.read_bytes():
            found.append(name)
    return found + [f"{path.name} left behind" for path, _ in half_written(folder / "killed")], hit


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, hit = kill_and_resume(Path(folder), arguments.kills, arguments.seed)
    print(f"{arguments.kills} kills, {hit} of them left a half-written file; differences from the "
          "run that nobody "
          f"interrupted: {', '.join(found) or 'none, all bits are the same'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
