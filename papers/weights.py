"""Weights from files: of an ImageNet backbone, of the official code, of a run of train.py."""

import dataclasses
import json
from pathlib import Path

from common import checkpoint
from common.cli import load_paper, papers
from common.errors import UserError
from common.recipe import Recipe

from . import contents, options
from .settings import load_recipe

RUN = {"model", "config", "recipe"}  # what a checkpoint of train.py holds, among other things
MORE = "; docs/weights.md tells which files load"


def read(paper, path):
    """A file of official weights, read by the paper's own `official.load` where there is one."""
    official = load_paper(paper, "official")
    if not hasattr(official, "load") or path.suffix == ".safetensors" or not path.is_file():
        content = checkpoint.load(path)
    else:
        try:
            content = official.load(path)
        except ValueError as error:
            raise UserError(str(error)) from None
    contents.check_tensors(content, path)
    return content


def check_finite(model, path):
    """Raise UserError if a weight that came from a file is not a finite number."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} holds values that are not finite (NaN or infinite)")


def load_backbone(paper, model, path):
    """Load ImageNet weights into the backbone. Returns a line about what was loaded."""
    weights = read(paper, path)
    if RUN <= {*weights}:
        raise UserError(f"--weights {path}: this is a run of train.py; to go on from it: "
                        f"--start-from {path}")
    try:
        report = load_paper(paper, "official").load_backbone(model, weights)
    except (ValueError, AttributeError) as error:  # AttributeError: not a dictionary of tensors
        raise UserError(f"--weights {path}: {error}{MORE}") from None
    check_finite(model, f"--weights {path}")
    return report


def load_official(path, paper, preset=None, pairs=(), dataset=None):
    """(config, state, recipe) of a checkpoint of the official code. config: as in a run. pairs: of
    --set, for what the file does not tell. Raises UserError."""
    if paper is None:
        raise UserError(f"--official needs --paper, one of: {', '.join(papers())}")
    official, state = load_paper(paper, "official"), read(paper, path)
    if RUN <= {*state}:
        raise UserError(f"--official {path}: this is a run of train.py; without --official and "
                        "--paper it is scored as it is")
    try:
        told = options.parse(pairs, paper)
        build = official.build_arguments(state, **told)
        state = official.convert(state, **told)
    except (ValueError, AttributeError) as error:
        raise UserError(f"--official {path}: {error}{MORE}") from None
    config = {"paper": paper, "preset": build.pop("preset"), "dataset": dataset,
              "num_classes": build.pop("num_classes"), "options": build}
    if preset not in (None, config["preset"]):
        raise UserError(f"--preset {preset}: {path} holds {config['preset']}")
    return config, state, load_recipe(paper, dataset, config["preset"])


def load_run(path, paper=None, preset=None, pairs=()):
    """(config, state, recipe) of a run of train.py. Raises UserError, also if it is asked to be
    something else than it is."""
    stored = checkpoint.load_run(path)
    contents.check_fields(stored, path, needed=("model", "config", "recipe"))
    config, known = stored["config"], {field.name for field in dataclasses.fields(Recipe)}
    for flag, value in (("preset", preset), ("set", pairs)):
        if value:
            raise UserError(f"--{flag} goes with --official; {path} says itself what it holds")
    if paper not in (None, config["paper"]):
        raise UserError(f"--paper {paper}: {path} holds {config['paper']}")
    recipe = {name: value for name, value in stored["recipe"].items() if name in known}
    return config, stored["model"], Recipe(**recipe)


def own_data(run):
    """The folder of the data that a run was trained on, as its config.json says, if it is there
    still, else None."""
    try:
        if not (run / "config.json").is_file():  # a pipe would be read for ever
            return None
        path = json.loads((run / "config.json").read_text(encoding="utf-8"))["data"]
        if path is None or not Path(path).is_dir():
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Path(path)


def load_network(run, official=None, paper=None, preset=None, pairs=(), dataset=None):
    """(model in evaluation mode, config, recipe, folder for pictures) of a run or an official file,
    of which one is given. The rest are flags, see above. Raises UserError."""
    if (run is None) == (official is None):
        raise UserError("give either a CHECKPOINT of train.py or --official FILE with --paper NAME")
    if official:
        config, state, recipe = load_official(official, paper, preset, pairs, dataset)
        folder = Path("runs") / f"{paper}-official"
    else:
        run = Path(run)
        config, state, recipe = load_run(run, paper, preset, pairs)
        folder = run if run.is_dir() else run.parent
    model = options.build_model(
        config["paper"], config["preset"], config["num_classes"], config["options"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights do not fit {config['paper']}: {reason}") from None
    check_finite(model, official or run)
    return model.eval(), config, recipe, folder
