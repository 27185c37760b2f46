"""Train one of the papers.

  python train.py                                      PySA on made-up scenes: about two minutes
  python train.py --paper pysa --set variant=parallel
  python train.py --paper pysa --set context=False     the same without the paper's mechanism
  python train.py --dataset camvid --data PATH
  python train.py --dataset folder --data PATH         your own images/ and labels/
  python train.py --preset resnet50 --weights resnet50.pth --dataset camvid --data PATH
  python train.py --start-from runs/pysa-tiny-shapes --dataset folder --data PATH
  python train.py --paper pan --options                presets, options, recipes, datasets
  python train.py ... --dry-run                        the recipe in full; trains nothing
  python train.py ... --resume                         goes on exactly where it stopped
  .venv/bin/torchrun --nproc-per-node 4 train.py ...   the same, several processes

A run directory (runs/PAPER-PRESET-DATASET unless --out says otherwise) holds last.pt, best.pt,
log.csv (a row an evaluation), loss.csv (a row a step), iou.csv (best.pt, a row a class),
curves.png, predictions.png and config.json. Learning rate, steps and the like default to the
paper's recipe for the dataset, papers/PAPER/recipe.py.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports

import torch

import datasets
from common import checkpoint, cli, processes
from common.errors import run
from common.loop import train
from common.recipe import OPTIMIZERS, PRECISIONS, SCHEDULES
from datasets import memory, statistics
from datasets.pictures import draw_run, write_losses
from datasets.predictions import keep_out, write_scores
from datasets.stream import TrainingSamples, batches
from datasets.transforms import augmentation
from papers import contents, describe, losses, options, runs, start, weights
from papers.rehearsal import rehearse
from papers.settings import DEFAULTS, TRAIN, check, check_flags, resolve


def parse():
    parser = cli.Parser(__doc__)
    add, whole = parser.add_argument, options.positive(int)
    add("--paper", help=f"one of: {', '.join(cli.papers())} (default pysa)")
    paper, presets, names = options.there_are(sys.argv)
    add("--preset", help=f"size of the network; {paper} has {presets} (default tiny)")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the "
        f"network, repeatable; {paper} has {names}; --options explains them")
    add("--dataset", help=f"one of: {', '.join(datasets.NAMES)} (default shapes)")
    add("--data", type=Path, metavar="PATH", help="folder of the dataset; to look for problems in "
        "it: .venv/bin/python -m datasets.check NAME PATH")
    add("--train-split", choices=datasets.SPLITS, help="VOC 2012 has train and trainaug")
    add("--weights", type=Path, metavar="FILE", help="ImageNet weights for the backbone")
    add("--steps", type=whole, help="default: the recipe's, as of all numbers; see --dry-run")
    add("--batch-size", type=whole, help="images per step, over all processes")
    add("--accumulate", type=whole, metavar="N", help="compute each batch in N parts: less memory, "
        "same gradients, but BatchNorm, dropout and what balances classes see single parts")
    add("--crop-size", type=whole, help="side of the training images in pixels, at least 32")
    add("--lr", type=options.positive(float), help="learning rate")
    add("--optimizer", choices=OPTIMIZERS)
    add("--schedule", choices=SCHEDULES)
    add("--eval-every", type=whole, metavar="STEPS", help="evaluate and save this often")
    add("--seed", type=options.whole, help="of everything random (default 0)")
    add("--precision", choices=PRECISIONS, help="of the forward pass; float16 on CUDA only")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--workers", type=options.whole,
        help="processes that prepare data (default: 0 for shapes, else 2)")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--out", type=Path, metavar="DIR", help="default: runs/PAPER-PRESET-DATASET")
    add("--recipe", action="append", default=[], metavar="NUMBER=VALUE",
        help="any number of the recipe, such as flip=off, scale=0.5,2 or weight_decay=1e-4")
    start.flags(add)
    losses.flags(add)
    add("--options", action="store_true", help="only explain presets, options, recipes, datasets")
    add("--dry-run", action="store_true", help="only print the recipe; needs no data")
    add("--resume", action="store_true", help="go on with the run in the run directory")
    return parser.parse_args()


def main():
    arguments = parse()
    started = start.read(arguments)
    cli.load_paper(arguments.paper or "pysa")
    if arguments.options:
        check_flags(arguments, {"options": vars(arguments).keys() - {"options", "paper"}})
        return describe.print_options(arguments.paper or "pysa", datasets.NAMES)
    names = (getattr(arguments, name) or DEFAULTS[name] for name in ("paper", "preset", "dataset"))
    out = arguments.out or Path("runs") / "-".join(names)
    starts = arguments.dry_run and not arguments.resume  # then no run is in the way
    if not arguments.resume:  # a wrong flag is told before what is in the folder
        wanted, _ = resolve(arguments, None)
        datasets.refuse_folder(wanted["dataset"], arguments.data)
        options.try_network(wanted)
    resumed = None if starts else runs.open_run(out, arguments.resume)
    arguments.resume = resumed is not None  # without a checkpoint it starts
    check_flags(arguments, TRAIN)
    config, recipe = resolve(arguments, resumed)
    device, world = cli.pick_device(arguments.device), runs.world()
    check(arguments, config, recipe, device, world)
    if arguments.dry_run:
        return describe.print_training(config, recipe)
    if world > 1:
        device = processes.join(device)
    first = processes.rank() == 0

    train_set, val_set = datasets.load_pair(config, arguments.data, recipe.train_split, resumed)
    for dataset in (train_set, val_set):
        keep_out(dataset, arguments.data, out, "--out")
    statistics.weigh(config, train_set, resumed, quiet=not first)
    torch.manual_seed(config["seed"])
    model = options.build_model(
        config["paper"], config["preset"], config["num_classes"], config["options"])
    if arguments.weights:
        report = weights.load_backbone(config["paper"], model, arguments.weights)
        if first:
            print(f"{arguments.weights}: {report}", file=sys.stderr)
    start.begin(model, started, arguments, quiet=resumed or not first)
    start.freeze(model, config["freeze"])
    losses.choose(model, config, recipe)
    samples = TrainingSamples(train_set, augmentation(recipe), config["seed"])
    begun = time.monotonic()
    if resumed:
        contents.check_network(model, recipe, resumed, out / "last.pt")
    else:
        memory.check_batch(recipe, world, device)
        rehearse(model, samples, val_set, recipe, device, config["precision"],
                 arguments.compile)
    forward = None if resumed else time.monotonic() - begun

    workers = arguments.workers
    if workers is None:
        workers = 2 if config["dataset"] in datasets.LOADERS else 0
    stream = functools.partial(
        batches, samples, steps=recipe.steps, batch_size=recipe.batch_size, workers=workers)
    with runs.locked(out, new=not resumed):
        if first:
            runs.write_config(out, config, recipe, arguments.data)
            for line in statistics.warnings(train_set, val_set):
                print(f"warning: {line}", file=sys.stderr)
            if resumed and resumed["step"] >= recipe.steps:
                print(f"{out} is complete, {recipe.steps} steps: it is only scored again",
                      file=sys.stderr)
            else:
                describe.open_training(config, recipe, train_set, val_set, out, device, forward)
        result = train(
            model, stream, val_set, recipe, config, out, seed=config["seed"], device=device,
            precision=config["precision"], compile=arguments.compile, resume=resumed,
            draw=functools.partial(draw_run, out, val_set.classes, val_set.palette),
        )
    if world > 1:
        torch.distributed.destroy_process_group()
    if isinstance(result, int):
        if first:
            write_losses(out, checkpoint.load(out / "last.pt")["curve"])
            print(f"stopped; the same command with --resume goes on from {out / 'last.pt'}",
                  file=sys.stderr)
        return 128 + result
    if first:
        print(result.table(val_set.classes))
        write_scores(out / "iou.csv", val_set.classes, result.iou)
        print(f"pictures: {out / 'predictions.png'}, {out / 'curves.png'}   "
              f"best checkpoint: {out / 'best.pt'}")
    return 0


if __name__ == "__main__":
    run(main)
