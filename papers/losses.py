"""What else a training can minimise: cross-entropy with a weight per class, and the Dice loss.

No paper here used them. They take the place of the plain cross-entropy in whatever a network adds
up, its auxiliary head or its own `loss`.
"""

import functools

import torch
import torch.nn.functional as F

from common.errors import UserError
from common.losses import segmentation_loss
from common.metrics import IGNORE

from .options import build_model, factors

LOSSES = ("cross-entropy", "dice")


def class_weights(text):
    """An argparse type: "auto", or "1,2.5" -> [1.0, 2.5]."""
    return text if text == "auto" else list(factors(text))


class_weights.__name__ = "auto or numbers above 0, such as 1,2.5"


def flags(add):
    """Add the flags of this file to a parser."""
    add("--loss", choices=LOSSES, help="dice: overlap, every class alike; no paper here used it")
    add("--class-weights", type=class_weights, metavar="auto|A,B,...", help="a weight per class in "
        "the cross-entropy; auto: median frequency / frequency; no paper here used them")


def dice(scores, label):
    """1 minus the mean overlap of the classes that the labels of this part of a batch hold.

    The overlap of class k is 2 sum(p y) / (sum(p) + sum(y)) over the valid pixels; p: its
    probability, y: 1 where the label is k. scores: [B, K, H, W], label: int64 [B, H, W], 255 =
    ignore. A scalar, 0 where no pixel is valid.
    """
    valid = label != IGNORE
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    p = scores.softmax(1).movedim(1, -1)[valid]                         # [N, K]
    y = F.one_hot(label[valid], scores.shape[1]).to(p)                          # [N, K]
    total = y.sum(0)
    overlap = 2 * (p * y).sum(0) / (p.sum(0) + total).clamp(min=1e-6)           # [K]
    here = total > 0
    return ((1 - overlap) * here).sum() / here.sum().clamp(min=1)


def choose(model, config, recipe):
    """Let `model` be trained with the loss of the flags: give it a `loss` of its own that hands on
    another measure in place of the plain cross-entropy. Raises UserError if the network has a loss
    that asks for none, as UN-EPT with its boundary heads."""
    weights = config["class_weights"] and torch.tensor(config["loss_weights"])
    if config["loss"] == "cross-entropy" and weights is None:
        return
    own = functools.partial(segmentation_loss, None, aux_weight=recipe.aux_weight)
    if hasattr(model, "loss"):
        if not asks(config, recipe):
            raise UserError(f"--loss, --class-weights: with these options {config['paper']} has a "
                            "loss of its own, which takes no other; --options tells which change "
                            "that")
        own = model.loss

    def loss(outputs, label, cross_entropy):
        measure = dice
        if weights is not None:
            there = weights.to(label.device)
            measure = functools.partial(cross_entropy, weights=there)
        return own(outputs=outputs, label=label, cross_entropy=measure)

    model.loss = loss


class Asked(Exception):
    """The measure was asked for."""


def asks(config, recipe):
    """Whether the `loss` of a network calls the measure it is given: tried on tensors without
    content."""
    def measure(*_, **__):
        raise Asked

    with torch.device("meta"):
        model = build_model(config["paper"], config["preset"], 2, config["options"]).train()
        side = recipe.crop_size
        outputs = model(torch.zeros(2, 3, side, side))
        try:
            model.loss(outputs, torch.zeros(2, side, side, dtype=torch.int64), measure)
        except Asked:
            return True
        except RuntimeError:  # something that needs content
            pass
    return False
