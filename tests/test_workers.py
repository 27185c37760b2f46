"""Processes that prepare data: what goes wrong in one is one line at once, and none outlives the
training."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.recipe import Recipe
from datasets.shapes import Shapes
from datasets.stream import TrainingSamples, batches
from datasets.transforms import augmentation
from tests import crash

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(),
                           reason="reads the table of processes from /proc")


def stats():
    """{process: (its parent, its group)} of all that run; those that have ended and wait to be
    noticed do not count."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent), int(group)
    return found


def wait(condition, seconds):
    """Whether `condition()` comes true within this time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def training_run(tmp_path):
    """run(*flags) -> a training in a process group of its own, of which nothing is left in the
    end."""
    crash.make_data(tmp_path / "data", count=40)
    started = []

    def run(*flags):
        out = tmp_path / f"run{len(started)}"
        started.append(crash.start(tmp_path / "data", out, 10**5, "--eval-every", 10**5, *flags,
                                   process_group=0))
        return started[-1]

    yield run
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def last_line(process, seconds=120):
    """The last line that it writes to stderr, once it has ended by itself with exit code 2."""
    _, error = process.communicate(timeout=seconds)
    assert process.returncode == 2, error.decode()
    return error.decode().replace("\r", "\n").splitlines()[-1]


@linux
def test_a_damaged_file_reads_the_same_from_a_worker(training_run, tmp_path):
    """Not in the first batch, which is tried before the training starts."""
    for path in sorted((tmp_path / "data" / "images").glob("2?.png"))[:9]:
        path.write_bytes(path.read_bytes()[:500])
    alone, two = (last_line(process) for process in [training_run("--workers", n) for n in (0, 2)])
    assert (alone == two and alone.startswith("error: cannot read image")
            and alone.endswith("image file is truncated"))


@linux
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_worker_is_one_line(training_run, count):
    process = training_run("--workers", 2)
    assert wait(lambda: len(workers_of(process)) == 2, 120)
    time.sleep(0.5)
    for worker in workers_of(process)[:count]:
        os.kill(worker, signal.SIGKILL)
    line = last_line(process)
    assert all(words in line
               for words in ("one of them was killed", "memory", "--workers 0", "--resume")), line
    assert len(line) < 300 and wait(lambda: not workers_of(process), 10)


def workers_of(process):
    """Children of a training, and what has lost its parent but is still in its group."""
    return [pid for pid, (parent, group) in stats().items() if group == process.pid
            and pid != process.pid]


@linux
@pytest.mark.parametrize("count", [2, 24])
def test_workers_end_with_their_parent(training_run, count):
    """24: it is killed while it still starts them."""
    process = training_run("--workers", count)
    assert wait(lambda: len(workers_of(process)) >= 2, 120)
    process.kill()
    process.communicate(timeout=30)
    assert wait(lambda: not workers_of(process), 10)




class Failing:
    """A stream of samples each of which fails."""

    def __init__(self, error):
        self.error = error

    def __getitem__(self, number):
        raise self.error


@pytest.mark.parametrize("error,words", [
    (RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)"),
     ["--workers 2: they have too little shared memory", "/dev/shm", "--workers 0", "--resume"]),
    (MemoryError(), ["--workers 2", "memory ran out", "--workers 0", "--resume"]),
    (UserError("a.png: no"), ["a.png: no"]),
])
def test_what_is_said(error, words):
    with pytest.raises(UserError) as caught, batches(Failing(error), 0, 9, 2, workers=2) as stream:
        next(stream)
    assert all(word in str(caught.value) for word in words) and len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(),
                                   BrokenPipeError(32, "broken")])
def test_a_worker_killed_while_it_hands_over_a_batch(error, monkeypatch):
    """Its connection breaks; or a second one is noticed while the others are ended."""
    def fail(*_):
        raise error

    with (pytest.raises(UserError, match="one of them was killed"),
          batches([torch.zeros(2)] * 9, 0, 9, 1, workers=1) as stream):
        monkeypatch.setattr("multiprocessing.resource_sharer._ResourceSharer.get_connection", fail)
        list(stream)
    with pytest.raises(type(error)), batches([(1, 1)] * 9, 0, 3, 2, 2):
        raise error  # not from a worker


def test_a_worker_whose_death_is_noticed_at_the_end(monkeypatch):
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    real = iterator._shutdown_workers

    def shut_down(self):
        monkeypatch.setattr(iterator, "_shutdown_workers", real)
        real(self)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr(iterator, "_shutdown_workers", shut_down)
    with (pytest.raises(UserError, match="one of them was killed"),
          batches([(1, 1)] * 9, 0, 3, 2, workers=2)):
        raise ZeroDivisionError
    assert not multiprocessing.active_children()


def test_other_errors_stay_what_they_are():
    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError), batches(Failing(ZeroDivisionError()), 0, 9, 2,
                                                       workers) as stream:
            next(stream)
        with pytest.raises(RuntimeError, match="mine"), batches([(1, 1)] * 9, 0, 3, 2, workers):
            raise RuntimeError("mine")


@linux
def test_little_shared_memory(tmp_path):
    """A /dev/shm of 64 KB, in a name space of its own."""
    crash.make_data(tmp_path / "data")
    small = 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", small, "sh"]
    try:
        if subprocess.run([*words, "true"], capture_output=True, check=False,
                          timeout=60).returncode:
            pytest.skip("needs the right to mount")
    except FileNotFoundError:
        pytest.skip("needs unshare")
    command = [sys.executable, crash.ROOT / "train.py", "--dataset", "folder", "--data",
               tmp_path / "data", "--steps",
               99, "--batch-size", 2, "--crop-size", 48, "--set", "channels=8", "--device", "cpu",
               "--workers", 2,
               "--out", tmp_path / "run"]
    result = subprocess.run([*words, *map(str, command)], capture_output=True, text=True,
                            timeout=200, check=False)
    assert result.returncode == 2 and "too little shared memory" in result.stderr, result.stderr


def test_workers_that_are_spawned(monkeypatch):
    """As on Windows and macOS: they share nothing with their parent, and know no SIGTERM."""
    monkeypatch.setattr("multiprocessing.context._default_context._actual_context",
                        multiprocessing.get_context("spawn"))
    samples = TrainingSamples(Shapes("train", height=32, width=32),
                              augmentation(Recipe(crop_size=32)), seed=0)
    with batches(samples, 0, 2, 2, workers=1) as two, batches(samples, 0, 2, 2) as none:
        for one, other in zip(two, none, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
