"""How UN-EPT is trained and tested: numbers only.

ADE20K and PASCAL-Context (60 classes) follow the configurations of the released code, Cityscapes
that of the first author's copy of it, which has one for DeiT: AdamW, backbone ten times slower than
the rest, weight decay on everything, one drop of the learning rate to a tenth. `shapes`, `camvid`,
`pascal_context59` (a subset that the paper does not use) and `default` are ours.

All published numbers average six scales and their mirror images, each by windows with a third of
the crop between them.
"""

from common.inference import SIX_SCALES, Protocol
from common.recipe import Recipe

RELEASED = dict(
    optimizer="adamw", lr=1e-5, head_lr=10.0, weight_decay=1e-4, schedule="step",
    scale=(0.5, 2.0), max_share=0.75, photometric=True, centre=False, batch_size=16,
    eval_every=8000,
)
LONG = dict(steps=160_000, drop_at=126 / 160, crop_size=480, **RELEASED)


def windows(fit, crop, stride):
    """The released test."""
    return Protocol(fit=fit, scales=SIX_SCALES, flip=True, crop=crop, stride=stride)


RECIPES = {
    "shapes": Recipe(steps=600, lr=2e-3),
    "camvid": Recipe(
        steps=4000, batch_size=8, crop_size=288, lr=1e-3, weight_decay=1e-2, schedule="one-cycle",
        scale=(0.6, 1.6), colour=0.3, eval_every=500,
    ),
    "camvid_tiny": Recipe(  # at half resolution
        steps=5000, batch_size=8, crop_size=160, lr=2e-3, scale=(0.35, 0.8), test_scale=0.5,
        colour=0.3, eval_every=1000,
    ),
    "ade20k": Recipe(fit=(2048, 512), **LONG),
    "pascal_context59": Recipe(fit=(520, 520), **LONG),
    "pascal_context60": Recipe(fit=(520, 520), **LONG),
    "cityscapes": Recipe(
        steps=80_000, drop_at=64 / 80, crop_size=768, fit=(2048, 1024), **RELEASED,
    ),
    "default": Recipe(**LONG),
}

PROTOCOLS = {
    "ade20k": windows((2048, 512), 480, 160),
    "pascal_context59": windows((520, 520), 480, 160),
    "pascal_context60": windows((520, 520), 480, 160),
    "cityscapes": windows((2048, 1024), 768, 256),
}
