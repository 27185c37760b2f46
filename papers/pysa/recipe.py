"""How PySA is trained and tested: numbers only.

Nothing of the paper's own training is known (no code, no log was published). The recipes of the
real datasets are the habits of the networks of this family (CCNet, PSANet, non-local networks);
`shapes` and `camvid` are ours. Neither is its test known. Chosen: windows of the training crop,
because regions are shares of the map, and a whole image would make them cover more pixels than in
training.
"""

from dataclasses import replace

from common.inference import Protocol
from common.recipe import Recipe

LONG = Recipe(
    steps=80000, batch_size=16, crop_size=512, optimizer="sgd", lr=0.01, weight_decay=5e-4,
    schedule="poly", scale=(0.5, 2.0), colour=0.3, eval_every=8000,
)

RECIPES = {
    "shapes": Recipe(steps=360, eval_every=90),
    "camvid": Recipe(
        steps=4000, batch_size=8, crop_size=288, scale=(0.6, 1.6), colour=0.3, eval_every=500,
    ),
    "camvid_tiny": Recipe(  # at half resolution: 100 times the dataset in half an hour on a laptop
        steps=5000, batch_size=8, crop_size=160, scale=(0.35, 0.8), test_scale=0.5, colour=0.3,
        eval_every=1000,
    ),
    "cityscapes": replace(LONG, steps=40000, batch_size=8, crop_size=769, eval_every=4000),
    "ade20k": LONG,
    "default": LONG,
}

PROTOCOLS = {"ade20k": Protocol(crop=512), "cityscapes": Protocol(crop=769)}
