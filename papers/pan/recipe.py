"""How PAN is trained and tested: numbers only.

What is known of the paper's own training is second-hand. Recalled with high confidence: SGD with
momentum 0.9, weight decay 1e-4, learning rate 4e-3 under the poly schedule with power 0.9, crops of
512 on VOC, flips, scales 0.5 to 2. Recalled with medium confidence: batches of 16. Recalled with
low confidence: crops of 768 on Cityscapes. Chosen here: the length of the training, and everything
in `shapes`, `camvid` and `default` that differs from VOC. Tested with six scales and mirror images
(recalled); windows of the training crop that overlap by a third, and probabilities averaged, are
chosen.
"""

from dataclasses import replace

from common.inference import SIX_SCALES, Protocol
from common.recipe import Recipe

# 100 epochs of the 10,582 images of VOC 2012 with SBD. The paper then fine-tunes on the original
# trainval set before it submits to the test server.
VOC = Recipe(
    steps=66_000, batch_size=16, crop_size=512, optimizer="sgd", lr=4e-3, momentum=0.9,
    weight_decay=1e-4, schedule="poly", power=0.9, scale=(0.5, 2.0), flip=True, eval_every=6_600,
    train_split="trainaug",
)
WINDOWS = Protocol(crop=512, scales=SIX_SCALES, flip=True, average="probabilities")

RECIPES = {
    "shapes": Recipe(),
    "camvid": Recipe(
        steps=4000, batch_size=8, crop_size=288, lr=3e-3, weight_decay=1e-2, schedule="one-cycle",
        scale=(0.6, 1.6), colour=0.3, eval_every=500,
    ),
    "camvid_tiny": Recipe(  # at half resolution
        steps=5000, batch_size=8, crop_size=160, scale=(0.35, 0.8), test_scale=0.5, colour=0.3,
        eval_every=1000,
    ),
    "voc2012": VOC,
    "cityscapes": replace(  # 200 epochs of 2,975 images
        VOC, steps=37_200, crop_size=768, eval_every=3_720, train_split="train"
    ),
    "default": replace(VOC, steps=80_000, eval_every=8_000, train_split="train"),
}

PROTOCOLS = {"voc2012": WINDOWS, "cityscapes": replace(WINDOWS, crop=768)}
