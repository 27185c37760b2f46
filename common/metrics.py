"""Intersection over union, counted over a whole dataset."""

import numpy as np

IGNORE = 255  # label of pixels that are neither trained on nor scored


class ConfusionMatrix:
    """Pixel counts, row = true class, column = predicted class, int64.

    Counts are summed over all images first and divided once at the end. The mean of per-image IoUs
    would be another number: it weighs a class's pixel in a small or rare image more than elsewhere.

    Evaluation codes differ only in what becomes of classes that do not occur, so on subsets only:
    - neither labelled nor predicted: left out of the mean by Cityscapes' scripts, mmsegmentation
      and here (`miou`); counted as 0 by semseg and ADE20K's own kit (`mean_iou(absent=0)`);
    - predicted but never labelled: IoU 0, and counted, by all but COCO-Stuff's script
      (`mean_iou(labelled_only=True)`).
    """

    def __init__(self, num_classes):
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"{num_classes} classes: 1 to {IGNORE} are possible")
        self.counts = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, prediction, label):
        """Add an image or batch: two integer arrays or tensors of one shape, label 255 = ignore.
        Raises ValueError for shapes that differ, fractions and values outside 0..num_classes-1."""
        prediction, label = np.asarray(prediction), np.asarray(label)
        if prediction.shape != label.shape:
            raise ValueError(f"prediction has shape {prediction.shape}, label {label.shape}")
        if not all(array.dtype.kind in "iub" for array in (prediction, label)):
            raise ValueError(f"wanted whole numbers, not {prediction.dtype} and {label.dtype}")
        n = len(self.counts)
        valid = label != IGNORE
        prediction, label = prediction[valid].astype(np.int64), label[valid].astype(np.int64)
        for name, values in (("prediction", prediction), ("label", label)):
            if values.size and (values.min() < 0 or values.max() >= n):
                bad = values[(values < 0) | (values >= n)][0]
                raise ValueError(f"{name} contains {bad}, valid are 0 to {n - 1} (labels: and 255)")
        self.counts += np.bincount(n * label + prediction, minlength=n * n).reshape(n, n)
        return self

    def merge(self, other):
        """Add the counts of another matrix of the same size."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"cannot merge {len(other.counts)} classes into {len(self.counts)}")
        self.counts += other.counts
        return self

    @property
    def iou(self):
        """Per class: intersection / union, NaN where the union is empty. float64 [num_classes]."""
        counts = self.counts.astype(np.float64)  # exact to 2^53, and beyond without overflow
        intersection = np.diag(counts)
        union = counts.sum(0) + counts.sum(1) - intersection
        return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)

    @property
    def miou(self):
        """Mean of `iou` over the classes that occur; NaN if none does."""
        return self.mean_iou()

    def mean_iou(self, absent=float("nan"), labelled_only=False):
        """`miou` under another convention: `absent` is the IoU of classes with an empty union."""
        iou = np.where(np.isnan(self.iou), absent, self.iou)
        if labelled_only:
            iou = iou[self.counts.sum(1) > 0]
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    @property
    def pixel_accuracy(self):
        """Share of the valid pixels that are predicted right; NaN if there are none."""
        total = self.counts.sum(dtype=float)
        return float(np.trace(self.counts, dtype=float) / total) if total else float("nan")

    def table(self, classes):
        """The per-class scores as readable lines."""
        width = max(len(name) for name in classes)
        lines = [f"{'class'.ljust(width)}    IoU", *(
            f"{name.ljust(width)}  {iou:5.1%}" for name, iou in zip(classes, self.iou, strict=True)
        ), f"{'mIoU'.ljust(width)}  {self.miou:5.1%}   pixel accuracy {self.pixel_accuracy:.1%}"]
        if missing := int(np.isnan(self.iou).sum()):
            lines.append(f"left out: {missing} of {len(classes)} classes, which do not occur; "
                         f"counted as 0: {self.mean_iou(absent=0):.1%}")
        return "\n".join(lines)
