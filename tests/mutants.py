"""python -m tests.mutants [PAPER ...]: plant every known mistake and see that the tests of its folder notice.

Each entry of papers/PAPER/evidence/mutants.py is applied to a copy of the paper's folder; then the folder's own tests run there
until the first failure, quick ones first. Exit code 1 if any mistake is missed. A suite that was shown to catch real
mistakes can be trusted when it is green.
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


def plant(paper, old="", new="", tests=()):
    """Run tests of the folder on a copy of the repository with `old` replaced by `new`, all of them if none are named.
    Returns (whether any failed, the tests that ran, the quickest first). An empty `old` plants nothing.

    Raises ValueError if `old` does not occur exactly once in model.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        for part in ("papers", "common", "datasets", "pyproject.toml", "train.py", "eval.py"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        path = Path(folder, "papers", paper, "model.py")
        text = path.read_text(encoding="utf-8")
        if old and text.count(old) != 1:
            raise ValueError(f"papers/{paper}/evidence/mutants.py: {old!r} occurs {text.count(old)} times in model.py, not once")
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
                   "--junitxml=times.xml", *(tests or [f"papers/{paper}"])]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if result.returncode not in (0, 1, 2):
            raise RuntimeError(result.stdout.decode() + result.stderr.decode())
        cases = xml.etree.ElementTree.parse(Path(folder, "times.xml")).iter("testcase")
        cases = sorted((float(case.get("time")), case.get("classname"), case.get("name")) for case in cases)
        return result.returncode != 0, [f"{module.replace('.', '/')}.py::{name}" for _, module, name in cases]


def main():
    papers = sys.argv[1:] or sorted(path.parent.name for path in ROOT.glob("papers/*/evidence/mutants.py"))
    work, caught = [], Counter()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for paper, (failed, tests) in zip(papers, pool.map(plant, papers)):
            if failed:  # a red suite would catch everything
                sys.exit(f"the tests of papers/{paper} fail without any planted mutant: mend that first")
            mutants = importlib.import_module(f"papers.{paper}.evidence.mutants").MUTANTS
            work += [(paper, what, old, new, tests) for what, old, new in mutants]
        results = pool.map(lambda mutant: plant(mutant[0], *mutant[2:])[0], work)
        for (paper, what, *_), found in tqdm(zip(work, results), total=len(work), unit="mutant"):
            tqdm.write(f"{'caught' if found else 'MISSED'}  {paper}: {what}")
            caught[paper] += found
    for paper, total in Counter(paper for paper, *_ in work).items():
        print(f"{paper}: {caught[paper]} of {total} planted mistakes caught")
    print(f"{caught.total()} of {len(work)} planted mistakes caught")
    return int(caught.total() < len(work))


if __name__ == "__main__":
    sys.exit(main())
