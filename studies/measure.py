"""Time and memory of small pieces of code, measured so that ratios can be trusted.

Machines drift: so the candidates take turns (A B C, A B C, ...), the median over the rounds is quoted, and ratios
are between medians of the same run. Memory is the growth of a fresh process's high-water mark.
"""

import csv
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import torch


def times(candidates, rounds=5):
    """Median seconds of each candidate. candidates: {name: function without arguments}."""
    for function in candidates.values():
        function()  # warm-up
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _high_water():
    """The largest memory this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: the mark can be lowered (see _peak), which getrusage does not notice
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _peak(make, arguments, queue):
    torch.set_num_threads(1)
    function = make(*arguments)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # lower the mark to what is held now
    before = _high_water()
    function()
    queue.put(_high_water() - before)


def peak_memory(make, *arguments):
    """Extra peak memory in MiB of calling the function that `make(*arguments)` returns, in a fresh process.

    make: a function at the top level of a module (it is imported anew); what it allocates itself is not counted.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(make, arguments, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak / 2**20


def write_csv(path, rows):
    """Write dicts with equal keys as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
