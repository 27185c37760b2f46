"""The pages teach what is there: one template, blocks that print what stands below them, short
lines, no numbers that rot."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from tests import drawing
from tests.notes import PAGES, PAPERS, ROOT, ROW, results

HEADINGS = [
    "The equations", "From loops to the fast form", "Shapes through the network",
    "What the paper leaves open", "Where paper and code disagree", "Things to try", "Reading list",
]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
PLACE = re.compile(r".*\w.* \((?:certain|likely)\)|not in the paper")


def lesson(paper):
    return (ROOT / "papers" / paper / "paper.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS)
def test_the_template(paper):
    """The headings in their order; what goes before them; numbers in their own file."""
    text = lesson(paper)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    start = text.partition("\n## ")[0]
    parts = ("[PDF](https://", "**The question.**", "**The answer.**")
    places = [start.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)
    assert "```bibtex\n@" in text and f"../../docs/{paper}-network.svg" in text
    assert "(evidence/results.md" in text and results(paper).exists()
    table = text.partition("## The equations\n\n")[2]
    assert table.startswith("| letter | what it is | shape |"), "letters stand before the equations"
    assert len(text.splitlines()) <= 170


@pytest.mark.parametrize("paper", PAPERS)
def test_every_equation_says_where_it_is_in_the_pdf(paper):
    heading = "| | formula | meaning | in the PDF | loop | line |"
    assert heading in lesson(paper).splitlines()
    for row in ROW.finditer(lesson(paper)):
        place = re.split(r"(?<!\\)\|", row[0])[4].strip()
        assert PLACE.fullmatch(place), f"({row[1]}): {place!r} is no place with its certainty"


def differences(text):
    """What differs between the blocks of a page, run from top to bottom, and what it shows."""
    names, found = {}, []
    with torch.random.fork_rng():
        for code, shown in BLOCK.findall(text):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "block", "exec"), names)
            clean = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
            if clean.strip() != shown.strip():
                found.append(f"{code}printed\n{clean}\nbut the page shows\n{shown}")
    torch.set_printoptions(profile="default")
    return found


@pytest.mark.parametrize("paper", PAPERS)
def test_blocks_print_what_stands_below(paper):
    blocks = BLOCK.findall(lesson(paper))
    assert sum(bool(shown) for _, shown in blocks) > 1
    assert max(len(code.splitlines()) for code, _ in blocks) <= 10
    assert not differences(lesson(paper))


def test_a_wrong_output_is_noticed():
    page = "```python\na = 1\n```\n\n```python\nprint(a + 1)\n```\n```text\n{}\n```\n"
    assert not differences(page.format(2)) and differences(page.format(3))
    assert differences(page.format(2).replace("```text\n2\n```\n", "")), "output that is not shown"


@pytest.mark.parametrize("paper", PAPERS)
def test_the_drawing_is_what_the_script_makes(paper):
    drawn = (ROOT / "docs" / f"{paper}-network.svg").read_text(encoding="utf-8")
    assert drawn == drawing.draw(paper), "run `make drawings`"


def test_the_drawing_knows_what_comes_from_where():
    """In PAN every GAU has two arrows, one from the box before it and one from the backbone."""
    nodes, arrows = drawing.graph("pan")
    boxes = [name for name, _ in nodes]
    assert boxes[:4] == [f"backbone.layer{n}" for n in (1, 2, 3, 4)] and boxes[-1] == "scores"
    skips = [(3, (1024, 32, 32)), (2, (512, 64, 64)), (1, (256, 128, 128))]
    for number, (layer, shape) in enumerate(skips):
        gau = boxes.index(f"gaus.{number}")
        assert {s for s, e in arrows if e == gau} == {gau - 1, layer - 1}
        assert arrows[layer - 1, gau] == shape


def prose(text):
    """The lines of a page outside blocks, tables and pictures."""
    outside = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in outside.splitlines() if not line.startswith(("|", "![", "[!["))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short_and_counts_are_absent(page):
    """At most 100 columns; no number of lines, tests or mutants, which soon is out of date."""
    text = page.read_text(encoding="utf-8")
    assert not [line for line in prose(text) if len(line) > 100]
    words = " ".join(prose(text))
    counts = r"(?i)(?<!at most )\b(?:\d[\d,]* (?:known )?(?:lines|tests|mutants|mistakes|caught))\b"
    assert not re.findall(counts, words), "such a count is computed or left out"


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_quotes_what_is_there():
    """The four pieces of code are found in the files that the comments above them name."""
    assert len(README.splitlines()) <= 110
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    parts = [part.partition("\n") for part in block.strip().split("\n\n")]
    parts = [(comment.rpartition(": ")[2], code) for comment, _, code in parts]
    assert [Path(name).name for name, _ in parts] == [
        "naive.py", "model.py", "fast.py", "test_psanet.py"]
    for name, part in parts:
        source = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
        wanted = [line.strip() for line in part.splitlines()]
        starts = range(len(source) - len(wanted) + 1)
        assert any(source[n : n + len(wanted)] == wanted for n in starts), f"not in {name}: {part}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_is_called_in_one_way(page):
    """As .venv/bin/python, which works as typed after `make train`."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:python3?|pytest|torchrun) \S.*", text, re.MULTILINE)
    lines += re.findall(r"`((?:python3?|pytest) \S[^`]*)`", text)
    assert [line for line in lines if line != "python -m venv .venv"] == []


GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = [term for terms in re.findall(r"^- \*\*(.+?)\*\*:", GLOSSARY, re.MULTILINE)
         for term in terms.split(", ")]
NAMES = {"PySA", "UN", "EPT", "PAN", "PSANet", "LRFormer", "PDF", "PyTorch", "JaveyWang"}


def words_of(page):
    """What a lesson says from its question to its reading list, without code, formulas, shapes
    and links to code."""
    text = page.read_text(encoding="utf-8").partition("**The question.**")[2]
    text = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.partition("\n## Reading list")[0]
    return re.sub(r"\$.*?\$|`[^`]*`|\[[\w.]+\]\(\S*\)|\]\(\S*\)|\[[^]a-z]*\]", " ", text)


@pytest.mark.parametrize("paper", PAPERS)
def test_abbreviations_are_in_the_glossary(paper):
    """Every word of two or more capital letters in a lesson."""
    text = words_of(ROOT / "papers" / paper / "paper.md")
    words = set(re.findall(r"\b[A-Z][a-z]*[A-Z][A-Za-z]*\b", text))
    known = {part for term in TERMS for part in re.split(r"\W", term)} | NAMES
    assert not {word for word in words if word not in known and word.rstrip("s") not in known}


def test_the_glossary_has_no_term_that_nobody_uses():
    pages = " ".join(page.read_text(encoding="utf-8") for page in [
        *ROOT.glob("papers/*/*.md"), *ROOT.glob("papers/*/evidence/*.md"), *ROOT.glob("docs/*.md"),
        ROOT / "README.md"] if page.name != "glossary.md").lower()
    assert not [term for term in TERMS if term.lower() not in pages]
