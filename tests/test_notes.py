"""Notes and code say the same: every name exists, every equation has its line, every link leads
there."""

import csv
import importlib
import re
import statistics

import pytest

from tests.notes import FILES, LINK, PAGES, PAPERS, ROOT, ROW, marks, relink, results


def notes(paper):
    return (ROOT / "papers" / paper / "paper.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("paper", PAPERS)
def test_every_name_exists(paper):
    text = notes(paper)
    files = "naive|model|fast|boundary|readings|official|recipe|resnet|vit"
    named = re.findall(rf"[`\[]({files})\.([A-Za-z_]\w*(?:\.\w+)*)", text)
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
    loops, *code = (set(marks(paper, part)) for part in FILES)
    assert loops == set(rows), "naive.py and the equation table of paper.md differ"
    assert set().union(*code) == set(rows), "the code and the equation table of paper.md differ"


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_links_to_its_line(paper):
    text = notes(paper)
    for match in ROW.finditer(text):
        found = {link[1]: (link[2], int(link[4])) for link in LINK.finditer(match[0])}
        assert ("naive" in found
                and len(found) > 1), f"({match[1]}) needs a link to its loop and one to its line"
        for part, (_, line) in found.items():
            assert line in marks(paper, part)[match[1]], f"({match[1]}): run `make links`"
    assert relink(text, paper) == text, "links are out of date: run `make links`"


def anchors(page):
    """What links to a page may put behind `#`: its headings as GitHub writes them, its lines."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".md":
        return {f"L{number}" for number in range(1, len(text.splitlines()) + 1)}
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text,
                                               flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page, text):
    """The relative links of a page that lead nowhere."""
    # of blocks of code
    outside = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)", outside):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not re.match(r"\w+:", link) and not (target.exists()
                                                and (not anchor or anchor in anchors(target))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    assert not list(dead_links(page, page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_have_a_heading_and_as_many_cells_in_every_row(page):
    """Without a heading Markdown shows no table. It drops what stands behind the last column."""
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"),
                  flags=re.DOTALL | re.MULTILINE)
    for lines in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line) for line in lines.splitlines()]
        assert {len(row) for row in rows} == {len(rows[0])}, lines
        dashes = [bool(re.fullmatch(r"[\s|:-]*-[\s|:-]*", line)) for line in lines.splitlines()]
        assert dashes.index(True) == 1 and sum(dashes) == 1, lines


def test_dead_links_are_found():
    page = ROOT / "README.md"
    alive = ("papers/psanet/paper.md", "common/metrics.py#L3", "#two-commands", "https://a.b/c")
    dead = ("papers/psanet/nothing.md", "common/metrics.py#L9999", "#three-commands")
    assert tuple(dead_links(page, " ".join(f"[x]({link})" for link in (*alive, *dead)))) == dead


def measured(name, path="CSV"):
    """A benchmark and the rows of a CSV that it wrote."""
    bench = importlib.import_module(name)
    with getattr(bench, path).open(encoding="utf-8") as file:
        return bench, list(csv.DictReader(file))


def lacks(path, lines):
    """The lines that a Markdown file should hold and does not."""
    text = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line not in text]


TABLES = [  # page, benchmark, CSV, function that makes the lines
    ("docs/choosing.md", "studies.probes", "CSV", "table"),
    ("docs/choosing.md", "studies.cost", "CSV", "table"),
    ("docs/choosing.md", "studies.cost", "CSV", "growth_table"),
    ("docs/choosing.md", "studies.results", "CSV", "table"),
    ("docs/choosing.md", "studies.probes", "LONG_CSV", "longer_table"),
    ("docs/choosing.md", "studies.cost", "WHOLE", "networks_table"),
    ("docs/choosing.md", "studies.results", "CSV", "classes_table"),
    ("papers/pysa/evidence/results.md", "papers.pysa.evidence.camvid", "CSV", "table"),
]


@pytest.mark.parametrize("page,name,path,function", TABLES)
def test_tables_are_the_measured_ones(page, name, path, function):
    bench, rows = measured(name, path)
    table = getattr(bench, function)(rows)
    assert not lacks(page, table), f"copy what `python -m {name}` prints into {page}"


def test_scores_are_the_logged_ones():
    """Every val score of docs/results.csv is the best row of that run's log."""
    bench, rows = measured("studies.results")
    _, log = measured("studies.results", "LOG")
    for row in rows:
        run = (row["network"], row["seed"])
        best = max(float(line["miou"]) for line in log if (line["network"], line["seed"]) == run)
        assert float(row["val"]) == pytest.approx(best, abs=1e-4), run


def test_the_table_of_what_context_is_worth():
    """docs/choosing.md: every paper's network, and the same without context."""
    shapes, rows = measured("studies.shapes_table")
    first = {row["paper"]: row["network"] for row in reversed(rows)}
    rows = [row for row in rows if row["network"] in (first[row["paper"]], "no context")]
    assert not lacks("docs/choosing.md", shapes.table(rows))
    scores = {}
    for row in rows:
        bare = row["network"] == "no context"
        scores.setdefault(bare, {}).setdefault(row["paper"], []).append(100 * float(row["miou"]))
    ranges = [[statistics.mean(seeds) for seeds in scores[bare].values()] for bare in (True, False)]
    spoken = " and ".join(f"{min(means):.0f} to {max(means):.0f} %" for means in ranges)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert spoken in text.replace("without their context mechanism ", "").replace(" with it", "")


@pytest.mark.parametrize("paper", PAPERS)
def test_tables_of_the_papers_are_the_measured_ones(paper):
    shapes, rows = measured("studies.shapes_table")
    rows = [row for row in rows if row["paper"] == paper]  # a new paper may have none
    missing = lacks(results(paper), shapes.table(rows) if rows else [])
    assert not missing, f"copy what `python -m studies.shapes_table --papers {paper}` prints"
