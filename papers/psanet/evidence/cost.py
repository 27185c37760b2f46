"""What point-wise spatial attention costs: four ways to write it.

  python -m papers.psanet.evidence.cost                       time and memory tables, one branch, C
  = 512 (tens of minutes) python -m papers.psanet.evidence.cost attention 30          the table of
  one map only: 30, 45 or 60 python -m papers.psanet.evidence.cost counts
  multiply-adds of the attention and of whole networks; no timing python -m
  papers.psanet.evidence.cost picture RUN FILE.png  what one pixel collects from and distributes to,
  from a trained run

naive gather: convolution, torch.gather with an integer index, softmax, product.
official:     the steps of the official code, each with its own tensor: convolution, copied windows,
    softmax, product.
              The copy stands for its compiled kernel.
view:         fast.dense: windows as a view.      stream: fast.Stream, tiles and its own backward.

One thread, float32. Candidates take turns in one process; medians and their ratios to "official"
are printed.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from studies.measure import peak_memory, times
from .. import fast, model as psanet

CASES = [
    (30, 1),
    (45, 2),
    (60, 1),
]  # side of the map, batch: ADE20K, Cityscapes with its mirror image, a bigger crop
DIRECTIONS = ("collect", "distribute")
CHANNELS = 512

# ------------------------------------------------------------------------------------------ four
# forms


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
    """Arguments as above. Pixels are listed in reverse order, so that the window of each is a
    positive stride."""
    batch, _, height, width = q.shape
    pixels, columns = height * width, 2 * width - 1
    h = F.conv2d(q.flip(2, 3), table[:, :, None, None])  # [B, offsets, H, W]
    strides = (h.stride(0), columns * pixels, pixels, columns * pixels + width, pixels + 1)
    p = h.as_strided(
        (batch, height, width, height, width), strides
    )  # [B, others, owners], two axes each
    if direction == "collect":
        attention = p.reshape(batch, pixels, pixels).softmax(1)
        return (v.flatten(2) @ attention).flip(2).view_as(v)
    attention = p.permute(0, 3, 4, 1, 2).reshape(batch, pixels, pixels).softmax(1)
    return (v.flatten(2).flip(2) @ attention).view_as(v)


def view(direction, q, table, v):
    """Arguments as above."""
    return form(fast.dense, direction, q, table, v)


def stream(direction, q, table, v):
    """Arguments as above."""
    tile = tuple(-(-side // -(-side // fast.TILE)) for side in q.shape[-2:])
    return form(
        lambda *arguments: fast.Stream.apply(*arguments, True, tile), direction, q, table, v
    )


def form(function, direction, q, table, v):
    """Call a function that wants the channels last."""
    size = q.shape[-2:]
    q, v = (t.permute(0, 2, 3, 1).contiguous() for t in (q, v))
    return function(direction, q, table.view(2 * size[0] - 1, 2 * size[1] - 1, -1), v).permute(
        0, 3, 1, 2
    )


FORMS = {"naive gather": naive_gather, "official": official, "view": view, "stream": stream}


def inputs(side, batch, channels=CHANNELS):
    """(q, table, v) of a map, like those of the module: after a ReLU, and the table as it is
    initialised."""
    torch.manual_seed(0)
    q, v = torch.randn(2, batch, channels, side, side).relu().unbind()
    return q, (torch.rand((2 * side - 1) ** 2, channels) * 2 - 1) / channels**0.5, v


def make(name, direction, side, batch, train):
    """A function without arguments that runs one form once."""
    arguments = inputs(side, batch)
    if name in (
        "view",
        "stream",
    ):  # in the network the maps are channels-last already; the official code's are not
        q, table, v = arguments
        q, v = (t.contiguous(memory_format=torch.channels_last) for t in (q, v))
        arguments = [q, table, v]
    torch.ones(64, 64) @ torch.ones(64, 64)  # the library's own buffers are not counted
    if not train:

        def run():
            with torch.no_grad():
                FORMS[name](direction, *arguments)

        return run
    arguments = [t.requires_grad_() for t in arguments]
    gradient = torch.randn_like(arguments[2])

    def run():
        for t in arguments:
            t.grad = None
        FORMS[name](direction, *arguments).backward(gradient)

    return run


# ------------------------------------------------------------------------------------------ tables


def check():
    """All forms agree."""
    arguments = inputs(9, 2, 16)
    for direction in DIRECTIONS:
        expected = naive_gather(direction, *arguments)
        for name, function in FORMS.items():
            assert (function(direction, *arguments) - expected).abs().max() < 1e-5, name


def attention(cases):
    """Print the table."""
    check()
    torch.set_num_threads(1)
    print("| map | pass | branch | " + " | ".join(FORMS) + " | time stream / official | memory |")
    print("|---" * (len(FORMS) + 5) + "|")
    for side, batch in cases:
        for train in (False, True):
            for direction in DIRECTIONS:
                seconds = times(
                    {name: make(name, direction, side, batch, train) for name in FORMS}, rounds=5
                )
                memory = {
                    name: peak_memory(make, name, direction, side, batch, train) for name in FORMS
                }
                cells = " | ".join(
                    f"{seconds[name] * 1e3:.0f} ms, {memory[name]:.0f} MiB" for name in FORMS
                )
                print(
                    f"| {side} x {side}, batch {batch} "
                    f"| {'forward + backward' if train else 'inference'} "
                    f"| {direction} "
                    f"| {cells} | {seconds['stream'] / seconds['official']:.2f} "
                    f"| {memory['stream'] / memory['official']:.2f} |",
                    flush=True,
                )


def counts():
    """Print multiply-adds in 10^9."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    print("one branch, C = 512: logits official / logits in tiles / weighted sum")
    for side, _ in CASES:
        edge = -(-side // -(-side // fast.TILE))
        tiles = sum(
            (columns.stop - columns.start)
            * (rows.stop - rows.start)
            * (offsets[0].stop - offsets[0].start)
            * (offsets[1].stop - offsets[1].start)
            for rows, columns, offsets in fast.tiles((side, side), (edge, edge))
        )
        numbers = side**2 * (2 * side - 1) ** 2, tiles, side**4
        print(
            f"{side} x {side}: "
            + " / ".join(f"{number * CHANNELS / 1e9:.2f}" for number in numbers)
        )
    print("whole networks, 150 classes (19 at 705), batch 1, evaluation")
    for preset in ("resnet50", "resnet101"):
        for crop in (465, 705):
            with FakeTensorMode(), torch.no_grad():
                net = psanet.build(
                    150 if crop == 465 else 19, preset, crop_size=crop, aux=False
                ).eval()
                with FlopCounterMode(display=False) as counter:
                    net(torch.empty(1, 3, crop, crop))
            print(f"{preset} at {crop}: {counter.get_total_flops() / 2e9:.1f}")


# ------------------------------------------------------------------------------------------ picture


def picture(run, target):
    """Save a picture of two pixels of validation scenes: where each collects from and whom it gives
    to."""
    import numpy as np

    import datasets
    from common import checkpoint, pictures
    from common.inference import normalise

    state = checkpoint.load_run(Path(run))
    config = state["config"]
    net = psanet.build(config["num_classes"], config["preset"], **config["options"]).eval()
    net.load_state_dict(state["model"])
    data = datasets.load(config["dataset"], None, "val")
    rows = []
    for index in range(4):
        image, label = data[index]
        y, x = map(
            int, np.argwhere(label >= 3)[len(np.argwhere(label >= 3)) // 2]
        )  # a pixel of an object
        with torch.no_grad():
            height, width = image.shape[:2]
            padded = F.pad(
                normalise(image)[None], (0, (1 - width) % net.step, 0, (1 - height) % net.step)
            )
            features = net.backbone(padded)[-1]
            maps = []
            for direction, branch in zip(net.psa.directions, net.psa.branches):
                q = branch.query(psanet.shrink(branch.reduce(features), branch.shrink_factor))
                size = q.shape[-2:]
                pixel = round(y / net.step) * size[1] + round(x / net.step)
                weights = torch.eye(size.numel()).view(
                    1, -1, *size
                )  # values that make z the attention itself
                a = getattr(psanet, direction)(q, branch.table, weights, net.psa.mask_size).flatten(
                    2
                )[0]
                maps.append(
                    (a[:, pixel] if direction == "collect" else a[pixel]).view(size)
                )  # a: [source, receiver]
        marked = np.array(image)
        marked[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4] = (255, 0, 0)
        heat = [
            F.interpolate(
                (m / m.max())[None, None], padded.shape[-2:], mode="bilinear", align_corners=True
            )[0, 0]
            for m in maps
        ]
        shown = [
            (h[:height, :width, None].numpy() * 255).astype(np.uint8).repeat(3, 2) for h in heat
        ]
        rows.append([marked, *shown])
    names = {"collect": "collects from", "distribute": "distributes to"}
    pictures.save_png(
        Path(target), pictures.grid(["pixel", *(names[d] for d in net.psa.directions)], rows)
    )


def main():
    command, *rest = sys.argv[1:] or ["attention"]
    if command == "attention":
        attention([case for case in CASES if not rest or str(case[0]) in rest])
    elif command == "counts":
        counts()
    elif command == "picture" and len(rest) == 2:
        picture(*rest)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
