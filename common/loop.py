"""The training loop, on one page: the laptop script, the resumed script and the cluster script are
the same. What a laptop does not need stands beside it: several processes in processes.py, half
precision in recipe.py, signals in stop.py, resuming in run.py, mistakes in guard.py.

Everything random is a pure function of (seed, step) or (seed, epoch, sample index). So a run is
bit-identical on one machine whatever the number of loader workers, and after any interruption.
"""

import functools

import torch
from torch import nn

from . import checkpoint, processes
from .guard import check_finite, evaluate_if_due, name_the_flag, name_the_image
from .inference import Protocol, evaluate, normalise
from .losses import cross_entropy, segmentation_loss
from .recipe import half_precision, make_optimizer, set_learning_rate
from .run import Run
from .stop import Stop


def train(model, stream, val_set, recipe, config, out, *, seed=0, device="cpu",
          precision="float32", compile=False, resume=None, draw=None):
    """Train `model` and leave last.pt, best.pt, log.csv and what `draw` draws in the folder `out`.

    stream(step): a context with the batches from `step` on: images uint8 [B, H, W, 3], label uint8
    [B, H, W]. config: what rebuilds the network, stored in the checkpoints. resume, draw: see Run.
    Returns the ConfusionMatrix of the best state on `val_set`, or the number of the signal that
    ended the run early. Raises UserError at the first loss that is not finite.
    """
    score = functools.partial(evaluate, model, val_set, len(val_set.classes),
                              Protocol(scales=(recipe.test_scale,)), device)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(model, recipe)
    autocast, scaler = half_precision(precision, device)
    run = Run(out, config, recipe, model, optimizer, scaler, resume, draw)
    network = processes.distribute(model, device)
    network = torch.compile(network) if compile else network
    with run.progress_bar() as bar, Stop() as stop, stream(run.step) as batches:
        evaluate_if_due(run, score)  # the run was killed before that, or could not
        for images, label in batches:
            processes.seed_step(seed, run.step)
            set_learning_rate(optimizer, recipe, run.step)
            x = normalise(images, device).contiguous(memory_format=torch.channels_last)
            y = label.to(device, torch.int64)
            optimizer.zero_grad()
            with name_the_flag(recipe, device):
                loss = add_gradients(network, model, x, y, recipe, autocast, scaler)
            loss = processes.agree(loss, device=device) / processes.count()
            scaler.unscale_(optimizer)
            norm = nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
            if recipe.clip_norm:
                nn.utils.clip_grads_with_norm_(model.parameters(), recipe.clip_norm, norm)
            check_finite(loss, norm.item(), scaler, run)
            scaler.step(optimizer)
            scaler.update()
            run.record(loss, bar)
            evaluate_if_due(run, score)
            if (number := stop.requested(device)) and run.step < recipe.steps:
                run.save("last.pt")
                return number

    processes.agree(0, device=device)  # only after the first process has written
    if run.log:
        model.load_state_dict(checkpoint.load(run.out / "best.pt")["model"])
    with name_the_image(run.out / "last.pt"):
        return score()[0]


def add_gradients(network, model, images, label, recipe, autocast, scaler):
    """Add the gradients of the loss of a batch to those of the parameters; the batch is computed
    in `recipe.accumulate` parts, one after another, that share no memory. Returns the loss.

    network: model, or what compiles or distributes it. images [B, 3, H, W], label int64 [B, H, W].
    """
    parts, total = recipe.accumulate, 0.0
    mean = functools.partial(cross_entropy, batch=label) if parts > 1 else cross_entropy
    for part, (x, y) in enumerate(zip(images.chunk(parts), label.chunk(parts), strict=True), 1):
        with processes.exchange(network, last=part == parts):
            with autocast:
                outputs = network(x)
            loss = segmentation_loss(model, outputs, y, recipe.aux_weight, mean) / parts
            scaler.scale(loss).backward()
        total += loss.item()
    return total
