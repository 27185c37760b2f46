"""The endless stream of training samples, in batches, prepared by processes of their own."""

import contextlib
import multiprocessing
import os
import signal
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common import processes
from common.errors import UserError
from common.stop import SIGNALS


class TrainingSamples(Dataset):
    """Sample number n of the endless training stream: a pure function of (seed, n).

    An epoch is a permutation of the dataset drawn from (seed, epoch); the augmentation of a sample
    is drawn from (seed, epoch, index). augment(image, label, generator) -> (image, label).
    """

    def __init__(self, dataset, augment, seed):
        self.dataset, self.augment, self.seed = dataset, augment, seed
        self.epoch, self.order = -1, None

    def __getitem__(self, number):
        epoch, position = divmod(number, len(self.dataset))
        if epoch != self.epoch:
            self.epoch = epoch
            generator = np.random.default_rng([self.seed, epoch])
            self.order = generator.permutation(len(self.dataset))
        index = int(self.order[position])
        generator = np.random.default_rng([self.seed, epoch, index])
        image, label = self.augment(*self.dataset[index], generator)
        return torch.tensor(image), torch.tensor(label)  # copies: arrays from a file are read-only


@contextlib.contextmanager
def batches(samples, first_step, steps, batch_size, workers=0):
    """Within the `with`, an iterator over the batches of the steps first_step .. steps-1; each
    process takes its slice of every batch. After the `with` no worker is left. What goes wrong in
    a worker is a UserError that reads as it would without workers."""
    rank, share = processes.rank(), batch_size // processes.count()
    starts = (step * batch_size + rank * share for step in range(first_step, steps))
    numbers = (range(start, start + share) for start in starts)  # no list: there may be 10^9
    loader = DataLoader(
        samples, batch_sampler=numbers, num_workers=workers, worker_init_fn=prepare_worker)
    before = set(multiprocessing.active_children())
    try:
        try:
            stream = iter(loader)
        except OSError as error:
            reason = f"they cannot be started: {error.strerror}"
            raise UserError(f"--workers {workers}: {reason}") from None
        try:
            yield delivered(stream)
        finally:
            # Not left to the exit: there Python ends its children by SIGTERM, which they ignore.
            if workers:
                stream._shutdown_workers()  # may notice a dead worker, too
    except (UserError, MemoryError, RuntimeError) as error:
        if message := worker_message(error, workers):
            raise UserError(message) from None
        raise
    finally:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()


def delivered(stream):
    """The batches of a loader. A worker that is killed while it hands one over is no error of its
    own in PyTorch, but a broken connection."""
    try:
        yield from stream
    except (ConnectionError, EOFError):
        raise RuntimeError("DataLoader worker: connection lost") from None


def worker_message(error, workers):
    """What to tell about an exception that comes from a worker, else "". PyTorch hands it on with
    its traceback as text, and makes one of its own where a worker died."""
    text, kind = str(error), type(error)
    cure = "--workers 0 does without them, and --resume goes on from the last checkpoint"
    if not text.startswith(("Caught ", "DataLoader worker")):
        return ""
    if isinstance(error, UserError):
        return text.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
    if "shared memory" in text:
        return (f"--workers {workers}: they have too little shared memory, /dev/shm (in Docker "
                f"--shm-size 1g gives more); {cure}")
    if text.startswith("DataLoader worker") or isinstance(error, MemoryError):
        return (f"--workers {workers}: one of them was killed, most often because memory ran out; "
                f"{cure}")
    return ""


def prepare_worker(number):
    """Terminals and schedulers signal the whole process group, but the step cannot be finished
    without its data: a worker lives as long as its parent, whatever signal comes, and no longer."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
