"""The rules of the layout: folders stand alone, copies stay equal, nothing foreign is imported."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))
SOURCES = [path for part in ("papers", "common", "datasets", "studies", "learn", "tests", "docs")
           for path in ROOT.glob(f"{part}/**/*.py")]
SOURCES += list(ROOT.glob("*.py"))


def imports(path):
    """(module, is relative) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level > 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    parts = path.relative_to(ROOT).parts
    own = {"papers", "common", "datasets", "studies", "learn", "tests", "docs", "train", "eval"}
    for module, relative in imports(path):
        root = module.split(".")[0]
        if relative:
            continue
        assert root in sys.stdlib_module_names or root in own | {"torch", "numpy", "PIL", "tqdm",
                                                                 "pytest"}, module
        if parts[0] != "tests":
            assert root not in ("train",
                                "eval"), "what a program needs is in common/, not in another one"
        if parts[0] in ("common", "datasets"):
            assert root != "papers", "common/ and datasets/ must not know the papers"
        if parts[0] == "common":
            assert root != "datasets", "common/ is below datasets/"
        if parts[0] == "papers" and "evidence" not in parts:
            # papers/weights.py and the like are about all papers; a folder stands alone.
            if len(parts) == 2:
                allowed = {"common", "papers"}
            else:
                allowed = {"common"} if parts[2] == "recipe.py" else set()
            assert root not in own - allowed, f"{path.name} imports {module}: it stands alone"
        if parts[0] == "papers" and path.name.startswith("test_"):
            assert root not in own, f"{module}: pytest.importorskip, or a copied folder fails"


def test_what_is_skipped_without_a_module_names_one_that_exists():
    """Or the test would be skipped for ever, and nobody would notice."""
    for path in SOURCES:
        for name in re.findall(r"importorskip\(\s*[\"']([\w.]+)", path.read_text(encoding="utf-8")):
            assert importlib.util.find_spec(name), f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("name", ["checks.py", "resnet.py", "vit.py"])
def test_backbone_copies_are_identical(name):
    copies = sorted(ROOT.glob(f"papers/*/{name}"))
    for copy in copies[1:]:
        assert copy.read_bytes() == copies[0].read_bytes(), (
            f"{copy.relative_to(ROOT)} differs from {copies[0].relative_to(ROOT)}: edit one and "
            "copy it over the others"
        )


@pytest.mark.parametrize("paper", PAPERS)
def test_a_folder_works_alone(paper, tmp_path):
    """cp -r papers/NAME elsewhere/: builds, runs and is equal to its loops without the rest of the
    repository."""
    shutil.copytree(ROOT / "papers" / paper, tmp_path / "taken",
                    ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import torch; from taken.model import build, PRESETS; from taken import naive, official; "
        "out = build(3).eval()(torch.zeros(1, 3, 40, 48))['out']; "
        "assert out.shape == (1, 3, 40, 48)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def code_lines(path):
    """Lines that are neither blank nor comment nor docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = [node.body[0] for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node)]
    code = [line for line in lines(path) if line.strip() and line.strip()[0] != "#"]
    blank = sum(not line.strip() for doc in docs
                for line in lines(path)[doc.lineno - 1 : doc.end_lineno])
    return len(code) + blank - sum(doc.end_lineno - doc.lineno + 1 for doc in docs)


def test_common_is_small():
    """A reader gets through it in half an hour, through the programs in minutes, and the loop is
    one page."""
    assert sum(len(lines(path)) for path in ROOT.glob("common/*.py")) <= 1000
    assert all(len(lines(ROOT / name)) <= 180 for name in ("train.py", "eval.py"))
    assert code_lines(ROOT / "common" / "loop.py") <= 60


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_are_documented(path):
    if path.parts[-2] in ("tests", "docs") or path.name.startswith("test_"):
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            named = node.name in ("main", "parse")
            assert named or ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("folder", [".", "common", "datasets", "papers", "tests"])
def test_lines_have_at_most_100_columns(folder):
    for path in (ROOT / folder).glob("*.py"):
        long = [number for number, line in enumerate(lines(path), 1) if len(line) > 100]
        assert not long, f"{path.name}, lines {long}"
