"""python -m studies.results --data PATH [--jobs 2]: five papers and a plain network on CamVid.

Every paper's tiny network and FCN, which is PySA's backbone and head without its levels (Long et
al., CVPR 2015, in this size), two seeds each, from random weights: the same crops at half
resolution, steps, batches and schedule; only the learning rate is each paper's own. Scores the
state that was best on val, at the full 480 x 360 labels, on whole images and in sliding windows of
the training crop. Writes docs/results.csv (scores), docs/results-log.csv (what was logged on the
way) and docs/results.png, and prints two tables.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch

import datasets
from common import checkpoint
from common.inference import Protocol, evaluate, predict
from common.losses import segmentation_loss
from datasets import pictures

from .measure import markdown, spread, times, write_csv
from .trainings import NAMES, ROOT, load_best, parser, set_flags, train_all

CSV, LOG = ROOT / "docs" / "results.csv", ROOT / "docs" / "results-log.csv"
NETWORKS = {"FCN": ("pysa", ["context=False"]),
            **{name: (paper, []) for paper, name in NAMES.items()}}
STEPS = 5000
SEEDS = (0, 1)
SHOWN = (10, 90)  # of the test images


def result_run(network, seed, arguments):
    """The run of one training of one of NETWORKS."""
    paper, options = NETWORKS[network]
    flags = ["--paper", paper, *set_flags(options), "--seed", str(seed), "--dataset", "camvid",
             "--data", str(arguments.data.resolve()), "--device", arguments.device,
             "--eval-every", str(max(1, STEPS // 5))]
    return ROOT / "runs" / "results" / f"{network}-{seed}", STEPS, flags


def milliseconds(networks):
    """Two {network: milliseconds}, of a training step and a test image, in turns on one thread."""
    torch.set_num_threads(1)
    crops, label = torch.randn(8, 3, 160, 160), torch.zeros(8, 160, 160).long()
    image = torch.randn(1, 3, 180, 240)

    def train(network):
        segmentation_loss(network.train(), network(crops), label, 0.4).backward()

    @torch.inference_mode()
    def test(network):
        network.eval()(image)

    for step in (train, test):
        candidates = {name: functools.partial(step, network) for name, network in networks.items()}
        yield {name: 1e3 * seconds for name, seconds in times(candidates).items()}


def by_network(rows):
    """{network: its rows, one per seed}, in the order of the CSV."""
    groups = {}
    for row in rows:
        groups.setdefault(row["network"], []).append(row)
    return groups


def table(rows):
    """Markdown: one line per network."""
    headings = ["", "parameters", "steps", "mIoU val", "mIoU test", "test, sliding",
                "ms per training step", "ms per test image"]
    return markdown(headings, [
        [network, f"{int(group[0]['parameters']) / 1e6:.2f} M", group[0]["steps"],
         *(spread([float(row[split]) for row in group])
           for split in ("val", "test", "test sliding")),
         *(f"{float(group[0][column]):.0f}" for column in ("training ms", "test ms"))]
        for network, group in by_network(rows).items()])


def classes_table(rows):
    """Markdown: IoU on test, one line per class, means over the seeds."""
    groups, lines = by_network(rows), []
    for name in list(rows[0])[9:]:
        values = [np.mean([float(row[name]) for row in group]) for group in groups.values()]
        lines.append([name, *(f"**{value:.1%}**" if value == max(values) else f"{value:.1%}"
                              for value in values)])
    return markdown(["test IoU", *groups], lines)


def scored(network, seed, arguments):
    """(row of the CSV, rows of the log, network, predictions of the SHOWN test images) of a run."""
    run = result_run(network, seed, arguments)
    state, best = checkpoint.load_run(run[0] / "last.pt"), load_best(run).to(arguments.device)
    who = {"network": network, "seed": seed}
    log = [who | {name: f"{value:.6g}" for name, value in row.items()} for row in state["log"]]
    whole, scores = Protocol(scales=(state["recipe"]["test_scale"],)), {}
    sliding = dataclasses.replace(whole, crop=state["recipe"]["crop_size"])
    for name, protocol in (("val", whole), ("test", whole), ("test sliding", sliding)):
        dataset = datasets.load("camvid", arguments.data, name.split()[0])
        scores[name], _ = evaluate(best, dataset, len(dataset.classes), protocol, arguments.device,
                                   description=f"{network} {seed} {name}")
    row = {
        **who, "parameters": sum(p.numel() for p in best.parameters()), "steps": run[1],
        **{name: f"{matrix.miou:.4f}" for name, matrix in scores.items()},
        "training ms": "", "test ms": "",
        **{name: f"{value:.4f}"
           for name, value in zip(dataset.classes, scores["test"].iou, strict=True)},
    }
    predicted = [predict(best, dataset[index][0], whole, arguments.device) for index in SHOWN]
    return row, log, best.cpu(), predicted


def draw(path, data, predicted):
    """Image, truth and what each network predicts. predicted: {network: [ids [H, W] per image]}."""
    dataset = datasets.load("camvid", data, "test")
    rows = []
    for number, index in enumerate(SHOWN):
        image, label = dataset[index]
        labels = (label, *(guesses[number] for guesses in predicted.values()))
        rows.append([image, *(pictures.colourise(ids, dataset.palette) for ids in labels)])
    pictures.save_png(path, pictures.grid(
        ["image", "truth", *predicted], rows, dataset.classes, dataset.palette, height=150))


def main():
    flags = parser(__doc__, jobs=True)
    flags.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    flags.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    arguments = flags.parse_args()
    train_all([result_run(network, seed, arguments) for seed in SEEDS for network in NETWORKS],
              arguments.jobs)

    rows, log, networks, predicted = [], [], {}, {}
    for network in NETWORKS:
        for seed in SEEDS:
            row, lines, best, guesses = scored(network, seed, arguments)
            rows.append(row)
            log += lines
            networks.setdefault(network, best)  # the first seed is timed and shown
            predicted.setdefault(network, guesses)
    for column, measured in zip(("training ms", "test ms"), milliseconds(networks), strict=True):
        for row in rows:
            row[column] = f"{measured[row['network']]:.3g}"
    write_csv(CSV, rows)
    write_csv(LOG, log)
    print("\n".join(["", *table(rows), "", *classes_table(rows)]))
    draw(CSV.with_suffix(".png"), arguments.data, predicted)


if __name__ == "__main__":
    main()
