"""Forms of LRFormer-T that tests/bench.py measures: the official forward, transcribed, and ours."""

import functools

import torch

from studies.measure import one_pass

from .. import model
from .transcription import official_scores

FORMS, OTHERS = ("official", "official, fused attention", "ours"), ()
CASES = {  # name: preset, side of the image, whether with gradients
    "LRFormer-T, 512 px": ("t", 512, False),
    "LRFormer-T, 1024 px": ("t", 1024, False),
    "LRFormer-T, 512 px, forward and backward": ("t", 512, True),
}


def make(form, preset, side, train, device="cpu"):
    """The network without its last enlargement. layer_scale 1: at its start value of 1e-6 an error
    in a branch would not be seen. No dropout, whose random numbers would differ."""
    torch.manual_seed(0)
    with torch.device(device):
        network = model.build(150, preset, layer_scale=1.0, drop_path=0.0).train(train)
        images = torch.randn(1, 3, side, side)
    network.head.dropout.p = 0.0
    scores = {
        "official": official_scores,
        "official, fused attention": functools.partial(official_scores, fused=True),
        "ours": lambda network, images: network.scores(images),
    }[form]
    return one_pass(lambda: scores(network, images), [*network.parameters()], train)
