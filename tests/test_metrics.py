"""The score: bit-identical to a plain loop, and right in the corners where implementations
differ."""

import math

import numpy as np
import pytest

from common.metrics import ConfusionMatrix


def by_loop(prediction, label, n):
    """mIoU as one would explain it on a blackboard."""
    scores = []
    for c in range(n):
        intersection = union = 0
        for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
            if t == 255:
                continue
            intersection += p == c and t == c
            union += p == c or t == c
        scores.append(intersection / union if union else float("nan"))
    return np.array(scores)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    n = 6
    # the last class is never predicted
    prediction = rng.integers(0, n - 1, (3, 17, 13)).astype(np.uint8)
    label = rng.choice([0, 1, 2, 5, 255], (3, 17, 13)).astype(np.uint8)  # 3 and 4 never occur
    matrix = ConfusionMatrix(n)
    for p, t in zip(prediction, label, strict=True):
        matrix.update(p, t)
    wanted = by_loop(prediction, label, n)
    assert np.array_equal(matrix.iou, wanted, equal_nan=True)
    assert matrix.miou == np.nanmean(wanted)
    valid = label != 255
    assert matrix.pixel_accuracy == (prediction == label)[valid].sum() / valid.sum()


def test_absent_classes_are_left_out():
    matrix = ConfusionMatrix(4).update(np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert np.array_equal(matrix.iou, [1 / 2, 1 / 2, np.nan, np.nan], equal_nan=True)
    assert matrix.miou == 0.5


def test_predicted_but_never_labelled_counts_as_zero():
    # IoUs 1/2, -, 0
    assert ConfusionMatrix(3).update(np.array([2, 0]), np.array([0, 0])).miou == 0.25


def test_everything_ignored():
    matrix = ConfusionMatrix(3).update(np.array([0, 1]), np.array([255, 255]))
    assert np.isnan(matrix.miou) and np.isnan(matrix.pixel_accuracy) and matrix.counts.sum() == 0


def test_counts_are_summed_before_dividing():
    """Two images whose per-image means would give another number."""
    matrix = ConfusionMatrix(2)
    matrix.update(np.zeros(100, int), np.zeros(100, int)).update(np.array([0]), np.array([1]))
    assert np.allclose(matrix.iou, [100 / 101, 0])


def test_merge_and_order_do_not_matter():
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 3, (9, 7)), rng.integers(0, 3, (9, 7))) for _ in range(4)]
    whole, first, second = ConfusionMatrix(3), ConfusionMatrix(3), ConfusionMatrix(3)
    for p, t in images:
        whole.update(p, t)
    first.update(*images[3]).update(*images[1])
    second.update(*images[0]).update(*images[2])
    assert np.array_equal(first.merge(second).counts, whole.counts)


def test_no_overflow():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**40
    assert matrix.update(np.array([0]), np.array([0])).counts[0, 0] == 2**40 + 1


@pytest.mark.parametrize("prediction,label,message", [
    ([3], [0], "prediction contains 3"), ([-1], [0], "prediction contains -1"),
    ([0], [200], "label contains 200"),
    ([0, 1], [0], "shape"),
])
def test_wrong_values_are_named(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(np.array(prediction), np.array(label))


def test_merge_of_different_sizes():
    with pytest.raises(ValueError, match="3 classes into 2"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))


def test_three_conventions_for_absent_classes():
    """Classes: 0 half right, 1 never labelled but predicted, 2 right, 3 absent."""
    matrix = ConfusionMatrix(4).update(np.array([0, 1, 2, 2]), np.array([0, 0, 2, 2]))
    assert matrix.miou == pytest.approx((0.5 + 0 + 1) / 3)
    assert matrix.mean_iou(absent=0) == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert matrix.mean_iou(labelled_only=True) == pytest.approx((0.5 + 1) / 2)
    assert ("left out: 1 of 4 classes" in matrix.table("abcd")
            and f"{1.5 / 4:.1%}" in matrix.table("abcd"))
    assert (math.isnan(ConfusionMatrix(4).mean_iou(absent=float("nan")))
            and ConfusionMatrix(4).mean_iou(absent=0) == 0)


def test_the_published_check_of_ade20k():
    """The benchmark's kit: labels as their own predictions, 15 of 150 classes in them: 0.1000 under
    its convention."""
    label = np.arange(15)
    matrix = ConfusionMatrix(150).update(label, label)
    assert (matrix.mean_iou(absent=0) == pytest.approx(0.1) and matrix.miou == 1
            and matrix.pixel_accuracy == 1)
