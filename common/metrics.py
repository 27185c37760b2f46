"""Intersection over union, counted over a whole dataset."""

import numpy as np

IGNORE = 255  # label of pixels that are neither trained on nor scored


class ConfusionMatrix:
    """Pixel counts, row = true class, column = predicted class; int64, so no dataset can overflow it.

    Counts are summed over all images first and divided once at the end. The mean of per-image IoUs would be
    another number: it weighs a class's pixel in a small or rare image more than the same pixel elsewhere,
    and is undefined for every image in which the class does not occur.

    A class that occurs in neither prediction nor label has IoU NaN and is left out of the mean.
    """

    def __init__(self, num_classes):
        self.counts = np.zeros((num_classes, num_classes), dtype=np.int64)

    def update(self, prediction, label):
        """Add one image or batch: two integer arrays or tensors of the same shape, label 255 = ignore.

        Raises ValueError for shapes that differ and for values outside 0..num_classes-1.
        """
        prediction, label = np.asarray(prediction), np.asarray(label)
        if prediction.shape != label.shape:
            raise ValueError(f"prediction has shape {prediction.shape}, label {label.shape}")
        n = len(self.counts)
        valid = label != IGNORE
        prediction, label = prediction[valid].astype(np.int64), label[valid].astype(np.int64)
        for name, values in (("prediction", prediction), ("label", label)):
            if values.size and (values.min() < 0 or values.max() >= n):
                bad = values[(values < 0) | (values >= n)][0]
                raise ValueError(f"{name} contains {bad}, valid are 0 to {n - 1} (and 255 in labels)")
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
        intersection = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - intersection
        return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)

    @property
    def miou(self):
        """Mean of `iou` over the classes that occur; NaN if none does."""
        iou = self.iou[~np.isnan(self.iou)]
        return float(iou.mean()) if iou.size else float("nan")

    @property
    def pixel_accuracy(self):
        """Share of the valid pixels that are predicted right; NaN if there are none."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    def table(self, classes):
        """The per-class scores as readable lines."""
        width = max(len(name) for name in classes)
        lines = [f"{'class'.ljust(width)}    IoU"]
        lines += [f"{name.ljust(width)}  {value:5.1%}" for name, value in zip(classes, self.iou)]
        lines.append(f"{'mean'.ljust(width)}  {self.miou:5.1%}   pixel accuracy {self.pixel_accuracy:.1%}")
        return "\n".join(lines)
