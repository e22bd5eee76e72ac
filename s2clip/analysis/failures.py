"""Where a method fails: the pictures with the lowest mIoU, and which class was taken for which (Figure 2)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s2clip.analysis.pictures import Picture
from s2clip.errors import reject
from s2clip.evaluation.metrics import confusion_matrix, mean_iou, pixel_accuracy

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class Answered:
    """A picture, its truth and the answer."""

    picture: Picture
    segmentation: np.ndarray
    """[H,W] int64"""
    miou: float
    """0..1, over the classes of this picture's truth and answer"""
    accuracy: float
    """share of the labelled pixels"""


@dataclass(frozen=True, eq=False)
class Failures:
    """The worst pictures, worst first, and the confusions of all."""

    classes: tuple[str, ...]
    worst: tuple[Answered, ...]
    pictures: int
    matrix: np.ndarray
    """[K,K] int64: pixels of the row's class that were given the column's, over all pictures"""
    crowds: dict[int, tuple[float, int]]
    """Classes in the truth → (mean mIoU of the pictures with so many, their number)"""

    def rows(self) -> tuple[list[str], list[list]]:
        """Column names and one row per confusion that happened, the largest share of its true class first."""
        counts, total = self.matrix.copy(), self.matrix.sum(1)
        np.fill_diagonal(counts, 0)
        true, given = np.nonzero(counts)
        shares = counts[true, given] / total[true]
        order = np.argsort(-shares, kind="stable")
        rows = [
            [self.classes[t], self.classes[g], int(counts[t, g]), float(share)]
            for t, g, share in zip(true[order], given[order], shares[order], strict=True)
        ]
        return ["true", "given", "pixels", "share_of_true"], rows


def find_failures(pictures: Iterable[Picture], segmenter: "Segmenter", *, count: int = 4) -> Failures:
    """Segment all pictures and keep the `count` with the lowest mIoU.

    pictures: with labels, in the numbers of the segmenter's classes; walked through once, `count` of them are held.
    `ValueError` for a picture without labels, a count below 1, or no pictures.
    """
    if count < 1:
        reject("count", "at least 1", count)
    total, seen = 0, 0
    worst: list[Answered] = []
    crowds: dict[int, list[float]] = {}
    for picture in pictures:
        if picture.labels is None:
            reject("pictures", "pictures with label maps", f"{picture.name} without one")
        answer = segmenter(picture.pixels).segmentation.cpu()
        matrix = confusion_matrix(answer, picture.labels, len(segmenter.classes))
        total, seen = total + matrix, seen + 1
        worst.append(Answered(picture, answer.numpy(), mean_iou(matrix), pixel_accuracy(matrix)))
        crowds.setdefault(int((matrix.sum(1) > 0).sum()), []).append(worst[-1].miou)
        worst = sorted(worst, key=lambda one: one.miou)[:count]  # stable: the earlier of two equal ones stays first
    if not seen:
        reject("pictures", "at least one", "none")
    means = {classes: (float(np.mean(values)), len(values)) for classes, values in sorted(crowds.items())}
    return Failures(segmenter.classes, tuple(worst), seen, total.numpy(), means)
