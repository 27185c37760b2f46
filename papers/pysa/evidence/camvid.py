"""python -m papers.pysa.evidence.camvid --data PATH: PySA `tiny` on CamVid from scratch.

Trains with the numbers of recipe.py's "camvid_tiny" in runs/pysa-tiny-camvid (goes on if it was
interrupted), scores the state that was best on val at the full 480 x 360 labels, on val, and on
test by three protocols, writes docs/camvid.csv and docs/camvid.png and prints the Markdown table.
"""

import dataclasses
from pathlib import Path

import datasets
from common.inference import PROTOCOLS, Protocol, evaluate, predict
from datasets import pictures
from papers.settings import load_recipe
from studies.measure import markdown, write_csv
from studies.trainings import ROOT, load_best, parser, train_all

CSV, PICTURE = ROOT / "docs" / "camvid.csv", ROOT / "docs" / "camvid.png"
SHOWN = (10, 90, 200)  # of the test images
HALF = Protocol(scales=(0.5,))  # as in training, whose crops are the windows
WINDOWS, SCALES = (
    dataclasses.replace(
        PROTOCOLS[name], crop=160, scales=tuple(0.5 * scale for scale in PROTOCOLS[name].scales))
    for name in ("sliding", "multiscale")
)
SCORED = {"val": HALF, "test": HALF, "test, sliding": WINDOWS, "test, multiscale": SCALES}


def table(rows):
    """The lines of the Markdown table from the rows of the CSV."""
    return markdown(["", *(row["class"] for row in rows)],
                    [[what, *(f"{float(row[what]):.1%}" for row in rows)] for what in SCORED])


def main():
    flags = parser(__doc__)
    flags.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    flags.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    arguments = flags.parse_args()
    run = (ROOT / "runs" / "pysa-tiny-camvid", load_recipe("pysa", "camvid").steps,
           ["--paper", "pysa", "--dataset", "camvid", "--data", str(arguments.data.resolve()),
            "--device", arguments.device])
    train_all([run])

    network = load_best(run).to(arguments.device)
    rows, picture = {}, []
    for what, protocol in SCORED.items():
        dataset = datasets.load("camvid", arguments.data, what.partition(",")[0])
        matrix, _ = evaluate(network, dataset, len(dataset.classes), protocol, arguments.device,
                             description=what)
        scores = [*matrix.iou, matrix.miou, matrix.pixel_accuracy]
        for name, score in zip(
                (*dataset.classes, "**mean**", "pixel accuracy"), scores, strict=True):
            rows.setdefault(name, {"class": name})[what] = f"{score:.4f}"
    write_csv(CSV, list(rows.values()))
    print("\n".join(table(list(rows.values()))))

    for index in SHOWN:
        image, label = dataset[index]
        picture.append((image, label, predict(network, image, HALF, arguments.device)))
    page = pictures.predictions(picture, dataset.classes, dataset.palette)
    pictures.save_png(PICTURE, page)


if __name__ == "__main__":
    main()
