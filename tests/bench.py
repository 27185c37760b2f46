"""python -m tests.bench [PAPER ...]: each paper beside its official form, for a sceptic.

The forms of a paper and what they compute stand in papers/NAME/evidence/forms.py. They have the
same weights and inputs, run in one process and take turns, seven rounds after one that warms up.
Printed are the medians of processor and clock time; how many times as long the first form takes,
the median of the rounds with the lowest and the highest; extra memory of one call in a process of
its own, one thread; and the largest difference to the first form, as a share of its largest number:
of the output as measured, then of output and gradients in float64, where rounding that BatchNorm
blows up does not hide an error; this for plain float32 alone. More than TOLERANCE or EXACT ends the
program with an error. Forms in brackets compute something else.

  python -m tests.bench pan --case decoder   only cases whose name contains this
  python -m tests.bench --write              puts the tables into papers/NAME/evidence/results.md
  python -m tests.bench lrformer --profile       which operations take the time instead, one thread
  python -m tests.bench --device cuda --precision bfloat16 --compile
"""

import functools
import importlib
import os
import platform
import re
import statistics
import sys
import textwrap
from pathlib import Path

import torch

from papers.describe import multiply_adds_in
from studies.measure import markdown, matrix_speed, peak_memory, turns
from studies.trainings import NAMES, parser

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 7
# By precision, and in float64. Rounding to eight bits adds up: 0.5 finds plain mistakes only.
TOLERANCE, EXACT = {"float32": 1e-3, "bfloat16": 0.5}, 1e-6
HEADINGS = ["form", "threads", "processor ms", "clock ms", "processor: first / this",
            "clock: first / this", "extra MiB", "difference", "in float64"]
BEGIN, END = "<!-- python -m tests.bench {} -->", "<!-- end -->"


@functools.cache  # compiled once; `rows_of` forgets them after each case
def prepared(paper, form, case, device="cpu", precision="float32", compiled=False):
    """The function to measure: a form of a paper on one case -> (output, gradients)."""
    step = importlib.import_module(f"papers.{paper}.evidence.forms").make(
        form, *case, device=device)

    def run():
        with torch.autocast(device, getattr(torch, precision), enabled=precision != "float32"):
            return step()

    return torch.compile(run, dynamic=False) if compiled else run


def difference(some, others):
    """The largest difference between the tensors of two lists, as a share of the largest number."""
    pairs = [(a.double(), b.double()) for a, b in zip(some, others, strict=True) if b is not None]
    largest = max(b.abs().max().item() for _, b in pairs)
    return torch.stack([(a - b).abs().max() for a, b in pairs]).max().item() / largest


def exact(paper, form, case, device):
    """What a form gives in float64: [output, *gradients]."""
    torch.set_default_dtype(torch.float64)
    try:
        output, gradients = prepared.__wrapped__(paper, form, case, device)()
    finally:
        torch.set_default_dtype(torch.float32)
    return [output, *gradients]


def differences(paper, case, options):
    """{form: (difference as measured, in float64)}. Exits if one is too large."""
    forms = importlib.import_module(f"papers.{paper}.evidence.forms").FORMS
    expected, found = None, {}
    for form in forms:
        output = [prepared(paper, form, case, **options)()[0]]
        expected = expected or [output]
        found[form] = [difference(output, expected[0])]
        if options["precision"] == "float32" and not options["compiled"]:
            result = exact(paper, form, case, options["device"])
            expected = expected if expected[1:] else [output, result]
            found[form].append(max(
                difference(result[:1], expected[1][:1]),
                difference(result[1:], expected[1][1:]) if result[1:] else 0))
        limits = TOLERANCE[options["precision"]], EXACT
        for value, limit in zip(found[form], limits, strict=False):
            if not value <= limit:
                sys.exit(f"{paper}, {case}: {form!r} differs from {forms[0]!r} by {value:.1e}, "
                         f"more than {limit:g}")
    return found


def rounded(number):
    """Three digits: 1326.1 -> "1,330"."""
    return f"{float(f'{number:.3g}'):,g}"


def ratio(first, this, clock):
    """"1.50 (1.45 to 1.52)": of the seconds of each round; clock: 0, or 1 for processors."""
    if this is first:
        return "1"
    values = [a[clock] / b[clock] for a, b in zip(first, this, strict=True)]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def rows_of(paper, case, options):
    """The rows of the table for one case."""
    prepared.cache_clear()
    torch.compiler.reset()
    found, rows, device = differences(paper, case, options), [], options["device"]
    others = importlib.import_module(f"papers.{paper}.evidence.forms").OTHERS
    make, of_one_thread = functools.partial(prepared, **options), {}
    for name in (*found, *others):
        mebibytes = peak_memory(make, paper, name, case, device=device)
        shares = [*(f"{value:.0e}" for value in found.get(name, ())), "", ""]
        of_one_thread[name] = [f"{mebibytes:.0f}", *shares[:2]]
    steps = {name: make(paper, name, case) for name in of_one_thread}
    for threads in dict.fromkeys((1, os.cpu_count()) if device == "cpu" else (1,)):
        torch.set_num_threads(threads)
        seconds = turns(steps, ROUNDS)
        first = seconds[next(iter(found))]
        for name in steps:
            this = seconds[name]
            clock, processors = map(statistics.median, zip(*this, strict=True))
            rows.append([name if name in found else f"({name})", threads,
                         rounded(1e3 * processors), rounded(1e3 * clock), ratio(first, this, 1),
                         ratio(first, this, 0),
                         *(of_one_thread[name] if threads == 1 else ("", "", ""))])
            if device != "cpu" and name in found:
                total, _ = multiply_adds_in(prepared(paper, name, case, device))
                rows[-1].append(f"{total / clock / SPEED[options['precision']]:.0%}")
            elif device != "cpu":
                rows[-1].append("")  # to count them may store more than a card holds
    return rows


def profile(paper, case, options):
    """One line per form: the operations that take most of its processor time, as PyTorch names
    them."""
    torch.set_num_threads(1)
    forms = importlib.import_module(f"papers.{paper}.evidence.forms")
    for form in (*forms.FORMS, *forms.OTHERS):
        step = prepared(paper, form, case, **options)
        step()
        with torch.profiler.profile() as seen:
            step()
        found = sorted(((event.self_cpu_time_total, event.key) for event in seen.key_averages()),
                       reverse=True)
        total = sum(time for time, _ in found)
        yield f"{form}: " + ", ".join(
            f"{name.removeprefix('aten::')} {time / total:.0%}" for time, name in found[:8])


SPEED = {}  # multiply-adds per second of a large matrix product, by precision; on a GPU only


def machine(device):
    """One line: processor, cores, load, PyTorch."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    card = f", {torch.cuda.get_device_name(device)}" if device != "cpu" else ""
    return f"{name}, {os.cpu_count()} cores{load}{card}, PyTorch {torch.__version__}"


def table(paper, options, only="", profiles=False):
    """Yields the lines that are printed about one paper, those of a case once it is measured."""
    forms = importlib.import_module(f"papers.{paper}.evidence.forms")
    share = ["% of a matrix product's speed"] * (options["device"] != "cpu")
    plain = options["precision"] == "float32" and not options["compiled"]
    yield (f"{machine(options['device'])}. {options['precision']}"
           f"{', compiled' * options['compiled']}, {ROUNDS} rounds. Differences are shares of the "
           f"largest number: of the output (an error beyond {TOLERANCE[options['precision']]:g})"
           f"{f', of output and gradients in float64 (beyond {EXACT:g})' * plain}.")
    for name, case in forms.CASES.items():
        if only in name:
            yield ""
            if profiles:
                yield from (name, *profile(paper, case, options))
            else:
                yield from markdown([name, *HEADINGS[1:], *share], rows_of(paper, case, options))


def write(paper, lines):
    """Put the lines into the notes of a paper, between the two marks."""
    path = ROOT / "papers" / paper / "evidence" / "results.md"
    text, begin = path.read_text(encoding="utf-8"), BEGIN.format(paper)
    before, _, rest = text.partition(begin)
    after = rest.partition(END)[2]
    lines = [line if line.startswith("|") else textwrap.fill(line, 100) for line in lines]
    path.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{END}{after}",
                    encoding="utf-8", newline="\n")


def main():
    flags = parser(__doc__)
    flags.add_argument("papers", nargs="*", choices=[[], *NAMES], default=[], metavar="PAPER")
    flags.add_argument("--case", default="", help="only cases whose name contains this")
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    flags.add_argument("--precision", default="float32", choices=TOLERANCE)
    flags.add_argument("--compile", action="store_true", help="all forms by torch.compile")
    flags.add_argument("--profile", action="store_true", help="what takes the time")
    flags.add_argument("--write", action="store_true", help="into the notes of each paper")
    arguments = flags.parse_args()
    options = dict(device=arguments.device, precision=arguments.precision,
                   compiled=arguments.compile)
    if arguments.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # as of matrix products: what is called float32 is
        SPEED[arguments.precision] = matrix_speed("cuda", getattr(torch, arguments.precision))
    for paper in arguments.papers or NAMES:
        print(f"\n## {NAMES[paper]}\n")
        lines = []
        for line in table(paper, options, arguments.case, arguments.profile):
            print(line, flush=True)
            lines.append(line)
        if arguments.write and not arguments.profile:
            write(paper, lines)


if __name__ == "__main__":
    main()
