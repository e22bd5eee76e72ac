"""A label map as masks: one per connected region, or one per class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from s2clip.errors import reject

if TYPE_CHECKING:
    from s2clip.results.segmented import Segmented

PER = ("region", "class")


class Piece(NamedTuple):
    """One mask, cut to its box."""

    class_index: int
    score: float
    """Mean confidence of its pixels."""
    x: int
    y: int
    mask: np.ndarray
    """bool [h,w], whose first pixel is (x, y) of the picture."""

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    def full(self, height: int, width: int) -> np.ndarray:
        """bool [H,W]."""
        whole = np.zeros((height, width), bool)
        whole[self.y : self.y + self.mask.shape[0], self.x : self.x + self.mask.shape[1]] = self.mask
        return whole


def pieces(result: Segmented, per: str = "region") -> Iterator[Piece]:
    """The masks of the classes, 8-connected regions in raster order or classes by id; ignored pixels are in none.

    Raises:
        ValueError: `per` is neither "region" nor "class".
    """
    if per not in PER:
        reject("per", "region or class", repr(per))
    labels, confidence = result.segmentation.cpu().numpy(), result.confidence.cpu().float().numpy()
    known = np.where((labels >= 0) & (labels < len(result.classes)), labels, -1)
    if per == "class":
        for index in range(len(result.classes)):
            mask = known == index
            if mask.any():
                y, x, cut = _box(mask)
                yield Piece(index, float(confidence[mask].mean()), x, y, cut)
        return
    import torch

    from s2clip import ops

    regions = ops.label_components(torch.from_numpy(known), ignore_index=-1)[0].numpy()
    for number, (y, x, cut) in enumerate(_boxes(regions), 1):
        mask = cut == number
        inside = confidence[y : y + mask.shape[0], x : x + mask.shape[1]][mask]
        first = int(mask.ravel().argmax())
        index = known[y + first // mask.shape[1], x + first % mask.shape[1]]
        yield Piece(int(index), float(inside.mean()), x, y, mask)


def _box(mask: np.ndarray) -> tuple[int, int, np.ndarray]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = int(rows[0]), int(columns[0])
    return y, x, mask[y : rows[-1] + 1, x : columns[-1] + 1]


def _boxes(regions: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """The map cut to the box of number 1, 2, ..: every pixel is looked at once, however many regions there are."""
    rows, columns = np.nonzero(regions)
    numbers = regions[rows, columns]
    count = int(numbers.max(initial=0))
    low = np.full((count + 1, 2), np.iinfo(np.int64).max)
    high = np.zeros((count + 1, 2), np.int64)
    for axis, values in enumerate((rows, columns)):
        np.minimum.at(low[:, axis], numbers, values)
        np.maximum.at(high[:, axis], numbers, values)
    for (top, left), (bottom, right) in zip(low[1:].tolist(), high[1:].tolist(), strict=True):
        yield top, left, regions[top : bottom + 1, left : right + 1]
