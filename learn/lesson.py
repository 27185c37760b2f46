"""Library: the equations of a paper as exercises, read off its lesson and its loops.

Nothing is written down here. Which equations there are and what they mean is the table of paper.md;
signatures, docstrings and solutions are the functions of naive.py that the table links to.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path

from common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^\| (\(\w+\)) \| (.*?) \| (.*?) \| .*$", re.MULTILINE)
LOOPS = re.compile(r"\[naive\.(\w+)\]")
CODE = re.compile(r"\[((?!naive)\w+\.[\w.]+)\]\(\w+\.py")
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
EMPTY = "    raise NotImplementedError\n"


@dataclasses.dataclass
class Exercise:
    """One function to write. rows: its equations, as (letter, formula, meaning, places in the
    code)."""
    name: str
    node: ast.FunctionDef
    source: str
    rows: list

    @property
    def letters(self):
        """ "(C), (D)": what the judge calls it."""
        return ", ".join(letter for letter, *_ in self.rows)

    @property
    def loops(self):
        """Whether its solution has a loop, so that it can be made faster."""
        loops = ast.For | ast.comprehension
        return any(isinstance(node, loops) for node in ast.walk(self.node))

    @property
    def uses(self):
        """Names of what is defined elsewhere that its solution reads."""
        names = [node for node in ast.walk(self.node) if isinstance(node, ast.Name | ast.arg)]
        own = {node.arg if isinstance(node, ast.arg) else node.id for node in names
               if not isinstance(getattr(node, "ctx", None), ast.Load)}
        return {node.id for node in names if isinstance(node, ast.Name)} - own

    def head(self, name=None):
        """Signature and docstring, with an empty body, under another name if one is given."""
        lines = textwrap.dedent(self.source).splitlines()
        last = self.node.body[0].end_lineno - self.node.lineno + 1  # of the docstring
        text = "\n".join(lines[:last]) + "\n" + EMPTY
        return text.replace(f"def {self.name}(", f"def {name or self.name}(", 1)


def papers():
    """Names of the papers that have a lesson and loops."""
    return sorted(path.parent.name for path in ROOT.glob("papers/*/naive.py"))


def part(paper, name):
    """A module of a paper, or None. Raises UserError for an unknown paper."""
    if paper not in papers():
        raise UserError(f"PAPER={paper}: no such paper; one of: {', '.join(papers())}")
    if not (ROOT / "papers" / paper / f"{name.replace('.', '/')}.py").exists():
        return None
    return importlib.import_module(f"papers.{paper}.{name}")


def exercises(paper):
    """[Exercise], the short solutions first, but each after those that it uses. Raises UserError
    for an unknown paper."""
    source = inspect.getsource(part(paper, "naive"))
    lesson = (ROOT / "papers" / paper / "paper.md").read_text(encoding="utf-8")
    rows = {}
    for row in ROW.finditer(lesson):
        for name in LOOPS.findall(row[0]):
            rows.setdefault(name, []).append((*row.groups(), CODE.findall(row[0])))
    found = [Exercise(node.name, node, ast.get_source_segment(source, node), rows[node.name])
             for node in ast.parse(source).body
             if isinstance(node, ast.FunctionDef) and node.name in rows]
    todo, order = sorted(found, key=lambda e: sum(1 for _ in ast.walk(e.node))), []
    while todo:
        names = {e.name for e in todo}
        order.append(next(e for e in todo if not e.uses & names))
        todo.remove(order[-1])
    return order


def given(paper):
    """(import lines of naive.py, names in it that the solutions use and that are no exercises)."""
    tree = ast.parse(inspect.getsource(part(paper, "naive")))
    todo = exercises(paper)
    used = {node.id for e in todo for node in ast.walk(e.node) if isinstance(node, ast.Name)}
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    defined += [target.id for node in tree.body if isinstance(node, ast.Assign)
                for target in node.targets]
    imports = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import)]
    names = {e.name for e in todo}
    return imports, sorted(name for name in defined if name in used and name not in names)


def examples(paper, name):
    """[(code, what it prints)]: the blocks of the lesson that call a function or model.py's."""
    lesson = (ROOT / "papers" / paper / "paper.md").read_text(encoding="utf-8")
    return [found for found in BLOCK.findall(lesson)
            if re.search(rf"\b(naive|model)\.{name}\b", found[0])]
