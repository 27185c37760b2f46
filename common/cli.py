"""What both programs need: types of flags, the device, the papers there are."""

import argparse
import importlib
import math
from pathlib import Path

import torch

from .errors import UserError

ROOT = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and whose help is the program's docstring."""

    def __init__(self, description):
        kind = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=kind)

    def error(self, message):
        raise UserError(message)


def positive(kind):
    """An argparse type: a number of this kind, greater than zero."""
    def parse(text):
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number
    parse.__name__ = f"positive {kind.__name__}"
    return parse


def pick_device(name):
    """The device asked for, or the best one there is. Raises UserError if it is not there."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    here = ["cpu"] + ["cuda"] * has_cuda + ["mps"] * has_mps
    if name is None:
        return here[-1]
    if name.partition(":")[0] not in here or (":" in name and not name.partition(":")[2].isdigit()):
        raise UserError(f"--device {name}: not available here; valid: {', '.join(here)}")
    if name.startswith("cuda:") and int(name[5:]) >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {name}: there are {count} CUDA devices, numbered from 0")
    return name


def papers():
    """Names of the folders under papers/ that hold a model."""
    return sorted(path.parent.name for path in ROOT.glob("papers/*/model.py"))


def load_paper(name, part="model"):
    """The module papers.NAME.PART. Raises UserError that lists the papers there are."""
    if name not in papers():
        raise UserError(f"--paper {name}: unknown; valid: {', '.join(papers())}")
    return importlib.import_module(f"papers.{name}.{part}")
