"""Checkpoints: written so that a crash cannot damage them, read so that they cannot run code."""

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from .errors import UserError


def write_atomically(path, write):
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk, then rename it to `path`.
    Whoever reads `path`, at any moment and after any crash, sees the old content or the new, never a mixture."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a file system that has become read-only
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; what was there before is untouched") from None


def save(path, state):
    """Write a dictionary of tensors and plain values."""
    buffer = io.BytesIO()  # torch.save turns the OSError of a full disk into an error of its own
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load(path):
    """Read a file of tensors and plain values onto the CPU. Never executes anything that is stored in it.

    Raises UserError for a missing, damaged or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickle protocols; what matters is whether it loads
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        if "Weights only load failed" in str(error) and zipfile.is_zipfile(path):
            reason = "it holds objects other than tensors and plain values, which could run code when loaded"
        else:
            reason = "it is damaged or not a PyTorch file"
        raise UserError(f"cannot load {path}: {reason}") from None
    except Exception:  # a damaged pickle can raise nearly everything
        raise UserError(f"cannot load {path}: it is damaged or not a PyTorch file") from None


def load_run(path):
    """Read a checkpoint written by train.py, best.pt or last.pt; a run directory means its best.pt.

    Returns a dictionary with "model" (the state dict) and "config" (see train.py). Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.pt"
    state = load(path)
    if not isinstance(state, dict) or not {"model", "optimizer", "config", "recipe", "log", "step"} <= state.keys():
        raise UserError(f"{path} is not a checkpoint of train.py (for official weights: --official {path})")
    try:
        with zipfile.ZipFile(path) as archive:
            intact = archive.testzip() is None  # torch.load itself ignores the checksums
    except Exception:  # as in `load`
        intact = False
    if not intact:
        raise UserError(f"cannot load {path}: it is damaged")
    return state
