"""What goes wrong in a training and can be mended by a flag is an error that names the flag."""

import contextlib
import math
import sys

import torch

from . import processes
from .errors import UserError

LITTLE = "too little memory for a whole image; eval.py --protocol sliding needs less"


def lacks_memory(error):
    """Whether an exception says that memory could not be had, on a GPU or the CPU."""
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or any(text in str(error) for text in ("can't allocate memory", "not enough memory")))


@contextlib.contextmanager
def name_the_flag(recipe, device):
    """Turn what goes wrong inside a network into a UserError, where a flag can mend it."""
    flags = f"--batch-size {recipe.batch_size}, --crop-size {recipe.crop_size}"
    try:
        yield
    except UserError:
        raise
    except ValueError as error:  # a network that cannot take this batch says why
        raise UserError(f"{flags}: {error}") from error
    except torch._dynamo.exc.TorchDynamoException as error:
        reason, _, _ = str(error).partition("\n\n")  # the rest is advice to PyTorch's developers
        raise UserError(f"--compile is not possible here, leave it out: {reason}") from error
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            raise UserError(f"{flags}: more than the memory of {device} holds; --accumulate "
                            f"{2 * recipe.accumulate} needs less for the same step") from error
        if device.startswith("mps"):
            raise UserError(f"--device {device} cannot do all this network needs, --device cpu "
                            f"can: {error}") from error
        raise


@contextlib.contextmanager
def name_the_image(weights=None, place="validation images: "):
    """Turn what goes wrong in an evaluation into a UserError. weights: a file that is safe."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not lacks_memory(error):
            raise
        reason = LITTLE if lacks_memory(error) else error
        place = "" if isinstance(error, UserError) else place
        kept = f"; {weights} holds the trained network" if weights else ""
        raise UserError(f"{place}{reason}{kept}") from error


def evaluate_if_due(run, score):
    """Evaluate the state of a run by score(keep=4). If that fails, a line on stderr says so and the
    training goes on. But where several processes train, the others would wait for ever."""
    if not run.due:
        return
    processes.share_statistics(run.model)
    run.save("last.pt")  # before: what goes wrong now does not cost the steps
    try:
        with name_the_image(run.out / "last.pt"):
            result = score(keep=4)
    except UserError as error:
        if processes.count() > 1:
            raise
        print(f"\nstep {run.step} is not evaluated: {error}", file=sys.stderr)
    else:
        run.evaluated(*result)
    run.model.train()


def check_finite(loss, norm, scaler, run):
    """Raise UserError for a loss, or a norm of its gradient, that is not finite. With a loss scale
    infinite gradients are part of the game: the step is skipped and the scale lowered."""
    if math.isfinite(loss) and (scaler.is_enabled() or math.isfinite(norm)):
        return
    raise UserError(
        f"the loss became {loss}, the norm of its gradient {norm}, in step {run.step}; nothing was "
        f"learned from it, and {run.out / 'last.pt'} holds the last good state. A smaller --lr "
        f"than {run.recipe.lr:g} is the usual cure, in a new run: --out DIR")
