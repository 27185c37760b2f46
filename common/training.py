"""The training loop: the laptop script, the resumed script and the cluster script are the same.

Everything random is a pure function of (seed, step) or (seed, epoch, sample index). So a run is bit-identical on
one machine whatever the number of loader workers, and after any interruption and resume.
"""

import contextlib
import csv
import functools
import io
import math
import signal
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import checkpoint, pictures
from .errors import UserError
from .inference import Protocol, evaluate, normalise
from .metrics import IGNORE

SCHEDULES = ("poly", "cosine", "one-cycle", "step", "constant")
OPTIMIZERS = ("sgd", "adamw")
FILES = ("last.pt", "best.pt", "log.csv", "curves.png", "predictions.png", "config.json")  # of a run directory
PRECISIONS = ("float32", "bfloat16", "float16")  # of the network's forward pass; the weights are always float32


@dataclass
class Recipe:
    """How a network is trained: numbers only. Every paper's recipe.py lists some; flags override them."""

    steps: int = 400
    batch_size: int = 8  # of a step: over all processes and all parts
    accumulate: int = 1  # parts in which each process computes its share of a batch, one after another
    crop_size: int = 128
    optimizer: str = "adamw"  # one of OPTIMIZERS
    lr: float = 3e-3
    head_lr: float = 1.0  # factor for everything outside `model.backbone`
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-2
    no_decay: tuple = ()  # parameters whose name contains one of these are not decayed
    schedule: str = "one-cycle"  # one of SCHEDULES
    power: float = 0.9  # of poly
    drop_at: float = 0.8  # share of the steps after which "step" goes on with a tenth
    warmup_steps: int = 0  # linear, before all but one-cycle
    clip_norm: float = 0.0  # total gradient norm; 0 = off
    aux_weight: float = 0.4
    train_split: str = "train"
    # augmentation, see datasets/transforms.py
    scale: tuple = (1.0, 1.0)  # random resizing, by one factor for both sides
    fit: tuple = ()  # (long, short): the factor is on the size that just fits into this box; () = on the image's own
    rotate: float = 0.0  # degrees in either direction, every second time
    blur: bool = False  # 5x5, every second time
    flip: bool = True
    max_share: float = 1.0  # crops in which one class covers more are drawn again
    colour: float = 0.0  # strength of random brightness, contrast, saturation
    photometric: bool = False  # mmsegmentation's distortion of brightness, contrast, saturation, hue
    centre: bool = True  # small images are padded on both sides; False: at the bottom and right
    test_scale: float = 1.0  # images are resized by this before the network, its scores are enlarged back
    eval_every: int = 100


# ------------------------------------------------------------------------------------------ data


class TrainingSamples(Dataset):
    """Sample number n of the endless training stream: a pure function of (seed, n).

    An epoch is a permutation of the dataset drawn from (seed, epoch); the augmentation of a sample is drawn
    from (seed, epoch, index).
    """

    def __init__(self, dataset, augment, seed):
        self.dataset, self.augment, self.seed = dataset, augment, seed
        self.epoch, self.order = -1, None

    def __getitem__(self, number):
        epoch, position = divmod(number, len(self.dataset))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        index = int(self.order[position])
        image, label = self.augment(*self.dataset[index], np.random.default_rng([self.seed, epoch, index]))
        return torch.tensor(image), torch.tensor(label)  # copies: arrays straight from a file are read-only


def batches(samples, first_step, steps, batch_size, workers, rank, world):
    """Loader of the batches of the steps first_step .. steps-1; each process takes its slice of every batch."""
    per_process = batch_size // world
    numbers = [
        range(step * batch_size + rank * per_process, step * batch_size + (rank + 1) * per_process)
        for step in range(first_step, steps)
    ]
    return DataLoader(
        samples, batch_sampler=numbers, num_workers=workers, persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_parent,
    )


def leave_signals_to_the_parent(worker):
    """Terminals and schedulers signal the whole process group; the step cannot be finished without its data."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# ------------------------------------------------------------------------------------------ loss, schedule


def cross_entropy(scores, label, batch=None):
    """Mean over the valid pixels of the whole batch, those of the other processes included; 0 if there is none.

    scores: [B, K, H, W], label: int64 [B, H, W], 255 = ignore. batch: the labels [N * B, H, W] of all N parts of this
    process where `label` is one part. Then the mean of the N results is the mean over all valid pixels of the batch:
    parts with few valid pixels do not count too much. Raises UserError if label has another H or W than batch.
    """
    batch = label if batch is None else batch
    if batch.shape[1:] != label.shape[1:]:
        raise UserError("--accumulate: the loss of this network is taken at fewer pixels, so parts would not add up")
    parts = len(batch) // len(label)
    valid, world = (batch != IGNORE).sum(), 1
    if torch.distributed.is_initialized():
        # DistributedDataParallel averages gradients over processes, so the sum is divided by the mean count.
        world = torch.distributed.get_world_size()
        torch.distributed.all_reduce(valid)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    total = F.cross_entropy(scores, label, ignore_index=IGNORE, reduction="sum")
    return total * (parts * world) / valid.clamp(min=1)


def segmentation_loss(model, outputs, label, aux_weight, cross_entropy=cross_entropy):
    """Cross-entropy of "out", plus aux_weight times that of "aux" where there is one. A network with other
    terms defines `loss(outputs, label, cross_entropy)` itself."""
    if hasattr(model, "loss"):
        return model.loss(outputs, label, cross_entropy)
    loss = cross_entropy(outputs["out"], label)
    return loss + aux_weight * cross_entropy(outputs["aux"], label) if "aux" in outputs else loss


def learning_rate_factor(step, recipe):
    """What the learning rate is multiplied by in `step` = 0 .. steps-1."""
    steps = recipe.steps
    if recipe.schedule == "one-cycle":  # Smith and Topin: up over the first 30 %, then down, both as cosines
        peak = max(1, round(0.3 * steps))
        if step < peak:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
        return (1 + math.cos(math.pi * (step - peak) / max(1, steps - peak))) / 2
    warmup = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    # Poly and cosine begin where the warm-up ends.
    done = max(0, step - recipe.warmup_steps) / max(1, steps - recipe.warmup_steps)
    if recipe.schedule == "poly":
        return warmup * (1 - done) ** recipe.power
    if recipe.schedule == "cosine":
        return warmup * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "step" and step >= recipe.drop_at * steps:
        return warmup * 0.1
    return warmup


def make_optimizer(model, recipe):
    """SGD or AdamW with up to four groups: backbone or not, decayed or not."""
    groups = {}
    for name, parameter in model.named_parameters():
        factor = 1.0 if name.startswith("backbone.") else recipe.head_lr
        decay = 0.0 if any(part in name for part in recipe.no_decay) else recipe.weight_decay
        group = groups.setdefault((factor, decay), {"params": [], "factor": factor, "weight_decay": decay})
        group["params"].append(parameter)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups.values(), lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups.values(), lr=recipe.lr)


# ------------------------------------------------------------------------------------------ the loop


@contextlib.contextmanager
def name_the_flag(recipe, device):
    """Turn what goes wrong inside a network, and can be mended by a flag, into a UserError that names the flag."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # a network that cannot take this batch says why
        raise UserError(f"--batch-size {recipe.batch_size}, --crop-size {recipe.crop_size}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"--batch-size {recipe.batch_size}: more than the memory of {device} holds; "
                        f"--accumulate {2 * recipe.accumulate} needs less for the same step") from error
    except torch._dynamo.exc.TorchDynamoException as error:
        reason, _, _ = str(error).partition("\n\n")  # the rest is advice to PyTorch's own developers
        raise UserError(f"--compile is not possible here, leave it out: {reason}") from error
    except RuntimeError as error:
        if not device.startswith("mps"):
            raise
        raise UserError(f"--device {device} cannot do all this network needs, --device cpu can: {error}") from error


def autocast_for(device, precision):
    """The context for forward passes in one of PRECISIONS."""
    kind = torch.device(device).type
    return torch.autocast(kind, getattr(torch, precision), enabled=precision != "float32")


def rehearse(model, samples, recipe, device="cpu", precision="float32", compile=False):
    """One forward pass that leaves no trace. Raises UserError for a flag that does not go with this network, for
    too little memory and for unreadable data, before anything is written."""
    model.to(device, memory_format=torch.channels_last).train()
    buffers = [buffer.clone() for buffer in model.buffers()]  # BatchNorm counts every pass
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    images = torch.stack([samples[n][0] for n in range(recipe.batch_size // world // recipe.accumulate)])
    with name_the_flag(recipe, device), autocast_for(device, precision):
        network = torch.compile(model) if compile else model
        network(normalise(images, device).contiguous(memory_format=torch.channels_last))
    for buffer, before in zip(model.buffers(), buffers):
        buffer.copy_(before)


def add_gradients(network, model, images, label, recipe, autocast, scaler):
    """Add the gradients of the loss of a batch to those of the parameters; the batch is computed in
    `recipe.accumulate` parts, one after another, that share no memory. Returns the loss.

    network: model, or what compiles or distributes it. images: [B, 3, H, W], label: int64 [B, H, W].
    """
    parts, total = recipe.accumulate, 0.0
    mean = functools.partial(cross_entropy, batch=label) if parts > 1 else cross_entropy
    for part, (x, y) in enumerate(zip(images.chunk(parts), label.chunk(parts), strict=True), 1):
        # Processes exchange their gradients once, with the last part.
        alone = part < parts and torch.distributed.is_initialized()
        with network.no_sync() if alone else contextlib.nullcontext():
            with autocast:
                outputs = network(x)
            loss = segmentation_loss(model, outputs, y, recipe.aux_weight, mean) / parts
            scaler.scale(loss).backward()
        total += loss.item()
    return total


def over_processes(number, operation, device):
    """A number reduced by "SUM" or "MAX" over all processes: they must decide alike, or one waits for ever."""
    if not torch.distributed.is_initialized():
        return number
    number = torch.tensor(number, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(number, getattr(torch.distributed.ReduceOp, operation))
    return number.item()


class Stop:
    """Turns the first Ctrl-C or SIGTERM into a request to finish the step; the second one acts at once."""

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self.before = {}
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.request)
        return self

    def request(self, number, frame):
        self.signal = number
        signal.signal(number, self.before[number])

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(model, train_set, val_set, recipe, config, out, augment, *, seed=0, device="cpu", precision="float32",
          workers=0, compile=False, resume=None, rank=0, world=1):
    """Train `model` and leave last.pt, best.pt, log.csv, curves.png and predictions.png in the folder `out`.

    augment(image, label, generator) -> (image, label) of one size. config: what rebuilds the network, stored in
    the checkpoints. resume: the content of a last.pt. Returns the ConfusionMatrix of the best state on `val_set`,
    or the number of the signal that ended the run early. Raises UserError at the first loss that is not finite.
    """
    out, protocol = Path(out), Protocol(scales=(recipe.test_scale,))
    model.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(model, recipe)
    step, best, log, running, curve = 0, -1.0, [], [0.0, 0], []  # curve: every loss, for the picture
    if resume:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        step, best, log = resume["step"], resume["best"], resume["log"]
        running, curve = resume["running"], resume["curve"]

    network = model
    if world > 1:
        if device.startswith("cuda"):
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # About 1x1 kernels, whose memory layout is ambiguous: harmless.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        network = torch.nn.parallel.DistributedDataParallel(network)
    if compile:
        network = torch.compile(network)
    autocast = autocast_for(device, precision)
    # float16 has no room for small gradients: the loss is scaled up and the gradients back.
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=precision == "float16")
    if resume and scaler.is_enabled():
        scaler.load_state_dict(resume["scaler"])

    def save(name):
        if rank == 0:
            checkpoint.save(out / name, {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "best": best,
                "log": log, "running": running, "curve": curve, "config": config, "recipe": asdict(recipe),
                "scaler": scaler.state_dict(),
            })

    def score():
        """Evaluate, add a row to the log, draw, keep the state if it is the best so far."""
        nonlocal best, running
        if world > 1:  # without SyncBatchNorm every process has statistics of its own; the first one's are saved
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        matrix, samples = evaluate(model, val_set, len(val_set.classes), protocol, device, rank, world, keep=4)
        model.train()
        log.append({
            "step": step, "loss": running[0] / max(1, running[1]), "miou": matrix.miou,
            "pixel_accuracy": matrix.pixel_accuracy, "lr": recipe.lr * learning_rate_factor(step - 1, recipe),
        })
        running = [0.0, 0]
        improved = not matrix.miou <= best
        best = matrix.miou if improved else best
        if rank == 0:
            draw_log(out, log, curve)
            pictures.save_png(out / "predictions.png", pictures.predictions(samples, val_set.classes, val_set.palette))
        if improved:
            save("best.pt")
        save("last.pt")  # last: a run killed before this line does all of the above again

    samples = TrainingSamples(train_set, augment, seed)
    if rank == 0:
        for name in FILES:  # left by a process that was killed while it wrote
            (out / f"{name}.part").unlink(missing_ok=True)
    if not resume:
        save("last.pt")  # a run can be resumed from its first second on
    model.train()
    started, first = time.monotonic(), step
    bar = tqdm(total=recipe.steps, initial=step, unit="step", desc=config["paper"], disable=rank > 0)
    with bar, Stop() as stop:
        for images, label in batches(samples, step, recipe.steps, recipe.batch_size, workers, rank, world):
            torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))  # for dropout
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * group["factor"] * learning_rate_factor(step, recipe)
            x = normalise(images, device).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            with name_the_flag(recipe, device):
                value = add_gradients(network, model, x, label.to(device, torch.int64), recipe, autocast, scaler)
            value = over_processes(value, "SUM", device) / world
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm or math.inf).item()
            # With a loss scale infinite gradients are part of the game: the step is skipped, the scale lowered.
            if not math.isfinite(value) or not (scaler.is_enabled() or math.isfinite(norm)):
                raise UserError(
                    f"the loss became {value}, the norm of its gradient {norm}, in step {step}; nothing was learned "
                    f"from it, and {out / 'last.pt'} holds the last good state. A smaller --lr than {recipe.lr:g} is "
                    "the usual cure"
                )
            scaler.step(optimizer)
            scaler.update()
            step += 1
            running = [running[0] + value, running[1] + 1]
            curve.append(value)
            bar.update()
            rate = (step - first) * recipe.batch_size / (time.monotonic() - started)
            miou = f"{best:.1%}" if best >= 0 else "-"
            bar.set_postfix_str(f"loss {value:.3f}, mIoU {miou}, {rate:.0f} images/s", refresh=False)
            if step % recipe.eval_every == 0 or step == recipe.steps:
                score()
            stopped = int(over_processes(stop.signal or 0, "MAX", device))
            if stopped and step < recipe.steps:
                save("last.pt")
                return stopped

    if world > 1:
        torch.distributed.barrier()  # the first process may still be writing
    model.load_state_dict(checkpoint.load(out / "best.pt")["model"])
    matrix, _ = evaluate(model, val_set, len(val_set.classes), protocol, device, rank, world)
    return matrix


def draw_log(out, log, curve):
    """Write the rows as log.csv, and them and the losses (means over stretches of the run) as curves.png."""
    text = io.StringIO()
    writer = csv.DictWriter(text, log[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in log)
    checkpoint.write_atomically(out / "log.csv", lambda file: file.write(text.getvalue().encode()))
    stretch = -(-len(curve) // 60)
    ends = range(stretch, len(curve) + 1, stretch)
    means = [sum(curve[end - stretch : end]) / stretch for end in ends]
    steps = [row["step"] for row in log]
    panels = [
        ("training loss", [("", list(ends), means)]),
        ("validation", [(name, steps, [row[key] for row in log])
                        for name, key in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"))]),
    ]
    pictures.save_png(out / "curves.png", pictures.curves(panels))
