"""python -m studies.cost: what each mechanism costs, beside full self-attention, on growing maps.

Every mechanism maps [1, 256, side, side] to the same shape. Printed and written to docs/cost.csv:
parameters, multiply-adds, median time and extra peak memory, forward and forward + backward; drawn
in docs/cost.png. Exponents are the slope of time or memory over the number of pixels from 32 x 32
to the largest map, as logarithms: 1 is linear, 2 is every pixel with every pixel. What is quadratic
stops at LAST pixels a side. The share is of the multiply-adds per second of a large matrix product,
measured in the same run. Then the whole networks with 150 classes, one image of the size of the
paper's training crop, to docs/cost-networks.csv. One thread of a CPU, or with --device cuda a GPU
(then docs/cost-cuda*).

  mechanisms: full = PyTorch's fused attention, 8 heads. pysa = four levels in series. unept = one
  level, 8 heads of 16 points. pan = feature pyramid attention. psanet = collect and distribute, not
  shrunk. lrformer = on a 16 x 16 grid.
"""

import functools
import math

import torch
from PIL import Image, ImageDraw
from torch import nn
from tqdm import tqdm

from datasets import pictures
from papers.describe import multiply_adds_in
from papers.lrformer.model import Attention
from papers.options import build_model
from papers.pan.model import FPA
from papers.psanet.model import PSA
from papers.pysa.fast import series
from papers.pysa.model import PySALevel
from papers.unept.model import DeformableAttention, pixel_centres

from . import measure
from .trainings import ROOT, parser

SIDES, CHANNELS, HEADS, POINTS = (32, 64, 128, 256), 256, 8, 16
SHOWN, FROM = 64, 32  # sides: of the table, and from where exponents are taken
LAST = {"full": 128, "psanet": 128}  # beyond, a pass takes minutes
# Exponents of time and of memory, forward, in theory. Fused attention stores no scores, and PSANet
# those of one tile; the table, of 4 pixels each, is a parameter.
THEORY = {"full": (2, 1), "pysa": (1, 1), "unept": (1, 1), "pan": (1, 1), "psanet": (2, 1),
          "lrformer": (1, 1)}
NETWORKS = (
    ("pysa", "resnet50", 512), ("unept", "resnet50", 480), ("unept", "deit", 480),
    ("pan", "resnet101", 512), ("psanet", "resnet50", 465), ("psanet", "resnet101", 465),
    ("lrformer", "t", 512), ("lrformer", "b", 512),
)
CSV, WHOLE = ROOT / "docs" / "cost.csv", ROOT / "docs" / "cost-networks.csv"
COLUMNS = ("mechanism", "side", "pass", "parameters", "multiply-adds", "ms", "MiB", "share")
PASSES = "forward", "forward + backward"
# After Okabe and Ito, black for what all others avoid.
COLOURS = {"full": (0, 0, 0), "pysa": (230, 159, 0), "unept": (86, 180, 233), "pan": (0, 158, 115),
           "psanet": (204, 121, 167), "lrformer": (0, 114, 178)}


def mechanism(name, side):
    """The module of this name for maps of side x side; see `apply`."""
    return {
        "full": lambda: measure.FullAttention(CHANNELS, HEADS, outputs=CHANNELS),
        "pysa": lambda: nn.ModuleList(PySALevel(CHANNELS, regions) for regions in (1, 2, 4, 8)),
        "unept": lambda: DeformableAttention(CHANNELS, HEADS, levels=1, points=POINTS),
        "pan": lambda: FPA(CHANNELS, CHANNELS),
        "psanet": lambda: PSA(
            CHANNELS, CHANNELS, ("collect", "distribute"), (2 * side - 1, 2 * side - 1), 1),
        "lrformer": lambda: Attention(CHANNELS, HEADS, 16),
    }[name]()


def apply(name, module, x):
    """What the mechanism makes of a map x."""
    if name == "pysa":
        return series(x, module)
    if name == "unept":  # every pixel of a map looks at points of the same map
        tokens, size = x.flatten(2).mT, tuple(x.shape[2:])  # [1, H*W, C]
        y = module(tokens, pixel_centres(*size, x)[None], tokens, [size])
        return y.mT.unflatten(2, size)
    return module(x)


def make(name, side, backward, device="cpu"):
    """The function to measure."""
    torch.manual_seed(0)
    with torch.device(device):
        module = mechanism(name, side).eval()
        x = torch.randn(1, CHANNELS, side, side, requires_grad=backward)

    return measure.one_pass(lambda: apply(name, module, x), [x, *module.parameters()], backward)


@functools.cache
def sizes(name, side):
    """(parameters, multiply-adds of one forward pass). PyTorch does not see UN-EPT's weighted sums
    of points, four corners each: they are added."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in mechanism(name, side).parameters())
    total, _ = multiply_adds_in(make(name, side, False, "meta"))
    return parameters, total + (side**2 * POINTS * 4 * CHANNELS if name == "unept" else 0)


def measure_mechanisms(sides, device):
    """The rows of the table, one per mechanism, side and pass."""
    rows, most = [], measure.matrix_speed(device)
    for side in tqdm(sides, unit="size"):
        for backward in (False, True):
            names = [name for name in COLOURS if side <= LAST.get(name, side)]
            seconds = measure.times({name: make(name, side, backward, device) for name in names},
                            rounds=5 if side < 64 else 3)
            for name in names:
                parameters, total = sizes(name, side)
                share = "" if backward else f"{total / seconds[name] / most:.3f}"
                memory = measure.peak_memory(make, name, side, backward, device, device=device)
                rows.append(dict(zip(COLUMNS, (
                    name, side, PASSES[backward], parameters, total,
                    f"{1e3 * seconds[name]:.3g}", f"{memory:.3g}", share), strict=True)))
    return rows


def table(rows):
    """Markdown: one line per mechanism on SHOWN pixels a side, with ratios to full attention."""
    at = {(row["mechanism"], row["pass"]): row for row in rows if int(row["side"]) == SHOWN}

    def quoted(name, passes, unit):
        here, full = (float(at[which, passes][unit]) for which in (name, "full"))
        digits, share = ",.0f" if here >= 10 else ".2g", f" ({here / full:.2g})"
        return f"{here:{digits}} {unit}{share if name != 'full' else ''}"

    return measure.markdown([
        f"{SHOWN} x {SHOWN}", "parameters", "multiply-adds", "forward",
        "% of a matrix product's speed", "memory", "forward + backward", "memory"], [[
            name, f"{int(at[name, PASSES[0]]['parameters']) / 1e6:.2f} M",
            f"{int(at[name, PASSES[0]]['multiply-adds']) / 1e9:.2f} G",
            quoted(name, PASSES[0], "ms"), f"{float(at[name, PASSES[0]]['share']):.0%}",
            quoted(name, PASSES[0], "MiB"), quoted(name, PASSES[1], "ms"),
            quoted(name, PASSES[1], "MiB")] for name in COLOURS])


def growth_table(rows):
    """Markdown: exponents in the number of pixels, one line per mechanism."""
    lines = []
    for name in COLOURS:
        at = {(row["pass"], int(row["side"])): row for row in rows if row["mechanism"] == name}
        last = max(side for _, side in at)

        def exponent(passes, unit, at=at, last=last):
            low, high = (max(float(at[passes, side][unit]), 1e-3) for side in (FROM, last))
            return f"{math.log(high / low, (last / FROM) ** 2):.2f}"

        lines.append([name, f"{last} x {last}", *(
            exponent(passes, unit) for unit in ("ms", "MiB") for passes in PASSES),
            *map(str, THEORY[name])])
    return measure.markdown(["exponents in pixels", f"from {FROM} x {FROM} to", "time forward",
                     "time forward + backward", "memory forward", "memory forward + backward",
                     "theory: time", "theory: memory"], lines)


def plot(rows, path, width=520, height=420):
    """Time and memory of forward + backward over the side of the map, both axes logarithmic."""
    canvas = Image.new("RGB", (2 * width, height), pictures.PAPER)
    panels = ("ms", "time in ms, forward + backward"), ("MiB", "extra memory in MiB")
    for number, (unit, title) in enumerate(panels):
        left = number * width
        ImageDraw.Draw(canvas).text((left + 64, 12), title, pictures.INK, pictures.font(15))
        curves = {name: {} for name in COLOURS}
        for row in rows:
            if row["pass"] == PASSES[1]:
                curves[row["mechanism"]][int(row["side"])] = max(float(row[unit]), 0.1)
        pictures.log_panel(canvas, curves, COLOURS, (left + 64, 44, left + width - 86, height - 44))
    pictures.save_png(path, canvas)


def make_network(paper, preset, crop, device="cpu"):
    """The function that runs a whole network on one image."""
    torch.manual_seed(0)
    options = {"crop_size": crop, "aux": False} if paper == "psanet" else {}
    with torch.device(device):
        network = build_model(paper, preset, 150, options).eval()
        image = torch.randn(1, 3, crop, crop)

    step = torch.no_grad()(lambda: network(image))
    step.parameters = sum(p.numel() for p in network.parameters())
    return step


def measure_networks(device):
    """The rows of the table of whole networks."""
    rows = []
    for paper, preset, crop in tqdm(NETWORKS, unit="network"):
        step = make_network(paper, preset, crop, device)
        milliseconds = 1e3 * measure.times({"": step}, rounds=3)[""]
        memory = measure.peak_memory(make_network, paper, preset, crop, device, device=device)
        rows.append({
            "network": f"{paper} {preset}", "crop": crop, "parameters": step.parameters,
            "multiply-adds": multiply_adds_in(step)[0], "ms": f"{milliseconds:.3g}",
            "MiB": f"{memory:.3g}"})
    return rows


def networks_table(rows):
    """Markdown: one line per network."""
    headings = ["network", "crop", "parameters", "multiply-adds", "forward", "memory"]
    return measure.markdown(headings, [
        [row["network"], f"{row['crop']} x {row['crop']}",
         f"{int(row['parameters']) / 1e6:.1f} M", f"{int(row['multiply-adds']) / 1e9:.1f} G",
         f"{float(row['ms']):,.0f} ms", f"{float(row['MiB']):,.0f} MiB"] for row in rows])


def main():
    flags = parser(__doc__)
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    rows = measure_mechanisms(SIDES, arguments.device)
    networks = measure_networks(arguments.device)
    stem = "cost" if arguments.device == "cpu" else "cost-cuda"
    mechanisms, whole = (path.with_name(path.name.replace("cost", stem)) for path in (CSV, WHOLE))
    measure.write_csv(mechanisms, rows)
    measure.write_csv(whole, networks)
    plot(rows, mechanisms.with_suffix(".png"))
    print("\n".join([*table(rows), "", *growth_table(rows), "", *networks_table(networks)]))


if __name__ == "__main__":
    main()
