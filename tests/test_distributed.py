"""Two processes compute what one computes: the same gradients, the same scores, every image once.

BatchNorm's statistics are those of a process's own share of the batch on the CPU (SyncBatchNorm,
which training uses on CUDA, exists there only), so gradients are compared with frozen statistics,
and whole runs on a network without it. UN-EPT's loss balances two of its terms within each share,
so its gradients differ and are left out here.
"""

import contextlib
import functools
import importlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import checkpoint, loop
from common.errors import UserError
from common.inference import evaluate
from common.recipe import Recipe
from datasets.shapes import Shapes
from datasets.stream import TrainingSamples, batches
from datasets.transforms import augment
from tests import crash

ROOT = Path(__file__).resolve().parent.parent
EXACT = [path.parent.name for path in sorted(ROOT.glob("papers/*/model.py"))
         if path.parent.name != "unept"]


class Few(Shapes):
    """Scenes of 64 x 64 pixels; an odd number to validate on."""

    def __init__(self, split):
        super().__init__(split, height=64, width=64)

    def __len__(self):
        return 10 if self.split == "train" else 5


class Toy(torch.nn.Module):
    """A network without BatchNorm. third: what happens to the scores of the third step."""

    def __init__(self, third=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.third, self.steps = torch.nn.Conv2d(3, 12, 5, padding=2), third, 0

    def forward(self, images):
        self.steps += self.training
        scores = self.conv(images)
        return {"out": self.third(scores) if self.third and self.steps == 3 else scores}


def become_nan(scores):
    return scores * float("nan")


def press_ctrl_c(scores):
    signal.raise_signal(signal.SIGINT)
    return scores


def train(out, world, model, resume=None):
    """A short run; its last.pt and what it wrote to stderr."""
    out.mkdir(exist_ok=True, parents=True)
    recipe = Recipe(steps=6, batch_size=4, crop_size=48, eval_every=2, lr=1e-2)
    change, bar = functools.partial(augment, crop=48), io.StringIO()
    with contextlib.redirect_stderr(bar):
        feed = functools.partial(
            batches, TrainingSamples(Few("train"), change, 0), steps=6, batch_size=4)
        loop.train(model, feed, Few("val"), recipe, {"paper": "toy"}, out, resume=resume)
    if world > 1:
        torch.distributed.barrier()  # the first process writes
    return checkpoint.load(out / "last.pt"), bar.getvalue()


def gradients(paper, rank, world, parts):
    """Gradients of one step on four images, of which the processes get unequal numbers of valid
    pixels."""
    torch.manual_seed(0)
    model = importlib.import_module(f"papers.{paper}.model").build(5).double().train()
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.Dropout, torch.nn.Dropout2d)):
            module.eval()
    torch.manual_seed(1)
    images, label = torch.randn(4, 3, 128, 128,
                                dtype=torch.float64), torch.randint(0, 5, (4, 128, 128))
    label[1:, 20:] = 255
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    network = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    off = torch.amp.GradScaler("cpu", enabled=False)
    loop.add_gradients(
        network, model, images[share], label[share], Recipe(accumulate=parts),
        contextlib.nullcontext(), off)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def everything(rank, world, folder):
    """What the tests below compare, computed in one of `world` processes."""
    found = {"gradients": {paper: gradients(paper, rank, world, parts=2 // world)
                           for paper in EXACT}}
    found["both"] = gradients("pysa", rank, world, parts=2)
    found["run"], found["bar"] = train(folder / "run", world, Toy())
    found["counts"] = torch.from_numpy(evaluate(Toy(), Few("val"), 12)[0].counts)
    if world > 1:
        torch.manual_seed(0)
        pysa = importlib.import_module("papers.pysa.model").build(12, channels=8)
        train(folder / "batchnorm", world, pysa)
        found["interrupted"], _ = train(folder / "interrupted", world,
                                        Toy(press_ctrl_c if rank == 1 else None))
        try:
            train(folder / "poisoned", world, Toy(become_nan if rank == 1 else None))
        except UserError as error:
            found["poisoned"] = str(error)
    return found


def process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2)
    torch.save(everything(rank, 2, folder), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process finds, and each of two; and their folder."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(process, (folder,), nprocs=2)
    alone = everything(0, 1, folder / "alone")
    return alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], folder


def all_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name] - other[name]).abs().max() < tolerance, name


@pytest.mark.parametrize("paper", EXACT)
def test_gradients_are_those_of_one_process(results, paper):
    """Two processes against one that computes the batch in two parts, which test_training holds to
    the whole batch."""
    alone, both, _ = results
    assert max(gradient.abs().max() for gradient in alone["gradients"][paper].values()) > 1e-3
    for found in both:
        all_close(alone["gradients"][paper], found["gradients"][paper], 1e-10)


def test_gradients_of_parts_in_two_processes(results):
    alone, both, _ = results
    for found in both:
        all_close(alone["both"], found["both"], 1e-10)


def test_a_run_is_that_of_one_process(results):
    """The losses of all steps, the weights and every score."""
    alone, both, _ = results
    for found in both:
        assert found["run"]["curve"] == pytest.approx(alone["run"]["curve"], rel=1e-5)
        all_close(alone["run"]["model"], found["run"]["model"], 1e-5)
        assert [row["miou"]
                for row in found["run"]["log"]] == [row["miou"] for row in alone["run"]["log"]]


def test_every_image_is_scored_once(results):
    alone, both, _ = results
    assert alone["counts"].sum() == 5 * 64 * 64
    assert all(torch.equal(found["counts"], alone["counts"]) for found in both)


def test_one_progress_bar(results):
    _, (first, second), _ = results
    assert "toy" in first["bar"] and second["bar"] == ""


def test_the_scores_are_those_of_the_checkpoint(results):
    """BatchNorm's statistics differ between processes: those that are saved must be those that were
    scored."""
    _, _, folder = results
    state = checkpoint.load(folder / "batchnorm" / "last.pt")
    model = importlib.import_module("papers.pysa.model").build(12, channels=8)
    model.load_state_dict(state["model"])
    matrix, _ = evaluate(model, Few("val"), 12)
    assert state["log"][-1]["miou"] == matrix.miou


def test_all_processes_stop_at_the_same_bad_loss(results):
    _, both, _ = results
    assert (both[0]["poisoned"] == both[1]["poisoned"]
            and "the loss became nan" in both[0]["poisoned"])


def test_one_process_goes_on_where_two_were_interrupted(results, tmp_path):
    """Ctrl-C reached the second process only, yet both stopped behind the same step."""
    alone, both, _ = results
    assert all(found["interrupted"]["step"] == 3 for found in both)
    state, _ = train(tmp_path, 1, Toy(), resume=both[0]["interrupted"])
    assert state["curve"] == pytest.approx(alone["run"]["curve"], rel=1e-5)
    all_close(alone["run"]["model"], state["model"], 1e-5)


def test_torchrun(tmp_path):
    """As in the help of train.py."""
    crash.make_data(tmp_path / "data")
    flags = [str(ROOT / "train.py"), "--dataset", "folder", "--data", str(tmp_path / "data"),
             "--steps", "3",
             "--batch-size", "2", "--crop-size", "32", "--set", "channels=8", "--device", "cpu",
             "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2"]
    result = subprocess.run([*torchrun, *flags, "--out", str(tmp_path / "run")], env=environment,
                            capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best checkpoint") == 1
    assert checkpoint.load_run(tmp_path / "run" / "last.pt")["step"] == 3


def test_a_failing_evaluation_ends_all_processes(tmp_path):
    """The training is saved before, and nobody waits for ever."""
    crash.make_data(tmp_path / "data", count=60)
    damaged = tmp_path / "data" / "images" / "35.png"  # in the middle of val, so not tried before
    damaged.write_bytes(damaged.read_bytes()[:500])
    flags = ["--dataset", "folder", "--data", "data", "--steps", "2", "--batch-size", "2",
             "--crop-size", "32", "--set", "channels=8", "--device", "cpu", "--workers", "0"]
    result = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                             "--nproc-per-node", "2", str(ROOT / "train.py"), *flags, "--out",
                             "run"], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
                            capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode != 0 and result.stderr.count("error: cannot read image data") == 1
    assert "last.pt holds the trained network" in result.stderr
    assert checkpoint.load_run(tmp_path / "run" / "last.pt")["step"] == 2
