"""python -m tests.mutants [PAPER ...]: plant every known mistake and see that the tests of its
folder notice.

Each entry of papers/PAPER/evidence/mutants.py is applied to a copy of the paper's folder; then the
folder's own tests run there until the first failure, quick ones first. Exit code 1 if any mistake
is missed. A suite that was shown to catch real mistakes can be trusted when it is green.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


def plant(paper, file="model.py", old="", new="", tests=()):
    """Run tests of the folder, all of them if none are named, on a copy of the repository in which
    `old` is replaced by `new` in a file of the paper; an empty `old` plants nothing.

    Returns (whether any failed, the tests that ran, the quickest first).
    Raises ValueError if `old` does not occur exactly once.
    """
    with tempfile.TemporaryDirectory() as folder:
        for part in ("papers", "common", "datasets", "pyproject.toml", "train.py", "eval.py"):
            source = ROOT / part
            if source.is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, Path(folder, part), ignore=skip)
            else:
                shutil.copy(source, folder)
        path = Path(folder, "papers", paper, file)
        text = path.read_text(encoding="utf-8")
        if old and text.count(old) != 1:
            raise ValueError(f"{paper}/{file}: {old!r} occurs {text.count(old)} times, not once")
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
            "--junitxml=times.xml", *(tests or [f"papers/{paper}"]),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, cwd=folder, capture_output=True, env=environment, check=False
        )
        if result.returncode not in (0, 1, 2):
            raise RuntimeError(result.stdout.decode() + result.stderr.decode())
        cases = xml.etree.ElementTree.parse(Path(folder, "times.xml")).iter("testcase")
        cases = sorted((float(c.get("time")), c.get("classname"), c.get("name")) for c in cases)
        names = [f"{module.replace('.', '/')}.py::{name}" for _, module, name in cases]
        return result.returncode != 0, names


def main():
    papers = sys.argv[1:]
    papers = papers or sorted(path.parts[-3] for path in ROOT.glob("papers/*/evidence/mutants.py"))
    work, caught = [], Counter()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for paper, (failed, tests) in zip(papers, pool.map(plant, papers), strict=True):
            if failed:  # a red suite would catch everything
                sys.exit(f"the tests of papers/{paper} fail without a mutant: mend that first")
            mutants = importlib.import_module(f"papers.{paper}.evidence.mutants").MUTANTS
            for file, entries in mutants.items():
                work += [(paper, file, what, old, new, tests) for what, old, new in entries]
        results = pool.map(lambda m: plant(m[0], m[1], *m[3:])[0], work)
        bar = tqdm(zip(work, results, strict=True), total=len(work), unit="mutant")
        for (paper, file, what, *_), found in bar:
            tqdm.write(f"{'caught' if found else 'MISSED'}  {paper}/{file}: {what}")
            caught[paper, file] += found
    for place, total in Counter(mutant[:2] for mutant in work).items():
        print(f"{'/'.join(place)}: {caught[place]} of {total} mutants caught")
    print(f"{caught.total()} of {len(work)} mutants caught")
    return int(caught.total() < len(work))


if __name__ == "__main__":
    sys.exit(main())
