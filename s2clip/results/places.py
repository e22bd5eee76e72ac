"""Where a name fits into its region."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

SIDE = 320  # pixels of the map that places are looked for on
MOST = 60
LEAST_AREA = 0.004  # of the picture
INSIDE = 0.86  # of a name's box that must lie in its own region


class Place(NamedTuple):
    """The middle of a name in pixels of the picture shown."""

    class_index: int
    x: float
    y: float
    scale: float


def find_places(
    labels: np.ndarray,
    classes: int,
    box: Callable[[int, float], tuple[float, float]],
    scales: tuple[float, ...] = (1.0, 0.8, 0.64),
) -> list[Place]:
    """A place in every larger region that has room, the largest first; boxes of names never overlap.

    Args:
        labels: [H,W] class ids at the size shown; ids outside of 0..classes-1 get no name.
        box: (width, height) in pixels of a class's name at a scale.
        scales: tried in this order until the name fits.
    """
    from s2clip import ops

    step = max(1, -(-max(labels.shape) // SIDE))
    small = np.ascontiguousarray(labels[step // 2 :: step, step // 2 :: step]).astype(np.int64)
    if not small.size:
        return []
    small[(small < 0) | (small >= classes)] = classes
    components = ops.label_components(torch.from_numpy(small), ignore_index=classes)[0].numpy()
    areas = np.bincount(components.ravel())
    areas[0] = 0
    taken = np.zeros(small.shape, bool)
    places: list[Place] = []
    for number in np.argsort(-areas, kind="stable")[:MOST]:
        if areas[number] < max(LEAST_AREA * small.size, 1):
            break
        region = components == number
        class_index = int(small.ravel()[region.argmax()])
        for scale in scales:
            width, height = (max(1, round(side / step)) for side in box(class_index, scale))
            corner = _best_corner(region, taken, width, height)
            if corner is not None:
                y, x = corner
                taken[y : y + height, x : x + width] = True
                places.append(Place(class_index, (x + width / 2) * step, (y + height / 2) * step, scale))
                break
    return places


def _best_corner(region: np.ndarray, taken: np.ndarray, width: int, height: int) -> tuple[int, int] | None:
    """(y, x) of a box of this size inside the region, with much of the region around it and near to its middle."""
    if height > region.shape[0] or width > region.shape[1]:
        return None
    inside = _box_sums(region, height, width) / (height * width)
    inside[_box_sums(taken, height, width) > 0] = -1
    if inside.max() < INSIDE:
        return None
    rows, columns = np.nonzero(region)
    y, x = np.ogrid[: inside.shape[0], : inside.shape[1]]
    away = np.hypot(y + height / 2 - rows.mean(), x + width / 2 - columns.mean()) / np.hypot(*region.shape)
    around = _box_sums(np.pad(region, height), 3 * height, width + 2 * height) / (3 * height * (width + 2 * height))
    worth = np.where(inside >= INSIDE, inside + around - 0.5 * away, -1)
    row, column = divmod(int(worth.argmax()), inside.shape[1])
    return row, column


def _box_sums(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels of the mask in the box at every corner, by the summed-area table."""
    table = np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1), ((1, 0), (1, 0)))
    sums: np.ndarray = (
        table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
    )
    return sums
