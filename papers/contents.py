"""What a checkpoint must hold: every field is looked at when a file is opened, before anything is
built from it or written."""

import torch

from common.errors import UserError
from common.recipe import PRECISIONS, Recipe, make_optimizer

from . import options
from .losses import LOSSES

NUMBER, NOTHING = (int, float), type(None)
# Forms: a type or several, [form of every element], {key: form}.
FIELDS = {
    "model": dict, "optimizer": {"state": dict, "param_groups": [dict]}, "scaler": dict,
    "config": dict, "recipe": dict, "step": int, "best": float, "running": [NUMBER],
    "curve": [NUMBER],
    "log": [dict.fromkeys(("step", "loss", "miou", "pixel_accuracy", "lr"), NUMBER)],
}
CONFIG = {"paper": str, "preset": str, "dataset": str, "options": dict, "num_classes": int,
          "classes": [str], "palette": [[int]]}
# of the config, not in every version
MORE = {"seed": int, "precision": str, "loss": str, "freeze": (str, NOTHING),
        "class_weights": (str, list, NOTHING), "loss_weights": [NUMBER], "stored_ids": [int],
        "train_sizes": [int], "train_images": int}
CHOICES = {"precision": PRECISIONS, "loss": LOSSES, "freeze": ("backbone", None)}


def fits(value, form):
    """Whether a value has a form, see FIELDS."""
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(part, form[0]) for part in value)
    if isinstance(form, dict):
        return isinstance(value, dict) and all(fits(value.get(k), f) for k, f in form.items())
    return isinstance(value, form) and not isinstance(value, bool)


def misfit(state, needed):
    """The name of a field that is not what train.py writes, else ""."""
    for name in needed:
        if not fits(state.get(name), FIELDS[name]):
            return name
    config, recipe, known = state["config"], state["recipe"], vars(Recipe())
    for name, form in {**CONFIG, **{name: MORE[name] for name in MORE if name in config}}.items():
        if not fits(config.get(name), form) or (
                name in CHOICES and config[name] not in CHOICES[name]):
            return name
    ids = sum(config["palette"], config.get("stored_ids", []))
    if any(len(colour) != 3 for colour in config["palette"]) or not all(0 <= i < 256 for i in ids):
        return "palette or stored_ids"
    for name, value in state["model"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            return f"model.{name}"
    wrong = [f"recipe.{name}" for name, value in recipe.items()
             if name in known and options.recipe_misfit(name, value)]
    if not wrong and "curve" in needed and not (
            0 <= state["step"] == len(state["curve"]) <= recipe.get("steps", 0)
            and len(state["running"]) == 2):
        return "step, curve or running"
    return "".join(wrong[:1])


def check_fields(state, path, needed=tuple(FIELDS)):
    """Raise UserError if one of the needed fields of a checkpoint, or of what it says about its
    network, is missing or of another type."""
    check_tensors(state, path)
    if name := misfit(state, needed):
        raise UserError(f"{path}: the field {name[:200]} is missing or not what train.py writes; "
                        "the file is of an older version or of another program")
    if not 1 <= state["config"]["num_classes"] == len(state["config"]["classes"]) <= 255:
        raise UserError(f"{path}: {state['config']['num_classes']} classes, and names of "
                        f"{len(state['config']['classes'])}: that does not go together")


def check_tensors(content, path):
    """Raise UserError for a tensor that is no plain array of real numbers, however deep it lies in
    the content of a file."""
    queue, seen = [(content, "")], set()
    while queue:
        value, name = queue.pop()
        if isinstance(value, torch.Tensor):
            kinds = (value.layout != torch.strided and "sparse", value.is_quantized and "quantised",
                     value.is_meta and "without content (meta)", value.is_complex() and "complex")
            if any(kinds):
                raise UserError(f"{path}: the tensor {name[1:201]} is {next(filter(None, kinds))}; "
                                "wanted plain arrays of real numbers")
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))  # a list may hold itself
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            queue.extend((part, f"{name}.{key}") for key, part in pairs)


def check_network(model, recipe, state, path):
    """Raise UserError if the weights or the state of the optimiser of a run that is to be resumed
    do not fit its network. `model` has the weights then."""
    optimizer = make_optimizer(model, recipe)
    wanted, reason = optimizer.state_dict()["param_groups"], "the state of its optimiser"
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        same = all(group[name] == before[name] for group, before in zip(
            optimizer.param_groups, wanted, strict=True)
            for name in before if name in ("factor", "weight_decay", "momentum", "betas", "eps"))
        keys = {"momentum_buffer"} if recipe.optimizer == "sgd" else {
            "step", "exp_avg", "exp_avg_sq"}
        shapes = all(keys <= values.keys() and all(
            isinstance(values[key], torch.Tensor) and values[key].shape in ((), parameter.shape)
            for key in keys) for parameter, values in optimizer.state.items())
        if same and shapes:
            return
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:150]
    raise UserError(f"{path}: it does not fit its own network: {reason}")
