"""The options of a paper's networks, as given by --set."""

import ast
import itertools
import math

import torch

from common.cli import load_paper, papers
from common.errors import UserError
from common.recipe import OPTIMIZERS, SCHEDULES, Recipe

MOST = 10**4  # a larger number of anything is a mistake, found here and not when memory is full
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# What a number of a recipe must be where that is not obvious; text and a test.
WANTED = {
    "optimizer": (f"one of: {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    "schedule": (f"one of: {', '.join(SCHEDULES)}", lambda value: value in SCHEDULES),
    "train_split": ("a split", lambda value: isinstance(value, str)),
    "no_decay": ("parts of names, such as ('norm',)",
                 lambda value: all(isinstance(part, str) for part in value)),
    "scale": (f"LOW,HIGH with 0 < LOW <= HIGH <= {MOST}",
              lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= MOST),
    "fit": ("LONG,SHORT in pixels or ()", lambda value: len(value) in (0, 2) and all(
        type(side) is int and side > 0 for side in value)),
    "warmup_steps": ("0 or more", lambda value: value >= 0),
    "lr": ("more than 0", lambda value: value > 0),
    "test_scale": (f"more than 0, at most {MOST}", lambda value: 0 < value <= MOST),
    "max_share": ("more than 0, at most 1", lambda value: 0 < value <= 1),
    "drop_at": ("0 to 1", lambda value: 0 <= value <= 1),
    "momentum": ("0 to less than 1", lambda value: 0 <= value < 1),
}


def positive(kind):
    """An argparse type: a number of this kind, greater than zero."""
    def parse(text):
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number
    parse.__name__ = f"a {'whole ' * (kind is int)}number above 0"
    return parse


def whole(text):
    """An argparse type: a whole number."""
    return int(text)


whole.__name__ = "a whole number"  # what is wanted, where it is something else


def factors(text):
    """An argparse type: "0.5,1" -> (0.5, 1.0)."""
    found = tuple(positive(float)(part) for part in text.split(","))
    if max(found) > MOST:
        raise ValueError
    return found


factors.__name__ = f"numbers above 0, at most {MOST}, such as 0.5,1"


def defaults(paper):
    """{option: its values in a paper's DEFAULTS and PRESETS}, which tell its kind and range."""
    module, found = load_paper(paper), {}
    for source in (module.DEFAULTS, *module.PRESETS.values()):
        for name, value in source.items():
            found.setdefault(name, []).append(value)
    return {name: [value for value in values if value is not None]
            for name, values in found.items()}


def there_are(words):
    """(paper, its presets, its options), as text, of the --paper in a command line, else of pysa:
    what --help tells."""
    given = dict(itertools.pairwise(part for word in words for part in word.split("=", 1)))
    paper = given.get("--paper")
    paper = paper if paper in papers() else "pysa"
    module = load_paper(paper)
    return paper, ", ".join(module.PRESETS), ", ".join(module.DEFAULTS)


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
    """The options of a network: ["regions=1,2", "context=off"] -> {"regions": (1, 2), "context":
    False}. Raises UserError that names the option, for a wrong type or range as well; an unknown
    one is left to `build`, which lists the valid ones."""
    known = defaults(paper) if pairs else {}
    found = read(pairs, {name: values[0] for name, values in known.items() if values}, "--set")
    for name, value in found.items():
        found[name] = value = tuple(value) if isinstance(value, list) else value
        if name in known and (wanted := misfit(value, known[name])):
            raise UserError(f"--set {name}={str(value)[:80]}: wanted {wanted}")
    return found


def read(pairs, known, flag):
    """{name: value} of NAME=VALUE texts; what is no literal is text. A name whose default in
    `known` is a boolean, a number or a tuple takes nothing else (numbers also None). Raises
    UserError that names the flag."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"{flag} {pair}: wanted OPTION=VALUE")
        try:
            value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
        default, fits, wanted = known.get(name), True, ""
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
            raise UserError(f"{flag} {pair}: wanted {wanted}")
        options[name] = value
    return options


def recipe_misfit(name, value):
    """What is wanted in the place of the value of a number of a recipe, "" if it can be one."""
    default = getattr(Recipe(), name)
    positive = ("1 or more", lambda value: value > 0)
    other = positive if type(default) is int else ("0 or more", lambda value: value >= 0)
    wanted, fits = WANTED.get(name, other)
    kind = {int: (int,), float: (int, float), tuple: (tuple, list, set)}.get(
        type(default), (type(default),))
    try:
        fine = type(value) in kind and (type(default) is not float or value < math.inf)
        return "" if fine and fits(value) else wanted
    except TypeError:  # other things than numbers in it
        return wanted


def parse_recipe(pairs):
    """Numbers of a recipe: ["flip=off", "scale=0.5,2"] -> {"flip": False, "scale": (0.5, 2)}.
    Raises UserError that names the number."""
    known = vars(Recipe())
    for name in (pair.partition("=")[0] for pair in pairs):
        if name and name not in known:
            raise UserError(f"--recipe {name}: unknown; valid: {', '.join(known)}")
    numbers = read(pairs, known, "--recipe")
    for name, value in numbers.items():
        if wanted := recipe_misfit(name, value):
            raise UserError(f"--recipe {name}={value}: wanted {wanted}")
        numbers[name] = tuple(value) if isinstance(known[name], tuple) else value
    return numbers


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


def try_network(config):
    """Build the network of a training without memory for its weights. Raises UserError."""
    with torch.device("meta"):
        return build_model(config["paper"], config["preset"], 2, config["options"])
