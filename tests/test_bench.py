"""tests/bench.py at tiny sizes: every paper's forms agree, a wrong one ends in an error."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from papers.pysa.evidence.forms import CrissCross, PyramidPooling
from studies import measure
from tests import bench
from tests.commands import SMALL, peak_memory_once

PAPERS = sorted(path.parent.parent.name
                for path in bench.ROOT.glob("papers/*/evidence/forms.py"))


@pytest.fixture
def run(monkeypatch, capsys):
    """run(paper, flags) -> (exit code or message, stdout) of the benchmark, one round."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "peak_memory", peak_memory_once)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 1)
    threads = torch.get_num_threads()

    def call(paper, *flags):
        name = f"papers.{paper}.evidence.forms"
        monkeypatch.setattr(f"{name}.CASES", SMALL[name]["CASES"])
        monkeypatch.setattr(sys, "argv", ["bench", paper, *flags])
        try:
            bench.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def test_all_papers_are_measured():
    assert set(bench.NAMES) <= set(PAPERS)


@pytest.mark.parametrize("paper", PAPERS)
def test_table(run, paper):
    """A row for each form of each case, with all that a sceptic asks for."""
    forms = importlib.import_module(f"papers.{paper}.evidence.forms")
    code, out = run(paper)
    assert code == 0
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()
             if line.startswith("| ") and "threads" not in line]
    assert len(cells) == len(forms.CASES) * len([*forms.FORMS, *forms.OTHERS])
    assert {row[0] for row in cells} == {*forms.FORMS, *(f"({name})" for name in forms.OTHERS)}
    for row in cells:
        assert len(row) == len(bench.HEADINGS)
        ours = row[0] in forms.FORMS
        assert (float(row[7]) <= 1e-3 and float(row[8]) <= 1e-6) if ours else row[7:] == ["", ""]
    assert f"PyTorch {torch.__version__}" in out and " cores" in out


def test_without_a_paper_all_are_measured(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(bench, "table", lambda paper, *_: seen.append(paper) or [])
    monkeypatch.setattr(sys, "argv", ["bench"])
    bench.main()
    assert seen == [*bench.NAMES] and capsys.readouterr().out.count("## ") == 5


def test_profile(run):
    """A line per form; convolutions and matrix products are among what takes the time."""
    code, out = run("lrformer", "--profile")
    lines = [line for line in out.splitlines() if line.startswith(("official", "ours"))]
    assert code == 0 and len(lines) == 3 and "| " not in out
    assert all("convolution" in line and "%" in line for line in lines)


@pytest.mark.parametrize("paper", PAPERS)
@pytest.mark.parametrize("error", [1e-2, 1e-5])
def test_a_wrong_form_ends_in_an_error(run, monkeypatch, paper, error):
    """An error of a hundredth, and one that float32 might hide: code 1, one line that names it."""
    forms = importlib.import_module(f"papers.{paper}.evidence.forms")
    make = forms.make

    def wrong(form, *case, device="cpu"):
        step = make(form, *case, device=device)

        def run():
            output, gradients = step()
            return (output * (1 + error * (form == forms.FORMS[-1])), gradients)

        return run

    monkeypatch.setattr(forms, "make", wrong)
    code, out = run(paper)
    assert isinstance(code, str) and "\n" not in code  # Python prints it and exits with 1
    assert forms.FORMS[-1] in code and "differs" in code
    assert "| " not in out


@pytest.mark.parametrize("paper", ["psanet", "pysa", "unept"])  # PAN's takes long on a CPU
def test_half_precision(run, paper):
    """As studies/gpu.sh asks for; small maps in bfloat16 may differ more than the bound allows."""
    code, out = run(paper, "--precision", "bfloat16")
    assert "bfloat16" in out if code == 0 else "differs" in code


def test_the_script_for_a_gpu(tmp_path):
    """Its commands, without running them: tests, three tables of each paper, a training that goes
    on from its checkpoint."""
    for resume in ("", " --resume"):
        out = subprocess.run(
            ["sh", str(bench.ROOT / "studies" / "gpu.sh"), "cpu", str(tmp_path)], cwd=tmp_path,
            env={**os.environ, "PYTHON": "echo"}, capture_output=True, text=True, check=True).stdout
        done = [line for line in out.splitlines() if line.startswith("-m") or "train.py" in line]
        lines = [line for line in done if not line.startswith("$")]
        tables = [line for line in lines if line.startswith("-m tests.bench ")]
        assert len(tables) == 3 * len(PAPERS) and all(" --device cpu " in line for line in tables)
        assert lines[-1].startswith("train.py") and lines[-1].endswith(f"runs/gpu{resume}")
        (tmp_path / "runs" / "gpu").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / "gpu" / "last.pt").touch()


def test_a_wrong_gradient_ends_in_an_error(run, monkeypatch):
    forms = importlib.import_module("papers.pysa.evidence.forms")
    make = forms.make

    def wrong(form, *case, device="cpu"):
        step = make(form, *case, device=device)

        def run():
            output, gradients = step()
            return output, [2 * g if form == "ours" and g is not None else g for g in gradients]

        return run

    monkeypatch.setattr(forms, "make", wrong)
    assert "'ours' differs" in run("pysa")[0]


def test_tables_are_written_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "papers" / "pan" / "evidence" / "results.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n{bench.BEGIN.format('pan')}\nold\n{bench.END}\nafter\n")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    for _ in range(2):  # the second time there is something to replace
        bench.write("pan", ["| new |"])
    text = page.read_text()
    assert text == f"before\n{bench.BEGIN.format('pan')}\n\n| new |\n\n{bench.END}\nafter\n"


def test_turns_go_both_ways():
    order = []
    seconds = measure.turns({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert "".join(order) == "abc" + "abc" + "cba"
    assert all(len(pairs) == 2 and min(map(min, pairs)) >= 0 for pairs in seconds.values())


# --------------------------------------------------------- what PySA is measured beside


def test_criss_cross_attention_is_its_equation():
    """One pixel after another: softmax over the H + W - 1 pixels of its row and column."""
    torch.manual_seed(0)
    module, x = CrissCross(16, rounds=1).double(), torch.randn(2, 16, 4, 6).double()
    module.gamma.data.fill_(0.7)
    q, k, v = (layer(x) for layer in (module.query, module.key, module.value))
    wanted = torch.empty_like(x)
    for image in range(2):
        for row in range(4):
            for column in range(6):
                cross = [(row, other) for other in range(6)]
                cross += [(other, column) for other in range(4) if other != row]
                scores = [q[image, :, row, column] @ k[image, :, a, b] for a, b in cross]
                shares = torch.stack(scores).softmax(0)
                wanted[image, :, row, column] = x[image, :, row, column] + 0.7 * sum(
                    share * v[image, :, a, b] for share, (a, b) in zip(shares, cross, strict=True))
    assert torch.allclose(module(x), wanted)
    module.rounds = 2
    once = module(x)
    module.rounds = 1
    assert torch.allclose(once, module(module(x)))


def test_pyramid_pooling_is_its_equation():
    """A pixel of a branch: the reduced means of the cells around it, weighed by how near they
    are; corners lie on corners."""
    torch.manual_seed(0)
    module, x = PyramidPooling(8).double().eval(), torch.randn(1, 8, 6, 6).double()
    y = module(x)
    assert y.shape == (1, 16, 6, 6) and torch.equal(y[:, :8], x)
    for number, (n, reduce) in enumerate(zip(module.cells, module.reductions, strict=True)):
        side = 6 // n
        cells = torch.stack([torch.stack([
            x[0, :, i * side : (i + 1) * side, j * side : (j + 1) * side].mean((1, 2))
            for j in range(n)]) for i in range(n)])                             # [n, n, C]
        cells = reduce(cells.permute(2, 0, 1)[None])[0]                         # [C / 4, n, n]
        for row in range(6):
            for column in range(6):
                y_place, x_place = row * (n - 1) / 5, column * (n - 1) / 5
                value = sum(
                    max(0, 1 - abs(y_place - i)) * max(0, 1 - abs(x_place - j)) * cells[:, i, j]
                    for i in range(n) for j in range(n))
                place = slice(8 + 2 * number, 10 + 2 * number)
                assert torch.allclose(y[0, place, row, column], value)
