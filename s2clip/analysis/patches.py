"""Between pixels and patches: the class of a patch, the patch of a pixel."""

import torch
from torch import Tensor

from s2clip.errors import reject
from s2clip.pictures.windows import nearest


def patch_labels(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """The most frequent label of each cell's pixels, the smallest of those that tie; 255 counts as a label.

    labels [H,W] integers from 0 → int64 [h,w]; the grid covers the picture evenly. A map with fewer pixels than the
    grid has cells is enlarged first (nearest).
    """
    height, width = (max(side, cells) for side, cells in zip(labels.shape, grid, strict=True))
    if (height, width) != tuple(labels.shape):
        labels = nearest(labels, (height, width))
    rows = torch.arange(height, device=labels.device) * grid[0] // height
    columns = torch.arange(width, device=labels.device) * grid[1] // width
    cells = rows[:, None] * grid[1] + columns
    labels = labels.long()
    seen = torch.bincount(labels.flatten()) > 0  # no sort, as torch.unique would
    present, ranks = seen.nonzero()[:, 0], (seen.cumsum(0) - 1)[labels]
    counts = torch.bincount((cells * len(present) + ranks).flatten(), minlength=grid[0] * grid[1] * len(present))
    return present[counts.view(*grid, -1).argmax(-1)]


def patch_at(x: float, y: float, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the patch that holds pixel (x, y) of a picture of `size` (H, W).

    Raises:
        ValueError: the pixel is outside of the picture; the valid range.
    """
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        reject("at", f"x in 0..{width - 1} and y in 0..{height - 1}, pixels of the picture", f"{x:g},{y:g}")
    return int(y * grid[0] / height), int(x * grid[1] / width)


def check_patch(patch: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(row, column), or `ValueError` with the grid's range."""
    if not all(0 <= place < cells for place, cells in zip(patch, grid, strict=True)):
        reject("patch", f"row in 0..{grid[0] - 1} and column in 0..{grid[1] - 1}", f"{patch[0]},{patch[1]}")
    return patch
