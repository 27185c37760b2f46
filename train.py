"""Train one of the papers.

  python train.py                                      PySA on made-up scenes: about a minute
  python train.py --paper pysa --set variant=parallel
  python train.py --paper pysa --set context=False     the same without the paper's mechanism
  python train.py --dataset camvid --data PATH
  python train.py --dataset folder --data PATH         your own images/ and labels/
  python train.py --preset resnet50 --weights resnet50.pth --dataset camvid --data PATH
  python train.py ... --resume                         goes on exactly where it stopped
  torchrun --nproc-per-node 4 train.py ...             the same, several processes

A run directory (runs/PAPER-PRESET-DATASET unless --out says otherwise) holds last.pt, best.pt,
log.csv, curves.png, predictions.png and config.json. Learning rate, steps and the like default to
the paper's recipe for the dataset, papers/PAPER/recipe.py.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import torch

import datasets
from common import cli, processes
from common.errors import UserError, run
from common.guard import rehearse
from common.loop import train
from common.recipe import OPTIMIZERS, PRECISIONS, SCHEDULES
from datasets import statistics
from datasets.pictures import draw_run
from datasets.predictions import keep_out
from datasets.stream import TrainingSamples, batches
from datasets.transforms import augmentation
from papers import options, runs, weights

DEFAULTS = {"paper": "pysa", "preset": "tiny", "dataset": "shapes", "seed": 0, "options": {},
            "precision": "float32"}
# Flags that change a number of the recipe.
NUMBERS = ("train_split", "steps", "batch_size", "accumulate", "crop_size", "lr", "optimizer",
           "schedule", "eval_every")


def parse():
    parser = cli.Parser(__doc__)
    add, whole = parser.add_argument, cli.positive(int)
    add("--paper", help=f"one of: {', '.join(cli.papers())} (default pysa)")
    add("--preset", help="size of the network: tiny (default) or one of the paper's own")
    add("--set", action="append", default=[], metavar="OPTION=VALUE",
        help="an option of the network; repeatable")
    add("--dataset", help=f"one of: {', '.join(datasets.NAMES)} (default shapes)")
    add("--data", type=Path, metavar="PATH", help="folder of the dataset")
    add("--train-split", choices=datasets.SPLITS, help="VOC 2012 has train and trainaug")
    add("--weights", type=Path, metavar="FILE", help="ImageNet weights for the backbone")
    add("--steps", type=whole)
    add("--batch-size", type=whole, help="images per step, over all processes")
    add("--accumulate", type=whole, metavar="N", help="compute each batch in N parts: less memory, "
        "same gradients, but BatchNorm, dropout and UN-EPT's balanced terms see single parts")
    add("--crop-size", type=whole, help="side of the training images in pixels, at least 32")
    add("--lr", type=cli.positive(float), help="learning rate")
    add("--optimizer", choices=OPTIMIZERS)
    add("--schedule", choices=SCHEDULES)
    add("--eval-every", type=whole, metavar="STEPS", help="evaluate and save this often")
    add("--seed", type=int, help="of everything random (default 0)")
    add("--precision", choices=PRECISIONS, help="of the forward pass; float16 on CUDA only")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--workers", type=int, help="processes that prepare data (default: 0 for shapes, else 2)")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--out", type=Path, metavar="DIR", help="default: runs/PAPER-PRESET-DATASET")
    add("--resume", action="store_true", help="go on with the run in the run directory")
    return parser.parse_args()


def resolve(arguments, resumed):
    """(config, recipe) from the flags, the paper's recipe and, when resuming, the run's own. A flag
    that contradicts the run that is to be resumed is a UserError."""
    config = dict(resumed["config"]) if resumed else dict(DEFAULTS)
    given = {name: getattr(arguments, name, None) for name in DEFAULTS}
    paper = config["paper"] if resumed else arguments.paper or config["paper"]
    given["options"] = options.parse(arguments.set, paper) or None
    changed = {name: getattr(arguments, name) for name in NUMBERS}
    given, changed = ({name: value for name, value in flags.items() if value is not None}
                      for flags in (given, changed))
    if not resumed:
        config.update(given)
    recipe = options.load_recipe(config["paper"], config["dataset"], config["preset"])
    if resumed:
        stored = resumed["recipe"].items()
        stored = {name: tuple(v) if isinstance(v, list) else v for name, v in stored}
        recipe = dataclasses.replace(recipe, **stored)
        for name, value in [*given.items(), *changed.items()]:
            before = config[name] if name in DEFAULTS else getattr(recipe, name)
            if value != before:
                flag = "--set" if name == "options" else f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: the run to resume has {before!r}, not {value!r}; use "
                                "another --out")
        return config, recipe
    recipe = dataclasses.replace(recipe, **changed)
    recipe.eval_every = min(recipe.eval_every, recipe.steps)
    return config, recipe


def check(arguments, config, recipe, device, world):
    """Raise UserError for numbers that do not go together."""
    parts = world * recipe.accumulate
    if config["seed"] < 0:
        raise UserError(f"--seed {config['seed']}: wanted 0 or more")
    if recipe.crop_size < 32:
        raise UserError(f"--crop-size {recipe.crop_size}: wanted at least 32")
    if recipe.batch_size % parts:
        raise UserError(f"--batch-size {recipe.batch_size}: wanted a multiple of {parts}, "
                        f"{world} processes times --accumulate {recipe.accumulate}")
    if config["precision"] == "float16" and not device.startswith("cuda"):
        raise UserError(f"--precision float16: on CUDA only, not on {device}; bfloat16 is the half "
                        "precision there")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers}: wanted 0 or more")


def main():
    arguments = parse()
    cli.load_paper(arguments.paper or "pysa")
    names = (getattr(arguments, name) or DEFAULTS[name] for name in ("paper", "preset", "dataset"))
    out = arguments.out or Path("runs") / "-".join(names)
    resumed = runs.open_run(out, arguments.resume)
    config, recipe = resolve(arguments, resumed)
    device, world = cli.pick_device(arguments.device), runs.world()
    check(arguments, config, recipe, device, world)
    if world > 1:
        device = processes.join(device)
    first = processes.rank() == 0

    train_set, val_set = datasets.load_pair(config, arguments.data, recipe.train_split, resumed)
    for dataset in (train_set, val_set):
        keep_out(dataset, arguments.data, out, "--out")
    torch.manual_seed(config["seed"])
    model = options.build_model(
        config["paper"], config["preset"], config["num_classes"], config["options"])
    if arguments.weights and resumed:
        raise UserError("--weights has no effect with --resume: the run has its own")
    if arguments.weights:
        report = weights.load_backbone(config["paper"], model, arguments.weights)
        if first:
            print(f"{arguments.weights}: {report}", file=sys.stderr)
    samples = TrainingSamples(train_set, augmentation(recipe), config["seed"])
    if not resumed:
        rehearse(model, samples, val_set, recipe, device, config["precision"],
                 arguments.compile)

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
        result = train(
            model, stream, val_set, recipe, config, out, seed=config["seed"], device=device,
            precision=config["precision"], compile=arguments.compile, resume=resumed,
            draw=functools.partial(draw_run, out, val_set.classes, val_set.palette),
        )
    if world > 1:
        torch.distributed.destroy_process_group()
    if isinstance(result, int):
        if first:
            print(f"stopped; the same command with --resume goes on from {out / 'last.pt'}",
                  file=sys.stderr)
        return 128 + result
    if first:
        print(result.table(val_set.classes))
        print(f"pictures: {out / 'predictions.png'}, {out / 'curves.png'}   "
              f"best checkpoint: {out / 'best.pt'}")
    return 0


if __name__ == "__main__":
    run(main)
