"""Run directories of train.py: which of them a training may begin or go on in, and with which
weights."""

import contextlib
import json
import os
import sys
from dataclasses import asdict

from common import checkpoint, processes
from common.errors import UserError
from common.run import FILES

from .contents import check_fields

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

try:
    from fcntl import LOCK_EX, LOCK_NB, lockf
except ImportError:  # Windows
    import msvcrt

    LOCK_EX = LOCK_NB = 0

    def lockf(file, how):
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def open_run(out, resume):
    """The content of last.pt in the folder `out`, or None for a training that starts. Refuses to
    touch a run, or a file of that name, without `resume`. With it a run that has no checkpoint yet
    starts, so that a script can always say --resume."""
    here = [name for name in FILES if (out / name).exists()]
    if here == ["config.json"] and is_config(out / "config.json"):
        here = []  # it was stopped before its first checkpoint: nothing is there to be lost
    if here and not resume:
        raise UserError(f"{out} already holds a run ({', '.join(here)}): {next_step(out)}, or "
                        "--out DIR to start another")
    if not {"last.pt", "best.pt"} & {*here}:
        if here:
            raise UserError(f"{out} holds {', '.join(here)} but no checkpoint, so it is no run "
                            "that --resume could go on with; choose another --out")
        if resume:
            print(f"{out} holds no checkpoint yet: starting at step 0", file=sys.stderr)
        return None
    try:
        state = checkpoint.load_run(out / "last.pt")
        check_fields(state, out / "last.pt")
        if state["log"]:
            check_best(state, out)
        return state
    except BestError:
        raise
    except UserError as error:
        try:
            step = checkpoint.load_run(out / "best.pt")["step"]
        except UserError:
            raise error from None
        raise UserError(f"{error}; best.pt beside it is whole: copy it to last.pt to go on from "
                        f"step {step}") from None


def next_step(out):
    """What can be done with the run in the folder `out`, as text."""
    try:
        state = checkpoint.load_run(out / "last.pt")
        done, steps = state["step"], state["recipe"]["steps"]
        complete = done >= steps
    except (UserError, LookupError, TypeError):
        complete = False
    if not complete:
        return "add --resume to go on with it"
    return (f"it is complete, {done} steps, and --resume would only score it again. "
            f".venv/bin/python eval.py {out} scores it, with --image FILE it segments a picture; "
            f"to train on: --start-from {out} --steps N --out DIR")


class BestError(UserError):
    """best.pt is not that of the run."""


def check_best(state, out):
    """Raise UserError if best.pt, which the end of the training needs, is not of the same run."""
    path, reason = out / "best.pt", "it holds another network"
    try:
        best = checkpoint.load_run(path)["model"]
        if {name: value.shape for name, value in best.items()} == {
                name: value.shape for name, value in state["model"].items()}:
            return
    except (UserError, AttributeError) as error:
        reason = str(error)
    raise BestError(f"{path} is needed in the end: {reason}; copy last.pt to it to do without")


def world():
    """How many processes train together: 1, or what torchrun says. Raises UserError for variables
    that do not go together."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    try:
        rank, count = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count or (count > 1 and len(given) < len(VARIABLES)):
        text = " ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{text}: torchrun sets {', '.join(VARIABLES)} together; unset them to "
                        "train in one process")
    return count


def is_config(path):
    """Whether the file was written by `write_config`: the first thing that a run writes."""
    try:
        return path.is_file() and "recipe" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


@contextlib.contextmanager
def locked(out, new):
    """Within the `with` no other process trains in the folder `out`, which is made if need be. The
    lock is the system's own: it ends with its process, however that ends. Raises UserError if
    another process holds it, or has begun the run that is to be `new`."""
    if processes.rank():
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / "lock", "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    with file:
        try:
            lockf(file, LOCK_EX | LOCK_NB)  # of the kind that forked workers do not inherit
        except (BlockingIOError, PermissionError):
            raise UserError(f"--out {out}: another process trains there; wait for it, or choose "
                            "another folder") from None
        except OSError:
            pass  # a file system without locks
        try:
            if new and any((out / name).exists() for name in ("last.pt", "best.pt")):
                raise UserError(f"--out {out}: another process has just begun a run there")
            yield
        finally:
            (out / "lock").unlink(missing_ok=True)


def write_config(out, config, recipe, data):
    """What was trained on what, for people, as config.json."""
    settings = {**config, "recipe": asdict(recipe), "data": data and str(data)}
    text = json.dumps(settings, indent=2) + "\n"
    checkpoint.write_atomically(out / "config.json", text.encode())
