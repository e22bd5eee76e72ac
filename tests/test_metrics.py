"""mIoU against a plain NumPy statement and against hand-made cases."""

import math

import numpy as np
import pytest
import torch

from s2clip.evaluation.metrics import confusion_matrix, intersection_over_union, mean_iou, pixel_accuracy


def numpy_iou(prediction, target, classes):
    valid = target != 255
    found = []
    for index in range(classes):
        guess, truth = (prediction == index) & valid, (target == index) & valid
        union = (guess | truth).sum()
        found.append((guess & truth).sum() / union if union else math.nan)
    return np.array(found)


@pytest.mark.parametrize("seed", range(5))
def test_against_numpy(seed):
    rng = np.random.default_rng(seed)
    classes = 7
    prediction = rng.integers(0, classes - 1, (3, 11, 13))
    target = rng.choice([0, 1, 2, 3, 255], (3, 11, 13))
    matrix = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(target), classes)
    expected = numpy_iou(prediction, target, classes)
    assert matrix.dtype == torch.int64
    assert np.allclose(intersection_over_union(matrix).numpy(), expected, equal_nan=True, atol=1e-12)
    assert mean_iou(matrix) == pytest.approx(np.nanmean(expected))
    assert pixel_accuracy(matrix) == pytest.approx((prediction == target)[target != 255].mean())


def test_pictures_add_up_before_the_division():
    """A data-set mIoU is not the mean of the pictures' mIoUs."""
    first = confusion_matrix(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]), 2)
    second = confusion_matrix(torch.tensor([1]), torch.tensor([1]), 2)
    assert intersection_over_union(first + second).tolist() == [0.75, 0.5]


def test_a_class_that_is_neither_true_nor_given_does_not_count():
    matrix = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]), 3)
    assert intersection_over_union(matrix).tolist()[:2] == [0.5, 0.0]
    assert math.isnan(intersection_over_union(matrix)[2])
    assert mean_iou(matrix) == 0.25


def test_unsigned_bytes_do_not_overflow():
    ids = torch.full((4,), 200, dtype=torch.uint8)
    assert confusion_matrix(ids, ids, 201)[200, 200] == 4


def test_nothing_counted_is_nan():
    ignored = torch.full((4,), 255)
    matrix = confusion_matrix(torch.zeros(4, dtype=torch.int64), ignored, 2)
    assert matrix.sum() == 0
    assert math.isnan(mean_iou(matrix))
    assert math.isnan(pixel_accuracy(matrix))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([0, 1], [0], r"prediction: expected the shape of target, \[1\], received \[2\]"),
        ([0, 3], [0, 1], "prediction: expected ids from 0 to 2, received 0 to 3"),
        ([0, -1], [0, 1], "prediction: expected ids from 0 to 2, received -1 to 0"),
        ([0, 1], [0, 254], "target: expected ids from 0 to 2, received 0 to 254"),
    ],
)
def test_errors(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(prediction), torch.tensor(target), 3)
