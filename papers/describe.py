"""What there is to know before a training and about a network, as text."""

import inspect
import math
import os
import re
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common import processes
from common.cli import load_paper
from common.recipe import LAPTOP, Recipe, learning_rate_factor, make_optimizer

from . import attention
from .options import try_network

KINDS = {bool: "true or false", int: "whole number", float: "number", str: "name",
         tuple: "values", type(None): "values or None"}
# The numbers of a recipe, by what they are about.
PARTS = {
    "length": ("steps", "batch_size", "accumulate", "eval_every", "train_split"),
    "optimiser": ("optimizer", "lr", "head_lr", "momentum", "weight_decay", "no_decay",
                  "clip_norm", "aux_weight"),
    "schedule": ("schedule", "power", "drop_at", "warmup_steps"),
    "images": ("crop_size", "scale", "fit", "rotate", "blur", "flip", "max_share", "colour",
               "photometric", "centre", "test_scale"),
}
# PyTorch counts baddbmm, but not the form that adds in place. Shapes -> operations.
IN_PLACE = {torch.ops.aten.baddbmm_: lambda _, a, b, **kwargs: 2 * math.prod(a) * b[-1]}


def multiply_adds_in(function):
    """(total, {module: number}) of the convolutions and matrix products in one call of a function:
    half of the operations that PyTorch counts."""
    # The counter does not know every fused attention; step by step they are matrix products.
    with (sdpa_kernel(SDPBackend.MATH),
          FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter):
        function()
    parts = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    return counter.get_total_flops() // 2, parts


def multiply_adds(model, side):
    """{name of a module: multiply-adds} for one image of side x side pixels; "" is the network."""
    parameter = next(model.parameters())
    with torch.no_grad(), parameter.device:
        image = torch.zeros(1, 3, side, side, dtype=parameter.dtype)
        total, parts = multiply_adds_in(lambda: model.eval()(image))
    return {**{name.partition(".")[2]: number for name, number in parts.items()}, "": total}


def short(number):
    """1234567 -> "1.23 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def parameters(model):
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def meanings(docstring, names):
    """{option: what the docstring of `build` says about it}. An entry is "a, b: text", at the start
    of a line or of a sentence; it ends with the next one or with a blank line."""
    text = re.sub(r"\n +", "\n", docstring or "")
    name = "|".join(map(re.escape, names))
    entry = re.compile(rf"(?:^|(?<=\. )|(?<=\.\n))((?:{name})(?:, (?:{name}))*): ", re.M)
    starts, found = [*entry.finditer(text)], {}
    for start, following in zip(starts, [*starts[1:], None], strict=False):
        rest = text[start.end() : following.start() if following else None]
        meaning = " ".join(rest.partition("\n\n")[0].split())
        found.update(dict.fromkeys(start[1].split(", "), meaning))
    return found


def print_options(paper, dataset_names):
    """Print a paper's presets, options, recipes, and the datasets there are."""
    module = load_paper(paper)
    sizes = {"tiny": 128}
    print(f"{paper}: presets (--preset), their parameters, and multiply-adds for an image of "
          f"512 x 512 pixels (tiny: {sizes['tiny']} x {sizes['tiny']}), 19 classes")
    for preset in module.PRESETS:
        with torch.device("meta"):  # sizes without content
            model = module.build(19, preset)
        count = multiply_adds(model, sizes.get(preset, 512))[""]
        print(f"  {preset:16} {short(parameters(model)):>8} {short(count):>8}", flush=True)

    defaults = getattr(module, "DEFAULTS", None)
    if defaults is None:
        signature = inspect.signature(module.build).parameters.values()
        defaults = {p.name: p.default for p in signature
                    if p.default is not p.empty and p.name != "preset"}
    said, tiny = meanings(module.build.__doc__, defaults), module.PRESETS["tiny"]
    print("\noptions (--set NAME=VALUE), their defaults, kind and meaning")
    for name, default in defaults.items():
        small = f" (tiny: {tiny[name]})" if tiny.get(name, default) != default else ""
        print(f"  {name} = {default}{small}: {KINDS[type(default)]}\n      {said.get(name, '')}")

    recipes = load_paper(paper, "recipe").RECIPES
    print(f"\nrecipes: {', '.join(recipes)}; tiny networks without one of their own: "
          f"{LAPTOP['steps']} steps\ndatasets (--dataset): {', '.join(dataset_names)}"
          "\n\nnumbers of a recipe (--recipe NUMBER=VALUE; --dry-run prints those of a dataset)")
    numbers = re.findall(r"^    (\w+): .*?  # (.*)", inspect.getsource(Recipe), re.M)
    for name, meaning in numbers:
        print(f"  {name:13} {meaning}")


def print_training(config, recipe):
    """Print all that a training would do, and the sources of its numbers."""
    print(" ".join(f"{name}={config[name]}" for name in (
        "paper", "preset", "dataset", "options", "seed", "precision", "freeze", "loss",
        "class_weights")))
    for part, names in PARTS.items():
        values = {name: getattr(recipe, name) for name in names}
        if len(recipe.no_decay) > 4 and "no_decay" in values:
            values["no_decay"] = f"({len(recipe.no_decay)} names)"
        print(f"{part:10} " + " ".join(f"{name}={value}" for name, value in values.items()))
    model = try_network(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    steps = sorted({round(share * (recipe.steps - 1)) for share in (0, 0.1, 0.3, 0.5, 0.8, 1)})
    print(f"{'rates in steps':40} " + " ".join(f"{step:>9}" for step in steps))
    for group in make_optimizer(model, recipe).param_groups:
        inside = sorted({names[id(p)].partition(".")[0] for p in group["params"]})
        rates = (recipe.lr * group["factor"] * learning_rate_factor(step, recipe) for step in steps)
        line = f"{', '.join(inside)} ({len(group['params'])} tensors)"
        print(f"{line:40} " + " ".join(f"{rate:9.3g}" for rate in rates)
              + f"   weight decay {group['weight_decay']:g}")
    print(f"\nwhere the numbers are from:\n{load_paper(config['paper'], 'recipe').__doc__}")


def print_summary(model, config, side):
    """Print the layers of a network, two levels deep, with their shapes and costs."""
    inside = [(name, module) for name, module in model.named_modules() if name.count(".") < 2]
    with attention.record(model, [name for name, _ in inside]) as seen:
        costs = multiply_adds(model, side)
    shapes = {}
    for name, shape in attention.shapes(seen).items():
        shape = shape.get("out") if isinstance(shape, dict) else shape
        if isinstance(shape, tuple):
            shapes[name] = " x ".join(map(str, shape))
    print(f"{config['paper']} {config['preset']}, {config['num_classes']} classes, an image of "
          f"{side} x {side} pixels\n{'layer':32} {'kind':20} {'output':>20} {'parameters':>11} "
          "multiply-adds")
    for name, module in [*inside[1:], inside[0]]:
        print(f"{name or 'total':32} {type(module).__name__:20} {shapes.get(name, '-'):>20} "
              f"{short(parameters(module)):>11} {short(costs.get(name, 0)):>13}")


def open_training(config, recipe, train_set, val_set, out, device, forward):
    """Tell on stderr, before the first step, what will happen. forward: seconds that one forward
    pass of a batch took, with its data, or None."""
    lines = [f"{config['paper']} {config['preset']} on {config['dataset']}: {recipe.steps} steps "
             f"of {recipe.batch_size} images, {len(train_set)} for training, {len(val_set)} for "
             f"validation, on {device}"]
    if processes.count() > 1:
        lines[0] += f", in {processes.count()} processes"
    if forward and device == "cpu":  # elsewhere the first pass takes much longer than others
        area = recipe.batch_size * recipe.crop_size**2
        height, width = val_set[0][1].shape
        batches = len(val_set) * height * width * recipe.test_scale**2 / area
        scoring = batches * math.ceil(recipe.steps / recipe.eval_every)
        # forward and backward are three times forward
        minutes = forward * (3 * recipe.steps + scoring) / 60
        lines[0] += f"; about {max(1, round(minutes))} min"
    lines.append(f"saved in {out}, and scored, every {recipe.eval_every} steps; Ctrl-C stops after "
                 "a step, the same command with --resume goes on")
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > os.cpu_count()
    if busy and torch.get_num_threads() > 1:
        lines.append(f"the {os.cpu_count()} processors are busy: OMP_NUM_THREADS=1 before the "
                     "command may make it quicker")
    print("\n".join(lines), file=sys.stderr)
