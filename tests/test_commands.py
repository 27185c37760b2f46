"""Every command of the pages works, in a copy of the repository, with tiny budgets: see
tests/commands.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("papers", "common", "datasets", "studies", "learn", "tests", "docs", "train.py", "eval.py",
         "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml",
         "requirements.txt", "LICENSE", "CITATION.cff")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository that may be written to."""
    root = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, root)
    return root


def execute(root, *pages):
    """What tests.commands prints about some pages, and its exit code."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    return subprocess.run([sys.executable, "-m", "tests.commands", *pages], cwd=root,
                          env=environment, text=True,
                          capture_output=True, encoding="utf-8", check=False)


def test_every_command_works(copy):
    result = execute(copy)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert int(result.stdout.split()[-2]) > 60


def test_a_wrong_command_is_noticed(copy):
    for line, reason in (("python train.py --papre pan", "--papre"),
                         ("python -m studies.nothing", "studies.nothing"),
                         ("make pudding", "pudding")):
        (copy / "page.md").write_text(f"Try:\n\n```\n{line}   # well\n```\n", encoding="utf-8")
        result = execute(copy, "page.md")
        assert (result.returncode != 0 and f"FAILED page.md: {line}" in result.stderr
                and reason in result.stderr)


def test_commands_are_found():
    page = ("Say `make bench PAPER=pan` or `common/`.\n"
            "```\npython train.py --set regions=8, # wide\n\n$x\n```\n`python`")
    assert commands.commands(page) == ["python train.py --set regions=8,", "make bench PAPER=pan"]
    assert commands.of_make("make bench PAPER=pan") == ["python -m tests.bench pan "]
    assert len(commands.of_make("make pictures")) == 2
