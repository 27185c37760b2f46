"""Draw every network with the shapes on its arrows: docs/NAME-network.svg, which paper.md shows.

  python -m tests.drawing [NAME ...]        (or `make drawings`: all)

One image runs through the network on the meta device, which knows shapes and computes nothing.
Forward hooks note what the named modules return; autograd's graph tells what came from where.
"""

import importlib
import sys
from fnmatch import fnmatch
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {  # preset, height and width of the image, names of the modules that get a box
    "pysa": ("resnet50", 512, "backbone.layer* head.* head.levels.*"),
    "unept": ("resnet50", 480, "backbone.layer* * encoder.* decoder.* pyramid.*"),
    "pan": ("resnet101", 512, "backbone.layer* fpa gaus.* head"),
    "psanet": ("resnet50", 465, "backbone.layer* psa.* psa.branches.* classifier"),
    "lrformer": ("b", 512, "backbone.stages.* head.*"),
}
OTHER = ("tiny", 128, "backbone.layer* *")  # a paper that is not in the list
MINOR = ("BatchNorm2d", "Dropout", "Dropout2d", "ReLU")  # no box of their own
ROW, BOX, LANE, LEFT, TOP = 66, 230, 118, 20, 40  # pixels: a row; width of a box, of a lane; edges
STYLE = """<style>text{font:13px sans-serif;fill:#767676} path{fill:none;stroke:#767676}
rect{fill:#31688e} .box,.kind{fill:#fff;text-anchor:middle} .box{font-weight:bold}
</style>"""  # greys and blues that show on white and on black


def boxes(model, patterns):
    """The modules to draw, {name: module}: those that match, less those that hold another one."""
    found = {
        name: module for name, module in model.named_modules()
        if name and type(module).__name__ not in MINOR
        and any(fnmatch(name, p) and name.count(".") == p.count(".") for p in patterns.split())
    }
    return {name: found[name] for name in found if not any(n.startswith(name + ".") for n in found)}


def tensors(value):
    """The tensors in a tensor, list, tuple or dictionary, nested or not."""
    if torch.is_tensor(value):
        return [value]
    value = value.values() if isinstance(value, dict) else value
    return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else []


def graph(paper):
    """The boxes in the order in which they run, [(name, class)], and the arrows between them,
    {(from, to): shape}. A box is named by its place in that order; -1 is the image."""
    preset, side, patterns = NETWORKS.get(paper, OTHER)
    module = importlib.import_module(f"papers.{paper}.model")
    slow = {"fast": False} if "fast" in getattr(module, "DEFAULTS", ()) else {}
    nodes, arrows, made = [], {}, {}  # made: {a step of autograd: (box, shape)}

    def connect(inputs):
        """Arrows to the next box: back from its inputs to what a box, or the image, gave."""
        steps, seen = [t.grad_fn or t for t in tensors(inputs)], set()
        while steps:
            step = steps.pop()
            if step is images or getattr(step, "variable", None) is images:
                arrows[-1, len(nodes)] = tuple(images.shape[1:])
            elif step in made:
                arrows[made[step][0], len(nodes)] = made[step][1]
            elif step not in seen and not torch.is_tensor(step):
                seen.add(step)
                steps += [before for before, _ in step.next_functions if before is not None]

    def note(name):
        def hook(layer, inputs, output):
            connect(inputs)
            made.update({t.grad_fn: (len(nodes), tuple(t.shape[1:])) for t in tensors(output)})
            nodes.append((name, type(layer).__name__.replace("Sequential", "")))
        return hook

    with torch.device("meta"):
        model = module.build(21, preset, **slow).eval()
        for name, layer in boxes(model, patterns).items():
            layer.register_forward_hook(note(name))
        images = torch.zeros(1, 3, side, side, requires_grad=True)
        scores = model(images)["out"]
    connect(scores)
    return [*nodes, ("scores", " x ".join(map(str, scores.shape[1:])))], arrows


def draw(paper):
    """The text of the SVG file: boxes from top to bottom; what skips boxes goes down on the right,
    in one lane for each box that it comes from."""
    nodes, arrows = graph(paper)
    parts, lanes, middle, right = [], [], LEFT + BOX // 2, LEFT + BOX
    far = {start: max(e for s, e in arrows if s == start) for start, _ in arrows}
    for start in sorted(far, key=lambda start: far[start] - start):
        top, lane = TOP + ROW * (start + 1), 0
        if far[start] > start + 1:
            free = [all(b <= start or a >= far[start] for a, b in busy) for busy in lanes]
            lane = [*free, True].index(True)
            lanes += [[]] * (lane == len(lanes))
            lanes[lane] = [*lanes[lane], (start, far[start])]
        for end in sorted(e for s, e in arrows if s == start):
            y, shape = TOP + ROW * (end + 1), " x ".join(map(str, arrows[start, end]))
            if end == start + 1:
                parts.append(f'<path d="M{middle} {top + 20}V{y - 21}m-5 -7l5 8l5 -8"/>'
                             f'<text x="{middle + 12}" y="{y - 26}">{shape}</text>')
            else:
                x = right + LANE * (lane + 1)
                parts.append(f'<path d="M{right} {top + 8}H{x}V{y - 8}H{right + 1}m7 -5l-8 5l8 5"/>'
                             f'<text x="{x - 6}" y="{y - 14}" text-anchor="end">{shape}</text>')
    for row, (name, kind) in enumerate([("image", "RGB"), *nodes]):
        y = TOP + ROW * row
        parts.append(f'<rect x="{LEFT}" y="{y - 20}" width="{BOX}" height="40" rx="6"/>'
                     f'<text class="box" x="{middle}" y="{y - 3 if kind else y + 5}">{name}</text>'
                     f'<text class="kind" x="{middle}" y="{y + 13}">{kind}</text>')
    width, height = right + LANE * len(lanes) + 20, TOP + ROW * (len(nodes) + 1) - 20
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    head += f'viewBox="0 0 {width} {height}" width="{width}">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])


def main():
    everything = sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))
    for name in sys.argv[1:] or everything:
        target = ROOT / "docs" / f"{name}-network.svg"
        target.write_text(draw(name), encoding="utf-8", newline="\n")
        print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
