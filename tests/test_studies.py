"""studies/: scripts and a library, no file both; small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(ROOT.glob("studies/[a-z]*.py")) + sorted(ROOT.glob("papers/*/evidence/*.py"))
SCRIPTS = {path for path in FILES if "__main__" in path.read_text(encoding="utf-8")}


def imported(path):
    """The files of the repository that a file imports, as paths."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = ROOT
        if node.level:
            base = path.parents[node.level - 1]
        for name in ("", *(alias.name for alias in node.names)):
            parts = [*(node.module or "").split("."), name]
            yield base.joinpath(*(part for part in parts if part)).with_suffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_script_is_imported(path):
    assert not SCRIPTS & set(imported(path)), "what others need belongs into a library"


def test_libraries_are_found():
    """So that the test above cannot pass for want of imports or of scripts."""
    found = {library for path in FILES for library in imported(path)}
    assert {ROOT / "studies" / f"{name}.py" for name in ("measure", "trainings")} <= found
    assert len(SCRIPTS) > 12


def test_studies_are_small():
    lines = [path.read_text(encoding="utf-8").splitlines() for path in ROOT.glob("studies/*.py")]
    assert sum(map(len, lines)) <= 1000
