"""python -m studies.results --data PATH [--jobs 2]: five papers and a plain network on CamVid, all trained alike.

Every paper's tiny network and FCN, which is PySA's backbone and head without its levels (Long et al., CVPR 2015, in
this size), two seeds each, from random weights: the same crops at half resolution, steps, batches and schedule; only the
learning rate is each paper's own. Scores the state that was best on val, at the full 480 x 360 labels, writes docs/results.csv
(scores), docs/results-log.csv (what was logged on the way) and docs/results.png, and prints two tables.

Runs lie in runs/results/; finished ones are not repeated and interrupted ones go on. --large trains the sizes of LARGE
instead, from random weights on crops at full resolution, which takes a GPU, and writes docs/results-large.*.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import datasets
from common import checkpoint
from common.cli import load_recipe
from common.inference import Protocol, evaluate, predict
from common.losses import segmentation_loss
from datasets import pictures

from .attention import NAMES
from .measure import times, write_csv
from .shapes_table import ROOT, load_best, train_all

CSV, LOG = ROOT / "docs" / "results.csv", ROOT / "docs" / "results-log.csv"
NETWORKS = {"FCN": ("pysa", ["--set", "context=False"])} | {name: (paper, []) for paper, name in NAMES.items()}
LARGE = dict.fromkeys(NETWORKS, "resnet50") | {"LRFormer": "t"}
STEPS = 1000
SEEDS = (0, 1)
SHOWN = (10, 90)  # of the test images


def result_run(network, seed, arguments):
    """(run directory, steps, flags) of one training of one of NETWORKS."""
    paper, options = NETWORKS[network]
    steps = arguments.steps or (load_recipe(paper, "camvid", LARGE[network]).steps if arguments.large else STEPS)
    flags = ["--paper", paper, *options, "--seed", str(seed), "--dataset", "camvid", "--data", str(arguments.data.resolve())]
    if arguments.large:
        flags += ["--preset", LARGE[network]]
    flags += ["--eval-every", str(max(1, steps // 3)), "--device", arguments.device]
    return ROOT / "runs" / f"results{'-large' * arguments.large}" / f"{network}-{seed}", steps, flags


def training_step(network, crops, label):
    """A function that does forward and backward pass of a training step."""
    def step():
        segmentation_loss(network.train(), network(crops), label, 0.4).backward()
    return step


def test_step(network, image):
    """A function that predicts one image."""
    @torch.inference_mode()
    def step():
        network.eval()(image)
    return step


def milliseconds(networks):
    """{network: (of a training step, of a test image)}, medians, all of them in turns on one thread of the CPU."""
    torch.set_num_threads(1)
    crops, label, image = torch.randn(8, 3, 160, 160), torch.zeros(8, 160, 160).long(), torch.randn(1, 3, 180, 240)
    training = times({name: training_step(network, crops, label) for name, network in networks.items()})
    testing = times({name: test_step(network, image) for name, network in networks.items()})
    return {name: (1e3 * training[name], 1e3 * testing[name]) for name in networks}


def by_network(rows):
    """{network: its rows, one per seed}, in the order of the CSV."""
    groups = {}
    for row in rows:
        groups.setdefault(row["network"], []).append(row)
    return groups


def table(rows):
    """Markdown: one line per network."""
    lines = ["| | parameters | steps | mIoU val | mIoU test | ms per training step | ms per test image |",
             "|---" * 7 + "|"]
    for network, group in by_network(rows).items():
        cells = []
        for split in ("val", "test"):
            scores = [float(row[split]) for row in group]
            cells.append(f"**{np.mean(scores):.1%}** ({min(scores):.1%} to {max(scores):.1%})")
        lines.append(f"| {network} | {int(group[0]['parameters']) / 1e6:.2f} M | {group[0]['steps']} | {' | '.join(cells)} "
                     f"| {float(group[0]['training ms']):.0f} | {float(group[0]['test ms']):.0f} |")
    return lines


def classes_table(rows):
    """Markdown: IoU on test, one line per class, means over the seeds."""
    groups = by_network(rows)
    lines = ["| test IoU | " + " | ".join(groups) + " |", "|---" * (1 + len(groups)) + "|"]
    for name in list(rows[0])[8:]:
        values = [np.mean([float(row[name]) for row in group]) for group in groups.values()]
        cells = (f"**{value:.1%}**" if value == max(values) else f"{value:.1%}" for value in values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CamVid")
    parser.add_argument("--large", action="store_true", help="the papers' own sizes")
    parser.add_argument("--steps", type=int, help=f"of every training (default {STEPS}; with --large the recipe's)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, the cores shared among them")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    arguments = parser.parse_args()
    stem = CSV.with_name(f"results{'-large' * arguments.large}")
    runs = {(network, seed): result_run(network, seed, arguments) for seed in SEEDS for network in NETWORKS}
    train_all(list(runs.values()), arguments.jobs)

    networks, rows, log, predicted = {}, [], [], []
    for network in NETWORKS:
        for seed in SEEDS:
            out, steps, _ = runs[network, seed]
            state = checkpoint.load_run(out / "last.pt")
            log += [{"network": network, "seed": seed, **{key: f"{value:.6g}" for key, value in row.items()}}
                    for row in state["log"]]
            best = load_best(out).to(arguments.device)
            protocol, scores = Protocol(scales=(state["recipe"]["test_scale"],)), {}
            for split in ("val", "test"):
                dataset = datasets.load("camvid", arguments.data, split)
                scores[split], _ = evaluate(best, dataset, len(dataset.classes), protocol, arguments.device,
                                            description=f"{network} {seed} {split}")
            rows.append({
                "network": network, "seed": seed, "parameters": sum(p.numel() for p in best.parameters()),
                "steps": steps, "val": f"{scores['val'].miou:.4f}", "test": f"{scores['test'].miou:.4f}",
                "training ms": "", "test ms": "",
                **{name: f"{value:.4f}" for name, value in zip(dataset.classes, scores["test"].iou)},
            })
            if seed == SEEDS[0]:
                predicted.append([predict(best, dataset[index][0], protocol, arguments.device) for index in SHOWN])
                networks[network] = best.cpu()
    measured = milliseconds(networks)
    for row in rows:
        row["training ms"], row["test ms"] = (f"{value:.3g}" for value in measured[row["network"]])
    write_csv(stem.with_suffix(".csv"), rows)
    write_csv(stem.with_name(stem.name + "-log.csv"), log)
    print("\n".join(["", *table(rows), "", *classes_table(rows)]))

    pairs = [dataset[index] for index in SHOWN]
    cells = [[image for image, _ in pairs], *([pictures.colourise(ids, dataset.palette) for ids in column]
             for column in ([label for _, label in pairs], *predicted))]
    picture = pictures.grid(["image", "truth", *NETWORKS], list(zip(*cells)), dataset.classes, dataset.palette, 150)
    pictures.save_png(stem.with_suffix(".png"), picture)


if __name__ == "__main__":
    main()
