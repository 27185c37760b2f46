"""How often classes occur in labels, what is suspicious about it, weights that make up for it."""

import sys

import numpy as np

from common.errors import UserError
from common.metrics import IGNORE

AT_MOST = 100  # labels that a training looks at
COUNTED = 1000  # labels that weights are made from
FEW = 5  # images are too few to tell one score from another


class Statistics:
    """Pixels and images per class. names: of the K classes."""

    def __init__(self, split, names):
        self.split, self.names, self.count = split, names, 0
        self.pixels, self.images = np.zeros(256, np.int64), np.zeros(256, np.int64)
        self.around = np.zeros(256, np.int64)  # valid pixels of the images that hold the class

    def add(self, label):
        """Count a label, uint8 [H, W], 255 = ignore."""
        pixels = np.bincount(label.ravel(), minlength=256)
        self.pixels, self.images = self.pixels + pixels, self.images + (pixels > 0)
        self.around = self.around + (pixels > 0) * pixels[:IGNORE].sum()
        self.count += 1
        return self

    def table(self):
        """The shares of pixels and of images as lines."""
        width = max(map(len, (*self.names, "ignored")))
        rows = [*zip(self.names, range(len(self.names)), strict=True), ("ignored", IGNORE)]
        total = max(1, self.pixels.sum())
        return [f"{'class'.ljust(width)}  pixels  images", *(
            f"{name.ljust(width)}  {self.pixels[k] / total:6.1%}  "
            f"{self.images[k] / max(1, self.count):6.1%}" for name, k in rows)]

    def frequencies(self):
        """Of each class, its share of the valid pixels of the images that hold it; NaN if none
        does. float64 [K]."""
        pixels, around = (of[: len(self.names)].astype(float) for of in (self.pixels, self.around))
        return np.divide(pixels, around, out=np.full(len(pixels), np.nan), where=around > 0)

    def seen(self):
        """Names of the classes that occur."""
        return [name for name, pixels in zip(self.names, self.pixels, strict=False) if pixels]

    def warnings(self):
        """What is suspicious, a line each."""
        seen, void = self.seen(), self.pixels[IGNORE] / max(1, self.pixels.sum())
        where = f"{self.split}: {self.count} labels looked at"
        if len(seen) < len(self.names):
            missing = [name for name in self.names if name not in seen]
            more = f" and {len(missing) - 5} more" * (len(missing) > 5)
            yield f"{where}, none holds {', '.join(missing[:5])}{more}"
        if void > 0.25:
            yield f"{where}, {void:.0%} of their pixels are 255 = ignored"
        if len(seen) < 2:
            yield f"{where}, they hold one class only: there is nothing to tell apart"
        if void and seen == [*self.names[:1]]:
            yield (f"{self.split}: the labels hold 0 and 255 alone, as masks of two values do. 255 "
                   "means ignore, so the object is neither learned nor scored: save it as 1")


def compare(train, val):
    """What is suspicious about the Statistics of both, a line each."""
    yield from train.warnings()
    yield from val.warnings()
    if other := [name for name in val.seen() if name not in train.seen()]:
        yield f"val holds {', '.join(other[:5])}, the labels looked at of train do not"


def warnings(train_set, val_set):
    """What is suspicious about two datasets from files, by at most AT_MOST labels of each."""
    found = []
    for split, dataset in (("train", train_set), ("val", val_set)):
        if not hasattr(dataset, "label"):  # made on the fly
            return
        found.append(Statistics(split, dataset.classes))
        for index in np.linspace(0, len(dataset) - 1, min(AT_MOST, len(dataset))).astype(int):
            try:
                found[-1].add(dataset.label(index))
            except UserError:
                pass  # said where it is used
    yield from compare(*found)
    yield from few(len(val_set))


def few(count):
    """What is suspicious about the number of images for validation, a line or none."""
    if count < FEW:
        images = "1 image is" if count == 1 else f"{count} images are"
        yield f"val: {images} too few for a score that means something"


def balanced(dataset):
    """Median frequency balancing (Eigen and Fergus, ICCV 2015): a weight per class, as a list.

    The frequency of a class is its share of the pixels of the images in which it occurs; its weight
    is the median of all frequencies over its own. Ignored pixels do not count. At most COUNTED
    labels are looked at; a class in none of them weighs 1.
    """
    found = Statistics("train", dataset.classes)
    for index in np.linspace(0, len(dataset) - 1, min(COUNTED, len(dataset))).astype(int):
        found.add(dataset.label(index) if hasattr(dataset, "label") else dataset[index][1])
    share = found.frequencies()
    weights = np.nanmedian(share) / share if np.isfinite(share).any() else share
    return [round(float(weight), 6) for weight in np.nan_to_num(weights, nan=1.0)]


def weigh(config, train_set, resumed, quiet=False):
    """Note in the `config` of a new run the numbers that its "class_weights" stand for; those of
    "auto" are told on stderr, unless `quiet`. Raises UserError for another number of weights than
    there are classes."""
    given, names = config["class_weights"], train_set.classes
    if given is None or resumed:
        return
    weights = balanced(train_set) if given == "auto" else given
    if len(weights) != len(names):
        raise UserError(f"--class-weights: {len(weights)} weights, the dataset has {len(names)} "
                        f"classes: {', '.join(names)[:99]}")
    config["loss_weights"] = weights
    if given == "auto" and not quiet:
        told = (f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
        print("class weights:", ", ".join(told), file=sys.stderr)
