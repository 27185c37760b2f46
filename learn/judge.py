"""Library: is a student's function right, where does it differ first, and what smells?

The judge calls the student's function and that of naive.py with the same arguments, those of
papers/NAME/evidence/cases.py, in double precision. Where results differ it tries what people do by
mistake, first on the student's result (axes exchanged, shifted by one, a factor, ...), then on the
right function (arguments exchanged, no square root, softmax over another axis), then the known
mistakes of cases.py and papers/NAME/evidence/mutants.py, then single slips (a sign, a term, an
index). It says what explains every wrong result; where nothing does, where the first is wrong.
"""

import ast
import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import math
import re
import time
from unittest import mock

import torch
import torch.nn.functional as F

from .lesson import ROOT, exercises, part

SEEDS = (0, 1)
SMALL, LARGE = 3, 7  # rows of the maps: to compare, to measure
MODELS = ("model", "fast", "boundary", "readings")
KNOWN = "a known mistake: "
PATIENCE = 60  # seconds to look for what explains a result


@dataclasses.dataclass
class Verdict:
    """state: "passed", "wrong", "raised" or "empty". text: what to tell the student."""
    state: str
    text: str = ""


# -------------------------------------------------------------------------------------- arguments


@contextlib.contextmanager
def double():
    """Within the `with`, new tensors are in double precision and nothing is differentiated."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


@functools.cache  # nothing changes them, see `call`
def cases(paper, side, seed):
    """{function: [arguments, ...]}: random, and no layer in them is neutral. In `double` only."""
    torch.manual_seed(seed)
    found = part(paper, "evidence.cases").cases(side)
    for value in tree(list(found.values())):
        if isinstance(value, torch.nn.Module):
            value.eval()
            for name, tensor in (*value.named_parameters(), *value.named_buffers()):
                if tensor.is_floating_point():
                    torch.nn.init.normal_(tensor, std=0.5)
                    if "running_var" in name:
                        tensor.abs_().add_(0.5)
    return found


def tree(value):
    """Everything that is no container in nested lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in tree(item)]
    return [value]


def call(function, arguments):
    """Its result as a list of tensors; the arguments stay as they were."""
    leaves = tree(function(*copy.deepcopy(arguments)))
    return [torch.as_tensor(leaf).double() for leaf in leaves]


def fast_form(paper, name):
    """The function of model.py that does the same as one of naive.py, or None."""
    own = getattr(part(paper, "evidence.cases"), "FAST", {})
    if name in own:
        return own[name]
    for module in filter(None, (part(paper, module) for module in MODELS)):
        made = getattr(module, name, None)
        if made is not None and made.__module__ == module.__name__:  # not merely imported there
            return made
    return None


# ---------------------------------------------------------------------------------------- judging


def judge(paper, exercise, function):
    """The Verdict on a function that is to do what naive.py's of the same name does."""
    right = getattr(part(paper, "naive"), exercise.name)
    with double():
        for number, arguments in enumerate(calls(paper, exercise.name)):
            wanted = expected(paper, exercise.name, number)
            try:
                found = call(function, arguments)
            except NotImplementedError:
                return Verdict("empty")
            except Exception as error:  # whatever a student's code may raise
                return Verdict("raised", f"{where(error)}{type(error).__name__}: {error}\n"
                                         f"{given(right, arguments)}")
            if not same(found, wanted):
                smell = ""
                with contextlib.suppress(Exception):  # a verdict stands without a hint, too
                    smell = hint(paper, exercise, function)
                return Verdict("wrong", "\n".join([
                    first_difference(found, wanted), smell, given(right, arguments)]))
    return Verdict("passed")


def calls(paper, name):
    """All arguments with which an exercise is judged. In `double` only."""
    for seed, side in itertools.product(SEEDS, (SMALL, SMALL + 1)):
        yield from cases(paper, side, seed)[name]


@functools.cache  # loops are slow
def expected(paper, name, number):
    """What naive.py's function returns in the call of this number. In `double` only."""
    arguments = next(itertools.islice(calls(paper, name), number, None))
    return call(getattr(part(paper, "naive"), name), arguments)


def given(function, arguments):
    """What a function was called with, in a line: tensors by their shapes, modules by their
    types."""
    def text(value):
        if isinstance(value, torch.Tensor) and value.ndim:
            return str(list(value.shape))
        if isinstance(value, list | tuple) and any(isinstance(v, torch.Tensor) for v in value):
            return f"({', '.join(map(text, value))})"
        return type(value).__name__ if isinstance(value, torch.nn.Module) else repr(value)

    names = inspect.signature(function).parameters
    return "called with " + ", ".join(
        f"{name} {text(value)}" for name, value in zip(names, arguments, strict=False))


def where(error):
    """ "line 30: " of the innermost line of the student's file."""
    trace, line = error.__traceback__, ""
    while trace:
        if "exercises" in trace.tb_frame.f_code.co_filename:
            line = f"line {trace.tb_lineno}: "
        trace = trace.tb_next
    return line


def same(found, wanted):
    """Whether two lists of tensors agree, up to rounding."""
    return len(found) == len(wanted) and all(map(close, found, wanted))


def close(a, b):
    """Whether two tensors have one shape and the same values up to rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-7, atol=1e-9)


def first_difference(found, wanted):
    """Where two results part first: the place, yours, expected."""
    if len(found) != len(wanted):
        return f"{len(found)} results, not {len(wanted)}"
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        which = f"result {number + 1}: " if len(found) > 1 else ""
        if a.shape != b.shape:
            return f"{which}shape {list(a.shape)}, not {list(b.shape)}"
        off = ~torch.isclose(a, b, rtol=1e-7, atol=1e-9)
        if off.any():
            place = off.nonzero()[0].tolist()
            share = f"{int(off.sum())} of {off.numel()} elements differ"
            return (f"{which}first at {place}: yours {a[tuple(place)].item():.6g}, expected "
                    f"{b[tuple(place)].item():.6g}; {share}")
    return ""


# ------------------------------------------------------------------------------------------ hints


def hint(paper, exercise, function):
    """What explains the results of a function, else where the first is wrong, else ""."""
    tried = []
    for number, arguments in enumerate(calls(paper, exercise.name)):
        with contextlib.suppress(Exception):  # a later call may raise
            found = call(function, arguments)
            tried.append((arguments, found, expected(paper, exercise.name, number)))
    tried.sort(key=lambda case: same(*case[1:]))  # the wrong ones first
    smells = [smell_of_results(*case) for _, *case in tried if not same(*case)]
    smell = smells[0] if len({text.partition(":")[0] for text in smells}) == 1 else ""
    smell = smell or smell_of_function(paper, exercise, tried) or max(
        (text for text in smells if text.startswith("overflow")), default="")
    if smell:
        return f"smells: {smell}"
    places = (where_wrong(a, b) for a, b in zip(*tried[0][1:], strict=False))
    return "".join(f"look at: {place}" for place in list(filter(None, places))[:1])


def smell_of_results(found, wanted):
    """The first smell of the results that differ, or ""."""
    pairs = (pair for pair in zip(found, wanted, strict=False) if not close(*pair))
    return next(filter(None, itertools.starmap(smell_of_result, pairs)), "")


def smell_of_result(a, b):
    """What was done to b to make it a, if it is one of the usual things."""
    for axes in itertools.permutations(range(a.ndim)):
        if a.ndim == b.ndim and list(axes) != sorted(axes) and close(a.permute(axes), b):
            return f"transposed: .permute{axes} of yours is right"
    if a.shape != b.shape:
        if a.numel() == b.numel() and close(a.flatten(), b.flatten()):
            return "the right numbers in another shape"
        border = [(n - m) // 2 for m, n in zip(a.shape, b.shape, strict=False)]
        inner = b[tuple(slice(cut, n - cut) for cut, n in zip(border, b.shape, strict=False))]
        return "the border is missing: a padding" if min(border) >= 0 and close(a, inner) else ""
    if a.isnan().any() or a.isinf().any():
        return "overflow or a division by zero: subtract the largest before exp, count what you sum"
    for axis in range(a.ndim):
        if close(a.flip(axis), b):
            return f"axis {axis} runs backwards"
        if shifted(a, b, axis):
            return f"shifted by one along axis {axis}"
    return smell_of_size(a, b)


def shifted(a, b, axis):
    """Whether a is b moved by one along an axis, whatever happens at the end."""
    n = a.shape[axis] - 1
    if n < 2 or close(b.narrow(axis, 0, n), b.narrow(axis, 1, n)):
        return False
    return any(close(a.narrow(axis, i, n), b.narrow(axis, 1 - i, n)) for i in (0, 1))


def smell_of_size(a, b):
    """Factors, sums and activations."""
    scale = (a * b).sum() / (b * b).sum()
    if b.count_nonzero() > 1 and scale != 0 and close(a, scale * b):
        return f"a factor: yours is {named(scale.item())} times what it should be"
    if b.unique().numel() > 1 and close(a - b, (a - b).flatten()[0].expand_as(a)):
        return f"a constant: yours is {(a - b).flatten()[0].item():.4g} too large"
    for axis in range(a.ndim):
        for other, what in ((b.softmax(axis), "a softmax too many, over"),
                            (a.softmax(axis), "the softmax is missing over")):
            if close(other, a if what.startswith("a ") else b):
                return f"{what} axis {axis}"
    yours, over = weighs(a), weighs(b)
    if over and (a >= 0).all() and not close(a.sum(over), b.sum(over)):
        together = " together: they compete" if len(over) > 1 else ""
        return (f"softmax over the wrong axes: yours over {[*yours]}, expected one over {[*over]}"
                if yours else f"over axes {[*over]} the weights should sum to 1") + together
    for axis in range(a.ndim if a.all() and b.all() else 0):
        ratio = a / b
        along = ratio.narrow(axis, 0, 1).expand_as(ratio)
        varies = not close(b, b.narrow(axis, 0, 1).expand_as(b))
        if varies and torch.allclose(ratio, along, rtol=1e-6):
            return (f"along axis {axis} yours is a multiple of what it should be, another one at "
                    "each place: a factor or a normalisation is missing, or over the wrong axis")
    for what, activated in (("ReLU", torch.relu), ("sigmoid", torch.sigmoid)):
        if b.any() and close(activated(a), b):
            return f"the {what} is missing"
    return ""


def weighs(x):
    """The fewest axes over which numbers sum to 1 everywhere, none of them negative; or ()."""
    sets = (axes for n in range(x.ndim) for axes in itertools.combinations(range(x.ndim), n + 1)
            if (x >= 0).all() and math.prod(x.shape[axis] for axis in axes) > 1)
    return next((axes for axes in sets if close(x.sum(axes), torch.ones_like(x.sum(axes)))), ())


def named(scale):
    """A factor in words: -1, 1/12, 4, sqrt(2), 1/sqrt(3)."""
    for power, form in ((1, "{}"), (2, "sqrt({})")):
        for value, text in ((abs(scale) ** power, form), (abs(scale) ** -power, "1/" + form)):
            if value < 1e4 and abs(value - round(value)) < 1e-6 * value:
                return "-" * (scale < 0) + text.format(round(value))
    return f"{scale:.4g}"


def where_wrong(a, b):
    """Which part of the result is wrong, if it is not all of it."""
    off = ~torch.isclose(a, b, rtol=1e-7, atol=1e-9) if a.shape == b.shape else None
    if off is None or not off.any():
        return ""
    for axis in range(a.ndim):
        rest = [i for i in range(a.ndim) if i != axis]
        wrong = off.any(dim=rest) if rest else off
        n = int(wrong.sum())
        if n < len(wrong):
            inner = wrong[1:-1].any() if len(wrong) > 2 else True
            edge = "" if inner else ": only the border"
            return f"axis {axis}, index {wrong.nonzero().flatten().tolist()}{edge}"
    return ""


def smell_of_function(paper, exercise, tried):
    """What done to the right function or to its arguments explains the results, or "".

    tried: [(arguments, found, wanted), ...], the wrong ones first. Where several known mistakes
    explain them, all are named.
    """
    known, end = [], time.perf_counter() + PATIENCE
    for kind, what, make in hypotheses(paper, exercise, *tried[0]):
        famous = what.startswith(KNOWN)
        if time.perf_counter() > end:
            break
        if known and not famous:
            continue
        if fits(make, tried[0][1]) and all(
                explains(paper, exercise, kind, case, famous) for case in tried[1:]):
            if not famous:
                return what
            known.append(what.removeprefix(KNOWN))
    return (KNOWN + ", or: ".join(dict.fromkeys(known))) if known else ""


def explains(paper, exercise, kind, case, famous):
    """Whether a hypothesis of a kind explains one more case. A right result needs none, but the
    hypothesis must not change it; known mistakes may, where they are not finite."""
    _, found, wanted = case
    made = [make for other, _, make in hypotheses(paper, exercise, *case) if other == kind]
    return any(fits(make, found) for make in made) or same(found, wanted) and (famous or not made)


def fits(make, found):
    """Whether make() gives these results."""
    try:
        made = make()
    except Exception:  # a change may well be nonsense
        return False
    return len(made) == len(found) and all(map(agree, made, found))


def agree(a, b):
    """Whether two tensors are close, or neither is finite."""
    return close(a, b) or a.shape == b.shape and not (a.isfinite().all() or b.isfinite().all())


def hypotheses(paper, exercise, arguments, found, wanted):
    """Yields (kind, what, make) of what people do by mistake: make() would be the results.

    The kind tells whether the same was done in another call, where numbers differ.
    """
    naive = part(paper, "naive")
    right, other = getattr(naive, exercise.name), fast_form(paper, exercise.name)
    bound = inspect.signature(right).bind(*arguments)
    bound.apply_defaults()
    names, full = list(bound.arguments), list(bound.args)

    def run(function, changed=arguments, context=contextlib.nullcontext):
        def make():
            with context():
                return call(function, changed)
        return make

    for what, changed in changes(names, full):
        yield what, f"this is what one gets {what}", run(right, changed)
    for name, value in zip(names, full, strict=True):
        if isinstance(value, torch.Tensor) and value.shape == wanted[0].shape:
            yield name, f"{name} is not added: a residual is missing", lambda v=value: [
                wanted[0] - v]
    for what, name, made in getattr(part(paper, "evidence.cases"), "MISTAKES", ()):
        yield what, KNOWN + what, run(
            lambda *a: getattr(naive, exercise.name)(*a),
            context=functools.partial(mock.patch.object, naive, name, made))
    for kind, what, root in roots(arguments):
        yield kind, what, run(right, context=functools.partial(
            mock.patch.object, naive, "math", OtherRoot(root), create=True))
    for axis in range(5) if other else ():
        what = "softmax over the wrong axis" if axis else "the softmax is missing"
        yield (what, axis), what, run(other, context=functools.partial(softmax_over, -axis))
    for what, changed in each(names, full, functools.partial(scaled, lengths=sizes(full))):
        kind = re.sub(r"sqrt.*", "a root", what)
        yield kind, f"this is what one gets {what}", run(right, changed)
    for name in same_signature(paper, exercise):
        yield name, f"this is what {name} does", run(getattr(naive, name))
    for what, mutant in mutants_of(paper, exercise.name):
        yield what, KNOWN + what, run(mutant)
    yield from interpolations(arguments, found)
    for number, (what, function) in enumerate(broken(paper, exercise)):
        yield number, f"this is what one gets with {what}", run(function)


def same_signature(paper, exercise):
    """Names of the paper's other exercises with the same arguments."""
    wanted = ast.unparse(exercise.node.args)
    return [e.name for e in exercises(paper)
            if e.name != exercise.name and ast.unparse(e.node.args) == wanted]


def interpolations(arguments, found):
    """Hypotheses: the result is an argument that PyTorch enlarged or shrank as a whole."""
    for value in (v for v in arguments if isinstance(v, torch.Tensor) and v.ndim == 4):
        for mode, corners in (("bilinear", False), ("bilinear", True), ("nearest", None)):
            what = f"F.interpolate of the whole, {mode}, align_corners={corners}"
            yield what, what, lambda v=value, mode=mode, corners=corners: [
                F.interpolate(v, found[0].shape[-2:], mode=mode, align_corners=corners)]


def roots(arguments):
    """(kind, what, another square root): what may be wrong with the scale of scores."""
    yield 1, "this is what one gets without the square root: a scale is missing", lambda x: 1
    yield 0, "this is what one gets dividing by the length itself, not by its root", lambda x: x
    for size in sizes(arguments):
        yield 2, f"the root of {size}: of the length of another axis", lambda x, n=size: n ** 0.5


def sizes(arguments):
    """The lengths of all axes of the arguments but 1, the short ones first."""
    tensors = (leaf for leaf in tree(arguments) if isinstance(leaf, torch.Tensor))
    return sorted({side for tensor in tensors for side in tensor.shape} - {1})


class OtherRoot:
    """The module math with another square root."""

    def __init__(self, root):
        self.root = root

    def __getattr__(self, name):
        return self.root if name == "sqrt" else getattr(math, name)


@contextlib.contextmanager
def softmax_over(axis):
    """Within the `with`, every softmax of PyTorch runs over this axis where there is one; 0: there
    is none."""
    method = torch.Tensor.softmax

    def other(x, dim=None, **options):
        if axis == 0:
            return x
        return method(x, axis if x.ndim >= -axis else dim, **options)

    with mock.patch.object(torch.Tensor, "softmax", other), \
            mock.patch.object(torch, "softmax", other):
        yield


def changes(names, arguments):
    """(what, changed arguments): exchanged, switched over, transposed."""
    for i, j in itertools.combinations(range(len(arguments)), 2):
        if type(arguments[i]) is type(arguments[j]) and names:
            changed = [*arguments]
            changed[i], changed[j] = changed[j], changed[i]
            yield f"with {names[i]} and {names[j]} exchanged", changed
    yield from each(names, arguments, variants)


def each(names, arguments, change):
    """(what, changed arguments) of what `change` makes of one argument at a time."""
    for i, value in enumerate(arguments):
        for what, other in change(value):
            yield what.format(names[i]), [*arguments[:i], other, *arguments[i + 1:]]


def variants(value):
    """(what, another value) of one argument."""
    if isinstance(value, bool):
        yield "with {} the other way round", not value
    elif isinstance(value, int):
        if value > 1:
            yield "with 1 for {}", 1
            yield "with {} one too small", value - 1
        yield "with {} one too large", value + 1
    if isinstance(value, tuple):
        yield "with the two sides of {} exchanged", value[::-1]
    if isinstance(value, list | torch.nn.ModuleList):
        yield "with {} in the reverse order", value[::-1]
    if isinstance(value, torch.Tensor):
        for a, b in itertools.combinations(range(value.ndim), 2):
            if value.shape[a] == value.shape[b]:
                yield f"with axes {a} and {b} of {{}} exchanged", value.transpose(a, b)
        for axis in range(value.ndim):
            yield f"with {{}} read backwards along axis {axis}", value.flip(axis)
            yield f"with {{}} shifted by one along axis {axis}", value.roll(1, axis)
            yield f"with {{}} shifted by one along axis {axis}", value.roll(-1, axis)
            if value.shape[axis] > 1:
                yield (f"without the differences of {{}} along axis {axis}",
                       value.narrow(axis, 0, 1).expand_as(value))
        if value.ndim > 1:
            yield "with {} read backwards along both last axes", value.flip(-1, -2)
            yield "with {} read column by column", value.mT.reshape(value.shape)


def scaled(value, lengths):
    """(what, another value): a tensor, or a list of them, times something."""
    tensors = value if isinstance(value, list) else [value]
    if not tensors or not all(isinstance(t, torch.Tensor) and t.is_floating_point()
                              for t in tensors):
        return
    roots = [(f"with {{}} {word} sqrt({n})", n ** power) for n in lengths
             for word, power in (("divided by", -0.5), ("times", 0.5))]
    for what, factor in (("without {}", 0), ("with {} counted twice", 2), *roots):
        other = [t * factor for t in tensors]
        yield what, other if isinstance(value, list) else other[0]


def mutants_of(paper, name):
    """(what, function) of the known mistakes in the files that the fast form comes from."""
    known = part(paper, "evidence.mutants").MUTANTS
    known = known if isinstance(known, dict) else {"model.py": known}
    for file in [f"{module}.py" for module in MODELS if f"{module}.py" in known]:
        text = (ROOT / "papers" / paper / file).read_text(encoding="utf-8")
        for what, old, new in known[file]:
            if text.count(old) == 1:
                yield what, planted(paper, file[:-3], text.replace(old, new), name)


def planted(paper, module, text, name):
    """The fast form of a function, where a module of the paper has another text."""
    def function(*arguments):
        real = part(paper, module)
        space = {"__name__": real.__name__, "__package__": real.__package__}
        exec(compile(text, f"{module}.py", "exec"), space)  # a text of the project's own
        for layer in (m for leaf in tree(arguments) if isinstance(leaf, torch.nn.Module)
                      for m in leaf.modules()):
            if type(layer).__module__ == real.__name__:
                layer.__class__ = space[type(layer).__name__]
        ours = {key: space[key] for key in vars(real) if key in space and key[0] != "_"}
        with mock.patch.multiple(real, **ours):
            return fast_form(paper, name)(*arguments)
    return function


def broken(paper, exercise):
    """(what, function): the right function with one slip, and the equation of the line."""
    tree, lines = copy.deepcopy(exercise.node), exercise.source.splitlines()
    for node, what in slips(tree):
        space = dict(vars(part(paper, "naive")))
        module = ast.fix_missing_locations(ast.Module([tree], []))
        exec(compile(module, "slip", "exec"), space)  # a text of the project's own
        rest = "\n".join(lines[node.lineno - exercise.node.lineno :])
        mark = re.search(r"# (\(\w\))", rest)  # of the line, or the next one
        yield what + (f", in or before {mark[1]}" if mark else ""), space[exercise.name]


SWAPS = {ast.Add: (ast.Sub, "a minus for a plus"), ast.Sub: (ast.Add, "a plus for a minus"),
         ast.Mult: (ast.Div, "a division for a product"),
         ast.Div: (ast.Mult, "a product for a division"),
         ast.FloorDiv: (ast.Mult, "a product for a division"),
         ast.Lt: (ast.LtE, "<= for <"), ast.LtE: (ast.Lt, "< for <="),
         ast.Gt: (ast.GtE, ">= for >"), ast.GtE: (ast.Gt, "> for >="),
         ast.Eq: (ast.NotEq, "!= for ==")}


def slips(tree):
    """Yields (node, what) for every node of a function that is changed, while it is: signs, terms,
    comparisons, numbers, the order of indices."""
    for node in [n for statement in tree.body[1:] for n in ast.walk(statement)]:
        for what, field, value in slips_of(node):
            before = getattr(node, field)
            setattr(node, field, value)
            try:
                yield node, what
            finally:  # whoever reads them may stop anywhere
                setattr(node, field, before)


def slips_of(node):
    """[(what, field, its other value)] of one node."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        other, what = SWAPS[type(node.op)]
        yield what, "op", other()
        neutral = ast.Constant(int(not isinstance(node.op, ast.Add | ast.Sub)))
        missing = "a factor left out" if neutral.value else "a term left out"
        yield missing, "right", neutral
        if isinstance(node.op, ast.Add | ast.Mult):
            yield missing, "left", neutral
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in SWAPS:
                other, what = SWAPS[type(op)]
                yield what, "ops", [*node.ops[:i], other(), *node.ops[i + 1:]]
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "a number one too large", "value", node.value + 1
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        for i, (a, b) in enumerate(itertools.pairwise(node.slice.elts)):
            order = [*node.slice.elts[:i], b, a, *node.slice.elts[i + 2:]]
            yield "two indices exchanged", "slice", ast.Tuple(order, ast.Load())


# ------------------------------------------------------------------------------------------ speed


def seconds(function, arguments, budget=0.3):
    """The least time of one call, of three or of as many as fit into the budget."""
    arguments, times, begin = copy.deepcopy(arguments), [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < budget and len(times) < 50:
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def ladder(paper, exercise, function):
    """How a right function does beside the loops and model.py: ([(who, seconds)], text).

    The text is "fast" where it is at least half as fast as model.py, or ten times as fast as the
    loops if model.py has no function of its own for it; "faster" where it at least halves the time
    of the loops; else "slow".
    """
    right, other = getattr(part(paper, "naive"), exercise.name), fast_form(paper, exercise.name)
    with double():
        arguments = cases(paper, LARGE, 0)[exercise.name][0]
        rungs = [("loops", seconds(right, arguments)), ("yours", seconds(function, arguments))]
        if other:
            rungs.append(("model.py", seconds(other, arguments)))
    loops, yours = rungs[0][1], rungs[1][1]
    goal = 2 * rungs[2][1] if other else loops / 10
    text = "fast" if yours <= goal else "faster" if yours <= loops / 2 else "slow"
    return rungs, text
