"""The options of a paper's networks, as given by --set."""

import ast
import functools
import inspect
import math

from common.cli import load_paper
from common.errors import UserError

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@functools.cache
def defaults(paper):
    """{option: a default of it, which tells its kind}, from what a paper's model.py has of these:
    PRESETS, the signature of `build`, that of the network's class, DEFAULTS."""
    module = load_paper(paper)
    sources = [*module.PRESETS.values()]
    for kind in (module.build, type(module.build(2))):
        parameters = inspect.signature(kind).parameters.values()
        sources.append({p.name: p.default for p in parameters if p.default is not p.empty})
    sources.append(getattr(module, "DEFAULTS", {}))
    return {name: value for source in sources for name, value in source.items()
            if value is not None}


def parse(pairs, paper):
    """["regions=1,2", "context=off"] -> {"regions": (1, 2), "context": False}; what is no literal
    is text. An option whose default is a boolean, a number or a tuple takes nothing else (numbers
    also None). Raises UserError that names the option."""
    options, known = {}, defaults(paper) if pairs else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--set {pair}: wanted OPTION=VALUE")
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
            raise UserError(f"--set {pair}: wanted {wanted}")
        options[name] = value
    return options
