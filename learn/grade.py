"""python -m learn.grade PAPER [FUNCTION ...]: judge exercises/PAPER.py, all of it or a part.

Per equation: passed, wrong (the first element that differs, and what smells), raised or empty. Then
the functions without loops: right, and how fast beside the loops and model.py.
"""

import argparse
import importlib.util
from unittest import mock

from common.errors import UserError, run

from .exercise import FOLDER
from .judge import judge, ladder
from .lesson import ROOT, exercises, part

BAR = 40  # columns of the longest rung


def load(path):
    """The student's file as a module. Raises UserError where it is missing or no Python."""
    if not path.exists():
        raise UserError(f"{path.relative_to(ROOT)} does not exist: make exercise PAPER={path.stem}")
    spec = importlib.util.spec_from_file_location(f"exercises_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a student's file may raise
        raise UserError(f"{path.name}: {type(error).__name__}: {error}") from None
    return module


def verdict(paper, exercise, module, name):
    """The Verdict on one function of the student's module; in `alone` only."""
    return judge(paper, exercise, getattr(module, name, missing))


def alone(paper, name, module):
    """A context in which all exercises of the student's module but one are right."""
    naive = part(paper, "naive")
    others = {e.name: getattr(naive, e.name) for e in exercises(paper) if e.name != name}
    return mock.patch.multiple(module, create=True, **others)


def missing(*_):
    """Stands for a function that is not in the file."""
    raise NotImplementedError


def report(label, found):
    """Print one verdict."""
    print(f"{found.state:7} {label}")
    for line in filter(None, found.text.split("\n")):
        print(f"        {line}")


def climb(paper, exercise, function):
    """Print the ladder of speed of a right function."""
    rungs, text = ladder(paper, exercise, function)
    slowest = max(time for _, time in rungs)
    for who, time in rungs:
        print(f"        {who:9}{1000 * time:9.2f} ms  {'#' * max(1, round(BAR * time / slowest))}")
    print(f"        {text}: {rungs[0][1] / rungs[1][1]:.1f} times as fast as the loops")
    return text == "fast"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper")
    parser.add_argument("functions", nargs="*")
    arguments = parser.parse_args()
    todo = exercises(arguments.paper)
    names = [e.name for e in todo] + [f"{e.name}_fast" for e in todo if e.loops]
    for name in arguments.functions:
        if name not in names:
            raise UserError(f"{name}: no such exercise; one of: {', '.join(names)}")
    module, wanted = load(FOLDER / f"{arguments.paper}.py"), arguments.functions
    passed, fast, quick = [], [], [
        e for e in todo if e.loops and (not wanted or f"{e.name}_fast" in wanted)]
    for exercise in (e for e in todo if not wanted or e.name in wanted):
        with alone(arguments.paper, exercise.name, module):
            found = verdict(arguments.paper, exercise, module, exercise.name)
        report(f"{exercise.letters}  {exercise.name}", found)
        passed.append(found.state == "passed")
    if quick:
        print("\nMake it fast")
    for exercise in quick:
        name = f"{exercise.name}_fast"
        with alone(arguments.paper, name, module):
            found = verdict(arguments.paper, exercise, module, name)
            report(f"{exercise.letters}  {name}", found)
            if found.state == "passed":
                fast.append(climb(arguments.paper, exercise, getattr(module, name)))
    equations = f"{sum(passed)} of {len(passed)} equations right"
    loopless = f"{len(fast)} of {len(quick)} without loops right, {sum(fast)} of them fast"
    print("\n" + "; ".join([equations] * bool(passed) + [loopless] * bool(quick)))


if __name__ == "__main__":
    run(main)
