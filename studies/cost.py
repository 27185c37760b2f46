"""python -m studies.cost: what each mechanism costs, beside full self-attention, on growing maps.

Every mechanism maps [1, 256, side, side] to the same shape. Printed and written to docs/cost.csv:
parameters, multiply-adds, median time and extra peak memory, forward and forward + backward; drawn
in docs/cost.png. The exponent is the slope of the time over the number of pixels between the two
largest maps, both as logarithms: 1 is linear, 2 is every pixel with every pixel. The share is of
the multiply-adds per second of a large matrix product, measured in the same run. Then the whole
networks with 150 classes, one image of the size of the paper's training crop, to
docs/cost-networks.csv. One thread of a CPU, or with --device cuda a GPU (then docs/cost-cuda*).

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
from papers.lrformer.model import Attention
from papers.options import build_model
from papers.pan.model import FPA
from papers.psanet.model import PSA
from papers.pysa.fast import series
from papers.pysa.model import PySALevel
from papers.unept.model import DeformableAttention, pixel_centres

from .measure import FullAttention, markdown, multiply_adds, peak_memory, times, write_csv
from .trainings import ROOT, parser

SIDES, CHANNELS, HEADS, POINTS = (16, 32, 64, 128), 256, 8, 16
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
        "full": lambda: FullAttention(CHANNELS, HEADS, outputs=CHANNELS),
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

    def step():
        if backward:
            apply(name, module, x).sum().backward()
        else:
            with torch.inference_mode():
                apply(name, module, x)

    return step


@functools.cache
def sizes(name, side):
    """(parameters, multiply-adds of one forward pass). PyTorch does not see UN-EPT's weighted sums
    of points, four corners each: they are added."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in mechanism(name, side).parameters())
    total, _ = multiply_adds(make(name, side, False, "meta"))
    return parameters, total + (side**2 * POINTS * 4 * CHANNELS if name == "unept" else 0)


def extra_memory(device, make, *arguments):
    """Extra peak memory in MiB of calling the function that `make(*arguments, device)` returns."""
    if device == "cpu":
        return peak_memory(make, *arguments)
    step = make(*arguments, device)
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def limit(device):
    """Multiply-adds per second of a large matrix product."""
    matrix = torch.randn(*(2 * [1024 if device == "cpu" else 8192]), device=device)
    return len(matrix) ** 3 / times({"": lambda: matrix @ matrix})[""]


def measure(sides, device):
    """The rows of the table, one per mechanism, side and pass."""
    rows, most = [], limit(device)
    for side in tqdm(sides, unit="size"):
        for backward in (False, True):
            steps = {name: make(name, side, backward, device) for name in COLOURS}
            seconds = times(steps, rounds=5 if side < 64 else 3)
            del steps
            for name in COLOURS:
                parameters, total = sizes(name, side)
                share = "" if backward else f"{total / seconds[name] / most:.3f}"
                memory = extra_memory(device, make, name, side, backward)
                rows.append(dict(zip(COLUMNS, (
                    name, side, PASSES[backward], parameters, total,
                    f"{1e3 * seconds[name]:.3g}", f"{memory:.3g}", share), strict=True)))
    return rows


def table(rows):
    """Markdown: one line per mechanism, on the second largest map, with ratios to full attention,
    and the exponent."""
    *_, side, largest = sorted({int(row["side"]) for row in rows})
    at = {(row["mechanism"], row["pass"], int(row["side"])): row for row in rows}

    def value(name, passes, unit, size=side):
        return float(at[name, passes, size][unit])

    def quoted(name, passes, unit):
        here, full = value(name, passes, unit), value("full", passes, unit)
        return f"{here:,.0f} {unit}" + (f" ({here / full:.2g})" if name != "full" else "")

    lines = []
    for name in COLOURS:
        here = at[name, PASSES[0], side]
        growth = value(name, PASSES[1], "ms", largest) / value(name, PASSES[1], "ms")
        lines.append([
            name, f"{int(here['parameters']) / 1e6:.2f} M",
            f"{int(here['multiply-adds']) / 1e9:.2f} G", quoted(name, PASSES[0], "ms"),
            f"{float(here['share']):.0%}", quoted(name, PASSES[0], "MiB"),
            quoted(name, PASSES[1], "ms"), quoted(name, PASSES[1], "MiB"),
            f"pixels^{math.log(growth, (largest / side) ** 2):.1f}"])
    return markdown([
        f"{side} x {side}", "parameters", "multiply-adds", "forward", "speed of matrix product",
        "memory", "forward + backward", "memory", "grows as"], lines)


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
        plot_panel(canvas, curves, (left + 64, 44, left + width - 86, height - 44))
    pictures.save_png(path, canvas)


def plot_panel(canvas, curves, box):
    """One pair of axes. curves: {name: {side: value}}. box: left, top, right, bottom in pixels."""
    draw, (left, top, right, bottom) = ImageDraw.Draw(canvas), box
    values = [value for curve in curves.values() for value in curve.values()]
    sides = sorted(curves["full"])
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))

    def place(side, value):
        across = math.log(side / sides[0]) / math.log(sides[-1] / sides[0])
        up = (math.log10(value) - low) / (high - low)
        return left + across * (right - left), bottom - up * (bottom - top)

    for power in range(low, high + 1):
        _, y = place(sides[0], 10.0**power)
        draw.line((left, y, right, y), fill=pictures.GRID)
        draw.text((left - 8, y), f"{10.0**power:g}", pictures.INK, pictures.font(12), "rm")
    for side in sides:
        x, _ = place(side, 10.0**low)
        draw.text((x, bottom + 8), f"{side} x {side}", pictures.INK, pictures.font(12), "ma")
    below = top
    for name in sorted(curves, key=lambda name: -curves[name][sides[-1]]):
        points = [place(*point) for point in sorted(curves[name].items())]
        draw.line(points, fill=COLOURS[name], width=3 if name == "full" else 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[name])
        below = max(below, points[-1][1])  # labels from the top down, never on top of one another
        draw.text((right + 10, below), name, COLOURS[name], pictures.font(13), "lm")
        below += 16


def make_network(paper, preset, crop, device="cpu"):
    """The function that runs a whole network on one image."""
    torch.manual_seed(0)
    options = {"crop_size": crop, "aux": False} if paper == "psanet" else {}
    with torch.device(device):
        network = build_model(paper, preset, 150, options).eval()
        image = torch.randn(1, 3, crop, crop)

    def step():
        with torch.no_grad():
            network(image)

    step.parameters = sum(p.numel() for p in network.parameters())
    return step


def measure_networks(device):
    """The rows of the table of whole networks."""
    rows = []
    for paper, preset, crop in tqdm(NETWORKS, unit="network"):
        step = make_network(paper, preset, crop, device)
        milliseconds = 1e3 * times({"": step}, rounds=3)[""]
        memory = extra_memory(device, make_network, paper, preset, crop)
        rows.append({
            "network": f"{paper} {preset}", "crop": crop, "parameters": step.parameters,
            "multiply-adds": multiply_adds(step)[0], "ms": f"{milliseconds:.3g}",
            "MiB": f"{memory:.3g}"})
    return rows


def networks_table(rows):
    """Markdown: one line per network."""
    return markdown(["network", "crop", "parameters", "multiply-adds", "forward", "memory"], [
        [row["network"], f"{row['crop']} x {row['crop']}",
         f"{int(row['parameters']) / 1e6:.1f} M", f"{int(row['multiply-adds']) / 1e9:.1f} G",
         f"{float(row['ms']):,.0f} ms", f"{float(row['MiB']):,.0f} MiB"] for row in rows])


def main():
    flags = parser(__doc__)
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    rows = measure(SIDES, arguments.device)
    networks = measure_networks(arguments.device)
    stem = "cost" if arguments.device == "cpu" else "cost-cuda"
    mechanisms, whole = (path.with_name(path.name.replace("cost", stem)) for path in (CSV, WHOLE))
    write_csv(mechanisms, rows)
    write_csv(whole, networks)
    plot(rows, mechanisms.with_suffix(".png"))
    print("\n".join([*table(rows), "", *networks_table(networks)]))


if __name__ == "__main__":
    main()
