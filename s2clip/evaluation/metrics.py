"""Mean intersection over union of a whole data set, from one integer confusion matrix.

Not an average over pictures: counts are summed over the data set first, as the benchmarks do.
"""

import torch
from torch import Tensor

from s2clip.errors import reject


def confusion_matrix(prediction: Tensor, target: Tensor, classes: int, *, ignore_index: int = 255) -> Tensor:
    """M[t, p] = number of pixels of true class t that were given class p; int64 [classes,classes].

    Args:
        prediction: integer ids of any shape, 0 to classes-1 wherever the target counts.
        target: integer ids of the same shape; `ignore_index` marks pixels that do not count.

    Raises:
        ValueError: shapes differ, or an id is out of range.
    """
    if prediction.shape != target.shape:
        reject("prediction", f"the shape of target, {list(target.shape)}", list(prediction.shape))
    prediction, target = prediction.long(), target.long()
    counted = target != ignore_index
    prediction, target = prediction[counted], target[counted]
    for name, ids in (("prediction", prediction), ("target", target)):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
            reject(name, f"ids from 0 to {classes - 1}", f"{int(ids.min())} to {int(ids.max())}")
    return torch.bincount(target * classes + prediction, minlength=classes * classes).view(classes, classes)


def intersection_over_union(matrix: Tensor) -> Tensor:
    """IoU_c = M[c,c] / (row c + column c - M[c,c]); float64 [classes], NaN for a class neither true nor given."""
    intersection = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - intersection
    return intersection.double() / union.double()


def mean_iou(matrix: Tensor) -> float:
    """Mean of `intersection_over_union` over the classes that occur; NaN where none does."""
    return intersection_over_union(matrix).nanmean().item()


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of the counted pixels that were given their class; NaN without pixels."""
    return (matrix.diagonal().sum().double() / matrix.sum().double()).item()
