"""python -m learn.exercise PAPER: write exercises/PAPER.py, the paper's equations to be filled in.

First every equation with loops, the short ones first but each after those that it uses, then the
same functions without loops. An existing file is never touched: move it away to start again. `make
grade PAPER=...` is the judge.
"""

import argparse
import ast
import inspect
import re
import textwrap

import torch

from common.errors import UserError, run

from .judge import call, cases, double
from .lesson import ROOT, examples, exercises, given, part

FOLDER = ROOT / "exercises"
WEIGHTY = torch.nn.Linear | torch.nn.Conv2d
RULE = "# " + "-" * 98


def page(paper):
    """The text of the exercises of a paper."""
    imports, names = given(paper)
    lines = [f'"""{paper}: write the equations yourself. `make grade PAPER={paper}` judges them.',
             "", f"The lesson is papers/{paper}/paper.md. Replace `raise NotImplementedError`. Use "
             "what is", "imported, and the functions of this file: while the judge tries one, the "
             "others are right.", '"""', "", *imports]
    if names:
        lines += ["", f"from papers.{paper}.naive import (", *wrap(", ".join(names), "    "), ")",
                  ""]
        lines += [line for name in names for line in wrap(about(paper, name), "# ", "#     ")]
    todo = exercises(paper)
    lines += ["", RULE, "# With loops, as slowly as you like: be right.", ""]
    for exercise in todo:
        lines += ["", *formulas(exercise), *worked(paper, exercise), exercise.head()]
    lines += ["", RULE, "# The same without loops over pixels: be right and be fast.", ""]
    for exercise in (e for e in todo if e.loops):
        places = dict.fromkeys(place for *_, found in exercise.rows for place in found)
        lines += ["", f"# {exercise.letters}  Afterwards compare: {', '.join(places)}",
                  exercise.head(f"{exercise.name}_fast")]
    return "\n".join(lines).rstrip("\n") + "\n"


def formulas(exercise):
    """The rows of the lesson's table, as comments."""
    found = []
    for letter, formula, meaning, _ in exercise.rows:
        for text in (f"{letter}  {formula}", f"     {meaning}"):
            found += wrap(text, "# ", "#      ")
    return found


def wrap(text, first="", more=None):
    """Lines of at most 98 columns and what they begin with."""
    return textwrap.wrap(text, 98, initial_indent=first, break_long_words=False,
                         subsequent_indent=first if more is None else more)


def about(paper, name):
    """A name that is given: how it is called and what it does, or its value."""
    value = getattr(part(paper, "naive"), name)
    if not callable(value):
        return f"{name} = {value}"
    return f"{name}{inspect.signature(value)}: {inspect.getdoc(value).partition(chr(10) * 2)[0]}"


def worked(paper, exercise):
    """A tiny example as comments: the paper's own small numbers to follow by hand, or the lesson's,
    or random ones. What comes out is computed here."""
    make = getattr(part(paper, "evidence.cases"), "TINY", {}).get(exercise.name)
    for code, printed in examples(paper, exercise.name)[: 0 if make else 1]:
        lines = [*code.splitlines(), *(f"-> {line}" for line in printed.splitlines())]
        return ["#", "# In the lesson:", *(f"#     {line}".rstrip() for line in lines)]
    with double():
        arguments = doubled(make()) if make else cases(paper, 2, 0)[exercise.name][0]
        results = call(getattr(part(paper, "naive"), exercise.name), arguments)
        lines = ["#", "# For example:"]
        names = [argument.arg for argument in exercise.node.args.args]
        for name, value in zip(names, arguments, strict=False):  # the rest have defaults
            lines += wrap(f"{name} = {short(value)}", "#     ", "#         ")
            lines += (line for text in parts(name, value, exercise)
                      for line in wrap(text, "#         ", "#             "))
        return lines + [line for result in results for line in wrap(
            f"-> {short(result)}", "#     ", "#         ")]


def doubled(value):
    """The same tensors and modules in double precision."""
    if isinstance(value, list | tuple):
        return type(value)(map(doubled, value))
    if isinstance(value, torch.nn.Module) or getattr(value, "is_floating_point", bool)():
        return value.double()
    return value


def parts(name, value, exercise):
    """What a solution reads of a module: its options, parameters and layers, a line each."""
    wanted = {node.attr for node in ast.walk(exercise.node) if isinstance(node, ast.Attribute)}
    found = {}
    for path, module in (value.named_modules() if isinstance(value, torch.nn.Module) else ()):
        if type(module).__module__.startswith("torch."):
            continue
        path = re.sub(r"\.(\d+)", r"[\1]", f"{name}.{path}".rstrip("."))
        own = {**vars(module), **module._parameters, **module._modules}
        found = {**{key: f"{path}.{key} = {short(own[key], deep=True)}" for key in own
                    if key in wanted}, **found}
    return sorted(found.values())


def short(value, deep=False):
    """A value in a line or two: numbers rounded, of more than sixteen the first entries, or the few
    that are not 0, or how often each is repeated. deep: the weights of a small layer, too."""
    if isinstance(value, torch.nn.Module):
        layers = [layer for layer in value.modules() if not list(layer.children())]
        if deep and len(layers) <= 3:
            return "; ".join(describe(layer) for layer in layers)
        names = ", ".join(name for name, _ in value.named_children())
        return f"{type(value).__name__}({names}){pattern(layers)}"
    if isinstance(value, torch.Tensor) and value.numel() <= 16 and not (
            value.numel() > 8 and value.count_nonzero() < 2):
        return str(value.double().mul(1000).round().div(1000).tolist())
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)}: {entries(value)}"
    if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
        return "(" + ", ".join(map(short, value)) + ")"
    return repr(value)


def pattern(layers):
    """What all layers have in common, if they have: weights of 0, kernels of 1 in the middle."""
    weighty = [layer for layer in layers if isinstance(layer, WEIGHTY)]
    if not any(weight.any() for layer in weighty for weight in layer.parameters()):
        return ", all weights 0"
    if all(isinstance(layer, torch.nn.Conv2d) and torch.equal(
            layer.weight, torch.nn.init.dirac_(layer.weight.clone())) for layer in weighty):
        return ", whose convolutions pass on what they read"
    return ""


def describe(layer):
    """A layer with its weights: BatchNorm and activations by their names alone."""
    weights = [f"{name} {short(getattr(layer, name))}" for name in ("weight", "bias")
               if getattr(layer, name, None) is not None]
    shown = f" with {', '.join(weights)}" if isinstance(layer, WEIGHTY) else ""
    return type(layer).__name__ + shown


def entries(value):
    """What is in a large tensor."""
    places, flat = value.nonzero().tolist(), value.flatten()
    if not places:
        return "all 0"
    if len(places) <= 4:
        return ", ".join(f"{value[tuple(place)]:.4g} at {place}" for place in places) + ", else 0"
    numbers, counts = flat.unique_consecutive(return_counts=True)
    if len(numbers) <= 8:
        return ", ".join(f"{n} x {v:.4g}" for v, n in zip(numbers, counts, strict=True))
    return ", ".join(f"{number:.4g}" for number in flat[:4].tolist()) + ", ..."


def write(paper, folder=FOLDER):
    """Write the file of a paper. Raises UserError where there is one."""
    text, target = page(paper), folder / f"{paper}.py"
    folder.mkdir(exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{target} exists, and it is yours: move it away to start again") from None
    return target


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper")
    print(f"exercises: {write(parser.parse_args().paper).relative_to(ROOT)}")


if __name__ == "__main__":
    run(main)
