"""What low-resolution attention costs. Beside the official form: python -m tests.bench lrformer.

  python -m papers.lrformer.evidence.cost            all tables (minutes)
  python -m papers.lrformer.evidence.cost attention  module and block of LRFormer-T against full
  python -m papers.lrformer.evidence.cost steps      each short cut against what it replaces
  python -m papers.lrformer.evidence.cost counts     parameters and multiply-adds; no timing

One thread, float32, one image, inference. Candidates take turns; medians and ratios between medians
are printed.
"""

import copy
import functools
import sys

import torch

from papers.describe import multiply_adds_in
from studies.measure import FullAttention, markdown, times

from .. import fast
from .. import model as lrformer
from .transcription import official_scores

SIZES = 256, 512, 1024  # side of the image
PRESETS = "t", "s", "b", "l"


class Full(FullAttention):
    """Takes the place of a block's attention, which is given more than the map."""

    def forward(self, x, *_):
        return super().forward(x)


def map_of(channels, side):
    """A random map in the memory layout of the network."""
    return torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)


def attention():
    """Module and whole block, low resolution against full, for square images of three sizes."""
    model, rows = lrformer.build(19, "t").eval(), []
    for size in SIZES:
        for number, stage in enumerate(model.backbone.stages, 1):
            block, side = stage.blocks[0], size >> (number + 1)
            channels, heads = block.position.in_channels, block.attention.heads
            plain, x = copy.deepcopy(block), map_of(channels, side)
            plain.attention = Full(channels, heads, outputs=channels)
            seconds = times({
                form: functools.partial(module, x, stage.convs) for form, module in enumerate(
                    (block.attention, plain.attention, block, plain))
            }, rounds=3 if side > 128 else 5)
            row = [f"{size} px", number, f"{side} x {side}"]
            for low, full in ((seconds[0], seconds[1]), (seconds[2], seconds[3])):
                row += [f"{low * 1e3:.1f}", f"{full * 1e3:.1f}", f"{full / low:.1f}x"]
            rows.append(row)
    show(["image", "stage", "map", "module: LRSA ms", "full ms", "full / LRSA", "block: LRSA ms",
          "full ms", "full / LRSA"], rows)


def show(headings, rows):
    """Print a table."""
    print("\n".join(markdown(headings, rows)), flush=True)


@functools.cache
def plain(module):
    """The same module as model.py writes it down."""
    copied = copy.deepcopy(module)
    copied.fast = False
    return copied


def pairs(model):
    """{short cut: (plain form, short form)} with the weights of LRFormer-T, at 512 px."""
    stage, last, head = model.backbone.stages[0], model.backbone.stages[3], model.head
    ffn, deep = stage.blocks[0].feed_forward, last.blocks[0].attention
    x, small = map_of(48, 128), map_of(384, 16)
    grids = [lrformer.grid((128, 128), side) for side in (16, *deep.sides)]
    features = [map_of(96, 64), map_of(240, 32), map_of(384, 16)]
    return {
        "pooling and its gradient, stage 1": (
            lambda: gradient(x, lambda y: [lrformer.pool(y, cells) for cells in grids]),
            lambda: gradient(x, lambda y: fast.pool_all(y, grids))),
        "attention, stage 4": (lambda: plain(deep)(small, last.convs),
                               lambda: deep(small, last.convs)),
        "feed-forward, stage 1": (lambda: plain(ffn)(x), lambda: ffn(x)),
        "squeeze before enlarging": (
            lambda: lrformer.enlarge_and_squeeze(features, head.squeeze1),
            lambda: fast.squeeze(features, head.squeeze1)),
    }


@torch.inference_mode(False)
def gradient(x, function):
    """Forward and backward pass of a function that gives several maps."""
    y = x.clone().requires_grad_()
    with torch.enable_grad():
        sum(z.sum() for z in function(y)).backward()


def steps():
    """Each short cut of fast.py against the plain form that it replaces."""
    rows = []
    for name, (plain, short) in pairs(lrformer.build(150, "t").eval()).items():
        a, b = times({"plain": plain, "short": short}, rounds=9).values()
        rows.append([name, f"{a * 1e3:.1f}", f"{b * 1e3:.1f}", f"{a / b:.1f}x"])
    show(["step", "plain ms", "short cut ms", "plain / short cut"], rows)


@torch.no_grad()
def total(form, model, size):
    """(G multiply-adds, multiply-adds by module) of a form; nothing is computed."""
    image = torch.empty(1, 3, *size)
    count, modules = multiply_adds_in(lambda: form(model, image))
    return count / 1e9, modules


def counts():
    """Parameters, and multiply-adds of the official form and of ours, by part."""
    rows, shares = [], []
    kinds = [("Encoder", "embed"), *((part, kind) for part in ("Encoder", "Decoder")
                                     for kind in ("attention", "feed_forward"))]
    for preset in PRESETS:
        with torch.device("meta"):
            model, roads = lrformer.build(150, preset).eval(), lrformer.build(19, preset).eval()
            official, large, wide = (total(official_scores, m, size)[0] for m, size in (
                (model, (512, 512)), (model, (640, 640)), (roads, (1024, 2048))))
            ours, modules = total(lrformer.LRFormer.scores, model, (512, 512))
        encoder, decoder = (sum(p.numel() for p in part.parameters())
                            for part in (model.backbone, model.head))
        rows.append([preset, f"{encoder + decoder:,}", f"{encoder:,}", f"{decoder:,}",
                     *(f"{value:.2f}" for value in (official, ours, large, wide))])
        parts = [sum(count for name, count in modules.items() if name.startswith(f"{part}.")
                     and name.endswith(f".{kind}")) / 1e9 for part, kind in kinds]
        shares.append([preset, *(f"{value:.2f}" for value in (*parts, ours - sum(parts)))])
    show(["", "parameters, 150 classes", "encoder", "decoder", "512 x 512: official G", "ours G",
          "640 x 640: official G", "1024 x 2048, 19 classes: official G"], rows)
    print("\nOurs at 512 x 512, G multiply-adds by part:\n")
    show(["", "encoder: embeddings", "LRSA", "feed-forward", "decoder: LRSA", "feed-forward",
          "squeezes, classifier, all DW of (H)"], shares)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tables = {"counts": counts, "steps": steps, "attention": attention}
    for name in sys.argv[1:] or tables:
        if name not in tables:
            sys.exit(f"unknown table {name!r}; valid: {', '.join(tables)}")
        with torch.inference_mode(name != "counts"):
            tables[name]()
        print()


if __name__ == "__main__":
    main()
