"""mIoU against a plain NumPy statement and against hand-made cases."""

import math

import numpy as np
import pytest
import torch

from s2clip import scenes
from s2clip.evaluation import metrics
from s2clip.evaluation.metrics import (
    class_accuracy,
    confusion_matrix,
    intersection_over_union,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)


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


def numpy_matrix(prediction, target, classes, ignored=255):
    """Cell by cell, from two masks each."""
    counted = target != ignored
    return [[int(((target == t) & (prediction == p))[counted].sum()) for p in range(classes)] for t in range(classes)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("kind", ["noise", "regions"])
@pytest.mark.parametrize("classes", [2, 180, 181])
def test_every_path_counts_the_same(classes, kind, dtype):
    """Two strips and a bit, counted by runs or one by one; 181 classes do not fit into 16 bits."""
    rng = np.random.default_rng(classes)
    size = (333, 800) if kind == "noise" else (9, 800)
    prediction, target = rng.integers(0, classes, (2, *size))
    if kind == "regions":
        prediction, target = (np.repeat(ids, 37, axis=0) for ids in (prediction, target))
        prediction, target = (np.sort(ids, axis=1) for ids in (prediction, target))
    assert prediction.size > 2 * metrics.STRIP
    target[rng.random(target.shape) < 0.1 if kind == "noise" else np.arange(len(target)) % 7 == 0] = 255
    matrix = confusion_matrix(torch.from_numpy(prediction).to(dtype), torch.from_numpy(target).to(dtype), classes)
    expected = np.zeros((classes, classes), np.int64)
    np.add.at(expected, (target[target != 255], prediction[target != 255]), 1)
    assert matrix.dtype == torch.int64
    assert np.array_equal(matrix.numpy(), expected)


def test_painted_scenes_and_another_ignored_id():
    (_, target), (_, prediction) = scenes.generate(1), scenes.generate(2)
    arguments = torch.from_numpy(prediction), torch.from_numpy(target), len(scenes.CLASSES)
    assert confusion_matrix(*arguments).tolist() == numpy_matrix(prediction, target, len(scenes.CLASSES))
    ignoring = confusion_matrix(*arguments, ignore_index=0)
    assert ignoring.tolist() == numpy_matrix(prediction, target, len(scenes.CLASSES), ignored=0)
    assert ignoring[0].sum() == 0
    transposed = (arguments[0].T, arguments[1].T, arguments[2])
    assert torch.equal(confusion_matrix(*transposed), confusion_matrix(*arguments))


def test_what_is_given_where_nothing_counts_may_be_anything():
    matrix = confusion_matrix(torch.tensor([0, 77, -3]), torch.tensor([0, 255, 255]), 2)
    assert matrix.tolist() == [[1, 0], [0, 0]]


def test_accuracy_by_class():
    matrix = torch.tensor([[3, 1, 0], [0, 0, 2], [0, 0, 0]])
    assert class_accuracy(matrix).tolist()[:2] == [0.75, 0]
    assert math.isnan(class_accuracy(matrix)[2])
    assert mean_accuracy(matrix) == 0.375
    assert pixel_accuracy(matrix) == 0.5


def test_the_devices_count_is_that_of_the_cpu():
    """The arithmetic of the CUDA path, here on the CPU; that it waits for nothing is shown in tests/gpu."""
    rng = np.random.default_rng(3)
    prediction = torch.from_numpy(rng.integers(0, 5, 999))
    target = torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], 999))
    found = metrics._on_device(prediction, target, 5, 255)
    assert torch.equal(found, confusion_matrix(prediction, target, 5))
    prediction[target == 255] = 99
    assert torch.equal(metrics._on_device(prediction, target, 5, 255), found)


@pytest.mark.parametrize(("given", "true"), [(5, 0), (-1, 0), (0, 5), (0, -1)])
def test_an_id_out_of_range_on_a_device_spoils_every_sum_it_is_in(given, true):
    spoilt = metrics._on_device(torch.tensor([0, given]), torch.tensor([0, true]), 5, 255)
    total = spoilt + spoilt + torch.full((5, 5), 10**12)
    for figure in (mean_iou, mean_accuracy, pixel_accuracy):
        with pytest.raises(ValueError, match="out of range"):
            figure(total)


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
