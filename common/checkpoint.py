"""Files written so that a crash cannot damage them, read so that they cannot run code."""

import contextlib
import io
import os
import pickle
import secrets
import warnings
import zipfile
from pathlib import Path

import torch

from .errors import UserError


def write_atomically(path, content):
    """Write bytes to a temporary file of its own beside `path`, flush it to the disk, rename it.
    Whoever reads `path`, at any moment and after any crash, sees the old content or the new."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a file system that has become read-only
            temporary.unlink(missing_ok=True)
        message = f"cannot write {path}: {error.strerror}; what was there before is untouched"
        raise UserError(message) from None


def save(path, state):
    """Write a dictionary of tensors and plain values."""
    buffer = io.BytesIO()  # torch.save turns the OSError of a full disk into an error of its own
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path):
    """Read a file of tensors and plain values onto the CPU. Never executes what is stored in it.
    Raises UserError for a missing, damaged or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"no such file: {path}")
    reason = "it is damaged or not a PyTorch file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickle protocols; loading decides
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly everything
        refused = isinstance(error, pickle.UnpicklingError) and "Weights only" in str(error)
        if refused and zipfile.is_zipfile(path):
            reason = "it holds other objects than tensors, which could run code when loaded"
        if path.suffix == ".safetensors":
            reason = ("a safetensors file, which is not read; this converts it: torch.save("
                      f'safetensors.torch.load_file("{path}"), "{path.with_suffix(".pth")}")')
    raise UserError(f"cannot load {path}: {reason}")


def load_run(path):
    """Read a checkpoint of train.py, best.pt or last.pt; a run directory means its best.pt.

    Returns a dictionary with "model" (the state dict), "config" (see train.py) and what else a
    `Run` saves. Raises UserError.
    """
    path = Path(path, "best.pt") if Path(path).is_dir() else Path(path)
    state = load(path)
    wanted = {"model", "optimizer", "config", "recipe", "log", "step"}
    if not isinstance(state, dict) or not wanted <= state.keys():
        raise UserError(f"{path} is not a checkpoint of train.py (official ones: --official FILE)")
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        if archive.testzip() is None:  # torch.load itself ignores the checksums
            return state
    raise UserError(f"cannot load {path}: it is damaged")
