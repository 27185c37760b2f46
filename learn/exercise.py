"""python -m learn.exercise PAPER: write exercises/PAPER.py, the paper's equations to be filled in.

First every equation with loops, the short ones first, then the same functions without loops. An
existing file is never touched: move it away to start again. `make grade PAPER=...` is the judge.
"""

import argparse
import textwrap

import torch

from common.errors import UserError, run

from .judge import call, cases, double
from .lesson import ROOT, examples, exercises, given, part

FOLDER = ROOT / "exercises"
RULE = "# " + "-" * 98


def page(paper):
    """The text of the exercises of a paper."""
    imports, names = given(paper)
    lines = [f'"""{paper}: write the equations yourself. `make grade PAPER={paper}` judges them.',
             "", f"The lesson is papers/{paper}/paper.md. Replace `raise NotImplementedError`. Use "
             "what is", "imported, and the functions of this file: while the judge tries one, the "
             "others are right.", '"""', "", *imports]
    if names:
        wrapped = textwrap.wrap(", ".join(names), 90)
        lines += ["", f"from papers.{paper}.naive import (",
                  *(f"    {line}" for line in wrapped), ")"]
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
            found += textwrap.wrap(text, 98, initial_indent="# ", subsequent_indent="#      ",
                                   break_long_words=False)
    return found


def worked(paper, exercise):
    """A tiny example as comments: the lesson's, or one that the loops compute, of numbers to follow
    by hand where the paper has some."""
    for code, printed in examples(paper, exercise.name)[:1]:
        lines = [*code.splitlines(), *(f"-> {line}" for line in printed.splitlines())]
        return ["#", "# In the lesson:", *(f"#     {line}".rstrip() for line in lines)]
    tiny = getattr(part(paper, "evidence.cases"), "TINY", {})
    with double():
        arguments = tiny.get(exercise.name) or cases(paper, 2, 0)[exercise.name][0]
        results = call(getattr(part(paper, "naive"), exercise.name), arguments)
    names = [argument.arg for argument in exercise.node.args.args]
    lines = ["#", "# For example:"]
    lines += [f"#     {name} = {short(value)}"
              for name, value in zip(names, arguments, strict=False)]  # the rest have defaults
    lines += [f"#     -> {short(result)}" for result in results]
    return [line[:99] for line in lines]


def short(value):
    """A value in at most a line: numbers rounded, of more than sixteen the first entries."""
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    if isinstance(value, torch.Tensor) and value.numel() <= 16:
        return str(value.double().mul(1000).round().div(1000).tolist())
    if isinstance(value, torch.Tensor):
        numbers = ", ".join(f"{number:.4g}" for number in value.flatten()[:4].tolist())
        return f"{list(value.shape)}: {numbers}, ..."
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return "[" + ", ".join(map(short, value)) + "]"
    return repr(value)


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
