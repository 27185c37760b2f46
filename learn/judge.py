"""Library: is a student's function right, where does it differ first, and what smells?

The judge calls the student's function and that of naive.py with the same arguments, those of
papers/NAME/evidence/cases.py, in double precision. Where results differ it tries what people do by
mistake, first on the student's result (axes exchanged, shifted by one, a factor, ...), then on the
right function (arguments exchanged, no square root, softmax over another axis), then the known
mistakes of papers/NAME/evidence/mutants.py, and says what fits.
"""

import ast
import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import math
import time
from unittest import mock

import torch
import torch.nn.functional as F

from .lesson import ROOT, exercises, part

SEEDS = (0, 1)
SMALL, LARGE = 3, 7  # rows of the maps: to compare, to measure
MODELS = ("model", "fast", "boundary", "readings")


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
        for seed, side in itertools.product(SEEDS, (SMALL, SMALL + 1)):
            for arguments in cases(paper, side, seed)[exercise.name]:
                wanted = call(right, arguments)
                try:
                    found = call(function, arguments)
                except NotImplementedError:
                    return Verdict("empty")
                except Exception as error:  # whatever a student's code may raise
                    return Verdict("raised", f"{where(error)}{type(error).__name__}: {error}")
                if not same(found, wanted):
                    smell = hint(paper, exercise, arguments, found, wanted)
                    return Verdict("wrong", "\n".join([first_difference(found, wanted), smell]))
    return Verdict("passed")


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


def hint(paper, exercise, arguments, found, wanted):
    """What would explain the result, or ""."""
    pairs = list(zip(found, wanted, strict=False))
    for a, b in (pair for pair in pairs if not close(*pair)):
        smell = smell_of_result(a, b)
        if smell:
            return f"smells: {smell}"
    smell = smell_of_function(paper, exercise, arguments, found)
    if smell:
        return f"smells: {smell}"
    places = [place for a, b in pairs for place in [where_wrong(a, b)] if place]
    return f"look at: {places[0]}" if places else ""


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
    if b.any() and scale != 0 and close(a, scale * b):
        return f"a factor: yours is {named(scale.item())} times what it should be"
    if a.numel() > 2 and close(a - b, (a - b).flatten()[0].expand_as(a)):
        return f"a constant: yours is {(a - b).flatten()[0].item():.4g} too large"
    for axis in range(a.ndim):
        for other, what in ((b.softmax(axis), "a softmax too many, over"),
                            (a.softmax(axis), "the softmax is missing over")):
            if close(other, a if what.startswith("a ") else b):
                return f"{what} axis {axis}"
        sums = a.sum(axis), b.sum(axis)
        if not close(*sums) and (a >= 0).all() and close(sums[1], torch.ones_like(sums[1])):
            ones = [i for i in range(a.ndim) if close(a.sum(i), torch.ones_like(a.sum(i)))]
            more = f", yours along axis {ones[0]}: softmax over the wrong axis" if ones else ""
            return f"along axis {axis} the weights should sum to 1{more}"
    for axis in range(a.ndim):
        ratio = a / b
        along = ratio.narrow(axis, 0, 1).expand_as(ratio)
        if a.shape[axis] > 1 and torch.allclose(ratio, along, rtol=1e-6):
            return (f"along axis {axis} yours is a multiple of what it should be, another one at "
                    "each place: a normalisation is missing, or over the wrong axis")
    for what, activated in (("ReLU", torch.relu), ("sigmoid", torch.sigmoid)):
        if close(activated(a), b):
            return f"the {what} is missing"
    return ""


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


def smell_of_function(paper, exercise, arguments, found):
    """Which change of the right function or of its arguments gives the student's result."""
    naive = part(paper, "naive")
    right, other = getattr(naive, exercise.name), fast_form(paper, exercise.name)
    bound = inspect.signature(right).bind(*arguments)
    bound.apply_defaults()
    names, full = list(bound.arguments), list(bound.args)

    def gives(function, changed):
        try:
            return same(call(function, changed), found)
        except Exception:  # a change may well be nonsense
            return False

    for what, changed in changes(names, full):
        if gives(right, changed):
            return f"this is what one gets {what}"
    for size in sizes(arguments):
        with mock.patch.object(naive, "math", OtherRoot(size), create=True):
            if gives(right, arguments):
                return (f"the root of {size}: of the length of another axis" if size > 1 else
                        "this is what one gets without the square root: a scale is missing")
    for axis in range(5) if other else ():
        with softmax_over(-axis):
            if gives(other, arguments):
                return "softmax over the wrong axis" if axis else "the softmax is missing"
    for what, changed in each(names, full, functools.partial(scaled, lengths=sizes(full))):
        if gives(right, changed):
            return f"this is what one gets {what}"
    for name in same_signature(paper, exercise):
        if gives(getattr(naive, name), arguments):
            return f"this is what {name} does"
    for what, mutant in mutants_of(paper, exercise.name):
        if gives(mutant, arguments):
            return f"a known mistake: {what}"
    return smell_of_interpolation(arguments, found)


def same_signature(paper, exercise):
    """Names of the paper's other exercises with the same arguments."""
    wanted = ast.unparse(exercise.node.args)
    return [e.name for e in exercises(paper)
            if e.name != exercise.name and ast.unparse(e.node.args) == wanted]


def smell_of_interpolation(arguments, found):
    """Whether the result is an argument that PyTorch enlarged or shrank as a whole."""
    for value in (v for v in arguments if isinstance(v, torch.Tensor) and v.ndim == 4):
        for mode, corners in (("bilinear", False), ("bilinear", True), ("nearest", None)):
            other = F.interpolate(value, found[0].shape[-2:], mode=mode, align_corners=corners)
            if close(found[0], other):
                return f"F.interpolate of the whole, {mode}, align_corners={corners}"
    return ""


def sizes(arguments):
    """1, and the lengths of all axes of the arguments, the short ones first."""
    tensors = (leaf for leaf in tree(arguments) if isinstance(leaf, torch.Tensor))
    return sorted({1, *(side for tensor in tensors for side in tensor.shape)})


class OtherRoot:
    """The module math, where the square root of everything is that of `size`."""

    def __init__(self, size):
        self.size = size

    def __getattr__(self, name):
        return (lambda x: self.size ** 0.5) if name == "sqrt" else getattr(math, name)


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
        for other in {1, value - 1, value + 1} - {0, value}:
            yield f"with {other} for {{}}", other
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
    roots = [(f"with {{}} {word} sqrt({n})", n ** power) for n in lengths if n > 1
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
