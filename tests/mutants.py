"""python -m tests.mutants [PLACE ...]: plant every known mistake and see that a near test notices.

PLACE is a folder or a file, such as papers/pan, common or datasets/transforms.py; without one all
are taken. Mistakes stand in papers/NAME/evidence/mutants.py, where the tests of that folder are the
near ones, and in tests/mistakes.py, which names near tests for every file. Each mistake is planted
alone in a copy of the repository; there its near tests run until the first one fails, quick ones
first. Exit code 1 if any mistake is missed. A suite that was shown to catch real mistakes can be
trusted when it is green.
"""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("papers", "common", "datasets", "studies", "learn", "tests", "pyproject.toml",
         "train.py", "eval.py")
HANGS = "a hang"
# Every run starts as a copy of a process that has loaded what all tests load, where it can.
START = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")


def tables():
    """[(file, near tests, [(what, old, new), ...]), ...] of everything that is known; files and
    tests are paths from the root."""
    from tests.mistakes import MUTANTS
    found = [(file, *rest) for file, rest in MUTANTS.items()]
    for path in sorted(ROOT.glob("papers/*/evidence/mutants.py")):
        paper = path.parts[-3]
        own = importlib.import_module(f"papers.{paper}.evidence.mutants").MUTANTS
        found += [(f"papers/{paper}/{file}", (f"papers/{paper}",), entries)
                  for file, entries in own.items()]
    return found


def plant(file, old, new, tests, limit=None):
    """Run tests, until one fails, on a copy of the repository in which `old` is replaced by `new`
    in a file; an empty `old` plants nothing. limit: seconds after which the run counts as a hang.

    Returns (the test that failed, "" if none did, HANGS; the tests that ran, the quickest first).
    Raises ValueError if `old` does not occur exactly once.
    """
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, Path(folder, part), ignore=skip)
            else:
                shutil.copy(source, folder)
        if old:
            path = Path(folder, file)
            text = path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                raise ValueError(f"{file}: {old!r} occurs {text.count(old)} times, not once")
            path.write_text(text.replace(old, new), encoding="utf-8")
        process = START.Process(target=run_tests, args=(folder, tests))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            return HANGS, []
        if process.exitcode not in (0, 1, 2):
            raise RuntimeError(Path(folder, "output.txt").read_text(encoding="utf-8"))
        return outcome(Path(folder, "times.xml"), process.exitcode)


def run_tests(folder, tests):
    """A process of its own: pytest in the copy `folder`, none of whose modules are loaded yet."""
    os.chdir(folder)
    sys.path[:] = [folder, *(path for path in sys.path if Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    with open("output.txt", "wb") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    import pytest
    sys.exit(pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider",
                          "--junitxml=times.xml", *tests]))


def outcome(times, code):
    """What `plant` returns, from pytest's list of tests and its exit code."""
    failed, cases = "" if code == 0 else "an import", []
    for case in xml.etree.ElementTree.parse(times).iter("testcase"):
        name = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"
        name = name if case.get("classname") else f"the import of {case.get('name')}"
        cases.append((float(case.get("time")), name))
        if any(part.tag in ("failure", "error") for part in case):
            failed = name
    return failed, [name for _, name in sorted(cases)]


def choose(places):
    """[(file, near tests, what, old, new), ...] of the places, or of all if there are none."""
    work = [(file, near, *entry) for file, near, entries in tables() for entry in entries]
    for place in places:
        if not any(Path(mutant[0]).is_relative_to(place) for mutant in work):
            sys.exit(f"{place}: no mistakes are known there; see tests/mistakes.py")
    return [mutant for mutant in work
            if not places or any(Path(mutant[0]).is_relative_to(place) for place in places)]


def main():
    work, caught = choose(sys.argv[1:]), Counter()
    os.environ["OMP_NUM_THREADS"] = "1"
    if os.name != "nt":
        START.set_forkserver_preload(["numpy", "PIL.Image", "pytest", "torch", "torch._dynamo"])
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        near, started = list(dict.fromkeys(mutant[1] for mutant in work)), time.monotonic()
        quick = pool.map(lambda tests: plant("", "", "", tests), near)
        bar = tqdm(quick, "without mutants", len(near), unit="run")
        order = dict(zip(near, bar, strict=True))
        for failed, _ in order.values():
            if failed:  # a red suite would catch everything
                sys.exit(f"{failed} fails without a mutant: mend that first")
        limit = 120 + time.monotonic() - started
        results = pool.map(lambda m: plant(m[0], *m[3:], order[m[1]][1], limit)[0], work)
        bar = tqdm(zip(work, results, strict=True), total=len(work), unit="mutant")
        for (file, _, what, *_), failed in bar:
            found = failed not in ("", HANGS)
            tqdm.write(f"{'caught' if found else 'MISSED'}  {file}: {what}  [{failed}]")
            caught[file] += found
    for file, total in Counter(mutant[0] for mutant in work).items():
        print(f"{file}: {caught[file]} of {total} mutants caught")
    print(f"{caught.total()} of {len(work)} mutants caught")
    return int(caught.total() < len(work))


if __name__ == "__main__":
    sys.exit(main())
