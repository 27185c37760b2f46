"""python -m tests.notes: point the links of every equation table at the lines that carry its marks.

A row of the table in papers/NAME/paper.md reads

    | (C) | formula | meaning | ... | [naive.attend](naive.py#L66) | [model.Level](model.py#L78) |

and the lines `# (C)` in the two files are the equation. Several letters share a line as
`# (A), (B)` or `# (B) to (D)`, which names B and D.

docs/explore.html links to lines, too: it is made again around the numbers that it has.
"""

import re
from pathlib import Path

from learn import page

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/paper.md"))
ROW = re.compile(r"^\| \((\w+)\) \|.*$", re.MULTILINE)
FILES = ("naive", "model", "fast", "boundary", "readings")
LINK = re.compile(rf"\[({'|'.join(FILES)})\.([\w.]+)\]\((\w+)\.py#L(\d+)\)")
PAGES = sorted(
    path for folder in (".", "docs", "papers/*", "papers/*/evidence")
    for path in ROOT.glob(f"{folder}/*.md")
)


def results(paper):
    """The page with a paper's tables of numbers."""
    return ROOT / "papers" / paper / "evidence" / "results.md"


def marks(paper, part):
    """{letter: [line numbers]} of the marks in papers/PAPER/PART.py, if there is such a file."""
    found = {}
    path = ROOT / "papers" / paper / f"{part}.py"
    if not path.exists():
        return found
    text = (ROOT / "papers" / paper / f"{part}.py").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        for comment in re.findall(r"# (\(\w+\)(?:(?:,| to) \(\w+\))*)", line):
            for equation in re.findall(r"\w+(?=\))", comment):
                found.setdefault(equation, []).append(number)
    return found


def relink(text, paper):
    """The notes with every link in an equation row set to a marked line, inside the named function
    or class if there is one."""
    lines = {part: marks(paper, part) for part in FILES}

    def row(match):
        equation = match[1]

        def link(found):
            part, name = found[1], found[2]
            candidates = lines[part].get(equation, [])
            source = (ROOT / "papers" / paper / f"{part}.py").read_text(encoding="utf-8")
            inside = [n for n in candidates
                      if f"{enclosing(source.splitlines(), n)}.".startswith(name + ".")]
            best = [*inside, *candidates, 0][0]
            return f"[{part}.{name}]({part}.py#L{best})"

        return LINK.sub(link, match[0])

    return ROW.sub(row, text)


def enclosing(source, number):
    """The name of the function or Class.method around a line."""
    name, indent = "", None
    for line in reversed(source[:number]):
        found = re.match(r"( *)(?:def|class) (\w+)", line)
        if found and (indent is None or len(found[1]) < indent):
            name = found[2] + ("." + name if name else "")
            indent = len(found[1])
            if indent == 0:
                break
    return name


def main():
    for paper in PAPERS:
        path = ROOT / "papers" / paper / "paper.md"
        path.write_text(relink(path.read_text(encoding="utf-8"), paper), encoding="utf-8",
                        newline="\n")
    path = ROOT / "docs" / "explore.html"
    path.write_text(page.fill(*page.recorded(path.read_text(encoding="utf-8"))), encoding="utf-8",
                    newline="\n")


if __name__ == "__main__":
    main()
