"""How PSANet is trained and tested: numbers only.

ade20k, voc2012 and cityscapes are those of the authors' PyTorch code: SGD with ten times the rate
for everything that is not the backbone, poly schedule, weight decay on all parameters. `shapes`,
`camvid` and `default` are ours. The auxiliary loss counts 0.4: see `model.PSANet.loss`.

Tests, too, are those of the PyTorch code: windows of the training crop, probabilities averaged,
every window together with its mirror image, also where the paper says "single scale". Its
multi-scale numbers take the six scales 0.5 to 1.75.
"""

from common.inference import Protocol
from common.recipe import Recipe


def official(steps, crop_size, train_split="train"):
    """The authors' settings, which differ between datasets in the length and in the crop only."""
    return Recipe(
        steps=steps, batch_size=16, crop_size=crop_size, optimizer="sgd", lr=0.01, head_lr=10.0,
        momentum=0.9, weight_decay=1e-4, schedule="poly", power=0.9, scale=(0.5, 2.0), rotate=10.0,
        blur=True, flip=True, eval_every=steps // 10, train_split=train_split,
    )


def windows(crop, base):
    """The authors' test: the long side resized to `base`."""
    return Protocol(fit=(base, base), crop=crop, flip=True, average="probabilities", centre=True)


RECIPES = {
    "shapes": Recipe(),
    "camvid": Recipe(
        steps=4000, batch_size=8, crop_size=289, lr=3e-3, weight_decay=1e-2, schedule="one-cycle",
        scale=(0.6, 1.6), colour=0.3, eval_every=500,
    ),
    "camvid_tiny": Recipe(  # at half resolution
        steps=5000, batch_size=8, crop_size=160, scale=(0.35, 0.8), test_scale=0.5, colour=0.3,
        eval_every=1000,
    ),
    "ade20k": official(steps=126300, crop_size=465),  # 100 epochs
    "voc2012": official(steps=33050, crop_size=465, train_split="trainaug"),  # 50 epochs
    "cityscapes": official(steps=37200, crop_size=705),  # 200 epochs
    "default": official(steps=40000, crop_size=465),
}

PROTOCOLS = {
    "ade20k": windows(465, 512), "voc2012": windows(465, 512), "cityscapes": windows(705, 2048),
}
