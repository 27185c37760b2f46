"""Every mistake of `make mutants` can be planted, and whoever plants one can tell whether it was
noticed."""

import ast
import json

import pytest

from tests import mutants

FILES = list(dict.fromkeys(file for file, *_ in mutants.tables()))


@pytest.mark.parametrize("file", FILES)
def test_every_mistake_can_be_planted(file):
    """The old text occurs once, the file stays Python or JSON, no mistake is there twice."""
    text = (mutants.ROOT / file).read_text(encoding="utf-8")
    planted = []
    for _, near, entries in (table for table in mutants.tables() if table[0] == file):
        assert near and all((mutants.ROOT / test.partition("::")[0]).exists() for test in near)
        for what, old, new in entries:
            assert text.count(old) == 1 and old != new, what
            planted.append(text.replace(old, new))
            parse = json.loads if file.endswith(".json") else ast.parse
            parse(planted[-1])
    assert len(set(planted)) == len(planted)


def test_places_are_folders_or_files():
    files = {mutant[0] for mutant in mutants.choose(["common", "datasets/classes", "eval.py"])}
    assert {"common/loop.py", "datasets/classes/ade20k.json", "eval.py"} <= files
    assert all(file.startswith(("common/", "datasets/classes/")) or file == "eval.py"
               for file in files)
    assert len(mutants.choose([])) > 500
    with pytest.raises(SystemExit, match="papers/nobody: no mistakes are known"):
        mutants.choose(["papers/nobody"])


@pytest.mark.parametrize("content,code,failed", [
    ('<testcase classname="tests.test_a" name="test_b" time="0.5"/>', 0, ""),
    ('<testcase classname="tests.test_a" name="test_b" time="0.5"><failure/></testcase>', 1,
     "tests/test_a.py::test_b"),
    ('<testcase classname="" name="tests.test_a" time="0.1"><error/></testcase>', 2,
     "the import of tests.test_a"),
])
def test_what_noticed(tmp_path, content, code, failed):
    quick = '<testcase classname="tests.test_a" name="test_quick" time="0.2"/>'
    (tmp_path / "times.xml").write_text(f"<testsuites>{content}{quick}</testsuites>")
    found, order = mutants.outcome(tmp_path / "times.xml", code)
    assert found == failed and (code == 2 or order[0].endswith("quick"))
