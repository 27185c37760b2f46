"""Every number of every recipe and protocol, typed once more with its source. A digit that changes
is noticed here, and a number that is new has to be given its source.

Sources: "code" the official code, "recalled" known second-hand, "family" the habit of networks of
this kind, "chosen" ours. What a table does not list has the value of DEFAULTS or PROTOCOL.
"""

import dataclasses
import importlib

import pytest
import torch

from common import inference, recipe
from common.cli import papers
from common.recipe import Recipe, learning_rate_factor, make_optimizer, set_learning_rate
from datasets import transforms

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
DEFAULTS = dict(
    steps=400, batch_size=8, accumulate=1, crop_size=128, optimizer="adamw", lr=3e-3, head_lr=1.0,
    momentum=0.9, weight_decay=1e-2, no_decay=(), schedule="one-cycle", power=0.9, drop_at=0.8,
    warmup_steps=0, clip_norm=0.0, aux_weight=0.4, train_split="train", scale=(1.0, 1.0), fit=(),
    rotate=0.0, blur=False, flip=True, max_share=1.0, colour=0.0, photometric=False, centre=True,
    test_scale=1.0, eval_every=100,
)  # chosen, but for aux_weight: code (PSANet)
PROTOCOL = dict(fit=(), multiple=1, scales=(1.0,), flip=False, crop=0, stride=0, average="logits",
                centre=False)  # chosen

# {source: numbers}
CAMVID = {"chosen": dict(
    steps=4000, batch_size=8, crop_size=288, scale=(0.6, 1.6), colour=0.3, eval_every=500)}
CAMVID_TINY = {"chosen": dict(
    steps=5000, batch_size=8, crop_size=160, scale=(0.35, 0.8), test_scale=0.5, colour=0.3,
    eval_every=1000)}
PAN = {
    "recalled": dict(batch_size=16, crop_size=512, optimizer="sgd", lr=4e-3, momentum=0.9,
                     weight_decay=1e-4, schedule="poly", power=0.9, scale=(0.5, 2.0), flip=True,
                     train_split="trainaug"),
    "chosen": dict(steps=66_000, eval_every=6_600),  # 100 epochs of 10,582
}
PAN_TEST = {"recalled": dict(scales=SIX, flip=True),
            "chosen": dict(crop=512, average="probabilities")}
PSANET = {
    "code": dict(batch_size=16, crop_size=465, optimizer="sgd", lr=0.01, head_lr=10.0, momentum=0.9,
                 weight_decay=1e-4, schedule="poly", power=0.9, scale=(0.5, 2.0), rotate=10.0,
                 blur=True, flip=True),
}
PSANET_TEST = {"code": dict(fit=(512, 512), crop=465, flip=True, average="probabilities",
                            centre=True)}
PYSA = {
    "family": dict(steps=80000, batch_size=16, crop_size=512, optimizer="sgd", lr=0.01,
                   weight_decay=5e-4, schedule="poly", power=0.9, scale=(0.5, 2.0)),
    "chosen": dict(colour=0.3, eval_every=8000),
}
UNEPT = {
    "code": dict(steps=160_000, batch_size=16, crop_size=480, optimizer="adamw", lr=1e-5,
                 head_lr=10.0, weight_decay=1e-4, schedule="step", drop_at=126 / 160,
                 scale=(0.5, 2.0), max_share=0.75, photometric=True, centre=False),
    "chosen": dict(eval_every=8000),
}
UNEPT_TEST = {"code": dict(fit=(2048, 512), scales=SIX, flip=True, crop=480, stride=160)}
LRFORMER = {
    "code": dict(steps=160000, crop_size=512, optimizer="adamw", lr=6e-5, head_lr=10.0,
                 weight_decay=0.01, schedule="poly", power=1.0, warmup_steps=1500, clip_norm=35.0,
                 scale=(0.5, 2.0), fit=(2048, 512), max_share=0.75, photometric=True,
                 centre=False),
    "recalled": dict(batch_size=16),  # the README's command makes 32
    "chosen": dict(eval_every=16000),
}
LRFORMER_TEST = {"code": dict(fit=(2048, 512), multiple=32)}


def but(table, source, **numbers):
    """The table with other numbers of one source."""
    return {**table, source: {**table.get(source, {}), **numbers}}


RECIPES = {
    "pan": {
        "shapes": {}, "camvid": CAMVID, "camvid_tiny": CAMVID_TINY, "voc2012": PAN,
        "cityscapes": but(
            but(PAN, "recalled", crop_size=768, train_split="train"),
            "chosen", steps=37_200, eval_every=3_720),  # 200 epochs of 2,975
        "default": but(PAN, "chosen", steps=80_000, eval_every=8_000, train_split="train"),
    },
    "psanet": {
        "shapes": {}, "camvid": but(CAMVID, "chosen", crop_size=289), "camvid_tiny": CAMVID_TINY,
        "ade20k": but(but(PSANET, "code", steps=126300), "chosen", eval_every=12630),
        "voc2012": but(but(PSANET, "code", steps=33050, train_split="trainaug"),
                       "chosen", eval_every=3305),
        "cityscapes": but(but(PSANET, "code", steps=37200, crop_size=705),
                          "chosen", eval_every=3720),
        "default": but(PSANET, "chosen", steps=40000, eval_every=4000),
    },
    "pysa": {
        "shapes": {"chosen": dict(steps=360, eval_every=90)}, "camvid": CAMVID,
        "camvid_tiny": CAMVID_TINY,
        "cityscapes": but(but(PYSA, "family", steps=40000, batch_size=8, crop_size=769),
                          "chosen", eval_every=4000),
        "ade20k": PYSA, "default": PYSA,
    },
    "unept": {
        "shapes": {"chosen": dict(steps=600, lr=2e-3)},
        "camvid": but(CAMVID, "chosen", lr=1e-3),
        "camvid_tiny": but(CAMVID_TINY, "chosen", lr=2e-3),
        "ade20k": but(UNEPT, "code", fit=(2048, 512)),
        "pascal_context59": but(UNEPT, "chosen", fit=(520, 520)),
        "pascal_context60": but(UNEPT, "code", fit=(520, 520)),
        "cityscapes": but(UNEPT, "code", steps=80_000, drop_at=64 / 80, crop_size=768,
                          fit=(2048, 1024)),
        "default": UNEPT,
    },
    "lrformer": {
        "shapes": {"chosen": dict(steps=500, lr=4e-3, eval_every=250)},
        "camvid": but(CAMVID, "chosen", lr=1e-3, clip_norm=35.0),
        "camvid_tiny": but(CAMVID_TINY, "chosen", lr=4e-3),
        "ade20k": LRFORMER,
        "ade20k_l": but(LRFORMER, "code", crop_size=640, fit=(2560, 640)),
        "coco_stuff164k": but(but(LRFORMER, "recalled", steps=80000), "chosen", eval_every=8000),
        "cityscapes": but(LRFORMER, "recalled", batch_size=8, crop_size=1024, fit=(2048, 1024)),
        "default": LRFORMER,
    },
}
PROTOCOLS = {
    "pan": {"voc2012": PAN_TEST, "cityscapes": but(PAN_TEST, "chosen", crop=768)},
    "psanet": {
        "ade20k": PSANET_TEST, "voc2012": PSANET_TEST,
        "cityscapes": but(PSANET_TEST, "code", fit=(2048, 2048), crop=705),
    },
    "pysa": {"ade20k": {"chosen": dict(crop=512)}, "cityscapes": {"chosen": dict(crop=769)}},
    "unept": {
        "ade20k": UNEPT_TEST,
        "pascal_context59": but(UNEPT_TEST, "chosen", fit=(520, 520)),
        "pascal_context60": but(UNEPT_TEST, "code", fit=(520, 520)),
        "cityscapes": but(UNEPT_TEST, "code", fit=(2048, 1024), crop=768, stride=256),
    },
    "lrformer": {
        "ade20k": LRFORMER_TEST, "ade20k_l": but(LRFORMER_TEST, "code", fit=(2560, 640)),
        "coco_stuff164k": LRFORMER_TEST,
        "cityscapes": {"recalled": dict(fit=(2048, 1024), crop=1024, stride=768)},
    },
}


def numbers(defaults, table):
    """All numbers of a table; a later source overrules an earlier one."""
    assert table.keys() <= {"code", "recalled", "family", "chosen"}
    return {**defaults, **{name: value for part in table.values() for name, value in part.items()}}


@pytest.mark.parametrize("paper", RECIPES)
def test_every_number_has_its_source(paper):
    module = importlib.import_module(f"papers.{paper}.recipe")
    for tables, found, defaults in ((RECIPES, module.RECIPES, DEFAULTS),
                                    (PROTOCOLS, module.PROTOCOLS, PROTOCOL)):
        assert found.keys() == tables[paper].keys()
        for name, table in tables[paper].items():
            wanted, got = numbers(defaults, table), dataclasses.asdict(found[name])
            if paper == "lrformer" and got.get("no_decay"):
                got["no_decay"] = ()  # names, not numbers: compared with the release in its folder
            assert got == wanted, name


def test_every_paper_has_a_table():
    assert {*RECIPES} == {*PROTOCOLS} == {*papers()}


def test_constants():
    """Of ImageNet (torchvision's), of padding, of the protocols that go with no paper."""
    assert dataclasses.asdict(Recipe()) == DEFAULTS
    assert inference.MEAN == (0.485, 0.456, 0.406) and inference.STD == (0.229, 0.224, 0.225)
    assert transforms.MEAN_COLOUR == tuple(round(255 * mean) for mean in inference.MEAN)
    assert inference.SIX_SCALES == SIX and inference.SMALLEST == 32
    assert {name: dataclasses.asdict(protocol) for name, protocol in inference.PROTOCOLS.items()
            } == {"whole": PROTOCOL, "sliding": {**PROTOCOL, "crop": 512}, "multiscale": {
                **PROTOCOL, "crop": 512, "scales": SIX, "flip": True, "average": "probabilities"}}


def test_normalised_colours():
    """255 of a channel is (1 - mean) / std, the mean colour nearly 0."""
    red, mean = torch.tensor([255, 0, 0]).byte(), torch.tensor(transforms.MEAN_COLOUR).byte()
    pixels = inference.normalise(torch.stack([red, mean])[None])[:, 0]
    assert torch.allclose(pixels[:, 0], torch.tensor([0.515 / 0.229, -0.456 / 0.224,
                                                      -0.406 / 0.225]))
    assert pixels[:, 1].abs().max() < 0.01


# ----------------------------------------------------------------------- what the numbers stand for


def test_schedules_step_by_step():
    def rates(**changes):
        return [learning_rate_factor(step, Recipe(steps=10, **changes)) for step in range(10)]

    drop = rates(schedule="step", drop_at=0.8)
    assert drop == pytest.approx([1] * 8 + [0.1] * 2)
    warm = rates(schedule="constant", warmup_steps=4)
    assert warm == pytest.approx([0.25, 0.5, 0.75] + [1] * 7)
    poly = rates(schedule="poly", power=2.0)
    assert poly == pytest.approx([(1 - n / 10) ** 2 for n in range(10)])
    cycle = rates()
    assert cycle[0] == pytest.approx(0.04) and cycle[3] == max(cycle) == 1


def one_step(steps=2, **changes):
    """How far weights 1 of "backbone" and "head" go under a gradient of 0.5 in each step."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False)
                                 for name in ("backbone", "head")})
    torch.nn.init.ones_(model["backbone"].weight), torch.nn.init.ones_(model["head"].weight)
    settings = Recipe(steps=10, schedule="constant", lr=0.1, head_lr=10.0, **changes)
    optimizer = make_optimizer(model, settings)
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        set_learning_rate(optimizer, settings, step)
        optimizer.step()
    return [model[name].weight.item() - 1 for name in ("backbone", "head")]


def test_optimisers_by_hand():
    """Rate 0.1 for the backbone, 1 for the rest; SGD with momentum; decay apart in AdamW."""
    assert one_step(1, optimizer="sgd", weight_decay=0.0) == pytest.approx([-0.05, -0.5])
    # second step: momentum adds 0.9 of the first gradient
    assert one_step(2, optimizer="sgd", weight_decay=0.0, momentum=0.9) == pytest.approx(
        [-0.05 * 2.9, -0.5 * 2.9])
    # decay as part of SGD's gradient
    assert one_step(1, optimizer="sgd", weight_decay=0.1) == pytest.approx([-0.06, -0.6])
    # AdamW's first step is the rate itself, and the decay rate * 0.1 * weight comes on top
    assert one_step(1, optimizer="adamw", weight_decay=0.1) == pytest.approx([-0.11, -1.1], 1e-4)
    spared = one_step(1, optimizer="adamw", weight_decay=0.1, no_decay=("head",))
    assert spared == pytest.approx([-0.11, -1.0], 1e-4)


def test_half_precision_is_half():
    x = torch.ones(2, 2)
    for name in recipe.PRECISIONS:
        autocast, scaler = recipe.half_precision(name, "cpu")
        with autocast:
            assert (x @ x).dtype == getattr(torch, name)
        assert scaler.is_enabled() == (name == "float16")
