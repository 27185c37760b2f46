"""Library: time and memory, measured so that ratios can be trusted; tables of them.

Machines drift: so the candidates take turns (A B C, C B A, A B C, ...), and ratios are between
times of the same run. Memory is the growth of a fresh process's high-water mark.
"""

import csv
import multiprocessing
import os
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class FullAttention(nn.Module):
    """Self-attention of all pixels. [B, C, H, W], same shape or `outputs`.

    keys: channels of queries and keys; with the default C it is PyTorch's fused kernel.
    outputs: of the last projection, None for none.
    """

    def __init__(self, channels, heads=1, keys=None, outputs=None):
        super().__init__()
        self.heads = heads
        self.query, self.key = (nn.Linear(channels, keys or channels) for _ in range(2))
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, outputs) if outputs else nn.Identity()

    def forward(self, x):
        tokens = x.flatten(2).mT  # [B, HW, C]
        q, k, v = (layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))  # [B, heads, HW, ...]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, HW, C]
        return self.output(mixed).mT.unflatten(2, x.shape[2:])


def one_pass(function, leaves, train):
    """What is measured of a function that returns one tensor: () -> (the tensor, its gradients with
    respect to `leaves` if `train`, else ())."""
    def step():
        if not train:
            with torch.inference_mode():
                return function(), ()
        out = function()
        # As good as random, and the same for every form of the function.
        weights = torch.arange(out.numel(), dtype=out.dtype, device=out.device).sin()
        with torch.autocast(out.device.type, enabled=False):  # as in training, common/loop.py
            return out, torch.autograd.grad(out, leaves, weights.view_as(out), allow_unused=True)

    return step


def turns(candidates, rounds):
    """{name: [(seconds of the clock, seconds of the processors), one pair a round]}. Candidates,
    {name: function without arguments}, take turns; before that each runs once to warm up."""
    for function in candidates.values():
        function()
    seconds = {name: [] for name in candidates}
    for number in range(rounds):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter(), time.process_time()
            candidates[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            end = time.perf_counter(), time.process_time()
            seconds[name].append((end[0] - start[0], end[1] - start[1]))
    return seconds


def times(candidates, rounds=5, processors=False):
    """Median seconds of each candidate, see `turns`: of the clock, or of the processors, which do
    not grow when others compute too."""
    return {name: statistics.median(pair[processors] for pair in pairs)
            for name, pairs in turns(candidates, rounds).items()}


def matrix_speed(device="cpu", dtype=torch.float32):
    """Multiply-adds per second of a large matrix product."""
    matrix = torch.randn(2 * [1024 if device == "cpu" else 8192], device=device, dtype=dtype)
    return len(matrix) ** 3 / times({"": lambda: matrix @ matrix})[""]


def _high_water():
    """The largest memory this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: the mark can be lowered (see _peak), which getrusage ignores
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _peak(make, arguments):
    torch.set_num_threads(1)
    function = make(*arguments)
    function()  # PyTorch loads what it needs, up to 40 MiB
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # lower the mark to what is held now
    before = _high_water()
    function()
    return _high_water() - before


def peak_memory(make, *arguments, device="cpu"):
    """Extra peak memory in MiB of the second call of the function that `make(*arguments)` returns;
    on the CPU in a fresh process. make: at the top level of a module; what it allocates is not
    counted."""
    if device == "cpu":
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # else freed blocks are used by chance
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak, make, arguments).result() / 2**20
    function = make(*arguments)
    function()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def write_csv(path, rows):
    """Write dicts with equal keys as a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """The rows that `write_csv` wrote, as dicts of text; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(csv.DictReader(lines))


def markdown(headings, rows):
    """The lines of a Markdown table. rows: lists of as many entries as there are headings."""
    def line(entries):
        return "|" + "".join(f" {entry} |" if entry != "" else " |" for entry in entries)

    return [line(headings), "|---" * len(headings) + "|", *map(line, rows)]


def spread(scores, digits=1):
    """The mean, the lowest and the highest score: "**85.1%** (84.0% to 86.2%)"."""
    mean, low, high = (f"{f(scores):.{digits}%}" for f in (np.mean, min, max))
    return f"**{mean}** ({low} to {high})"
