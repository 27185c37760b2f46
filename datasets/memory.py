"""Whether a batch or the scores of a whole image fit into memory, before a network runs."""

import math
import os
from pathlib import Path

import torch

from common.errors import UserError
from common.inference import copies, fitted_size

ADVICE = "--protocol sliding at one size needs less, as does a smaller copy, --scales 0.5"
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")  # of a container


def free_memory(device="cpu"):
    """Bytes that can be had, None where the system does not tell."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        try:  # macOS: all there is
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # Windows
            return None
    try:
        limit, used = (int(Path(name).read_text(encoding="ascii")) for name in LIMITS)
    except (OSError, ValueError):  # there is no limit
        return free
    return min(free, limit - used)


def check_batch(recipe, processes=1, device="cpu"):
    """Raise UserError where a training would surely lack memory: its images as float32 and the
    first map of a network, 8 numbers a pixel. To draw a million images only to say so takes
    hours."""
    count, free = recipe.batch_size // processes // recipe.accumulate, free_memory(device)
    needed = 4 * (3 + 8) * count * recipe.crop_size**2
    if free is not None and needed > free:
        raise UserError(f"--batch-size {recipe.batch_size}, --crop-size {recipe.crop_size}: at "
                        f"least {needed / 1e9:.0f} GB of memory are needed, {free / 1e9:.1f} GB "
                        f"are free; --accumulate {2 * recipe.accumulate} needs less")


def check_memory(size, num_classes, protocol, device="cpu", name="the image"):
    """Raise UserError, with what to do instead, where `common.inference.predict` would surely lack
    memory for an image of size (height, width): the scores of all classes as float32, those of the
    image where several copies of it are added up, and of the largest copy that is not cut into
    windows, twice: while they are made, too. What else a network needs is its own."""
    largest = max(math.prod(fitted_size(size, protocol.fit, scale)) if protocol.fit
                  else math.prod(size) * scale**2 for scale in protocol.scales)
    pixels = (0 if protocol.crop else 2 * largest) + math.prod(size) * (len(copies(protocol)) > 1)
    needed, free = 4 * num_classes * pixels, free_memory(device)
    if free is not None and needed > free:
        raise UserError(f"{name} has {size[1]} x {size[0]} pixels: as a whole, the scores of "
                        f"{num_classes} classes alone take {needed / 1e9:.1f} GB of memory, and "
                        f"{free / 1e9:.1f} GB are free; {ADVICE}")
