"""Start from a network that is trained already, all of it or with its backbone frozen."""

import sys
from pathlib import Path

from torch import nn

from common.errors import UserError

from . import weights


def flags(add):
    """Add the flags of this file to a parser."""
    add("--start-from", type=Path, metavar="CHECKPOINT", help="start from a trained network, a run "
        "or with --paper an official file: for other classes, other data, more steps")
    add("--freeze", choices=["backbone"], help="train the rest only; its BatchNorm stays as it is")


def read(arguments):
    """What --start-from names as {name: tensor}, {} without it. Fills in --paper, --preset and the
    options that the other flags leave open. Raises UserError, also for another paper or preset."""
    path = arguments.start_from
    if path is None:
        return {}
    try:
        config, state, _ = weights.load_run(path)
    except UserError as error:
        if not path.is_file() or str(error).endswith("it is damaged"):
            raise UserError(f"--start-from {path}: {error}") from None
        config, state = read_official(arguments, error)
    for name in ("paper", "preset"):
        if getattr(arguments, name) not in (None, config[name]):
            raise UserError(f"--{name} {getattr(arguments, name)}: {path} holds {config[name]}")
        setattr(arguments, name, config[name])
    arguments.inherited = config["options"]
    return state


def read_official(arguments, error):
    """(config, state) of a file of the official code. error: why it is no run of train.py."""
    if arguments.paper is None:
        raise UserError(f"--start-from {arguments.start_from}: {error}; a file of the official "
                        "code needs --paper")
    try:
        return weights.load_official(
            arguments.start_from, arguments.paper, arguments.preset, arguments.set)[:2]
    except UserError as other:
        raise UserError(str(other).replace("--official", "--start-from")) from None


def begin(model, state, arguments, quiet=False):
    """Give the network every tensor of `state` that fits it, and, unless `quiet`, tell on stderr
    which do not. Raises UserError if none fits."""
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in state.items()
               if name in own and tensor.shape == own[name].shape}
    if state and not fitting:
        raise UserError(f"--start-from {arguments.start_from}: no tensor fits this network")
    model.load_state_dict(fitting, strict=False)
    if state and not quiet:
        there = {name: f" here, {sizes(state[name])} there" for name in own if name in state}
        print(f"{arguments.start_from}: {len(fitting)} of {len(own)} tensors taken",
              *(f"  new: {name}, {sizes(own[name])}{there.get(name, '')}"
                for name in own if name not in fitting),
              *(f"  not used: {name}" for name in state if name not in own),
              sep="\n", file=sys.stderr)


def sizes(tensor):
    """The shape of a tensor as text: "12 x 64 x 1 x 1"."""
    return " x ".join(map(str, tensor.shape)) or "one number"


def freeze(model, part):
    """Keep `part` of the network, "backbone" or None, as it is, whatever `model.train()` says."""
    if part:
        frozen = getattr(model, part)
        frozen.requires_grad_(False)
        frozen.train = lambda mode=True: nn.Module.train(frozen, False)
