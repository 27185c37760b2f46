"""docs/adding_a_paper.md is complete and true: its code becomes a sixth folder, and its commands
run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "adding_a_paper.md").read_text(encoding="utf-8")
FILES = {name: code for name, _, code in re.findall(r"\n`(papers/\S+)`\n\n(`{3,})\w+\n(.*?)\n\2\n",
                                                    PAGE, re.DOTALL)}
COMMANDS = [line for block in re.findall(r"\n```sh\n(.*?)\n```\n", PAGE, re.DOTALL)
            for line in block.splitlines()]

# One process for all commands, because importing torch takes longer than any of them; and few
# scenes to score.
RUNNER = """
import runpy, shlex, sys
sys.path.insert(0, "")
import datasets.shapes
datasets.shapes.LENGTHS["val"] = 4
for line in sys.stdin.read().splitlines():
    print("$", line, flush=True)
    first, *sys.argv = shlex.split(line)
    code = 0
    try:
        if sys.argv[0] == "-m":
            sys.argv.pop(0)
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    if code:
        sys.exit(f"{line}: exit code {code}")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with the page's files in it, and the page's shell commands without
    Python done."""
    root = tmp_path_factory.mktemp("copy")
    for part in ("papers", "common", "datasets", "tests", "studies", "learn", "docs"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("train.py", "eval.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / part, root)
    for line in COMMANDS:
        words = shlex.split(line)
        if words[0] == "mkdir":
            (root / words[1]).mkdir()
        elif words[0] == "touch":
            (root / words[1]).touch()
        elif words[0] == "cp":
            shutil.copy(root / words[1], root / words[2])
        else:
            assert words[0] == ".venv/bin/python", line
    for name, code in FILES.items():
        (root / name).write_text(code + "\n", encoding="utf-8", newline="\n")
    return root


def test_the_page_has_every_file_of_a_folder():
    folder = {path.name for path in (ROOT / "papers" / "pan").rglob("*")
              if path.suffix in (".py", ".md") and path.parent.name != "golden"}
    made = {Path(name).name.replace("pspnet", "pan") for name in FILES}
    made |= {"__init__.py", "resnet.py", "checks.py"}
    optional = {"cases.py", "mutants.py", "cost.py", "forms.py", "ablation.py", "readings.py",
                "transcription.py", "test_explain.py"}
    wrong = (folder - optional) ^ made
    assert not wrong, f"docs/adding_a_paper.md lacks a file, or has one too many: {wrong}"
    assert max(len(line) for code in FILES.values() for line in code.splitlines()
               if not line.startswith("|")) <= 100


def test_the_page_works(copy):
    # Links in the notes of other folders may have been out of date: that is the business of
    # test_notes.
    others = (path for path in copy.rglob("*") if path.is_file() and path.name != "paper.md")
    before = {path: path.read_bytes() for path in others if "pspnet" not in path.parts}
    commands = [line for line in COMMANDS if line.startswith(".venv/bin/python ")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
                   "PYTHONUTF8": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUNNER], input="\n".join(commands) + "\n", cwd=copy, env=environment,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "background" in result.stdout and "pixel accuracy" in result.stdout
    passed = [int(number) for number in re.findall(r"(\d+) passed", result.stdout)]
    assert min(passed) > 5 and sum(passed) > 20 and "failed" not in result.stdout, (
        result.stdout[-2000:])
    run = copy / "runs" / "pspnet-tiny-shapes"
    assert {"best.pt", "val_00000-attention-60-120.png",
            "shapes-val.png"} <= {path.name for path in run.iterdir()}
    assert "naive.py#L1)" not in (copy / "papers" / "pspnet" / "paper.md").read_text(
        encoding="utf-8")
    touched = [path.relative_to(copy) for path, content in before.items()
               if path.read_bytes() != content]
    assert not touched, f"adding a paper must touch nothing else: {touched}"
