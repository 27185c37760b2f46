"""What the loop promises about every epoch, step, evaluation and checkpoint, with networks of one
layer: each test takes a moment."""

import contextlib
import dataclasses
import functools
import math
import os
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import checkpoint, guard, loop, losses, processes
from common.errors import UserError
from common.inference import evaluate, normalise
from common.metrics import ConfusionMatrix
from common.recipe import Recipe, learning_rate_factor
from common.stop import Stop
from datasets.stream import TrainingSamples, batches
from papers.rehearsal import rehearse
from papers.runs import open_run


class Noise:
    """`count` noisy images with noisy labels of three classes, some ignored."""

    classes = ("a", "b", "c")

    def __init__(self, count=7, side=32):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, 3, (self.side, self.side)).astype(np.uint8)
        label[: index + 1] = 255
        return rng.integers(0, 256, (self.side, self.side, 3)).astype(np.uint8), label


class Layer(nn.Module):
    """Two heads of one layer, which note what they see: sizes, the mode, the dropout."""

    def __init__(self, dropout=0.0, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.out, self.aux = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.dropout, self.scale, self.seen = dropout, scale, []

    def forward(self, images):
        mask = F.dropout(torch.ones(64), self.dropout, self.training)
        self.seen.append((tuple(images.shape), self.training, mask.tolist()))
        return {"out": self.scale * mask.mean() * self.out(images), "aux": self.aux(images)}


def as_it_is(image, label, rng):
    return image, label


def train(out, model=None, resume=None, seed=0, precision="float32", break_at=None, **changes):
    """Train by the loop; returns last.pt. break_at: the step before which the data end, as if
    the run had been interrupted there."""
    settings = dict(steps=4, batch_size=4, crop_size=32, eval_every=2, optimizer="sgd", lr=0.1,
                    weight_decay=0.0, schedule="poly")
    recipe = Recipe(**{**settings, **changes})
    model = model or Layer()
    samples = TrainingSamples(Noise(), as_it_is, seed)

    @contextlib.contextmanager
    def feed(step):
        with batches(samples, step, recipe.steps, recipe.batch_size) as found:
            yield (found if break_at is None
                   else (batch for _, batch in zip(range(step, break_at), found)))

    out.mkdir(exist_ok=True)
    resume = checkpoint.load(out / "last.pt") if resume else None
    loop.train(model, feed, Noise(2), recipe, {"paper": "layer"}, out, seed=seed,
               precision=precision, resume=resume)
    return checkpoint.load(out / "last.pt")


def scripted(monkeypatch, *scores):
    """Evaluations give these mIoUs, one after another, the last one again and again."""
    rest = list(scores)

    def evaluation(*arguments, **options):
        miou = rest.pop(0) if len(rest) > 1 else rest[0]
        return types.SimpleNamespace(miou=miou, pixel_accuracy=miou / 2), []

    monkeypatch.setattr(loop, "evaluate", evaluation)


# ----------------------------------------------------------------------------- epochs of the data


def test_order_and_augmentation_are_drawn_anew_in_every_epoch():
    """Images are their own numbers; the augmentation notes its first random number."""
    numbers = [(np.full((1, 1, 3), n, np.uint8), np.zeros((1, 1), np.uint8)) for n in range(10)]

    def samples(seed):
        stream = TrainingSamples(numbers, lambda i, l, rng: (i, np.full((1, 1), rng.random())),
                                 seed)
        found = [stream[n] for n in range(30)]
        order = np.array([int(image[0, 0, 0]) for image, _ in found]).reshape(3, 10)
        drawn = np.array([label.item() for _, label in found]).reshape(3, 10)
        return order, np.take_along_axis(drawn, order.argsort(1), 1)

    order, drawn = samples(0)
    assert (np.sort(order) == np.arange(10)).all() and len(np.unique(drawn)) == 30
    assert len({tuple(row) for row in order}) == 3 and (order[0] != np.arange(10)).any()
    again, other = samples(0), samples(1)
    assert np.array_equal(order, again[0]) and np.array_equal(drawn, again[1])
    assert (order != other[0]).any() and not np.isin(other[1], drawn).any()


def test_batches_go_on_where_they_are_asked_to(monkeypatch):
    """From any step, and for every process the next slice of the batch."""
    samples = TrainingSamples(Noise(), as_it_is, 0)

    def images(first, rank=0, world=1):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "count", lambda: world)
        with batches(samples, first, 4, 4) as found:
            return [images for images, _ in found]

    whole = images(0)
    assert len(whole) == 4 and len({batch.numpy().tobytes() for batch in whole}) == 4
    assert torch.equal(torch.stack(images(2)), torch.stack(whole[2:]))
    for batch, *parts in zip(whole, images(0, 0, 2), images(0, 1, 2), strict=True):
        assert torch.equal(batch, torch.cat(parts))


def test_images_from_files_may_be_written_to():
    image, label = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
    x, y = TrainingSamples([(image, label)], as_it_is, 0)[0]
    x += 1
    y += 1
    assert not image.any() and not label.any()


# ------------------------------------------------------------------------------------------ a step


def by_hand(steps, recipe):
    """The weights after some steps of SGD with momentum, without the loop."""
    model, samples = Layer(), TrainingSamples(Noise(), as_it_is, 0)
    speed = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(steps):
        images, label = zip(*(samples[n] for n in range(4 * step, 4 * step + 4)))
        outputs, y = model(normalise(torch.stack(images))), torch.stack(label).long()
        loss = (F.cross_entropy(outputs["out"], y, ignore_index=255)
                + recipe.aux_weight * F.cross_entropy(outputs["aux"], y, ignore_index=255))
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        rate = recipe.lr * learning_rate_factor(step, recipe)
        with torch.no_grad():
            for p, v, gradient in zip(model.parameters(), speed, gradients):
                v.mul_(recipe.momentum).add_(gradient)
                p.sub_(rate * v)
    return model.state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_by_hand(tmp_path, accumulate):
    """Normalised images, the recipe's rate in each step, its weight of the auxiliary loss,
    momentum, gradients of this step only, however many parts compute them."""
    changes = dict(steps=4, aux_weight=0.7, momentum=0.8, lr=0.5, schedule="poly")
    state = train(tmp_path, accumulate=accumulate, **changes)
    for name, value in by_hand(4, Recipe(**changes)).items():
        assert torch.allclose(state["model"][name], value, atol=1e-5), name


@pytest.mark.parametrize("precision,clip,scale", [
    ("float32", 0.0, 30.0), ("float32", 0.01, 30.0), ("float16", 0.01, 0.3)])
def test_clipping_happens_where_the_recipe_says_so(tmp_path, precision, clip, scale):
    """With rate 1 the weights move by the gradient: by the norm it is clipped to, or far more."""
    model = Layer(scale=scale)
    before = [p.detach().clone() for p in model.parameters()]
    state = train(tmp_path, model, steps=1, lr=1.0, momentum=0.0, clip_norm=clip,
                  schedule="constant", precision=precision)
    after = [state["model"][name] for name, _ in model.named_parameters()]
    moved = math.sqrt(sum((a - b).square().sum().item() for a, b in zip(before, after)))
    assert moved == pytest.approx(clip, rel=1e-3) if clip else moved > 2


def masks(model):
    return [tuple(mask) for _, training, mask in model.seen if training]


def test_dropout_is_drawn_anew_in_every_step_and_again_after_a_resume(tmp_path, monkeypatch):
    whole, first, second, other = (Layer(dropout=0.5) for _ in range(4))
    train(tmp_path / "whole", whole)
    train(tmp_path / "parts", first, break_at=2)
    torch.manual_seed(7)  # another process
    train(tmp_path / "parts", second, resume=True)
    assert len(set(masks(whole))) == 4
    assert masks(first) + masks(second) == masks(whole)
    train(tmp_path / "other", other, seed=1)
    assert not set(masks(other)) & set(masks(whole))
    states = []
    for rank in range(2):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        processes.seed_step(0, 3)
        states.append(torch.rand(3).tolist())
    assert states[0] != states[1]


def test_loss_of_several_processes_is_the_mean_over_all_their_pixels(monkeypatch):
    """As if a second process had the same batch: gradients, which are averaged, stay the same."""
    scores, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[0, :2] = 255
    alone = F.cross_entropy(scores, label, ignore_index=255)
    assert torch.allclose(losses.cross_entropy(scores, label), alone)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "agree", lambda value: 2 * value)
    assert torch.allclose(losses.cross_entropy(scores, label), alone)
    assert losses.cross_entropy(scores, torch.full_like(label, 255)) == 0


def test_processes_add_up_or_take_the_largest(monkeypatch):
    """As if another process had brought 7: tensors in place, numbers as numbers."""
    def reduce(tensor, operation):
        largest = operation == processes.distributed.ReduceOp.MAX
        tensor.copy_(tensor.clamp(min=7) if largest else tensor + 7)

    assert processes.agree(2) == 2
    monkeypatch.setattr(processes.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.distributed, "all_reduce", reduce)
    assert processes.agree(2) == 9 and processes.agree(2, "MAX") == 7
    assert processes.agree(15.0, "MAX") == 15
    tensor = torch.tensor(1)
    assert processes.agree(tensor) is tensor and tensor == 8


def meet(monkeypatch, signal=0, loss=lambda own: own):
    """A second process, which has the same batch, has caught `signal` and found loss(ours)."""
    def agree(value, operation="SUM", device=None):
        if operation == "MAX":
            return max(value, signal)
        return value + (loss(value) if isinstance(value, float) else value)

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "agree", agree)


def test_the_signal_of_another_process_ends_this_one(tmp_path, monkeypatch):
    """Or it would wait for the other's gradients for ever."""
    meet(monkeypatch, signal=15)
    assert train(tmp_path)["step"] == 1


def test_the_loss_of_another_process_counts(tmp_path, monkeypatch):
    meet(monkeypatch)
    same = train(tmp_path / "same")["curve"]
    meet(monkeypatch, loss=lambda own: own + 2)
    assert train(tmp_path / "other")["curve"] == pytest.approx([loss + 1 for loss in same])
    meet(monkeypatch, loss=lambda own: math.nan)
    with pytest.raises(UserError, match="the loss became nan, .* in step 0;"):
        train(tmp_path / "bad")


# -------------------------------------------------------------------------------------- evaluation


def test_scored_in_evaluation_mode_and_trained_in_training_mode(tmp_path):
    """Two steps, two images of Noise(2), two steps, two images, and the best state once more."""
    model = Layer(dropout=0.5)
    train(tmp_path, model)
    assert [training for _, training, _ in model.seen] == (
        [True, True, False, False] * 2 + [False, False])
    model = Layer()
    assert model.train().training and evaluate(model, Noise(3), 3)[0].counts.sum() > 0
    assert not any(training for _, training, _ in model.seen)


def test_the_validation_sees_what_the_network_was_trained_on(tmp_path):
    """test_scale 0.5: 80 pixels become 40, in training evaluations too."""
    model = Layer()
    recipe = Recipe(steps=1, batch_size=4, test_scale=0.5)
    feed = functools.partial(batches, TrainingSamples(Noise(), as_it_is, 0), steps=1, batch_size=4)
    loop.train(model, feed, Noise(1, side=80), recipe, {"paper": "layer"}, tmp_path)
    assert [shape[-2:] for shape, training, _ in model.seen if not training] == [(40, 40)] * 2


def test_the_last_step_is_evaluated(tmp_path):
    assert [row["step"] for row in train(tmp_path, steps=5)["log"]] == [2, 4, 5]


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_every_process_scores_its_share(monkeypatch, world):
    """Each image once, whatever the number of processes, and all counts add up."""
    whole, kept = evaluate(Layer(), Noise(7), 3, keep=4)
    assert len(kept) == 4 and np.array_equal(kept[3][0], Noise(7)[3][0])
    monkeypatch.setattr(processes, "count", lambda: world)
    monkeypatch.setattr(processes, "agree", lambda value: value)
    seen, total = [], ConfusionMatrix(3)
    for rank in range(world):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        total.merge(evaluate(Layer(), Noise(7), 3, save=lambda n, _: seen.append(n))[0])
    assert sorted(seen) == list(range(7)) and np.array_equal(total.counts, whole.counts)


def test_scores_do_not_depend_on_the_order_of_the_images():
    class Backwards(Noise):
        def __getitem__(self, index):
            return super().__getitem__(len(self) - 1 - index)

    one, other = (evaluate(Layer(), dataset(5), 3)[0].counts for dataset in (Noise, Backwards))
    assert np.array_equal(one, other)


def test_log_by_hand(tmp_path, monkeypatch):
    """Mean loss since the last row, the rate of the last step, the scores in their columns."""
    scripted(monkeypatch, 0.5, 0.25)
    state = train(tmp_path, lr=0.5)
    curve, recipe = state["curve"], Recipe(steps=4, lr=0.5, schedule="poly")
    for row, part, miou, step in zip(state["log"], (curve[:2], curve[2:]), (0.5, 0.25), (1, 3)):
        rate = 0.5 * learning_rate_factor(step, recipe)
        assert row == {"step": step + 1, "loss": pytest.approx(np.mean(part)), "miou": miou,
                       "pixel_accuracy": miou / 2, "lr": pytest.approx(rate)}


# ------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("scores,best", [
    ((0.3, 0.5, 0.4, 0.2), 4), ((0.5, 0.5, 0.5, 0.5), 2), ((0.1, 0.2, 0.3, 0.4), 8),
    ((0.5, 0.1, 0.2, 0.3), 2), ((0.0, 0.0, 0.1, 0.0), 6),
])
def test_only_a_better_state_replaces_the_best(tmp_path, monkeypatch, scores, best):
    """Four evaluations, steps 2 to 8; at the end the network is the best one, not the last."""
    scripted(monkeypatch, *scores)
    model = Layer()
    assert train(tmp_path, model, steps=8)["step"] == 8
    state = checkpoint.load(tmp_path / "best.pt")
    assert state["step"] == best and state["best"] == max(scores)
    assert all(torch.equal(state["model"][name], value) for name, value in
               model.state_dict().items())


@pytest.mark.parametrize("scores,best", [((0.5, 0.4), 2), ((0.5, 0.5), 2), ((0.4, 0.5), 4)])
def test_only_a_better_state_replaces_the_best_after_a_resume(tmp_path, monkeypatch, scores, best):
    scripted(monkeypatch, scores[0])
    train(tmp_path, break_at=2)
    scripted(monkeypatch, scores[1])
    train(tmp_path, resume=True)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == best


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_a_resume_restores(tmp_path, precision):
    whole = train(tmp_path / "whole", precision=precision)
    train(tmp_path / "parts", break_at=2, precision=precision)
    parts = train(tmp_path / "parts", resume=True, precision=precision)
    for name in ("curve", "log", "best", "step", "scaler"):
        assert parts[name] == whole[name], name
    for name, value in whole["model"].items():
        assert torch.equal(parts["model"][name], value)
    states = (state["optimizer"]["state"] for state in (whole, parts))
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])


def test_a_folder_with_any_file_of_a_run_is_not_touched(tmp_path):
    for name in ("best.pt", "log.csv", "config.json"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(UserError, match=f"already holds a run .*{name}"):
            open_run(tmp_path, False)
        (tmp_path / name).unlink()
    assert open_run(tmp_path, False) is None


def test_files_are_flushed_before_they_are_renamed(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append("flushed"))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("renamed"), replace(*paths)))
    checkpoint.write_atomically(tmp_path / "a", b"content")
    assert events == ["flushed", "renamed"] and (tmp_path / "a").read_bytes() == b"content"

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.write_atomically(tmp_path / "a", b"half")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"content")]


class Code:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_files_never_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, "code.pt")
    with pytest.raises(UserError, match="could run code"):
        checkpoint.load("code.pt")
    assert not os.path.exists("ran")


def test_a_folder_means_its_best_state_and_a_flipped_bit_is_noticed(tmp_path):
    train(tmp_path)
    best, last = (checkpoint.load_run(tmp_path / f"{name}.pt") for name in ("best", "last"))
    checkpoint.save(tmp_path / "best.pt", {**best, "step": 77})
    assert checkpoint.load_run(tmp_path)["step"] == 77 and last["step"] == 4
    content = bytearray((tmp_path / "best.pt").read_bytes())
    weights = best["model"]["aux.weight"].numpy().tobytes()
    content[content.index(weights) + 5] ^= 1
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(UserError, match="it is damaged"):
        checkpoint.load_run(tmp_path)


# --------------------------------------------------------------------------- mistakes and signals


def test_the_rehearsal_takes_one_part_of_a_batch_and_leaves_no_trace():
    """And one validation image, in evaluation mode."""
    model, seen = Layer(), []
    model.norm = nn.BatchNorm2d(3)
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append((len(module.norm(inputs[0])), module.training)))
    before = [b.clone() for b in model.buffers()]
    rehearse(model, TrainingSamples(Noise(), as_it_is, 0), Noise(),
             Recipe(batch_size=6, accumulate=3))
    assert seen == [(2, True), (1, False)]
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def test_losses_and_gradients_that_are_not_finite():
    """With a loss scale infinite gradients are part of the game; without one nothing is."""
    off, on = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True))
    run = types.SimpleNamespace(step=3, out=Path("run"), recipe=Recipe())
    guard.check_finite(1.0, 1.0, off, run)
    guard.check_finite(1.0, math.inf, on, run)
    for loss, norm, scaler in ((math.nan, 1.0, off), (1.0, math.inf, off), (math.inf, 1.0, on)):
        with pytest.raises(UserError, match="in step 3"):
            guard.check_finite(loss, norm, scaler, run)


def test_too_little_memory_proposes_twice_as_many_parts():
    recipe = dataclasses.replace(Recipe(), accumulate=2)
    with pytest.raises(UserError, match="--accumulate 4"), guard.name_the_flag(recipe, "cuda"):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_acts(number):
    class Acted(Exception):
        pass

    def act(*_):
        raise Acted

    before = signal.signal(number, act)
    try:
        with Stop() as stop:
            assert stop.requested("cpu") == 0
            os.kill(os.getpid(), number)
            assert stop.requested("cpu") == number
            with pytest.raises(Acted):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is act
        with Stop():
            pass
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)
