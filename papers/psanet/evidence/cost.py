"""What point-wise spatial attention costs. Beside the official form: python -m tests.bench psanet.

  python -m papers.psanet.evidence.cost counts    multiply-adds; no timing
  python -m papers.psanet.evidence.cost crossing  processor time of view and stream, small maps, and
                                                  of stream by fast.TILE

One thread, float32. Candidates take turns in one process; ratios are between medians.
"""

import functools
import math
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from papers.describe import multiply_adds_in
from studies.measure import markdown, times

from .. import fast, model
from .forms import make

CHANNELS, CROSSING, TILED = 512, (12, 16, 20, 24, 30), (30, 45)  # sides of maps


def crossing():
    """Print where `stream` overtakes `view`, which is fast.LARGEST_DENSE, and the best tile."""
    rows = []
    for side in CROSSING:
        ratios = []
        for train in (False, True):
            for direction in model.DIRECTIONS:
                seconds = times({name: make(name, direction, side, 1, CHANNELS, train)
                                 for name in ("view", "stream")}, 7, processors=True)
                ratios.append(f"{seconds['stream'] / seconds['view']:.2f}")
        rows.append([f"{side} x {side}", f"{side**2 * (2 * side - 1) ** 2:,}", *ratios])
    passes = (f"{what}, {direction}" for what in ("inference", "training")
              for direction in model.DIRECTIONS)
    print("\n".join(markdown(["map", "logits", *passes], rows)) + "\n")
    rows, sides, usual = [], (5, 8, 10, 15, 23, 30), fast.TILE
    for side in TILED:
        for train in (False, True):
            run = make("stream", "distribute", side, 1, CHANNELS, train)

            def step(tile, run=run):
                fast.TILE = tile  # read when the tiles are made
                run()

            seconds = times({tile: functools.partial(step, tile) for tile in sides}, 3,
                            processors=True)
            rows.append([f"{side} x {side}", "training" if train else "inference",
                         *(f"{1e3 * seconds[tile]:.0f} ms" for tile in sides)])
    fast.TILE = usual
    print("\n".join(markdown(["map", "pass", *(f"tiles of {tile}" for tile in sides)], rows)))


def counts():
    """Print multiply-adds in 10^9."""
    print(f"one branch, C = {CHANNELS}: logits official / logits in tiles / weighted sum")
    for side in (30, 45, 60):
        edge = math.ceil(side / math.ceil(side / fast.TILE))
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
                total, _ = multiply_adds_in(lambda net=net, image=image: net(image))
            print(f"{preset} at {crop}: {total / 1e9:.1f}")


def main():
    torch.set_num_threads(1)
    tables = {"counts": counts, "crossing": crossing}
    for name in sys.argv[1:] or tables:
        if name not in tables:
            sys.exit(f"unknown table {name!r}; valid: {', '.join(tables)}")
        tables[name]()


if __name__ == "__main__":
    main()
