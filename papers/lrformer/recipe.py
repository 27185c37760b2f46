"""How LRFormer is trained and tested: numbers only. Stochastic depth depends on the size of the
network: model.PRESETS.

ade20k is as released with the code, for T, S and B; ade20k_l is that of L. The learning rate grows
over the first 1,500 iterations; the linear decay begins where that ends and reaches 0 at 160,000.
The total batch is not part of the release: 16 is recalled from the paper, the README's command
makes 32. coco_stuff164k and cityscapes were never released: recalled, after SegFormer's. `shapes`
and `camvid` are ours.

Tested on whole images at one scale; both sides are stretched up to multiples of 32. Recalled, after
SegFormer: windows on Cityscapes.
"""

import dataclasses

from common.inference import Protocol
from common.recipe import Recipe

# The encoder's LayerNorms are not decayed; those of the decoder are.
ENCODER_NORMS = (
    *(f"backbone.stages.{stage}.norm" for stage in range(4)),
    *(
        f".blocks.{block}.{norm}"
        for block in range(22) for norm in ("norm1", "norm2", "attention.norm", "pre_norm")
    ),
)

ADE20K = Recipe(
    steps=160000, batch_size=16, crop_size=512, optimizer="adamw", lr=6e-5, head_lr=10.0,
    weight_decay=0.01, no_decay=ENCODER_NORMS, schedule="poly", power=1.0, warmup_steps=1500,
    clip_norm=35.0, scale=(0.5, 2.0), fit=(2048, 512), max_share=0.75, photometric=True,
    centre=False, eval_every=16000,
)

RECIPES = {
    "shapes": Recipe(steps=500, lr=4e-3, eval_every=250),
    "camvid": Recipe(
        steps=4000, batch_size=8, crop_size=288, lr=1e-3, weight_decay=1e-2, schedule="one-cycle",
        clip_norm=35.0, scale=(0.6, 1.6), colour=0.3, eval_every=500,
    ),
    "camvid_tiny": Recipe(  # at half resolution
        steps=5000, batch_size=8, crop_size=160, lr=4e-3, scale=(0.35, 0.8), test_scale=0.5,
        colour=0.3, eval_every=1000,
    ),
    "ade20k": ADE20K,
    "ade20k_l": dataclasses.replace(ADE20K, crop_size=640, fit=(2560, 640)),
    "coco_stuff164k": dataclasses.replace(ADE20K, steps=80000, eval_every=8000),
    "cityscapes": dataclasses.replace(ADE20K, batch_size=8, crop_size=1024, fit=(2048, 1024)),
    "default": ADE20K,
}

PROTOCOLS = {
    "ade20k": Protocol(fit=(2048, 512), multiple=32),
    "ade20k_l": Protocol(fit=(2560, 640), multiple=32),
    "coco_stuff164k": Protocol(fit=(2048, 512), multiple=32),
    "cityscapes": Protocol(fit=(2048, 1024), crop=1024, stride=768),
}
