"""Notes and code say the same: every name exists, every equation has its line, every link leads there."""

import csv
import importlib
import re

import pytest

from tests.notes import LINK, PAPERS, ROOT, ROW, marks, relink


def notes(paper):
    return (ROOT / "papers" / paper / "paper.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_name_exists(paper):
    text = notes(paper)
    named = re.findall(r"[`\[](naive|model|official|recipe|resnet|vit)\.([A-Za-z_]\w*(?:\.\w+)*)", text)
    assert len(named) > 10
    for part, name in named:
        if name in ("py", "md"):
            continue
        found = importlib.import_module(f"papers.{paper}.{part}")
        for step in name.split("."):
            assert hasattr(found, step), f"paper.md cites {part}.{name}, which does not exist"
            found = getattr(found, step)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_equation_has_a_mark_and_every_mark_an_equation(paper):
    rows = [match[1] for match in ROW.finditer(notes(paper))]
    assert rows and len(rows) == len(set(rows))
    for part in ("naive", "model"):
        assert set(marks(paper, part)) == set(rows), f"{part}.py and the equation table of paper.md differ"


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_links_to_its_line(paper):
    text = notes(paper)
    for match in ROW.finditer(text):
        found = {link[1]: (link[2], int(link[4])) for link in LINK.finditer(match[0])}
        assert set(found) == {"naive", "model"}, f"Eq. ({match[1]}) needs a link to naive.py and one to model.py"
        for part, (_, line) in found.items():
            assert line in marks(paper, part)[match[1]], f"Eq. ({match[1]}): run `make links`"
    assert relink(text, paper) == text, "links are out of date: run `make links`"


@pytest.mark.parametrize("paper", PAPERS)
def test_relative_links_resolve(paper):
    folder = ROOT / "papers" / paper
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", notes(paper)):
        assert (folder / target).exists(), target


def test_readme_links_resolve():
    for target in re.findall(r"(?:\]\(|src=\")([^)#:\s\"]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


def measured(name):
    """A benchmark and the rows of the CSV that it wrote."""
    bench = importlib.import_module(f"bench.{name}")
    with bench.CSV.open(encoding="utf-8") as file:
        return bench, list(csv.DictReader(file))


def lacks(path, lines):
    """The lines that a Markdown file should hold and does not."""
    text = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line not in text]


def test_tables_of_the_front_page_are_the_measured_ones():
    shapes, rows = measured("shapes_table")
    camvid, scores = measured("camvid")
    missing = lacks("README.md", [*shapes.front_page(rows), *camvid.table(scores)])
    assert not missing, "copy what `python -m bench.shapes_table` and `python -m bench.camvid` print"


@pytest.mark.parametrize("paper", PAPERS)
def test_tables_of_the_papers_are_the_measured_ones(paper):
    shapes, rows = measured("shapes_table")
    rows = [row for row in rows if row["paper"] == paper]  # a new paper may have none
    missing = lacks(f"papers/{paper}/paper.md", shapes.table(rows) if rows else [])
    assert not missing, f"copy what `python -m bench.shapes_table --papers {paper}` prints"
