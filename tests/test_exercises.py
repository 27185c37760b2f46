"""The judge of the exercises: what is right passes, every planted mistake is found, hints fit."""

import ast
import copy
import inspect
import operator
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from learn import exercise, grade, judge, lesson

PAPERS = lesson.papers()
ALL = [(paper, e) for paper in PAPERS for e in lesson.exercises(paper)]
each = pytest.mark.parametrize("paper,one", ALL, ids=[f"{p}-{e.name}" for p, e in ALL])

# Changes of a solution that change no result: e^(x+c) for e^(x-c), 0 / x for 0 * x, ties, squares.
EQUIVALENT = {
    "psanet": ["logit + largest", "logit - 0"],
    "pysa": ["score + largest", "score - 0", "shape[-2]"],
    "unept": ["reference[:, :, None, axis, None]", "0 / level[0, 0]", "level[1, 0]", "level[0, 1]",
              "score + largest", "score - 0", "0 / scores.sum()", "0 * 1",
              "angle + 180) / 2) + 180", "angle - 180", "else 1",
              "count.get(image[y][x], 1)", "1.0 if", "256", "251", "250 ** 3", "image[1])"],
    "lrformer": ["score + largest", "score - 0", "width > height", "maps[1]"],
}


def solved(paper):
    """The page of exercises with the project's own solutions in both parts."""
    text = exercise.page(paper)
    for e in lesson.exercises(paper):
        body = "\n".join(e.source.splitlines()[e.node.body[0].end_lineno - e.node.lineno + 1:])
        for name in (e.name, f"{e.name}_fast"):
            head = e.head(name)
            assert text.count(head) == (1 if name == e.name or e.loops else 0)
            text = text.replace(head, head.replace(lesson.EMPTY.rstrip("\n"), body))
    return text


def judged(paper, one, function):
    """The state of the verdict, without looking for hints."""
    with mock.patch.object(judge, "hint", lambda *_: ""):
        return judge.judge(paper, one, function).state


@pytest.mark.parametrize("paper", PAPERS)
def test_solutions_pass_and_empty_files_are_empty(paper, tmp_path):
    solution, empty = tmp_path / "solved.py", tmp_path / "empty.py"
    solution.write_text(solved(paper), encoding="utf-8")
    empty.write_text(exercise.page(paper), encoding="utf-8")
    solution, empty = grade.load(solution), grade.load(empty)
    for e in lesson.exercises(paper):
        for name in (e.name, *([f"{e.name}_fast"] if e.loops else [])):
            with grade.alone(paper, name, solution):
                assert grade.verdict(paper, e, solution, name) == judge.Verdict("passed"), name
            assert grade.verdict(paper, e, empty, name).state == "empty", name


@each
def test_the_form_of_model_py_passes_where_there_is_one(paper, one):
    form = judge.fast_form(paper, one.name)
    if form is not None:
        assert judged(paper, one, form) == "passed"


@each
def test_every_change_of_a_solution_is_found(paper, one):
    """Or it changes nothing, and EQUIVALENT says so."""
    naive, tree = lesson.part(paper, "naive"), copy.deepcopy(one.node)
    same, before, missed = EQUIVALENT.get(paper, ()), ast.unparse(tree), []
    for _ in judge.slips(tree):
        source, space = ast.unparse(ast.fix_missing_locations(tree)), dict(vars(naive))
        if source == before or any(source.count(part) > before.count(part) for part in same):
            continue
        exec(compile(source, "changed", "exec"), space)
        if judged(paper, one, space[one.name]) not in ("wrong", "raised"):
            missed += [b for a, b in zip(before.splitlines(), source.splitlines()) if a != b]
    assert not missed


# -------------------------------------------------------------------- the known mistakes of a paper


def linked(paper):
    """{file: the lines of the functions and methods that the lesson's table links to}."""
    found = {}
    for e in lesson.exercises(paper):
        for place in (place for *_, places in e.rows for place in places):
            module, name = place.split(".", 1)
            made = operator.attrgetter(name)(lesson.part(paper, module))
            if inspect.isfunction(made):
                lines, first = inspect.getsourcelines(made)
                found.setdefault(f"{module}.py", set()).update(range(first, first + len(lines)))
    return found


# What a judge of one function in double precision cannot see, and what is no matter of an equation.
BEYOND = ("precision", "autocast", "bfloat16", "training", "fast", "shortcut", "one image",
          "stochastic depth", "dropout", "drop path", "size", "switch", "query embedding",
          "maps of", "table of the wrong length")


@pytest.mark.parametrize("paper", PAPERS)
def test_known_mistakes_in_the_equations_are_found(paper):
    known, places = lesson.part(paper, "evidence.mutants").MUTANTS, linked(paper)
    forms = [e for e in lesson.exercises(paper) if judge.fast_form(paper, e.name)]
    tried, missed = 0, []
    for file, lines in places.items():
        text = (lesson.ROOT / "papers" / paper / file).read_text(encoding="utf-8")
        for what, old, new in known.get(file, ()):
            line = text[: text.index(old)].count("\n") + 1
            if line not in lines or any(word in what for word in BEYOND):
                continue
            tried += 1
            mutant = text.replace(old, new)
            states = (judged(paper, e, judge.planted(paper, file[:-3], mutant, e.name))
                      for e in forms)
            if not any(state in ("wrong", "raised") for state in states):
                missed.append(what)
    assert not missed and tried > 3, missed


@each
def test_every_slip_compiles_and_is_undone(paper, one):
    before, changed = ast.unparse(one.node), copy.deepcopy(one.node)
    slips = list(judge.slips(changed))
    assert len(list(judge.broken(paper, one))) == len(slips)
    assert ast.dump(changed) == ast.dump(one.node)
    next(walk := judge.slips(changed), None)
    walk.close()  # whoever looks for a hint stops at the first that fits
    assert ast.dump(changed) == ast.dump(one.node) and ast.unparse(one.node) == before


def test_a_slip_changes_one_comparison_of_a_chain():
    changed = ast.parse("def f(i):\n    'text'\n    return 0 <= i < 3").body[0]
    found = [ast.unparse(changed.body[1]) for _, what in judge.slips(changed) if " for " in what]
    assert found == ["return 0 < i < 3", "return 0 <= i <= 3"]


# ------------------------------------------------------------------------------------------ hints


def wrong(paper, name, function):
    """The text of the verdict on a function that is wrong."""
    [one] = [e for e in lesson.exercises(paper) if e.name == name]
    right = getattr(lesson.part(paper, "naive"), name)
    found = judge.judge(paper, one, lambda *arguments: function(right, *arguments))
    assert found.state == "wrong", found
    return found.text


@pytest.mark.parametrize("function,words", [
    (lambda right, *a: right(*a).transpose(2, 3), ["transposed", "(0, 1, 3, 2)"]),
    (lambda right, *a: right(*a).flip(2), ["axis 2 runs backwards"]),
    (lambda right, *a: right(*a).roll(1, 3), ["shifted by one along axis 3"]),
    (lambda right, *a: right(*a) * 12, ["a factor", "12 times"]),
    (lambda right, *a: right(*a) / 3 ** 0.5, ["a factor", "1/sqrt(3) times"]),
    (lambda right, *a: -right(*a), ["a factor", "-1 times"]),
    (lambda right, *a: right(*a) + 1, ["a constant", "1 too large"]),
    (lambda right, *a: right(*a).flatten(2), ["in another shape"]),
    (lambda right, *a: right(*a) / 0, ["division by zero"]),
    (lambda right, q, table, v, *more: right(q.flip(1), table, v, *more),
     ["q read backwards along axis 1"]),
    (lambda right, q, table, v, mask, softmax=True, factor=1.0:
     right(q, table, v, mask, not softmax, factor), ["softmax the other way round"]),
])
def test_hints_on_a_result(function, words):
    text = wrong("psanet", "collect", function)
    assert all(word in text for word in ["smells", *words]), text
    assert re.search(r"shape|first at \[.*\]: yours .*, expected", text), text


def no_root(right, q, k, v, regions, position=None):
    return right(q * q.shape[1] ** 0.5, k, v, regions, position)


def softmax_of_columns(right, q, k, v, regions, position=None):
    with judge.softmax_over(-2):
        return judge.fast_form("pysa", "attend")(q, k, v, regions, position)


def no_softmax(right, q, k, v, regions, position=None):
    with judge.softmax_over(0):
        return judge.fast_form("pysa", "attend")(q, k, v, regions, position)


def root_of_the_map(right, q, k, v, regions, position=None):
    return right(q * (q.shape[1] / q.shape[-1]) ** 0.5, k, v, regions, position)


def softmax_of_images(right, logits, v, softmax, divisor):
    weights = torch.stack(logits).softmax(1) if softmax else logits
    return right(list(weights), v, False, divisor)


@pytest.mark.parametrize("paper,name,function,words", [
    ("pysa", "attend", no_root, "without the square root"),
    ("pysa", "attend", root_of_the_map, "the root of 4"),
    ("pysa", "attend", no_softmax, "the softmax is missing"),
    ("pysa", "attend", lambda right, q, k, v, regions, position=None: right(q, k, v, 1, position),
     "with 1 for regions"),
    ("pysa", "project", lambda right, t, weight, bias: right(t, weight, 0 * bias), "without bias"),
    ("pysa", "series", lambda right, x, levels: right(x, levels[::-1]), "the reverse order"),
    ("pysa", "enlarge", lambda right, o, size, regions: F.interpolate(
        o, size, mode="bilinear", align_corners=True), "align_corners=True"),
    ("psanet", "collect", lambda right, *a: lesson.part("psanet", "naive").distribute(*a),
     "what distribute does"),
    ("psanet", "collect", lambda right, q, *a: right(q / 3 ** 0.5, *a), "q divided by sqrt(3)"),
    ("psanet", "aggregate", softmax_of_images, "softmax over the wrong axis"),
    ("psanet", "aggregate", lambda right, logits, v, *a: right(
        logits, v.mT.reshape(v.shape), *a), "v read column by column"),
    ("psanet", "classify", lambda right, *a: right(*a)[..., 1:-1, 1:-1], "a padding"),
    ("pysa", "attend", softmax_of_columns, "softmax over the wrong axis"),
    ("unept", "full_attention", lambda right, q, k, v: right(q, v, k) if 0 else right(q, k, k),
     "first at"),
    ("pan", "add_weighted", lambda right, up, w, detail: right(detail, w, up), "exchanged"),
    ("lrformer", "pyramid", lambda right, side: right(side)[::-1], "first at"),
])
def test_hints_on_a_function(paper, name, function, words):
    assert words in wrong(paper, name, function)


def test_the_page_has_examples_to_follow():
    """The lesson's with what they print, the paper's own small numbers, else random ones."""
    pysa, psanet = exercise.page("pysa"), exercise.page("psanet")
    shown = "#     v = [[[[12.0, 0.0], [0.0, 0.0]]]]\n#     regions = 1\n#     -> [[[[6.0, 3.0]"
    assert shown in pysa
    assert "#     for attend in (model.collect, model.distribute):" in psanet
    assert "#     -> tensor([[16., 17., 18., 19.],\n#     ->         [23." in psanet
    assert "#         module.shrink_factor = 2" in psanet
    assert "# read(h, owner, other, mask_size): What `owner` predicts for the pixel" in psanet


@pytest.mark.parametrize("paper", ["lrformer", "pan", "unept"])
def test_every_exercise_has_numbers_to_follow_by_hand(paper):
    """Few enough to be shown, up to repetitions; the form of model.py says the same."""
    tiny = lesson.part(paper, "evidence.cases").TINY
    for one in lesson.exercises(paper):
        text = "\n".join(exercise.worked(paper, one))
        assert "# For example:" in text and "..." not in text, text
        form = judge.fast_form(paper, one.name)
        if form is not None:
            right = getattr(lesson.part(paper, "naive"), one.name)
            with judge.double():
                arguments = exercise.doubled(tiny[one.name]())
                assert judge.same(judge.call(form, arguments), judge.call(right, arguments))


@pytest.mark.parametrize("paper,name", [
    ("lrformer", "enlarge"), ("pan", "fpa"), ("pan", "gau"),
    ("unept", "deformable_attention"), ("unept", "attend"), ("unept", "attention_matrix"),
    ("unept", "predict")])
def test_examples_are_those_of_the_lesson(paper, name):
    """The numbers that come out stand, in this order, in what a block of the lesson prints."""
    [one] = [e for e in lesson.exercises(paper) if e.name == name]
    found = re.findall(r"\d+\.\d+", "".join(
        line for line in exercise.worked(paper, one) if "    -> " in line))
    text = (lesson.ROOT / "papers" / paper / "paper.md").read_text(encoding="utf-8")
    printed = [list(map(float, re.findall(r"-?\d+\.\d*", block)))
               for block in re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    wanted = list(map(float, found))
    assert wanted and any(numbers[i : i + len(wanted)] == wanted for numbers in printed
                          for i in range(len(numbers))), found


@pytest.mark.parametrize("a,words", [
    (torch.tensor([[1.0, 2], [3, 5]]), "softmax is missing over axis 1"),
    (torch.tensor([[1.0, 2], [3, 5]]).softmax(0), "yours over [0], expected one over [1]"),
    (torch.tensor([[1.0, 2], [3, 5]]).exp(), "over axes [1] the weights should sum to 1"),
])
def test_hints_on_weights(a, words):
    assert words in judge.smell_of_result(a, torch.tensor([[1.0, 2], [3, 5]]).softmax(1))


def test_hints_on_activations_and_borders():
    x = torch.linspace(-2, 3, 24).view(4, 6)
    assert "ReLU is missing" in judge.smell_of_result(x, x.relu())
    assert "sigmoid is missing" in judge.smell_of_result(x, x.sigmoid())
    y = x.clone()
    y[0], y[-1] = 7, 8
    assert judge.smell_of_result(y, x) == ""
    assert judge.where_wrong(y, x) == "axis 0, index [0, 3]: only the border"


def mask_logits(outside=0.0, nearest=False, place=lambda y, x: (y, x)):
    """collect as a student writes it, with another rule for the mask."""
    def collect(right, q, table, v, mask_size, softmax=True, factor=1.0):
        naive, (rows, columns) = lesson.part("psanet", "naive"), mask_size
        h, z = naive.overcomplete(q, table).unflatten(1, mask_size), torch.zeros_like(v)
        pixels = list(np.ndindex(*v.shape[-2:]))
        for k, l in pixels:
            logits = []
            for s, t in pixels:
                down, right = place(s - k, t - l)
                y, x = down + (rows - 1) // 2, right + (columns - 1) // 2
                inside = 0 <= y < rows and 0 <= x < columns
                y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
                logits.append(h[:, y, x, k, l] if inside or nearest
                              else torch.full((len(q),), outside))
            z[:, :, k, l] = naive.aggregate(logits, v, softmax, factor or rows * columns)
        return z
    return collect


@pytest.mark.parametrize("function,words", [
    (mask_logits(-float("inf")), "minus infinity"), (mask_logits(-1e9), "minus infinity"),
    (mask_logits(nearest=True), "nearest entry"),
    (mask_logits(place=lambda y, x: (x, y)), "mistake: rows and columns of the mask exchanged"),
    (mask_logits(place=lambda y, x: (-y, x)), "mistake: the rows of the mask mirrored"),
    (mask_logits(place=lambda y, x: (y, -x)), "mistake: the columns of the mask mirrored"),
    (mask_logits(place=lambda y, x: (-y, -x)), "k with s, l with t exchanged"),
])
def test_hints_on_the_mask(function, words):
    assert words in wrong("psanet", "collect", function)


def interleaved(right, q, k, v, regions, position=None):
    """Cells viewed as (G, R) along each side, where (R, G) is right."""
    def split(t):
        t = t.unflatten(2, (-1, regions)).unflatten(4, (-1, regions))
        return t.permute(0, 3, 5, 2, 4, 1).flatten(3, 4)

    side = q.shape[-1] // regions
    scores = split(q) @ split(k).mT / q.shape[1] ** 0.5
    if position is not None:
        i = torch.arange(side)
        i = i[None, :] - i[:, None] + side - 1
        scores = scores + position[0, i[:, None, :, None], i[None, :, None, :]].reshape(
            side ** 2, -1)
    o = (scores.softmax(-1) @ split(v)).unflatten(3, (side, side))
    return o.permute(0, 5, 3, 1, 4, 2).reshape(v.shape)


def no_residual(right, x, ffn):
    naive = lesson.part("lrformer", "naive")
    widened = F.gelu(ffn.widen(x.movedim(1, -1))).movedim(-1, 1)
    return ffn.narrow(naive.convolve(widened, ffn.conv).movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("paper,name,function,words", [
    ("pysa", "attend", interleaved, "regions interleaved"),
    ("pysa", "attend", lambda right, q, k, v, regions, position=None: right(
        q, k, v, q.shape[-1] // regions, position), "R and G exchanged"),
    ("pysa", "attend", lambda right, q, *a: right(q / q.shape[1] ** 0.5, *a),
     "by the length itself, not by its root"),
    ("pan", "add_weighted", lambda right, up, w, detail: w * detail, "up is not added"),
    ("lrformer", "feed_forward", no_residual, "without its|no residual|a term left out"),
    ("lrformer", "pyramid", lambda right, side: [
        round(t * side / 16) for t in (11, 8, 6, 4)], "rounded half to even"),
    ("unept", "sampling_locations", lambda right, r, o, shapes: right(r, -o, shapes),
     "a minus for a plus, in or before (F)"),
    ("psanet", "compact", lambda right, q, table, v, direction, *a: right(
        q, table, v, "collect", *a), "first at"),
])
def test_hints_on_slips(paper, name, function, words):
    text = wrong(paper, name, function)
    assert any(part in text for part in words.split("|")), text
    assert "called with " in text


def test_a_hint_explains_every_wrong_result():
    """What fits one call only is no hint, nor what would change a right result."""
    def sometimes(right, q, table, v, mask_size, softmax=True, factor=1.0):
        return right(q, table, v, mask_size, softmax, factor) * (3 if softmax else 1) + softmax
    text = wrong("psanet", "collect", sometimes)
    assert "first at" in text and "smells" not in text
    text = wrong("lrformer", "pyramid", lambda right, side: right(23 if side == 24 else side))
    assert "side one too" not in text and "called with side 24" in text


def test_zeros_are_no_multiple():
    """Where a side is 0 no factor is missing; where it is not, one may be."""
    b, row = torch.arange(1.0, 13).view(3, 4), torch.tensor([[2.0], [3.0], [5.0]])
    assert "along axis 1 yours is a multiple" in judge.smell_of_result(b * row, b)
    for a in (torch.zeros(3, 4), b * (row > 2)):
        assert judge.smell_of_result(a, b) == "" == judge.smell_of_result(b, a)


@pytest.mark.parametrize("error", [ValueError, RecursionError])
def test_a_verdict_stands_without_its_hint(error):
    with mock.patch.object(judge, "hint", side_effect=error):
        text = wrong("pysa", "project", lambda right, *arguments: -right(*arguments))
    assert text.startswith("first at") and "called with" in text and "smells" not in text


def test_a_constant_result_is_no_sign_of_a_factor():
    """Where all that is right is the same number, or there is one, a multiple explains nothing."""
    for a, b in ((torch.tensor(2.0), torch.tensor(3.0)), (torch.ones(2, 3), torch.zeros(2, 3)),
                 (torch.tensor([[2.0, 2], [5, 5]]), torch.tensor([[3.0, 3], [9, 9]]))):
        assert judge.smell_of_result(a, b) == ""


def moved(shift=0.5, swap=False, truncate=False, edge=False):
    """bilinear as a student writes it, with another rule for the point."""
    def bilinear(right, level, x, y):
        x, y = (y - shift, x - shift) if swap else (x - shift, y - shift)
        sides = level.shape[:2]
        if edge:
            x, y = (t.clamp(0, n - 1) for t, n in zip((x, y), sides[::-1], strict=True))
        top, left = (int(t) if truncate else int(t.floor()) for t in (y, x))
        value = 0 * level[0, 0]
        for i, j in np.ndindex(2, 2):
            if 0 <= top + i < sides[0] and 0 <= left + j < sides[1]:
                share = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                value = value + share * level[top + i, left + j]
        return value
    return bilinear


def no_half(right, shapes, locations, *more):
    """Points half a pixel too far to the right and to the bottom."""
    halves = [torch.tensor([0.5 / w, 0.5 / h]) for h, w in shapes]
    return right(shapes, locations + torch.stack(halves)[:, None], *more)


def weigh(axes):
    """predict with a softmax over these axes of [B, Q, M, L, N]."""
    def predict(right, query, offset_map, weight_map, *sizes):
        offsets, _ = right(query, offset_map, weight_map, *sizes)
        scores = F.linear(query, *weight_map).unflatten(2, sizes).exp()
        return offsets, scores / scores.sum(axes, keepdim=True)
    return predict


@pytest.mark.parametrize("name,function,words", [
    ("bilinear", moved(), "a known mistake: x and y of a point moved by another -1/2"),
    ("bilinear", moved(0, swap=True), "with x and y exchanged"),
    ("bilinear", moved(0, truncate=True), "a known mistake: int() for floor, which rounds up"),
    ("bilinear", moved(0, edge=True), "a known mistake: the edge repeated outside"),
    ("attention_matrix", lambda right, *a: right(*a[:-1], torch.ones_like(a[-1])),
     "a factor left out, in or before (I)"),
    ("attention_matrix", lambda right, *a: F.normalize(right(*a), p=1, dim=-1),
     "a known mistake: rows made to sum to 1, where a part of them lies outside"),
    ("attention_matrix", no_half, "a known mistake: x and y of a point without their -1/2"),
    ("deformable_attention", lambda right, value, *a: no_half(
        lambda *b: right(value, *b), *a), "a known mistake: x and y of a point without their -1/2"),
    ("predict", weigh(4), "softmax over the wrong axes: yours over [4], expected one over [3, 4]"),
    ("predict", weigh(3), "yours over [3], expected one over [3, 4] together: they compete"),
    ("predict", weigh((2, 3, 4)), "yours over [2, 3, 4], expected one over [3, 4] together"),
])
def test_hints_on_points(name, function, words):
    assert words in wrong("unept", name, function)


def test_known_mistakes_are_named():
    """A student's mistake that is one of the paper's mutants is called by its name."""
    paper, name = "psanet", "distribute"
    what = "distribute reads the offset from receiver to source"
    [mutant] = [function for known, function in judge.mutants_of(paper, name) if known == what]
    assert what in wrong(paper, name, lambda right, *arguments: mutant(*arguments))


# ----------------------------------------------------------------------------------- the programs


def program(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=lesson.ROOT,
                          capture_output=True, text=True, check=False)


def test_a_students_file_is_never_touched(tmp_path):
    target = exercise.write("pysa", tmp_path)
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="it is yours"):
        exercise.write("pysa", tmp_path)
    assert target.read_text(encoding="utf-8") == "mine"


def test_what_the_grade_says(tmp_path, monkeypatch, capsys):
    """Right, wrong, raised, empty and fast, of a file in which there is one of each."""
    text = solved("psanet")
    text = text.replace("        z.append(aggregate(logits, v, softmax, divisor))",
                        "        z.append(2 * aggregate(logits, v, softmax, divisor))", 1)
    start = text.index("def overcomplete(")
    body = text.index("    h = [sum(", start)
    text = text[:body] + "    return q[7, 7, 7]\n" + text[text.index("\n\n\n", body):]
    (tmp_path / "psanet.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(grade, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["grade", "psanet"])
    grade.main()
    out = capsys.readouterr().out
    assert re.search(r"wrong   \(D\)  collect\n +first at .*\n +smells: a factor: .* 2 times", out)
    assert re.search(r"raised  \(C\)  overcomplete\n +.*IndexError", out), out
    assert re.search(r"passed  \(E\)  distribute_fast\n +loops .*\n +yours .*\n +model.py ", out)
    assert "5 of 7 equations right" in out


def test_what_the_grade_says_of_a_part(tmp_path, monkeypatch, capsys):
    """Nothing on what was not asked for."""
    (tmp_path / "psanet.py").write_text(solved("psanet"), encoding="utf-8")
    monkeypatch.setattr(grade, "FOLDER", tmp_path)
    for name, last in (("collect", "1 of 1 equations right"),
                       ("collect_fast", "1 of 1 without loops right, 0 of them fast")):
        monkeypatch.setattr("sys.argv", ["grade", "psanet", name])
        grade.main()
        out = capsys.readouterr().out
        assert out.endswith(f"\n\n{last}\n") and ("Make it fast" in out) == (name != "collect")


def test_exercises_come_after_what_they_use():
    for paper in PAPERS:
        names = [e.name for e in lesson.exercises(paper)]
        for i, e in enumerate(lesson.exercises(paper)):
            used = inspect.getclosurevars(getattr(lesson.part(paper, "naive"), e.name)).globals
            assert not used.keys() & set(names[i + 1:]), e.name
    assert "(F) (G) (M) (A), (B) (H) (D), (E) (C), (J) (I)" in " ".join(
        e.letters for e in lesson.exercises("unept"))


def test_a_copy_of_the_loops_is_slow_and_the_form_of_model_py_fast(monkeypatch):
    """In operations instead of seconds, which depend on what else the machine does."""
    def operations(function, arguments):
        with Counter() as counter:
            function(*copy.deepcopy(arguments))
        return counter.count

    class Counter(TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, arguments=(), named=None):
            self.count += 1
            return function(*arguments, **(named or {}))

    assert 0 < judge.seconds(torch.abs, [torch.ones(3)], budget=0) < 10
    monkeypatch.setattr(judge, "seconds", operations)
    [one] = [e for e in lesson.exercises("psanet") if e.name == "collect"]
    assert judge.ladder("psanet", one, lesson.part("psanet", "naive").collect)[1] == "slow"
    rungs, text = judge.ladder("psanet", one, judge.fast_form("psanet", "collect"))
    assert text == "fast" and [who for who, _ in rungs] == ["loops", "yours", "model.py"]
    assert rungs[1][1] < rungs[0][1] / 10


@pytest.mark.parametrize("arguments,words", [
    (("learn.grade", "alexnet"), "one of: lrformer, pan, psanet, pysa, unept"),
    (("learn.exercise", "alexnet"), "one of: lrformer, pan, psanet, pysa, unept"),
    (("learn.grade", "psanet", "collct"), "collct: no such exercise"),
])
def test_mistakes_are_one_line(arguments, words):
    result = program(*arguments)
    assert result.returncode == 2 and words in result.stderr and result.stderr.count("\n") == 1
