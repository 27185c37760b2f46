"""What Feature Pyramid Attention costs. Variant "smp" beside smp's form: python -m tests.bench pan.

  python -m papers.pan.evidence.cost            all tables
  python -m papers.pan.evidence.cost counts     parameters and multiply-adds; no timing
  python -m papers.pan.evidence.cost attention  FPA against full attention on the same map

One thread, float32, inference. Candidates take turns; medians and their ratios are printed.
"""

import functools
import sys

import torch

from papers.describe import multiply_adds_in
from studies.measure import FullAttention, peak_memory, times

from .. import model

SIDES = 32, 64  # of the map
C, D, QUERIES = 2048, 256, 256  # channels of that map, of the output, of queries and keys


FORMS = {
    "FPA": lambda: model.FPA(C, D),
    "full attention": lambda: FullAttention(C, keys=QUERIES, outputs=D),
}


def make(form, side):
    """The function to measure on a side x side map."""
    torch.manual_seed(0)
    block, x = FORMS[form]().eval(), torch.randn(1, C, side, side)

    def step():
        with torch.inference_mode():
            block(x)

    return step


def attention():
    """Time and extra memory of FPA and of full attention on the last map of a ResNet-50 or -101."""
    print(f"\nC = {C}, D = {D}, K = 1, keys of {QUERIES} channels")
    for side in SIDES:
        seconds = times({form: make(form, side) for form in FORMS}, 5 if side == SIDES[0] else 3)
        title = f"{side} x {side} map (image {16 * side} x {16 * side}):"
        print(f"{title:38}{'ms':>9}{'ratio':>8}{'extra MiB':>11}")
        for form in FORMS:
            print(f"{form:38}{1e3 * seconds[form]:9.1f}{seconds[form] / seconds['FPA']:8.1f}"
                  f"{peak_memory(make, form, side):11.0f}")


def counts():
    """Parameters and multiply-adds at 512 x 512, 21 classes, counted on tensors without numbers."""
    print(f"\n{'':38}{'parameters':>12}{'decoder':>12}{'G':>12}{'decoder':>9}{'FPA':>7}{'head':>7}")
    rows = [("smp_resnet34", dict(backbone=f"resnet{depth}")) for depth in (18, 34, 50, 101)]
    rows += [("jw_resnet50", {}), ("resnet50", {}), ("resnet101", {}),
             ("resnet101", dict(pyramid_channels=256)), ("resnet101", dict(decoder_channels=128)),
             ("resnet101", dict(context=False))]
    for preset, options in rows:
        with torch.device("meta"):
            net, images = model.build(21, preset, **options).eval(), torch.empty(1, 3, 512, 512)
        total, modules = multiply_adds_in(functools.partial(net, images))
        backbone, head = (modules[f"{type(net).__name__}.{part}"] for part in ("backbone", "head"))
        decoder = total - backbone - head
        fpa, _ = multiply_adds_in(functools.partial(net.fpa, net.backbone(images)[-1]))
        parameters = sum(p.numel() for p in net.parameters())
        own = sum(p.numel() for part in (net.fpa, net.gaus) for p in part.parameters())
        name = ", ".join([preset, *(f"{option}={value}" for option, value in options.items())])
        print(f"{name:38}{parameters:12,}{own:12,}{total / 1e9:12.1f}{decoder / 1e9:9.2f}"
              f"{fpa / 1e9:7.2f}{head / 1e9:7.2f}")
    with torch.device("meta"):
        full, x = FORMS["full attention"](), torch.empty(1, C, 32, 32)
    total, _ = multiply_adds_in(functools.partial(full, x))
    print(f"full attention on a map of 32 x 32: {total / 1e9:.2f} G multiply-adds")


def main():
    torch.set_num_threads(1)
    tables = {"counts": counts, "attention": attention}
    for name in sys.argv[1:] or tables:
        if name not in tables:
            sys.exit(f"unknown table {name!r}; valid: {', '.join(tables)}")
        tables[name]()


if __name__ == "__main__":
    main()
