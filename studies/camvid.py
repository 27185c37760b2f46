"""python -m studies.camvid --data PATH: PySA `tiny` from scratch on CamVid, the table and picture of its notes.

Trains with papers/pysa/recipe.py's "camvid" numbers in runs/pysa-tiny-camvid (goes on if it was interrupted), scores
the state that was best on val at the full 480 x 360 labels, on val, and on test by three protocols, writes docs/camvid.csv
and docs/camvid.png and prints the Markdown table.
"""

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import datasets
from common.cli import pick_device
from common.inference import PROTOCOLS, Protocol, evaluate, predict
from datasets import pictures

from .attention import finished
from .measure import write_csv
from .shapes_table import ROOT, load_best

CSV, PICTURE = ROOT / "docs" / "camvid.csv", ROOT / "docs" / "camvid.png"
SHOWN = (10, 90, 200)  # of the test images
HALF = Protocol(scales=(0.5,))  # as in training, whose crops are the windows
WINDOWS, SCALES = (
    dataclasses.replace(PROTOCOLS[name], crop=160, scales=tuple(0.5 * scale for scale in PROTOCOLS[name].scales))
    for name in ("sliding", "multiscale")
)
SCORED = {"val": HALF, "test": HALF, "test, sliding": WINDOWS, "test, multiscale": SCALES}


def table(rows):
    """The lines of the Markdown table from the rows of the CSV."""
    lines = ["| | " + " | ".join(row["class"] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for what in SCORED:
        cells = (f"{float(row[what]):.1%}" for row in rows)
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "pysa-tiny-camvid", help="run directory")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    arguments = parser.parse_args()
    if not finished(arguments.out):
        command = ["--dataset", "camvid", "--data", str(arguments.data.resolve()), "--out", str(arguments.out.resolve())]
        device = ["--device", arguments.device] if arguments.device else []
        subprocess.run([sys.executable, "train.py", *command, *device, "--resume"], cwd=ROOT, check=True)

    device = pick_device(arguments.device)
    network = load_best(arguments.out).to(device)
    rows, picture = {}, []
    for what, protocol in SCORED.items():
        dataset = datasets.load("camvid", arguments.data, what.partition(",")[0])
        matrix, _ = evaluate(network, dataset, len(dataset.classes), protocol, device, description=what)
        scores = [*matrix.iou, matrix.miou, matrix.pixel_accuracy]
        for name, score in zip((*dataset.classes, "**mean**", "pixel accuracy"), scores):
            rows.setdefault(name, {"class": name})[what] = f"{score:.4f}"
    write_csv(CSV, list(rows.values()))
    print("\n".join(table(list(rows.values()))))

    for index in SHOWN:
        image, label = dataset[index]
        picture.append((image, label, predict(network, image, HALF, device)))
    pictures.save_png(PICTURE, pictures.predictions(picture, dataset.classes, dataset.palette))


if __name__ == "__main__":
    main()
