"""What a network refuses at the door, in one line that says what it takes. Every paper's folder has
this file."""

import numbers

import torch


def check(option, value, valid):
    """Raise a ValueError that names the valid choices."""
    if value not in valid:
        raise ValueError(f"unknown {option} {value!r}; valid: {', '.join(map(str, valid))}")


def check_classes(num_classes):
    """Raise a ValueError unless it is a whole number, 1 or more."""
    whole = isinstance(num_classes, numbers.Integral) and not isinstance(num_classes, bool)
    if not whole or num_classes < 1:
        raise ValueError(f"num_classes must be a whole number, 1 or more, not {num_classes!r}")


def check_images(images, traceable=True):
    """Raise a ValueError unless they are a batch of images: floating point [B, 3, H, W], no size 0.

    traceable: whether torch.jit.trace can record the network.
    """
    if torch.jit.is_tracing():  # where sizes are no numbers that could be compared
        if not traceable:
            raise ValueError("torch.jit.trace cannot record this network; torch.export.export can")
        return
    found = f"a {type(images).__name__}"
    if isinstance(images, torch.Tensor):
        shape = images.shape
        if images.is_floating_point() and len(shape) == 4 and shape[1] == 3 and 0 not in shape:
            return
        found = f"{str(images.dtype).removeprefix('torch.')} {[*shape]}"
    raise ValueError(f"images must be floating point [B, 3, H, W], no size of them 0, not {found}")
