"""Datasets, one file each. `load(name, root, split)` is the only door."""

from common.errors import UserError

NAMES = ("shapes", "camvid", "folder")
SPLITS = ("train", "val", "test")


def load(name, root=None, split="train", seed=0):
    """A dataset: len, dataset[i] -> (image uint8 [H, W, 3] RGB, label uint8 [H, W], 255 = ignore), and the
    attributes classes, palette, sample_name(i).

    name: one of NAMES. root: its folder (not for `shapes`). split: "train", "val" or "test".
    seed: of the scenes that are made on the fly. Raises UserError.
    """
    if name not in NAMES:
        raise UserError(f"unknown dataset {name!r}; valid: {', '.join(NAMES)}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    if name == "shapes":
        from .shapes import Shapes

        return Shapes(split, seed)
    if name == "camvid":
        from . import camvid

        return camvid.load(root, split)
    from . import folder

    return folder.load(root, split)
