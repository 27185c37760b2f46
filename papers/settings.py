"""What is to be trained: from the flags of train.py, the paper's recipe and, when a run is resumed,
its own."""

import dataclasses

from common import cli
from common.errors import UserError
from common.inference import SMALLEST
from common.recipe import LAPTOP

from . import options

DEFAULTS = {"paper": "pysa", "preset": "tiny", "dataset": "shapes", "seed": 0, "options": {},
            "precision": "float32", "freeze": None, "loss": "cross-entropy", "class_weights": None}
# Flags that change a number of the recipe.
NUMBERS = ("train_split", "steps", "batch_size", "accumulate", "crop_size", "lr", "optimizer",
           "schedule", "eval_every")
# {a flag: those that have no effect beside it}
TRAIN = {"resume": ("weights", "start_from"), "start_from": ("weights",)}
EVAL = {
    "summary": ("data", "split", "protocol", "scales", "save_predictions", "image", "attention",
                "explore", "out"),
    "explore": ("attention", "save_predictions", "protocol", "scales", "crop_size"),
    "attention": ("save_predictions",),
    "image": ("data", "split"),
}


def check_flags(arguments, table):
    """Raise UserError for a flag that was given beside one that leaves it without effect."""
    given = {name for name, value in vars(arguments).items() if value not in (None, False, [])}
    for flag in given & table.keys():
        for other in given.intersection(table[flag]):
            raise UserError(f"--{other} has no effect with --{flag}".replace("_", "-"))


def check_eval(arguments):
    """The flags of eval.py, complete. Raises UserError for one without effect."""
    check_flags(arguments, EVAL)
    other = "--image" if arguments.image else "--summary" if arguments.summary else ""
    if arguments.dataset and other and arguments.checkpoint and arguments.protocol != "paper":
        raise UserError(f"--dataset has no effect with {other}")
    arguments.split, arguments.protocol = arguments.split or "val", arguments.protocol or "whole"
    unused = arguments.protocol == "whole" and not arguments.summary
    if arguments.crop_size and (unused or arguments.crop_size < SMALLEST):
        raise UserError(f"--crop-size {arguments.crop_size}: wanted at least {SMALLEST}, and "
                        "--protocol sliding, multiscale or paper, which have windows")
    return arguments


def load_recipe(paper, dataset, preset="tiny"):
    """The paper's recipe for a dataset, that of DATASET_PRESET if one size has its own, else the
    default one. Tiny without its own: a few minutes. Probes shapes-TASK are trained like shapes."""
    recipes = cli.load_paper(paper, "recipe").RECIPES
    dataset = dataset and dataset.partition("-")[0]
    if preset == "tiny" and dataset not in ("shapes", None) and f"{dataset}_tiny" not in recipes:
        return dataclasses.replace(recipes["shapes"], **LAPTOP)
    return recipes.get(f"{dataset}_{preset}") or recipes.get(dataset) or recipes["default"]


def resolve(arguments, resumed):
    """(config, recipe) from the flags, the paper's recipe and, when resuming, the run's own. A flag
    that contradicts the run that is to be resumed is a UserError."""
    config = {**DEFAULTS, **resumed["config"]} if resumed else dict(DEFAULTS)
    given = {name: getattr(arguments, name, None) for name in DEFAULTS}
    paper = config["paper"] if resumed else arguments.paper or config["paper"]
    inherited = getattr(arguments, "inherited", {})  # of the network to start from
    given["options"] = {**inherited, **options.parse(arguments.set, paper)} or None
    changed = {name: getattr(arguments, name) for name in NUMBERS}
    for name, value in options.parse_recipe(arguments.recipe).items():
        if changed.get(name) not in (None, value):
            raise UserError(f"--recipe {name}={value}: --{name.replace('_', '-')} says "
                            f"{changed[name]}")
        changed[name] = value
    given, changed = ({name: value for name, value in flags.items() if value is not None}
                      for flags in (given, changed))
    if not resumed:
        config.update(given)
    recipe = load_recipe(config["paper"], config["dataset"], config["preset"])
    if resumed:
        stored = resumed["recipe"].items()
        stored = {name: tuple(v) if isinstance(v, list) else v for name, v in stored}
        recipe = dataclasses.replace(recipe, **stored)
        for name, value in [*given.items(), *changed.items()]:
            before = config[name] if name in DEFAULTS else getattr(recipe, name)
            if value != before:
                flag = "--set" if name == "options" else f"--{name.replace('_', '-')}"
                flag = flag if name in (*DEFAULTS, *NUMBERS) else f"--recipe {name}"
                raise UserError(f"{flag}: the run to resume has {before!r}, not {value!r}; use "
                                "another --out")
        return config, recipe
    recipe = dataclasses.replace(recipe, **changed)
    recipe.eval_every = min(recipe.eval_every, recipe.steps)
    return config, recipe


def check(arguments, config, recipe, device, world):
    """Raise UserError for numbers that do not go together."""
    parts = world * recipe.accumulate
    if config.get("loss") == "dice" and config["class_weights"]:
        raise UserError("--class-weights has no effect with --loss dice, where every class counts "
                        "alike")
    if config.get("freeze") and not (arguments.resume or arguments.weights or arguments.start_from
                                     or arguments.dry_run):
        raise UserError("--freeze backbone: the backbone would stay random; give --weights or "
                        "--start-from")
    if not 0 <= config["seed"] < 2**63:
        raise UserError(f"--seed {config['seed']}: wanted 0 or more, below 2**63")
    if recipe.lr > 1e36:
        raise UserError(f"--lr {recipe.lr:g}: wanted at most 1e36, which float32 still holds")
    if recipe.crop_size < 32:
        raise UserError(f"--crop-size {recipe.crop_size}: wanted at least 32")
    if recipe.batch_size % parts:
        raise UserError(f"--batch-size {recipe.batch_size}: wanted a multiple of {parts}, "
                        f"{world} processes times --accumulate {recipe.accumulate}")
    if config["precision"] == "float16" and not device.startswith("cuda"):
        raise UserError(f"--precision float16: on CUDA only, not on {device}; bfloat16 is the half "
                        "precision there")
    if not 0 <= (arguments.workers or 0) <= 256:
        raise UserError(f"--workers {arguments.workers}: wanted 0 to 256 processes")
