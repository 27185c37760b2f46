"""What goes wrong in a training and can be mended by a flag is an error that names the flag."""

import contextlib
import math

import torch

from . import processes
from .errors import UserError
from .inference import normalise
from .recipe import half_precision


@contextlib.contextmanager
def name_the_flag(recipe, device):
    """Turn what goes wrong inside a network into a UserError, where a flag can mend it."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # a network that cannot take this batch says why
        flags = f"--batch-size {recipe.batch_size}, --crop-size {recipe.crop_size}"
        raise UserError(f"{flags}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--batch-size {recipe.batch_size}: more than the memory of {device} holds; "
            f"--accumulate {2 * recipe.accumulate} needs less for the same step"
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        reason, _, _ = str(error).partition("\n\n")  # the rest is advice to PyTorch's developers
        raise UserError(f"--compile is not possible here, leave it out: {reason}") from error
    except RuntimeError as error:
        if device.startswith("mps"):
            raise UserError(f"--device {device} cannot do all this network needs, --device cpu "
                            f"can: {error}") from error
        raise


def rehearse(model, samples, recipe, device="cpu", precision="float32", compile=False):
    """One forward pass that leaves no trace. Raises UserError for a flag that does not go with
    this network, too little memory and unreadable data, before anything is written."""
    model.to(device, memory_format=torch.channels_last).train()
    buffers = [buffer.clone() for buffer in model.buffers()]  # BatchNorm counts every pass
    count = recipe.batch_size // processes.count() // recipe.accumulate
    images = torch.stack([samples[number][0] for number in range(count)])
    with name_the_flag(recipe, device), half_precision(precision, device)[0]:
        network = torch.compile(model) if compile else model
        network(normalise(images, device).contiguous(memory_format=torch.channels_last))
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)


def check_finite(loss, norm, scaler, run):
    """Raise UserError for a loss, or a norm of its gradient, that is not finite. With a loss scale
    infinite gradients are part of the game: the step is skipped and the scale lowered."""
    if math.isfinite(loss) and (scaler.is_enabled() or math.isfinite(norm)):
        return
    raise UserError(
        f"the loss became {loss}, the norm of its gradient {norm}, in step {run.step}; nothing was "
        f"learned from it, and {run.out / 'last.pt'} holds the last good state. A smaller --lr "
        f"than {run.recipe.lr:g} is the usual cure"
    )
