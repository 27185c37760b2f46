"""python -m tests.walk: run the cells of docs/walk.ipynb in order and store what they show.

As Jupyter does, which is not needed: what is printed, then the value of a last line that is an
expression, as a picture if it is one.
"""

import ast
import base64
import contextlib
import io
import json
import re
from pathlib import Path

import torch

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "walk.ipynb"


def load():
    """The notebook as Python's dictionaries and lists, nbformat 4."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code(notebook):
    """Its cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    """What its cells show, a list of nbformat outputs for each; they share their names."""
    names, found = {}, []
    with torch.random.fork_rng():
        for cell in code(notebook):
            tree, printed, value = ast.parse("".join(cell["source"])), io.StringIO(), None
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, "cell", "exec"), names)
                if last:
                    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            text = printed.getvalue().splitlines(keepends=True)
            shown = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
            found.append(shown + ([] if value is None else [result(value, len(found) + 1)]))
    return found


def result(value, number):
    """A value as the result of cell `number`."""
    data = {"text/plain": [re.sub(r" at 0x\w+", "", repr(value))]}
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode() + "\n"
    return {"data": data, "execution_count": number, "metadata": {},
            "output_type": "execute_result"}


def main():
    notebook = load()
    cells = zip(code(notebook), outputs(notebook), strict=True)
    for number, (cell, shown) in enumerate(cells, 1):
        cell["execution_count"], cell["outputs"] = number, shown
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    NOTEBOOK.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
