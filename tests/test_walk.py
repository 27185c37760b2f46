"""docs/walk.ipynb: its cells, run in order without Jupyter, show what is stored below them."""

import ast
import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests import walk

NUMBER = re.compile(r"-?\d+\.\d+")
TIME = re.compile(r"\d+(?:\.\d+)? ms")


def same(found, stored, training):
    """Whether outputs of a cell are those that are stored: times aside, and to a hundredth or two
    where something was trained."""
    if [output["output_type"] for output in found] != [o["output_type"] for o in stored]:
        return False
    for new, old in zip(found, stored, strict=True):
        if "text" in new:
            texts = [TIME.sub("- ms", "".join(output["text"])) for output in (new, old)]
            if not training:
                if texts[0] != texts[1]:
                    return False
                continue
            numbers = [np.array(NUMBER.findall(text), float) for text in texts]
            if NUMBER.sub("", texts[0]) != NUMBER.sub("", texts[1]) or any(
                    abs(numbers[0] - numbers[1]) > 0.021):
                return False
        elif not np.allclose(picture(new), picture(old), atol=5):
            return False
    return True


def picture(output):
    """Its pixels, as numbers that may be subtracted."""
    data = base64.b64decode(output["data"]["image/png"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def notebook():
    return walk.load()


def test_cells_show_what_is_stored(notebook):
    cells = walk.code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    found = walk.outputs(notebook)
    for number, (cell, shown) in enumerate(zip(cells, found, strict=True), 1):
        training = "training" in cell["metadata"].get("tags", ())
        assert same(shown, cell["outputs"], training), f"cell {number}: python -m tests.walk"
    printed = "".join("".join(o.get("text", "")) for shown in found for o in shown)
    assert len(re.findall("equal: True", printed)) == 2 and "as fast: True" in printed


def test_a_wrong_output_is_noticed():
    def text(line):
        return [{"output_type": "stream", "text": [line]}]
    assert same(text("1.00, 3 ms"), text("1.00, 4.5 ms"), False)
    assert not same(text("1.00"), text("1.01"), False) and same(text("1.00"), text("1.01"), True)
    assert not same(text("1.00"), text("1.05"), True)
    assert not same(text("a 1.0"), text("b 1.0"), True)
    assert not same(text("1"), [], False)


def test_the_notebook_is_short_and_needs_nothing_else(notebook):
    cells, allowed = notebook["cells"], {"torch", "numpy", "PIL", "papers", "datasets"}
    assert (notebook["nbformat"], notebook["metadata"]["language_info"]["name"]) == (4, "python")
    assert 18 <= len(cells) <= 24 and len({cell["id"] for cell in cells}) == len(cells)
    assert walk.NOTEBOOK.stat().st_size < 400_000
    assert all(len(line.rstrip("\n")) <= 100 for cell in cells for line in cell["source"])
    for cell in walk.code(notebook):
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            names = [alias.name for alias in getattr(node, "names", ())
                     if isinstance(node, ast.Import)]
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed | {"inspect", "sys", "time"}, name
