"""Train one of the papers.

  python train.py                                            PySA on scenes made on the fly: about a minute
  python train.py --paper pysa --set variant=parallel
  python train.py --paper pysa --set context=False           the same network without the paper's mechanism
  python train.py --dataset camvid --data PATH
  python train.py --dataset folder --data PATH               your own images/ and labels/
  python train.py --preset resnet50 --weights resnet50.pth --dataset camvid --data PATH --device cuda
  python train.py ... --resume                               goes on exactly where it stopped
  torchrun --nproc-per-node 4 train.py ...                   the same, several processes

A run directory (runs/PAPER-PRESET-DATASET unless --out says otherwise) holds last.pt, best.pt, log.csv,
curves.png, predictions.png and config.json. Learning rate, steps and the like default to the paper's recipe
for the dataset, papers/PAPER/recipe.py.
"""

import argparse
import ast
import dataclasses
import functools
import importlib
import inspect
import json
import math
import os
import sys
from pathlib import Path

# Before torch is imported: it then says which operations Apple's GPUs lack and computes them on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

import torch  # noqa: E402

import datasets
from common import checkpoint
from common.errors import UserError, run
from common.training import FILES, OPTIMIZERS, PRECISIONS, SCHEDULES, TrainingSamples, rehearse, train
from datasets.predictions import keep_out
from datasets.transforms import augment

BOOLEANS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
# What must agree between a run and its continuation. The rest (device, workers, ...) may change.
FIXED = ("paper", "preset", "options", "dataset", "seed", "precision")


def papers():
    """Names of the folders under papers/ that hold a model."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("papers/*/model.py"))


def load_paper(name, part="model"):
    """The module papers.NAME.PART. Raises UserError that lists the papers there are."""
    if name not in papers():
        raise UserError(f"--paper {name}: unknown; valid: {', '.join(papers())}")
    return importlib.import_module(f"papers.{name}.{part}")


def load_weights(paper, path):
    """Read a file of official weights: by the paper's own `official.load` where its files need one."""
    official = load_paper(paper, "official")
    if not hasattr(official, "load"):
        return checkpoint.load(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        return official.load(path)
    except ValueError as error:
        raise UserError(str(error)) from None


def build_model(paper, preset, num_classes, options):
    """papers.PAPER.model.build, with what it refuses as one line that names the flag."""
    try:
        return load_paper(paper).build(num_classes, preset, **options)
    except ValueError as error:
        flag = f"--preset {preset}" if "preset" in str(error) else "--set"
        raise UserError(f"{flag}: {error}") from None
    except (TypeError, ArithmeticError, RuntimeError, AttributeError, LookupError) as error:
        if not options:
            raise
        given = " ".join(f"--set {name}={value}" for name, value in options.items())
        raise UserError(f"{given}: not possible: {error}") from None


def option_defaults(paper):
    """{option: a default of it, which tells its kind}, from the presets of a paper and the signature of its network."""
    module = load_paper(paper)
    found = {name: value for options in module.PRESETS.values() for name, value in options.items()}
    for kind in (module.build, type(module.build(2))):
        found.update({name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()
                      if parameter.default not in (None, parameter.empty)})
    return found


def parse_options(pairs, paper):
    """["regions=1,2", "context=off"] -> {"regions": (1, 2), "context": False}; what is no literal is text. An option of
    which the default is a boolean, a number or a tuple takes nothing else (or None); a UserError names it."""
    options, defaults = {}, option_defaults(paper) if pairs else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--set {pair}: wanted OPTION=VALUE")
        default = defaults.get(name)
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
        if isinstance(default, bool):
            value = BOOLEANS.get(text.strip().lower())
            fits, wanted = value is not None, "true or false"
        elif isinstance(default, (int, float)):
            number = isinstance(value, type(default) if isinstance(default, int) else (int, float))
            fits = value is None or (number and not isinstance(value, bool) and abs(value) < math.inf)
            wanted = f"a {'whole ' * isinstance(default, int)}number such as {default}"
        else:
            fits, wanted = not (isinstance(default, tuple) and isinstance(value, str)), f"values such as {default}"
        if not fits:
            raise UserError(f"--set {pair}: wanted {wanted}")
        options[name] = value
    return options


def pick_device(name):
    """The device asked for, or the best one there is. Raises UserError if it is not there."""
    here = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name is None:
        return here[-1]
    if name.partition(":")[0] not in here or (name.startswith("cuda:") and not name[5:].isdigit()):
        raise UserError(f"--device {name}: not available here; valid: {', '.join(here)}")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return name


def positive(kind):
    """An argparse type: a number of this kind, greater than zero."""
    def parse(text):
        number = kind(text)
        if not 0 < number < float("inf"):
            raise ValueError
        return number
    parse.__name__ = f"positive {kind.__name__}"
    return parse


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line."""

    def error(self, message):
        raise UserError(message)


def parse():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--paper", help=f"one of: {', '.join(papers())} (default pysa)")
    add("--preset", help="size of the network: tiny (default) or one of the paper's own")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the network; repeatable")
    add("--dataset", help=f"one of: {', '.join(datasets.NAMES)} (default shapes)")
    add("--data", type=Path, metavar="PATH", help="folder of the dataset")
    add("--train-split", choices=datasets.SPLITS, help="default: the recipe's; VOC 2012 has train and trainaug")
    add("--weights", type=Path, metavar="FILE", help="ImageNet weights for the backbone")
    add("--steps", type=positive(int))
    add("--batch-size", type=positive(int), help="images per step, over all processes")
    add("--accumulate", type=positive(int), metavar="N", help="compute each batch in N parts, which takes less memory: "
        "same samples, same loss, same gradients, but BatchNorm, dropout and UN-EPT's balanced terms see single parts")
    add("--crop-size", type=positive(int), help="side of the training images in pixels, at least 32")
    add("--lr", type=positive(float), help="learning rate")
    add("--optimizer", choices=OPTIMIZERS)
    add("--schedule", choices=SCHEDULES)
    add("--eval-every", type=positive(int), metavar="STEPS", help="evaluate and save a checkpoint this often")
    add("--seed", type=int, help="of everything random (default 0)")
    add("--precision", choices=PRECISIONS, help="of the forward pass (default float32); float16 on CUDA only")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add("--workers", type=int, help="processes that prepare data (default: 0 for shapes, else 2)")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--out", type=Path, metavar="DIR", help="run directory (default runs/PAPER-PRESET-DATASET)")
    add("--resume", action="store_true", help="go on with the run in the run directory")
    return parser.parse_args()


def resolve(arguments, resumed):
    """(config, recipe) from the flags, the paper's recipe and, when resuming, the run's own settings.
    A flag that contradicts the run that is to be resumed is a UserError."""
    paper = resumed["config"]["paper"] if resumed else arguments.paper or "pysa"
    given = {
        "paper": arguments.paper, "preset": arguments.preset, "dataset": arguments.dataset, "seed": arguments.seed,
        "options": parse_options(arguments.set, paper) or None, "precision": arguments.precision,
    }
    numbers = (
        "train_split", "steps", "batch_size", "accumulate", "crop_size", "lr", "optimizer", "schedule", "eval_every",
    )
    changed = {name: getattr(arguments, name) for name in numbers if getattr(arguments, name) is not None}
    if resumed:
        config = resumed["config"]
        recipe = {name: tuple(v) if isinstance(v, list) else v for name, v in resumed["recipe"].items()}
        recipe = dataclasses.replace(load_recipe(config["paper"], config["dataset"], config["preset"]), **recipe)
        for name, value in [*given.items(), *changed.items()]:
            before = config[name] if name in FIXED else getattr(recipe, name)
            if value is not None and value != before:
                flag = "--set" if name == "options" else f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: the run to resume has {before!r}, not {value!r}; use another --out")
        return config, recipe
    config = {"paper": "pysa", "preset": "tiny", "dataset": "shapes", "seed": 0, "options": {}, "precision": "float32"}
    config.update({name: value for name, value in given.items() if value is not None})
    if config["seed"] < 0:
        raise UserError(f"--seed {config['seed']}: wanted 0 or more")
    recipe = dataclasses.replace(load_recipe(config["paper"], config["dataset"], config["preset"]), **changed)
    recipe.eval_every = min(recipe.eval_every, recipe.steps)
    if recipe.crop_size < 32:
        raise UserError(f"--crop-size {recipe.crop_size}: wanted at least 32")
    return config, recipe


def load_recipe(paper, dataset, preset="tiny"):
    """The paper's recipe for a dataset, that of DATASET_PRESET if one size has its own, else the default one. The probes
    shapes-TASK are trained like shapes."""
    recipes = load_paper(paper, "recipe").RECIPES
    dataset = dataset and dataset.partition("-")[0]
    return recipes.get(f"{dataset}_{preset}") or recipes.get(dataset) or recipes["default"]


def open_run(arguments):
    """(run directory, content of its last.pt or None). Refuses to touch a run, or a file of that name, without
    --resume. With --resume a run that has no checkpoint yet starts, so that a script can always say --resume."""
    names = (arguments.paper or "pysa", arguments.preset or "tiny", arguments.dataset or "shapes")
    out = arguments.out or Path("runs") / "-".join(names)
    here = [name for name in FILES if (out / name).exists()]
    if here and not arguments.resume:
        raise UserError(f"{out} already holds a run ({', '.join(here)}): add --resume to go on with it, or --out DIR "
                        "to start another")
    if not {"last.pt", "best.pt"} & {*here}:
        if arguments.resume:
            print(f"{out} holds no checkpoint yet: starting at step 0", file=sys.stderr)
        return out, None
    try:
        return out, checkpoint.load_run(out / "last.pt")
    except UserError as error:
        try:
            step = checkpoint.load_run(out / "best.pt")["step"]
        except UserError:
            raise error from None
        raise UserError(f"{error}; best.pt beside it is whole: copy it to last.pt to go on from step {step}") from None


def main():
    arguments = parse()
    load_paper(arguments.paper or "pysa")
    out, resumed = open_run(arguments)
    config, recipe = resolve(arguments, resumed)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(arguments.device)
    if recipe.batch_size % (world * recipe.accumulate):
        raise UserError(f"--batch-size {recipe.batch_size}: wanted a multiple of {world * recipe.accumulate}, "
                        f"{world} processes times --accumulate {recipe.accumulate}")
    if config["precision"] == "float16" and not device.startswith("cuda"):
        raise UserError(f"--precision float16: on CUDA only, not on {device}; bfloat16 is the half precision there")
    if arguments.workers is not None and arguments.workers < 0:
        raise UserError(f"--workers {arguments.workers}: wanted 0 or more")
    if world > 1:
        if device.startswith("cuda"):
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    splits = (recipe.train_split, "val")
    train_set, val_set = (datasets.load(config["dataset"], arguments.data, split) for split in splits)
    for dataset in (train_set, val_set):
        keep_out(dataset, arguments.data, out, "--out")
    if resumed and list(train_set.classes) != config["classes"]:
        raise UserError(f"--data {arguments.data}: other classes than those of the run to resume, which are: "
                        + ", ".join(config["classes"]))
    if resumed and len(train_set) != config.get("train_images", len(train_set)):
        raise UserError(f"--data {arguments.data}: {len(train_set)} training images, the run to resume has "
                        f"{config['train_images']}; other data need another --out")
    config.update(train_images=len(train_set), num_classes=len(train_set.classes), classes=list(train_set.classes),
                  palette=[list(colour) for colour in train_set.palette])
    torch.manual_seed(config["seed"])
    model = build_model(config["paper"], config["preset"], config["num_classes"], config["options"])
    if arguments.weights and not resumed:
        try:
            report = load_paper(config["paper"], "official").load_backbone(
                model, load_weights(config["paper"], arguments.weights)
            )
        except (ValueError, AttributeError) as error:  # AttributeError: not a dictionary of tensors
            raise UserError(f"--weights {arguments.weights}: {error}") from None
        if rank == 0:
            print(f"{arguments.weights}: {report}", file=sys.stderr)
    augmentation = ("scale", "fit", "rotate", "blur", "flip", "max_share", "colour", "photometric", "centre")
    change = functools.partial(
        augment, crop=recipe.crop_size, **{name: getattr(recipe, name) for name in augmentation}
    )
    if not resumed:
        samples = TrainingSamples(train_set, change, config["seed"])
        rehearse(model, samples, recipe, device, config["precision"], arguments.compile)

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    if rank == 0:
        settings = {**config, "recipe": dataclasses.asdict(recipe), "data": arguments.data and str(arguments.data)}
        text = json.dumps(settings, indent=2) + "\n"
        checkpoint.write_atomically(out / "config.json", lambda file: file.write(text.encode()))
    workers = arguments.workers if arguments.workers is not None else (2 if config["dataset"] in datasets.LOADERS else 0)
    result = train(
        model, train_set, val_set, recipe, config, out, change, seed=config["seed"], device=device,
        precision=config["precision"], workers=workers, compile=arguments.compile, resume=resumed, rank=rank,
        world=world,
    )
    if world > 1:
        torch.distributed.destroy_process_group()
    if isinstance(result, int):
        if rank == 0:
            print(f"stopped; the same command with --resume goes on from {out / 'last.pt'}", file=sys.stderr)
        return 128 + result
    if rank == 0:
        print(result.table(val_set.classes))
        print(f"pictures: {out / 'predictions.png'}, {out / 'curves.png'}   best checkpoint: {out / 'best.pt'}")
    return 0


if __name__ == "__main__":
    run(main)
