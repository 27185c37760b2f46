"""What point-wise spatial attention costs: four ways to write it.

  python -m papers.psanet.evidence.cost               time and memory, one branch, C = 512 (long)
  python -m papers.psanet.evidence.cost attention 30  the table of one map only: 30, 45 or 60
  python -m papers.psanet.evidence.cost counts        multiply-adds; no timing
  python -m papers.psanet.evidence.cost crossing      processor time of view and stream, small maps,
                                                      and of stream by fast.TILE

naive gather: convolution, torch.gather with an integer index, softmax, product.
official:     the steps of the official code, each with its own tensor: convolution, copied windows,
              softmax, product. The copy stands for its compiled kernel.
view:         fast.dense: windows as a view.
stream:       fast.Stream, tiles and its own backward.

One thread, float32. Candidates take turns in one process; medians and their ratios to "official"
are printed.
"""

import functools
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from studies.measure import markdown, multiply_adds, peak_memory, times

from .. import fast, model

# Side of the map, batch: ADE20K, Cityscapes with its mirror image, a bigger crop.
CASES = [(30, 1), (45, 2), (60, 1)]
DIRECTIONS = ("collect", "distribute")
CHANNELS = 512

# ------------------------------------------------------------------------------------------ forms


def naive_gather(direction, q, table, v):
    """q: [B, C, H, W], table: [(2H-1)(2W-1), C], v: [B, D, H, W] -> [B, D, H, W]."""
    batch, _, height, width = q.shape
    h = F.conv2d(q, table[:, :, None, None]).flatten(2)  # [B, offsets, N owners]
    row, column = torch.arange(height), torch.arange(width)
    a = (row[:, None] - row[None, :] + height - 1)[:, None, :, None]  # [H others, 1, H owners, 1]
    b = (column[:, None] - column[None, :] + width - 1)[None, :, None, :]
    index = (a * (2 * width - 1) + b).flatten(2).flatten(0, 1)  # [N others, N owners]
    p = h.gather(1, index.expand(batch, -1, -1))
    sources = p if direction == "collect" else p.transpose(1, 2)  # [B, N sources, N receivers]
    return (v.flatten(2) @ sources.softmax(1)).view_as(v)


def official(direction, q, table, v):
    """Arguments as above. Pixels are listed in reverse, so that windows are positive strides."""
    batch, _, height, width = q.shape
    pixels, columns = height * width, 2 * width - 1
    h = F.conv2d(q.flip(2, 3), table[:, :, None, None])  # [B, offsets, H, W]
    strides = (h.stride(0), columns * pixels, pixels, columns * pixels + width, pixels + 1)
    p = h.as_strided((batch, height, width, height, width), strides)  # [B, others, owners]
    if direction == "collect":
        attention = p.reshape(batch, pixels, pixels).softmax(1)
        return (v.flatten(2) @ attention).flip(2).view_as(v)
    attention = p.permute(0, 3, 4, 1, 2).reshape(batch, pixels, pixels).softmax(1)
    return (v.flatten(2).flip(2) @ attention).view_as(v)


def view(direction, q, table, v):
    """Arguments as above."""
    return channels_last(fast.dense, direction, q, table, v)


def stream(direction, q, table, v):
    """Arguments as above."""
    tile = tuple(tile_side(side) for side in q.shape[-2:])
    return channels_last(lambda *arguments: fast.Stream.apply(*arguments, True, tile),
                         direction, q, table, v)


def tile_side(side):
    """Tiles are as equal as they can be and at most fast.TILE wide."""
    return math.ceil(side / math.ceil(side / fast.TILE))


def channels_last(function, direction, q, table, v):
    """Call a function that wants the channels last."""
    height, width = q.shape[-2:]
    q, v = (t.permute(0, 2, 3, 1).contiguous() for t in (q, v))
    offsets = table.view(2 * height - 1, 2 * width - 1, -1)
    return function(direction, q, offsets, v).permute(0, 3, 1, 2)


FORMS = {"naive gather": naive_gather, "official": official, "view": view, "stream": stream}

# ------------------------------------------------------------------------------------------ tables


def inputs(side, batch, channels):
    """(q, table, v) of a map, like those of the module: after a ReLU, the table as at the start."""
    torch.manual_seed(0)
    q, v = torch.randn(2, batch, channels, side, side).relu().unbind()
    return q, (torch.rand((2 * side - 1) ** 2, channels) * 2 - 1) / channels**0.5, v


def make(name, direction, side, batch, train):
    """A function without arguments that runs one form once."""
    q, table, v = inputs(side, batch, CHANNELS)
    if name in ("view", "stream"):  # maps are channels-last here, not in the official code
        q, v = (t.contiguous(memory_format=torch.channels_last) for t in (q, v))
    arguments = [t.requires_grad_(train) for t in (q, table, v)]
    gradient = torch.randn_like(v) if train else None
    torch.ones(64, 64) @ torch.ones(64, 64)  # the library's own buffers are not counted

    def run():
        for t in arguments:
            t.grad = None
        with torch.set_grad_enabled(train):
            out = FORMS[name](direction, *arguments)
        if train:
            out.backward(gradient)

    return run


def check():
    """All forms agree."""
    arguments = inputs(9, 2, 16)
    for direction in DIRECTIONS:
        expected = naive_gather(direction, *arguments)
        for name, function in FORMS.items():
            assert (function(direction, *arguments) - expected).abs().max() < 1e-5, name


def attention(cases):
    """Print the table of time and memory."""
    check()
    rows = []
    for side, batch in cases:
        for train in (False, True):
            for direction in DIRECTIONS:
                what = direction, side, batch, train
                seconds = times({name: make(name, *what) for name in FORMS}, rounds=5)
                memory = {name: peak_memory(make, name, *what) for name in FORMS}
                rows.append([
                    f"{side} x {side}, batch {batch}",
                    "forward + backward" if train else "inference", direction,
                    *(f"{seconds[name] * 1e3:.0f} ms, {memory[name]:.0f} MiB" for name in FORMS),
                    f"{seconds['stream'] / seconds['official']:.2f}",
                    f"{memory['stream'] / memory['official']:.2f}"])
    print("\n".join(markdown(
        ["map", "pass", "branch", *FORMS, "time stream / official", "memory"], rows)))


def processor_times(candidates, rounds):
    """Median seconds of processor time of each candidate, which take turns: unlike those of the
    clock they do not grow when others compute too."""
    for function in candidates.values():
        function()  # warm-up
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def crossing():
    """Print where `stream` overtakes `view`, which is fast.LARGEST_DENSE, and the best tile."""
    rows = []
    for side, batch in ((12, 1), (16, 1), (20, 1), (24, 1), (30, 1)):
        ratios = []
        for train in (False, True):
            for direction in DIRECTIONS:
                seconds = processor_times({name: make(name, direction, side, batch, train)
                                           for name in ("view", "stream")}, rounds=7)
                ratios.append(f"{seconds['stream'] / seconds['view']:.2f}")
        rows.append([f"{side} x {side}", f"{batch * side**2 * (2 * side - 1) ** 2:,}", *ratios])
    passes = (f"{what}, {direction}" for what in ("inference", "training")
              for direction in DIRECTIONS)
    print("\n".join(markdown(["map", "logits", *passes], rows)) + "\n")
    rows, sides, usual = [], (5, 8, 10, 15, 23, 30), fast.TILE
    for side in (30, 45):
        for train in (False, True):
            run = make("stream", "distribute", side, 1, train)

            def step(tile, run=run):
                fast.TILE = tile  # read when the tiles are made
                run()

            seconds = processor_times(
                {tile: functools.partial(step, tile) for tile in sides}, rounds=3)
            rows.append([f"{side} x {side}", "training" if train else "inference",
                         *(f"{1e3 * seconds[tile]:.0f} ms" for tile in sides)])
    fast.TILE = usual
    print("\n".join(markdown(["map", "pass", *(f"tiles of {tile}" for tile in sides)], rows)))


def counts():
    """Print multiply-adds in 10^9."""
    print(f"one branch, C = {CHANNELS}: logits official / logits in tiles / weighted sum")
    for side, _ in CASES:
        edge = tile_side(side)
        tiles = sum(
            (columns.stop - columns.start) * (rows.stop - rows.start)
            * (offsets[0].stop - offsets[0].start) * (offsets[1].stop - offsets[1].start)
            for rows, columns, offsets in fast.tiles((side, side), (edge, edge)))
        numbers = side**2 * (2 * side - 1) ** 2, tiles, side**4
        print(f"{side} x {side}: " + " / ".join(f"{n * CHANNELS / 1e9:.2f}" for n in numbers))
    print("whole networks, 150 classes (19 at 705), batch 1, evaluation")
    for preset in ("resnet50", "resnet101"):
        for crop, classes in ((465, 150), (705, 19)):
            with FakeTensorMode(), torch.no_grad():
                net = model.build(classes, preset, crop_size=crop, aux=False).eval()
                image = torch.empty(1, 3, crop, crop)
                total, _ = multiply_adds(lambda net=net, image=image: net(image))
            print(f"{preset} at {crop}: {total / 1e9:.1f}")


def main():
    torch.set_num_threads(1)
    command, *sides = sys.argv[1:] or ["attention"]
    if command == "attention":
        attention([case for case in CASES if not sides or str(case[0]) in sides])
    elif command == "counts":
        counts()
    elif command == "crossing":
        crossing()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
