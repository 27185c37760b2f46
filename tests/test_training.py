"""The loop: the same bits whatever the workers and interruptions, and nothing lost when something
goes wrong."""

import contextlib
import errno
import functools
import math
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import checkpoint, guard, loop, losses, processes, stop
from common import recipe as recipes
from common.errors import UserError
from common.inference import normalise
from common.recipe import Recipe
from datasets import pictures, stream
from datasets.shapes import Shapes
from datasets.stream import TrainingSamples, batches
from datasets.transforms import augment
from papers.pysa.model import build
from papers.rehearsal import rehearse
from tests import crash
from tests.crash import differences


class Few(Shapes):
    """Scenes of 64 x 64 pixels, a dozen of them, so that epochs end inside a run."""

    def __init__(self, split):
        super().__init__(split, height=64, width=64)

    def __len__(self):
        return 10 if self.split == "train" else 2


class Interrupted(Exception):
    pass


def run(out, steps=6, stop_after=None, resume=False, workers=0, precision="float32", compile=False,
        **changes):
    """Train a small network; the state of last.pt. stop_after: die without warning behind this
    step."""
    out.mkdir(exist_ok=True)
    recipe = Recipe(steps=steps, batch_size=4, crop_size=48, eval_every=2, scale=(0.8, 1.2),
                    colour=0.2)
    for name, value in changes.items():
        setattr(recipe, name, value)
    torch.manual_seed(0)
    model = build(12, channels=8)
    change = functools.partial(augment, crop=recipe.crop_size, scale=recipe.scale,
                               colour=recipe.colour)
    if stop_after is not None:
        steps_done = iter(range(10**6))
        step = torch.optim.AdamW.step

        def dying_step(self, *arguments):
            if next(steps_done) >= stop_after:
                raise Interrupted
            return step(self, *arguments)

        torch.optim.AdamW.step = dying_step
    try:
        samples = TrainingSamples(Few("train"), change, 0)
        feed = functools.partial(batches, samples, steps=steps, batch_size=4, workers=workers)
        val_set = Few("val")
        loop.train(
            model, feed, val_set, recipe, {"paper": "pysa"}, out, precision=precision,
            compile=compile, resume=checkpoint.load(out / "last.pt") if resume else None,
            draw=functools.partial(pictures.draw_run, out, val_set.classes, val_set.palette),
        )
    except Interrupted:
        pass
    finally:
        if stop_after is not None:
            torch.optim.AdamW.step = step
    return checkpoint.load(out / "last.pt")


def same(a, b):
    """Bit-identical, all the way down."""
    assert differences(a, b) == []


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return run(folder), folder


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_matter(reference, tmp_path, workers):
    same(reference[0], run(tmp_path, workers=workers))


@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
def test_resume_is_bit_identical(reference, tmp_path, stop_after):
    before = run(tmp_path, stop_after=stop_after)
    assert before["step"] <= stop_after
    same(reference[0], run(tmp_path, resume=True))
    for name in ("best.pt", "log.csv", "loss.csv", "curves.png", "predictions.png"):
        assert (tmp_path / name).read_bytes() == (reference[1]
                                                  / name).read_bytes() or name.endswith(".pt")
    same(checkpoint.load(reference[1] / "best.pt"), checkpoint.load(tmp_path / "best.pt"))


def test_spawned_workers_make_the_same_batches(monkeypatch):
    """Workers of a platform without fork get everything by pickle."""
    change = functools.partial(augment, crop=48, scale=(0.8, 1.2), colour=0.2)
    samples = TrainingSamples(Few("train"), change, 0)
    spawning = functools.partial(stream.DataLoader, multiprocessing_context="spawn")
    with batches(samples, 1, 4, 4, 0) as here:
        wanted = list(here)
    monkeypatch.setattr(stream, "DataLoader", spawning)
    with batches(samples, 1, 4, 4, 1) as there:
        for one, other in zip(there, wanted, strict=True):
            same(one, other)


def test_seed_matters(reference, tmp_path):
    samples = [TrainingSamples(Few("train"), lambda i, l, rng: (i, l), seed) for seed in (0, 0, 1)]
    assert torch.equal(samples[0][13][0], samples[1][13][0])
    assert not all(torch.equal(samples[0][n][0], samples[2][n][0]) for n in range(10))
    epoch = {samples[0][n][0].numpy().tobytes() for n in range(10, 20)}
    assert len(epoch) == 10  # every scene exactly once per epoch


def test_several_processes_share_every_batch(monkeypatch):
    samples = TrainingSamples(Few("train"), lambda i, l, rng: (i, l), 0)

    def images(rank, world):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "count", lambda: world)
        with batches(samples, 1, 3, 4) as here:
            return [images for images, _ in here]

    for batch, first, second in zip(images(0, 1), images(0, 2), images(1, 2), strict=True):
        assert torch.equal(batch, torch.cat([first, second]))


@pytest.mark.parametrize("names", [("SIGINT", "SIGTERM", "SIGHUP"), ("SIGINT",)])
def test_signal_finishes_the_step_and_saves(tmp_path, monkeypatch, names):
    """Ctrl-C during step 3 of 6: the checkpoint holds step 3, and resuming gives the same bits.
    Also where a system has no other signals."""
    monkeypatch.setattr(stop, "SIGNALS", [getattr(signal, name) for name in names
                                          if hasattr(signal, name)])
    step, count, before = torch.optim.AdamW.step, iter(range(1, 100)), signal.getsignal(
        signal.SIGINT)

    def interrupt(self, *arguments):
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *arguments)

    torch.optim.AdamW.step = interrupt
    try:
        assert run(tmp_path)["step"] == 3
    finally:
        torch.optim.AdamW.step = step
    # not always Python's own: shells start background jobs without it
    assert signal.getsignal(signal.SIGINT) is before
    (tmp_path / "whole").mkdir()
    same(run(tmp_path, resume=True), run(tmp_path / "whole"))


def test_kill_and_resume_through_the_program(tmp_path):
    """The short form of `make crash`: kill -9 three times, twice in the middle of a file, to the
    same bits."""
    found, hit = crash.kill_and_resume(tmp_path, kills=3)
    assert found == [] and hit >= 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send")
@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_program_gently(tmp_path, number, code):
    """Sent to the whole process group, loader workers included, as terminals and schedulers do."""
    crash.make_data(tmp_path / "data")
    process = crash.start(tmp_path / "data", tmp_path / "run", 10**6, "--workers", 1,
                          process_group=0)
    crash.wait_for(process, lambda: crash.step_of(tmp_path / "run") > 0, pause=0.05)
    os.killpg(process.pid, number)
    _, error = process.communicate()
    assert process.returncode == code, error.decode()
    last_line = error.decode().replace("\r", "\n").splitlines()[-1]
    assert ("the same command with --resume goes on from" in last_line
            and str(tmp_path / "run" / "last.pt") in last_line)
    steps = crash.step_of(tmp_path / "run")
    assert len(checkpoint.load_run(tmp_path / "run" / "last.pt")["curve"]) == steps
    assert (tmp_path / "run" / "loss.csv").read_text().count("\n") == 1 + steps


def test_a_full_disk_loses_nothing(reference, tmp_path, monkeypatch):
    """The disk is full in the middle of the run: one line, the last good checkpoint stays, resuming
    goes on."""
    with monkeypatch.context() as patch:
        writes = iter(range(100))

        def fsync(number):
            if next(writes) >= 7:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError,
                           match="No space left on device; what was there before is untouched"):
            run(tmp_path)
    assert checkpoint.load_run(tmp_path / "last.pt")["step"] == 2
    assert not list(tmp_path.glob("*.part"))
    same(reference[0], run(tmp_path, resume=True))


def test_half_written_files_are_swept(reference, tmp_path):
    (tmp_path / "best.pt.part").write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"a file of the user's")
    run(tmp_path, stop_after=0)
    assert [path.name for path in tmp_path.glob("*.part")] == ["mine.part"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="the loss became .* in step .* holds the last good state"):
        run(tmp_path, lr=1e30, optimizer="sgd", schedule="constant")
    state = checkpoint.load(tmp_path / "last.pt")
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_gradient_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    """The loss alone does not tell: the step that poisons the weights may be the one before a
    checkpoint."""
    def poisoned(model, *rest):
        value = add(model, *rest)
        if value < 3.3:
            next(model.parameters()).grad[0] = float("inf")
        return value

    add = loop.add_gradients
    monkeypatch.setattr(loop, "add_gradients", poisoned)
    with pytest.raises(UserError, match="the norm of its gradient (inf|nan), in step"):
        run(tmp_path)
    assert all(torch.isfinite(value).all()
               for value in checkpoint.load(tmp_path / "last.pt")["model"].values())


# ------------------------------------------------------------------------ loss, schedule, optimiser


def test_everything_ignored_is_loss_zero():
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = losses.cross_entropy(scores, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and scores.grad.abs().max() == 0


def test_loss_is_the_mean_over_valid_pixels():
    scores, label = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    label[0, :2] = 255
    assert torch.allclose(losses.cross_entropy(scores, label),
                          F.cross_entropy(scores, label, ignore_index=255))


def test_auxiliary_loss_and_own_loss():
    scores, label = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    plain = losses.cross_entropy(scores, label)
    both = losses.segmentation_loss(torch.nn.Identity(), {"out": scores, "aux": 2 * scores}, label,
                                    0.4)
    assert torch.allclose(both, plain + 0.4 * losses.cross_entropy(2 * scores, label))

    class Own(torch.nn.Module):
        def loss(self, outputs, label, cross_entropy):
            return 3 * cross_entropy(outputs["out"], label)

    assert torch.allclose(losses.segmentation_loss(Own(), {"out": scores}, label, 0.4), 3 * plain)


class Toy(torch.nn.Module):
    """A network without BatchNorm, in float64; with an auxiliary head."""

    def __init__(self):
        super().__init__()
        self.conv, self.aux = (torch.nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
                               for _ in range(2))

    def forward(self, images):
        return {"out": self.conv(images), "aux": self.aux(images)}


class OwnLoss(Toy):
    def loss(self, outputs, label, cross_entropy):
        return cross_entropy(outputs["out"],
                             label) + 0.3 * cross_entropy(outputs["aux"] ** 2, label)


@pytest.mark.parametrize("kind", [Toy, OwnLoss])
def test_accumulated_gradients_are_those_of_the_whole_batch(kind):
    """Also where the parts have very different numbers of valid pixels, one of them none."""
    images = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    label = torch.randint(0, 4, (8, 6, 6))
    label[:3, :, 1:] = 255
    label[4:6] = 255
    torch.manual_seed(0)
    model = kind()
    off = torch.amp.GradScaler("cpu", enabled=False)
    results = []
    for parts in (1, 2, 4, 8):
        model.zero_grad()
        value = loop.add_gradients(
            model, model, images, label, Recipe(accumulate=parts), contextlib.nullcontext(), off)
        results.append([torch.tensor(value), *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_accumulation_through_the_loop(tmp_path):
    """Same samples; BatchNorm sees the parts, so the weights differ, but not by much. Resuming is
    exact."""
    whole, parts = run(tmp_path / "whole", steps=4), run(tmp_path / "parts", steps=4, accumulate=2)
    assert (whole["curve"] != parts["curve"]
            and np.allclose(whole["curve"], parts["curve"], rtol=0.1))
    run(tmp_path / "resumed", steps=4, accumulate=2, stop_after=3)
    same(parts, run(tmp_path / "resumed", steps=4, accumulate=2, resume=True))


def test_a_loss_at_fewer_pixels_is_not_accumulated():
    scores, label = torch.randn(1, 3, 2, 2), torch.randint(0, 3, (2, 4, 4))
    with pytest.raises(UserError, match="--accumulate"):
        losses.cross_entropy(scores, label[:1, ::2, ::2], batch=label)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_the_same_and_resumes_exactly(reference, tmp_path, precision):
    """float16 with its loss scale; the program allows it on CUDA only, where it is quick, but it
    works here too."""
    state = run(tmp_path / "whole", steps=3, precision=precision)
    assert state["curve"][0] != reference[0]["curve"][0]
    assert state["curve"][0] == pytest.approx(reference[0]["curve"][0], rel=0.01)
    assert all(v.dtype in (torch.float32, torch.int64) for v in state["model"].values())
    assert bool(state["scaler"]) == (precision == "float16")
    run(tmp_path / "killed", steps=3, precision=precision, stop_after=2)
    same(state, run(tmp_path / "killed", steps=3, precision=precision, resume=True))


def test_a_compiler_that_is_missing_is_one_line():
    def backend(graph, inputs):
        raise RuntimeError("no working C++ compiler found")

    network = torch.compile(torch.nn.Conv2d(3, 3, 1), backend=backend)
    with pytest.raises(UserError) as error, guard.name_the_flag(Recipe(), "cpu"):
        network(torch.zeros(1, 3, 4, 4))
    line = " ".join(str(error.value).split())
    assert (line.startswith("--compile is not possible here, leave it out: ")
            and line.endswith("C++ compiler found"))


def test_compiled_training_is_the_same_training(reference, tmp_path, monkeypatch):
    """The graph is captured as for a compiler, but run by PyTorch itself: no C++ compiler is
    needed."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    state = run(tmp_path, compile=True)
    assert np.allclose(state["curve"], reference[0]["curve"], rtol=1e-4)
    assert state["model"].keys() == reference[0]["model"].keys()
    torch._dynamo.reset()


def test_the_rehearsal_leaves_no_trace():
    torch.manual_seed(0)
    model = build(12, channels=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    samples = TrainingSamples(Few("train"), functools.partial(augment, crop=48), 0)
    rehearse(model, samples, Few("val"), Recipe(batch_size=2, crop_size=48))
    same(before, dict(model.state_dict()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_too_little_memory_names_the_flag():
    with pytest.raises(UserError, match="--accumulate 2"), guard.name_the_flag(Recipe(), "cuda"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(UserError,
                       match="--device mps .* --device cpu"), guard.name_the_flag(Recipe(), "mps"):
        raise NotImplementedError("aten::something is not implemented for MPS")
    with pytest.raises(RuntimeError, match="a bug"), guard.name_the_flag(Recipe(), "cpu"):
        raise RuntimeError("a bug")


def factors(**changes):
    recipe = Recipe(steps=100, **changes)
    return [recipes.learning_rate_factor(step, recipe) for step in range(100)]


def test_schedules():
    poly = factors(schedule="poly", power=0.9)
    assert (poly[0] == 1 and poly[50] == pytest.approx(0.5**0.9)
            and poly[99] == pytest.approx(0.01**0.9))
    warm = factors(schedule="poly", power=1.0, warmup_steps=10)
    # The decay begins where the warm-up ends: 90 steps from 1 towards 0.
    assert warm[0] == pytest.approx(0.1) and warm[9] == warm[10] == 1
    assert warm[60] == pytest.approx(40 / 90) and warm[99] == pytest.approx(1 / 90)
    assert factors(schedule="cosine", warmup_steps=10)[55] == pytest.approx(0.5)
    assert factors(schedule="poly", warmup_steps=100)[-1] == 1  # nothing is left to decay in
    cosine = factors(schedule="cosine")
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and 0 < cosine[99] < 0.001
    cycle = factors(schedule="one-cycle")
    assert (cycle[0] == pytest.approx(0.04) and max(cycle) == cycle[30] == 1
            and 0 < cycle[99] < 0.001)
    assert set(factors(schedule="constant")) == {1.0}


def test_one_cycle_is_pytorchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101,
                                                 pct_start=0.31, div_factor=25)
    wanted = []
    for _ in range(100):
        wanted.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert np.abs(np.array(wanted) - factors(schedule="one-cycle")).max() < 0.03


def test_parameter_groups():
    model = build(3, channels=8)
    recipe = Recipe(optimizer="sgd", head_lr=10.0, weight_decay=0.1, no_decay=("bn", "bias"))
    optimizer = recipes.make_optimizer(model, recipe)
    found = {(g["factor"], g["weight_decay"]): sum(p.numel() for p in g["params"])
             for g in optimizer.param_groups}
    backbone = dict(model.backbone.named_parameters())
    undecayed = sum(p.numel() for n, p in backbone.items() if "bn" in n or "bias" in n)
    assert found[1.0, 0.0] == undecayed
    assert found[1.0, 0.1] == sum(p.numel() for p in backbone.values()) - undecayed
    assert sum(found.values()) == sum(p.numel() for p in model.parameters()) and set(found) == {
        (1.0, 0.1), (1.0, 0.0), (10.0, 0.1), (10.0, 0.0)}


def test_one_step_is_the_optimisers(tmp_path):
    """One step of SGD through the loop moves the weights by exactly -lr * gradient (decay and
    momentum off)."""
    state = run(tmp_path, steps=1, optimizer="sgd", schedule="constant", momentum=0.0,
                weight_decay=0.0, lr=0.5)
    torch.manual_seed(0)
    model = build(12, channels=8).train().to(memory_format=torch.channels_last)
    change = functools.partial(augment, crop=48, scale=(0.8, 1.2), colour=0.2)
    with batches(TrainingSamples(Few("train"), change, 0), 0, 1, 4) as here:
        images, label = next(here)
    torch.manual_seed(int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]))
    outputs = model(normalise(images).contiguous(memory_format=torch.channels_last))
    losses.segmentation_loss(model, outputs, label.long(), 0.4).backward()
    weight = model.head.classifier.weight
    assert torch.allclose(state["model"]["head.classifier.weight"], weight - 0.5 * weight.grad,
                          atol=1e-6)


# ------------------------------------------------------------------------------------ checkpoints


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"x": torch.ones(3)})

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError,
                       match="No space left on device; what was there before is untouched"):
        checkpoint.write_atomically(path, b"half")
    assert torch.equal(checkpoint.load(path)["x"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


class Evil:
    def __reduce__(self):
        return (os.system, ("echo pwned > pwned",))


@pytest.mark.parametrize("content,message", [
    (b"", "damaged"), (b"hello, this is text", "damaged"),
    (pickle.dumps(Evil(), protocol=2), "cannot load"),
    (None, "no such file"),
])
def test_broken_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "broken.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load(path)
    assert str(path) in str(error.value) and not (tmp_path / "pwned").exists()


def test_objects_in_a_checkpoint_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pt")
    with pytest.raises(UserError, match="could run code"):
        checkpoint.load("evil.pt")
    assert not Path("pwned").exists()


def test_truncated_checkpoints(tmp_path):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"x": torch.randn(1000)})
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 12):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot load"):
            checkpoint.load(path)


def test_step_zero_can_be_resumed(tmp_path):
    assert run(tmp_path, stop_after=0)["step"] == 0


def test_log_has_a_row_per_evaluation(reference):
    rows = (reference[1] / "log.csv").read_text().splitlines()
    assert (rows[0] == "step,loss,miou,pixel_accuracy,lr"
            and [r.split(",")[0] for r in rows[1:]] == ["2", "4", "6"])
    assert all(math.isfinite(float(cell)) for row in rows[1:] for cell in row.split(","))


def test_read_only_arrays_are_copied():
    """Arrays straight from an image file may not be written to, which PyTorch warns about if they
    are shared."""
    image, label = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    image.flags.writeable = label.flags.writeable = False
    x, y = TrainingSamples([(image, label)], lambda image, label, rng: (image, label), 0)[0]
    x += 1
    y += 1
    assert not image.any() and not label.any()
