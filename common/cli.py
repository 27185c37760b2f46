"""What both programs need: the flags' types, the papers there are, their networks, weights and recipes."""

import argparse
import ast
import importlib
import inspect
import math
from pathlib import Path

import torch

from .errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and whose help is the program's docstring."""

    def __init__(self, description):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=kind)

    def error(self, message):
        raise UserError(message)


def positive(kind):
    """An argparse type: a number of this kind, greater than zero."""
    def parse(text):
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number
    parse.__name__ = f"positive {kind.__name__}"
    return parse


def factors(text):
    """An argparse type: "0.5,1" -> (0.5, 1.0)."""
    return tuple(positive(float)(part) for part in text.split(","))


factors.__name__ = "list of positive numbers"  # what argparse calls it when it complains


def pick_device(name):
    """The device asked for, or the best one there is. Raises UserError if it is not there."""
    here = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name is None:
        return here[-1]
    if name.partition(":")[0] not in here or (name.startswith("cuda:") and not name[5:].isdigit()):
        raise UserError(f"--device {name}: not available here; valid: {', '.join(here)}")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    return name


def make_folder(path, flag="--out"):
    """The folder `path`, made if need be. Raises UserError that names the flag."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from None
    return path


# ---------------------------------------------------------------------------------- the papers


def papers():
    """Names of the folders under papers/ that hold a model."""
    return sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))


def load_paper(name, part="model"):
    """The module papers.NAME.PART. Raises UserError that lists the papers there are."""
    if name not in papers():
        raise UserError(f"--paper {name}: unknown; valid: {', '.join(papers())}")
    return importlib.import_module(f"papers.{name}.{part}")


def load_recipe(paper, dataset, preset="tiny"):
    """The paper's recipe for a dataset, that of DATASET_PRESET if one size has its own, else the
    default one. The probes shapes-TASK are trained like shapes."""
    recipes = load_paper(paper, "recipe").RECIPES
    dataset = dataset and dataset.partition("-")[0]
    return recipes.get(f"{dataset}_{preset}") or recipes.get(dataset) or recipes["default"]


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
    """{option: a default of it, which tells its kind}, from the presets of a paper and the
    signature of its network."""
    module = load_paper(paper)
    found = {name: value for preset in module.PRESETS.values() for name, value in preset.items()}
    for kind in (module.build, type(module.build(2))):
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.default not in (None, parameter.empty):
                found[name] = parameter.default
    return found


def parse_options(pairs, paper):
    """["regions=1,2", "context=off"] -> {"regions": (1, 2), "context": False}; what is no literal
    is text. An option whose default is a boolean, a number or a tuple takes nothing else (numbers
    also None). Raises UserError that names the option."""
    options, defaults = {}, option_defaults(paper) if pairs else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--set {pair}: wanted OPTION=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
        default, fits, wanted = defaults.get(name), True, ""
        if isinstance(default, bool):
            value = BOOLEANS.get(text.strip().lower())
            fits, wanted = value is not None, "true or false"
        elif isinstance(default, (int, float)):
            kinds = (int,) if isinstance(default, int) else (int, float)
            fits = value is None or (type(value) in kinds and abs(value) < math.inf)
            wanted = f"a {'whole ' * isinstance(default, int)}number such as {default}"
        elif isinstance(default, tuple):
            fits, wanted = not isinstance(value, str), f"values such as {default}"
        if not fits:
            raise UserError(f"--set {pair}: wanted {wanted}")
        options[name] = value
    return options
