"""What both programs need: types of flags, the device, the papers there are."""

import argparse
import importlib
import re
import sys
from pathlib import Path

import torch

from .errors import UserError

ROOT = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and whose help is the program's docstring."""

    def __init__(self, text, prog=None):
        super().__init__(prog, None, text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self):
        for word in sys.argv[1:]:
            if word[:2] + word[-3:] == "--=--":  # argparse makes it [], whatever the type
                self.error(f"{word[:-3]}: wanted a value")
        return super().parse_args()

    def error(self, message):
        found = re.fullmatch("(?s)argument (.*): invalid (.*) value: '(.*)'", message)
        message = "{0} {2}: wanted {1}".format(*found.groups()) if found else message
        more = "; --help lists the flags" * message.startswith("unrecognized")
        raise UserError(message.removeprefix("argument ") + more)


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
