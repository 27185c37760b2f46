"""How UN-EPT is trained: numbers only.

The recipes of the three datasets of the paper are those of the released code: AdamW, backbone ten times slower than
the rest, weight decay on everything. It drops the learning rate once, to a tenth, after 79 % (Cityscapes: 80 %) of
the steps; "poly" is the nearest schedule the shared loop has. `shapes` and `camvid` are ours.
"""

from common.training import Recipe

RELEASED = dict(
    optimizer="adamw", lr=1e-5, head_lr=10.0, weight_decay=1e-4, schedule="poly", scale=(0.5, 2.0), colour=0.5,
    batch_size=16, eval_every=8000,
)

RECIPES = {
    "shapes": Recipe(),
    "camvid": Recipe(
        steps=4000, batch_size=8, crop_size=288, lr=1e-3, weight_decay=1e-2, schedule="one-cycle",
        scale=(0.6, 1.6), colour=0.3, eval_every=500,
    ),
    "ade20k": Recipe(steps=160000, crop_size=480, **RELEASED),
    "pascal_context59": Recipe(steps=160000, crop_size=480, **RELEASED),
    "pascal_context60": Recipe(steps=160000, crop_size=480, **RELEASED),
    "cityscapes": Recipe(steps=80000, crop_size=768, **RELEASED),
    "default": Recipe(steps=80000, crop_size=480, **RELEASED),
}
