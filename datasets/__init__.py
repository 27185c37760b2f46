"""Datasets, one file each. `load(name, root, split)` is the only door."""

import functools
import os
import signal
import sys

if sys.argv[0] == "-m" and callable(signal.getsignal(signal.SIGINT)):  # python -m datasets.check
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C during the imports

import numpy as np

from common.errors import UserError

from . import ade20k, camvid, cityscapes, coco_stuff, folder, pascal_context, shapes, voc2012

# Images with labels in each split, as published; None: as many as there are.
SAMPLES = {
    "shapes": shapes.LENGTHS,
    "camvid": {"train": 367, "val": 101, "test": 233},
    "voc2012": {"train": 1464, "val": 1449, "trainaug": 10582},
    "ade20k": {"train": 20210, "val": 2000},
    "cityscapes": {"train": 2975, "val": 500, "test": 1525},
    "pascal_context59": {"train": 4998, "val": 5105},
    "pascal_context60": {"train": 4998, "val": 5105},
    "coco_stuff164k": {"train": 118287, "val": 5000},
    "coco_stuff10k": {"train": 9000, "val": 1000, "test": 1000},
    "folder": {"train": None, "val": None, "test": None},
    **{f"shapes-{task}": shapes.LENGTHS for task in shapes.PROBES},
}
LOADERS = {
    "camvid": camvid.load,
    "voc2012": voc2012.load,
    "ade20k": ade20k.load,
    "cityscapes": cityscapes.load,
    "pascal_context59": functools.partial(pascal_context.load, classes=59),
    "pascal_context60": functools.partial(pascal_context.load, classes=60),
    "coco_stuff164k": coco_stuff.load_164k,
    "coco_stuff10k": coco_stuff.load_10k,
    "folder": folder.load,
}
NAMES = tuple(SAMPLES)
LOOKED = 20  # training images whose sizes tell whether a resumed run has the same data
SPLITS = ("train", "val", "test", "trainaug")


def load(name, root=None, split="train", seed=0):
    """A dataset: len, dataset[i] -> (image uint8 [H, W, 3] RGB, label uint8 [H, W], 255 = ignore),
    and the attributes classes, palette, sample_name(i); from files also stored_ids (see
    files.FilePairs).

    name: one of NAMES. root: its folder (not for `shapes` and its probes). split: "train", "val" or
    "test", for voc2012 also "trainaug". seed: of the scenes that are made on the fly. Raises
    UserError, also for files without partner.
    """
    if name not in NAMES:
        raise UserError(f"--dataset {name}: unknown; valid: {', '.join(NAMES)}")
    if split not in SAMPLES[name]:
        raise UserError(f"unknown split {split!r}; valid: {', '.join(SAMPLES[name])} (what {name} "
                        "has labels for)")
    if name not in LOADERS:
        return shapes.Shapes(split, seed, task=name.partition("-")[2])
    dataset = LOADERS[name](root, split)
    if dataset.missing:
        count, command = len(dataset.missing), f"`python -m datasets.check {name} {root}`"
        more = f" ({count} such; {command} lists them)" * (count > 1)
        raise UserError(dataset.missing[0] + more)
    return dataset


def refuse_folder(name, root):
    """Raise UserError for a --data that the dataset of this name would not look at."""
    if root is not None and name in NAMES and name not in LOADERS:
        raise UserError(f"--data {root}: {name} has no folder, its scenes are made up; for "
                        f"your own images add --dataset folder; others: {', '.join(LOADERS)}")


def load_pair(config, root, train_split, resumed=None):
    """The training and the validation set of a run. Notes their classes in `config`; where a run is
    resumed, raises UserError if they are not those of its own config."""
    refuse_folder(config["dataset"], root)
    train_set, val_set = (load(config["dataset"], root, split) for split in (train_split, "val"))
    if resumed and list(train_set.classes) != config["classes"]:
        raise UserError(f"--data {root}: other classes than those of the run to resume, which are: "
                        + ", ".join(config["classes"]))
    if resumed and len(train_set) != config.get("train_images", len(train_set)):
        raise UserError(f"--data {root}: {len(train_set)} training images, the run to resume has "
                        f"{config['train_images']}; other data need another --out")
    sizes = sizes_of(train_set)
    compare(sizes, config.get("train_sizes"), root)
    config.update(train_images=len(train_set), train_sizes=sizes,
                  num_classes=len(train_set.classes), classes=list(train_set.classes),
                  stored_ids=train_set.stored_ids.tolist(),
                  palette=[list(colour) for colour in train_set.palette])
    return train_set, val_set


def sizes_of(dataset):
    """Bytes of LOOKED images with their labels, of a dataset from files, else []."""
    pairs = getattr(dataset, "pairs", [])
    indices = np.linspace(0, len(pairs) - 1, LOOKED).astype(int) if pairs else []
    return [sum(os.path.getsize(path) for path in pairs[index] if os.path.isfile(path))
            for index in indices]


def compare(sizes, before, root):
    """Raise UserError if most of the files are not of the sizes they had when the run began, and
    say so if some are. before: None where that is not known."""
    changed = sum(one != other for one, other in zip(sizes, before or sizes, strict=False))
    if changed > LOOKED / 2:
        raise UserError(f"--data {root}: other images than those of the run to resume; other data "
                        "need another --out")
    if changed:
        print(f"warning: {changed} of {LOOKED} images or labels are not what they were when the "
              "run began", file=sys.stderr)
