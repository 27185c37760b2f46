"""python -m tests.faults [PAPER ...]: plant every known mistake and see that the tests of its folder notice.

Each entry of papers/PAPER/faults.py is applied to a copy of the paper's folder; then the folder's own tests run there
until the first failure. Exit code 1 if any mistake is missed. A suite that was shown to catch real mistakes can be
trusted when it is green.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


def plant(paper, old, new):
    """Run the folder's tests on a copy of the repository with `old` replaced by `new`. True if they failed.
    An empty `old` plants nothing.

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
            raise ValueError(f"papers/{paper}/faults.py: {old!r} occurs {text.count(old)} times in model.py, not once")
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", f"papers/{paper}"]
        result = subprocess.run(
            command, cwd=folder, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        if result.returncode not in (0, 1, 2):
            raise RuntimeError(result.stdout.decode() + result.stderr.decode())
        return result.returncode != 0


def main():
    papers = sys.argv[1:] or sorted(path.parent.name for path in ROOT.glob("papers/*/faults.py"))
    work = []
    for paper in papers:
        if plant(paper, "", ""):  # a red suite would catch everything
            sys.exit(f"the tests of papers/{paper} fail without any planted fault: mend that first")
        work += [(paper, *fault) for fault in importlib.import_module(f"papers.{paper}.faults").FAULTS]
    missed = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = pool.map(lambda fault: plant(fault[0], fault[2], fault[3]), work)
        for (paper, what, _, _), caught in tqdm(zip(work, results), total=len(work), unit="fault"):
            tqdm.write(f"{'caught' if caught else 'MISSED'}  {paper}: {what}")
            if not caught:
                missed.append(what)
    print(f"{len(work) - len(missed)} of {len(work)} planted faults caught")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
