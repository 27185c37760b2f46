"""Forms of PSANet that tests/bench.py measures: the official one and those of fast.py.

view:    fast.dense, the windows of the over-complete map as a view
stream:  fast.Stream, tiles and its own backward
ours:    the one that fast.py takes for a map of this size
"""

import functools
import math
from unittest.mock import patch

import torch

from studies.measure import one_pass

from .. import fast, model
from .transcription import official_attention, official_scores

FORMS, OTHERS = ("official", "view", "stream", "ours"), ()
LIMITS = {"view": math.inf, "stream": 0, "ours": fast.LARGEST_DENSE}  # of logits for the view
CASES = {  # name: direction or preset, side of map or image, images, channels, with gradients
    **{f"{direction}, {side} x {side}, batch of {batch}{', forward and backward' * train}": (
        direction, side, batch, 512, train)
        for side, batch in ((30, 1), (45, 2)) for train in (False, True)
        for direction in ("collect", "distribute")},
    "PSANet50, 465 px": ("resnet50", 465, 1, 512, False),
    "PSANet50, 465 px, forward and backward": ("resnet50", 465, 1, 512, True),
}


def make(form, what, side, batch, channels, train, device="cpu"):
    """One direction of the attention, or a whole network without its last enlargement."""
    torch.manual_seed(0)
    with torch.device(device):
        if what not in model.DIRECTIONS:
            return whole_network(form, what, side, batch, channels, train)
        q, v = torch.randn(2, batch, channels, side, side).relu().unbind()  # after a ReLU
        table = (torch.rand((2 * side - 1) ** 2, channels) * 2 - 1) / channels**0.5
    if form == "official":
        run = functools.partial(official_attention, what)
    else:  # whose maps have the channels last
        q, v = (t.contiguous(memory_format=torch.channels_last) for t in (q, v))
        run = functools.partial(ours, form, what)
    leaves = [t.requires_grad_(train) for t in (q, table, v)]
    return one_pass(lambda: run(*leaves), leaves, train)


def ours(form, direction, q, table, v):
    """fast.attend, made to take one of its two ways."""
    sides = tuple(2 * side - 1 for side in q.shape[-2:])
    with patch.object(fast, "LARGEST_DENSE", LIMITS[form]):
        return fast.attend(direction, q, table, v, sides)


def whole_network(form, preset, side, batch, channels, train):
    """A network; no dropout, whose random numbers would differ."""
    network = model.build(150, preset, crop_size=side, channels=channels, aux=False).train(train)
    network.classifier[3].p = 0.0
    images = torch.randn(batch, 3, side, side)

    def run():
        if form == "official":
            return official_scores(network, images)
        with patch.object(fast, "LARGEST_DENSE", LIMITS[form]):
            return network.scores(network.backbone(images)[-1])

    return one_pass(run, [*network.parameters()], train)
