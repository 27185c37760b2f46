"""python -m studies.cost: what each paper's mechanism costs, beside full self-attention, on growing maps.

Every mechanism maps [1, 256, side, side] to the same shape. Printed and written to docs/cost.csv: parameters,
multiply-adds, median time and extra peak memory, forward and forward + backward; drawn in docs/cost.png. The exponent
is the slope of the time over the number of pixels between the two largest maps, both as logarithms: 1 is linear, 2 is
every pixel with every pixel. Shares are of the limits measured in the same run: multiply-adds per second of a large
matrix product, and bytes per second of a large copy if the map were only read and the result only written. Then the
whole networks with 150 classes, one image of the size of the paper's training crop, to docs/cost-networks.csv. One
thread of a CPU, or with --device cuda a GPU (then docs/cost-cuda*).

  mechanisms: full = PyTorch's fused attention, 8 heads. pysa = four levels in series. unept = one level, 8 heads of 16
  points. pan = feature pyramid attention. psanet = collect and distribute, not shrunk. lrformer = on a 16 x 16 grid.
"""

import argparse
import functools
import math

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common import pictures
from papers.lrformer.model import Attention
from papers.pan.model import FPA
from papers.psanet.model import PSA
from papers.pysa.fast import series
from papers.pysa.model import PySALevel
from papers.unept.model import DeformableAttention, pixel_centres
from train import build_model

from .measure import peak_memory, times, write_csv
from .shapes_table import ROOT

SIDES, CHANNELS, HEADS = (16, 32, 64, 128), 256, 8
NETWORKS = (("pysa", "resnet50", 512), ("unept", "resnet50", 480), ("unept", "deit", 480), ("pan", "resnet101", 512),
            ("psanet", "resnet50", 465), ("psanet", "resnet101", 465), ("lrformer", "t", 512), ("lrformer", "b", 512))
CSV, WHOLE = ROOT / "docs" / "cost.csv", ROOT / "docs" / "cost-networks.csv"
COLUMNS = ("mechanism", "side", "pass", "parameters", "multiply-adds", "ms", "MiB", "share of product", "share of copy")
# After Okabe and Ito, black for what all others avoid.
COLOURS = {"full": (0, 0, 0), "pysa": (230, 159, 0), "unept": (86, 180, 233), "pan": (0, 158, 115),
           "psanet": (204, 121, 167), "lrformer": (0, 114, 178)}


class Full(nn.Module):
    """Multi-head self-attention of all pixels."""

    def __init__(self):
        super().__init__()
        self.projections, self.output = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        tokens = x.flatten(2).mT  # [1, H*W, C]
        q, k, v = self.projections(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # [1, M, H*W, D]
        tokens = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [1, H*W, C]
        return self.output(tokens).mT.unflatten(2, x.shape[2:])


class Levels(nn.Module):
    """PySA's Series."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(PySALevel(CHANNELS, regions) for regions in (1, 2, 4, 8))

    def forward(self, x):
        return series(x, self.levels)


class Points(nn.Module):
    """UN-EPT's attention, every pixel of a map to points of the same map."""

    def __init__(self):
        super().__init__()
        self.attention = DeformableAttention(CHANNELS, HEADS, levels=1, points=16)

    def forward(self, x):
        tokens, size = x.flatten(2).mT, tuple(x.shape[2:])  # [1, H*W, C]
        return self.attention(tokens, pixel_centres(*size, x)[None], tokens, [size]).mT.unflatten(2, size)


MECHANISMS = {
    "full": lambda side: Full(),
    "pysa": lambda side: Levels(),
    "unept": lambda side: Points(),
    "pan": lambda side: FPA(CHANNELS, CHANNELS),
    "psanet": lambda side: PSA(CHANNELS, CHANNELS, ("collect", "distribute"), (2 * side - 1, 2 * side - 1), 1),
    "lrformer": lambda side: Attention(CHANNELS, HEADS, 16),
}


def make(name, side, backward, device="cpu"):
    """The function to measure."""
    torch.manual_seed(0)
    with torch.device(device):
        module = MECHANISMS[name](side).eval()
        x = torch.randn(1, CHANNELS, side, side, requires_grad=backward)

    def step():
        if backward:
            module(x).sum().backward()
        else:
            with torch.inference_mode():
                module(x)

    return step


@functools.cache
def multiply_adds(name, side):
    """Of one forward pass: convolutions and matrix products, as PyTorch counts them, and UN-EPT's weighted sums of
    points, which it does not see."""
    with FakeTensorMode():
        total = counted(make(name, side, False))
    points = side * side * HEADS * 16 * 4 * (CHANNELS // HEADS) if name == "unept" else 0  # 4 corners per point
    return total + points


def counted(step):
    """Multiply-adds of convolutions and matrix products in a function."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        step()
    return counter.get_total_flops() // 2


def cuda_memory(make, *arguments):
    """Extra peak memory in MiB on a GPU of calling the function that `make(*arguments)` returns."""
    step = make(*arguments)
    step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def limits(device):
    """Multiply-adds per second of a large matrix product, bytes per second of a large copy."""
    side = 1024 if device == "cpu" else 8192
    matrix, block = torch.randn(side, side, device=device), torch.randn(2**26, device=device)
    seconds = times({"product": lambda: matrix @ matrix, "copy": block.clone})
    return side**3 / seconds["product"], 2 * block.nbytes / seconds["copy"]


def measure(sides, device):
    """The rows of the table, one per mechanism, side and pass."""
    rows, (products, copies) = [], limits(device)
    for side in tqdm(sides, unit="size"):
        for backward in (False, True):
            steps = {name: make(name, side, backward, device) for name in MECHANISMS}
            seconds = times(steps, rounds=5 if side < 64 else 3)
            del steps
            for name in MECHANISMS:
                memory = peak_memory if device == "cpu" else cuda_memory
                shares = ("", "")  # of the forward pass
                if not backward:
                    shares = (f"{multiply_adds(name, side) / seconds[name] / products:.3f}",
                              f"{2 * 4 * CHANNELS * side * side / seconds[name] / copies:.3f}")
                rows.append(dict(zip(COLUMNS, (
                    name, side, "forward + backward" if backward else "forward",
                    sum(p.numel() for p in MECHANISMS[name](side).parameters()), multiply_adds(name, side),
                    f"{1e3 * seconds[name]:.3g}", f"{memory(make, name, side, backward, device):.3g}", *shares,
                ))))
    return rows


def exponent(rows, name, backward):
    """Slope of log time over log pixels between the two largest maps."""
    points = [(int(row["side"]), float(row["ms"])) for row in rows
              if row["mechanism"] == name and row["pass"] == ("forward + backward" if backward else "forward")]
    (small, before), (large, after) = sorted(points)[-2:]
    return math.log(after / before) / math.log((large / small) ** 2)


def table(rows):
    """Markdown: one line per mechanism, on the second largest map, with ratios to full attention, and the exponent."""
    side = sorted({int(row["side"]) for row in rows})[-2]
    at = {(row["mechanism"], row["pass"]): row for row in rows if int(row["side"]) == side}
    lines = [
        f"| {side} x {side} | parameters | multiply-adds | forward | share of matrix product | memory "
        "| forward + backward | memory | grows as |", "|---" * 9 + "|",
    ]
    for name in MECHANISMS:
        cells = []
        for passes in ("forward", "forward + backward"):
            here, full = at[name, passes], at["full", passes]
            for unit in ("ms", "MiB"):
                ratio = float(here[unit]) / float(full[unit])
                cells.append(f"{float(here[unit]):,.0f} {unit}" + (f" ({ratio:.2g})" if name != "full" else ""))
                if here["share of product"] and unit == "ms":
                    cells.append(f"{float(here['share of product']):.0%}")
        here = at[name, "forward"]
        lines.append(f"| {name} | {int(here['parameters']) / 1e6:.2f} M | {int(here['multiply-adds']) / 1e9:.2f} G | "
                     f"{' | '.join(cells)} | pixels^{exponent(rows, name, True):.1f} |")
    return lines


def plot(rows, path, width=520, height=420):
    """Time and memory of forward + backward over the side of the map, both axes logarithmic."""
    canvas = Image.new("RGB", (2 * width, height), pictures.PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (unit, title) in enumerate((("ms", "time in ms, forward + backward"), ("MiB", "extra memory in MiB"))):
        left, right, top, bottom = number * width + 64, (number + 1) * width - 86, 44, height - 44
        draw.text((left, 12), title, fill=pictures.INK, font=pictures.font(15))
        chosen = [row for row in rows if row["pass"] == "forward + backward"]
        values = [max(float(row[unit]), 0.1) for row in chosen]
        low = math.floor(math.log10(min(values)))
        high = max(low + 1, math.ceil(math.log10(max(values))))
        sides = sorted({int(row["side"]) for row in chosen})

        def place(side, value):
            across = (math.log2(side) - math.log2(sides[0])) / (math.log2(sides[-1]) - math.log2(sides[0]))
            return left + across * (right - left), bottom - (math.log10(value) - low) / (high - low) * (bottom - top)

        for power in range(low, high + 1):
            y = place(sides[0], 10.0**power)[1]
            draw.line((left, y, right, y), fill=pictures.GRID)
            draw.text((left - 8, y), f"{10.0**power:g}", fill=pictures.INK, font=pictures.font(12), anchor="rm")
        for side in sides:
            draw.text((place(side, 10.0**low)[0], bottom + 8), f"{side} x {side}", fill=pictures.INK,
                      font=pictures.font(12), anchor="ma")
        names = sorted(MECHANISMS, key=lambda n: -float(next(
            row[unit] for row in chosen if row["mechanism"] == n and int(row["side"]) == sides[-1])))
        below = top
        for name in names:  # labels from the top down, never on top of one another
            points = [place(int(row["side"]), max(float(row[unit]), 0.1)) for row in chosen if row["mechanism"] == name]
            draw.line(points, fill=COLOURS[name], width=3 if name == "full" else 2)
            for x, y in points:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=COLOURS[name])
            below = max(below, points[-1][1])
            draw.text((right + 10, below), name, fill=COLOURS[name], font=pictures.font(13), anchor="lm")
            below += 16
    pictures.save_png(path, canvas)


def make_network(paper, preset, crop, device="cpu"):
    """The function that runs a whole network on one image."""
    torch.manual_seed(0)
    options = {"crop_size": crop, "aux": False} if paper == "psanet" else {}
    with torch.device(device):
        network, image = build_model(paper, preset, 150, options).eval(), torch.randn(1, 3, crop, crop)

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
        memory = peak_memory if device == "cpu" else cuda_memory
        rows.append({
            "network": f"{paper} {preset}", "crop": crop, "parameters": step.parameters, "multiply-adds": counted(step),
            "ms": f"{milliseconds:.3g}", "MiB": f"{memory(make_network, paper, preset, crop, device):.3g}",
        })
    return rows


def networks_table(rows):
    """Markdown: one line per network."""
    lines = ["| network | crop | parameters | multiply-adds | forward | memory |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['network']} | {row['crop']} x {row['crop']} | {int(row['parameters']) / 1e6:.1f} M "
                     f"| {int(row['multiply-adds']) / 1e9:.1f} G | {float(row['ms']):,.0f} ms "
                     f"| {float(row['MiB']):,.0f} MiB |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES,
                        help="two or more, the table shows the last but one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    if len(set(arguments.sides)) < 2:
        parser.error("--sides: two or more different ones are needed to see growth")
    torch.set_num_threads(1)
    rows = measure(arguments.sides, arguments.device)
    networks = measure_networks(arguments.device)
    mechanisms, whole = (path if arguments.device == "cpu" else path.with_name(path.name.replace("cost", "cost-cuda"))
                         for path in (CSV, WHOLE))
    write_csv(mechanisms, rows)
    write_csv(whole, networks)
    plot(rows, mechanisms.with_suffix(".png"))
    print("\n".join([*table(rows), "", *networks_table(networks)]))


if __name__ == "__main__":
    main()
