"""What a paper's networks can be: options as given by --set, recipes, and the networks built."""

import ast

from common.cli import load_paper, positive
from common.errors import UserError

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
MOST = 10**4  # a larger number of anything is a mistake, found here and not when memory is full


def factors(text):
    """An argparse type: "0.5,1" -> (0.5, 1.0)."""
    return tuple(positive(float)(part) for part in text.split(","))


factors.__name__ = "list of positive numbers"  # what argparse calls it when it complains


def defaults(paper):
    """{option: its values in a paper's DEFAULTS and PRESETS}, which tell its kind and range."""
    module, found = load_paper(paper), {}
    for source in (module.DEFAULTS, *module.PRESETS.values()):
        for name, value in source.items():
            found.setdefault(name, []).append(value)
    return {name: [value for value in values if value is not None]
            for name, values in found.items()}


def is_whole(value):
    """Whether it is a whole number from 1 to MOST."""
    return type(value) is int and 1 <= value <= MOST


def misfit(value, examples):
    """What is wanted in the place of a value that is not like the examples, else ""."""
    one = examples[0] if examples else None
    if isinstance(one, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(one, str):
        return "" if isinstance(value, str) else f"a name such as {one}"
    if isinstance(one, tuple):
        fits = isinstance(value, tuple) and all(map(is_whole, value))
        return "" if fits else f"values such as {one}, of 1 to {MOST} each"
    if value is None or (type(value) is tuple and one is None and all(map(is_whole, value))):
        return ""
    if isinstance(one, float):
        low, high = min(examples), 1 if examples[0] < 1 else MOST
        fits = type(value) in (int, float) and min(low, 1e-9) <= value <= high
        return "" if fits else f"a number such as {one}, above 0 and at most {high}"
    return "" if is_whole(value) else f"a whole number such as {one or 16}, 1 to {MOST}"


def parse(pairs, paper):
    """["regions=1,2", "context=off"] -> {"regions": (1, 2), "context": False}; what is no literal
    is text. Raises UserError that names the option, for another type or range than its default's
    as well. An unknown option is left to `build`, which lists the valid ones."""
    options, known = {}, defaults(paper) if pairs else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--set {pair}: wanted OPTION=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
        value = tuple(value) if isinstance(value, list) else value
        examples = known.get(name, [""])
        if examples and isinstance(examples[0], bool):
            value = BOOLEANS.get(text.strip().lower())
        if name in known and (wanted := misfit(value, examples)):
            raise UserError(f"--set {pair[:80]}: wanted {wanted}")
        options[name] = value
    return options


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
