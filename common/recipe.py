"""How a network is trained: the numbers, and the optimiser, rates and precision they stand for."""

import math
from dataclasses import dataclass

import torch

SCHEDULES = ("poly", "cosine", "one-cycle", "step", "constant")
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("float32", "bfloat16", "float16")  # of the forward pass; weights are float32
LAPTOP = dict(steps=1000, eval_every=100, crop_size=160, scale=(0.5, 1.5), colour=0.3)


@dataclass
class Recipe:
    """Numbers only: papers/PAPER/recipe.py lists some, flags override them. Those from `scale` to
    `centre` are arguments of `augment` in datasets/transforms.py."""

    steps: int = 400  # batches, each with one update of the weights
    batch_size: int = 8  # of a step: over all processes and all parts
    accumulate: int = 1  # parts in which each process computes its share, one after another
    crop_size: int = 128  # side of the training images in pixels
    optimizer: str = "adamw"  # sgd or adamw
    lr: float = 3e-3  # learning rate, the highest of the schedule
    head_lr: float = 1.0  # factor for everything outside `model.backbone`
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-2  # of the optimiser
    no_decay: tuple = ()  # parameters whose name contains one of these are not decayed
    schedule: str = "one-cycle"  # poly, cosine, one-cycle, step or constant
    power: float = 0.9  # of poly
    drop_at: float = 0.8  # share of the steps after which "step" goes on with a tenth
    warmup_steps: int = 0  # linear, before all but one-cycle
    clip_norm: float = 0.0  # total gradient norm; 0 = off
    aux_weight: float = 0.4  # of the loss of the auxiliary head, where there is one
    train_split: str = "train"  # images to train on
    scale: tuple = (1.0, 1.0)  # random resizing, by one factor for both sides
    fit: tuple = ()  # (long, short): the factor is on the size that just fits into this box
    rotate: float = 0.0  # degrees in either direction, every second time
    blur: bool = False  # 5x5, every second time
    flip: bool = True  # left and right, every second time
    max_share: float = 1.0  # crops in which one class covers more are drawn again
    colour: float = 0.0  # strength of random brightness, contrast, saturation
    photometric: bool = False  # mmsegmentation's brightness, contrast, saturation, hue
    centre: bool = True  # small images are padded on both sides; False: bottom and right
    test_scale: float = 1.0  # images are resized by this before the network, scores enlarged back
    eval_every: int = 100  # steps between evaluations, each of which saves


def make_optimizer(model, recipe):
    """SGD or AdamW, each in one kernel, with up to four groups: backbone or not, decayed or not."""
    groups = {}
    for name, parameter in model.named_parameters():
        factor = 1.0 if name.startswith("backbone.") else recipe.head_lr
        decay = 0.0 if any(part in name for part in recipe.no_decay) else recipe.weight_decay
        group = {"params": [], "factor": factor, "weight_decay": decay}
        groups.setdefault((factor, decay), group)["params"].append(parameter)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups.values(), recipe.lr, momentum=recipe.momentum, fused=True)
    return torch.optim.AdamW(groups.values(), recipe.lr, fused=True)


def set_learning_rate(optimizer, recipe, step):
    """Give every group of parameters its rate for `step`."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * group["factor"] * learning_rate_factor(step, recipe)


def learning_rate_factor(step, recipe):
    """What the learning rate is multiplied by in `step` = 0 .. steps-1."""
    steps = recipe.steps
    if recipe.schedule == "one-cycle":  # Smith and Topin: up over 30 %, then down, both as cosines
        peak = max(1, round(0.3 * steps))
        if step < peak:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
        return (1 + math.cos(math.pi * (step - peak) / max(1, steps - peak))) / 2
    warmup = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    # poly and cosine begin where the warm-up ends
    done = max(0, step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    if recipe.schedule == "poly":
        return warmup * (1 - done) ** recipe.power
    if recipe.schedule == "cosine":
        return warmup * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "step" and step >= recipe.drop_at * steps:
        return warmup * 0.1
    return warmup


def half_precision(name, device):
    """(the context for forward passes in one of PRECISIONS, the scaler of the loss)."""
    kind = torch.device(device).type
    autocast = torch.autocast(kind, getattr(torch, name), enabled=name != "float32")
    # float16 has no room for small gradients: the loss is scaled up and the gradients back.
    return autocast, torch.amp.GradScaler(kind, enabled=name == "float16")
