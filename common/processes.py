"""Several processes (torchrun) train one network, each on a share of every batch. In a process
that is alone none of this does anything."""

import contextlib
import os
import warnings

import numpy as np
import torch
from torch import distributed


def join(device):
    """Meet the other processes that torchrun started. Returns the device of this one."""
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def rank():
    """The number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count():
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def agree(value, operation="SUM", device=None):
    """A tensor (in place) or number, reduced by "SUM" or "MAX" over all processes. They must
    decide alike, or one waits for ever."""
    if not distributed.is_initialized():
        return value
    number = not isinstance(value, torch.Tensor)
    tensor = torch.tensor(value, dtype=torch.float64, device=device) if number else value
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))
    return tensor.item() if number else tensor


def distribute(model, device):
    """The network that averages its gradients over all processes."""
    if not distributed.is_initialized():
        return model
    if device.startswith("cuda"):
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # About 1x1 kernels, whose memory layout is ambiguous: harmless.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return torch.nn.parallel.DistributedDataParallel(model)


def exchange(network, last):
    """The context of a forward and backward pass: only the last part of a batch exchanges."""
    waits = distributed.is_initialized() and not last
    return network.no_sync() if waits else contextlib.nullcontext()


def share_statistics(model):
    """BatchNorm's statistics differ between processes on the CPU: take those of the first."""
    if distributed.is_initialized():
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


def seed_step(seed, step):
    """Dropout and the like depend on the seed, the step and the process, and on nothing else."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank()]).generate_state(1)[0]))
