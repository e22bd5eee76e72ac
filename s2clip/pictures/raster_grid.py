"""Windows of a raster at the same place on the ground, whatever extent of it was cut out. Knows nothing of files."""

from collections.abc import Iterator
from typing import NamedTuple

from s2clip.errors import reject
from s2clip.pictures.windows import Box
from s2clip.values import is_whole


class Cell(NamedTuple):
    """A piece of the raster, and the larger one that is looked at to label it."""

    row: int
    column: int
    core: Box
    """The pixels that are labelled. The cores of all cells cover the raster, and no pixel twice."""
    window: Box
    """The pixels that are read: the core and `overlap/2` more on every side, moved into the raster at its border."""


def cells(height: int, width: int, *, window: int, overlap: int, anchor: tuple[int, int] = (0, 0)) -> Iterator[Cell]:
    """Cells in raster order: cell k holds the pixels k·s to (k+1)·s - 1 of an endless grid, s = window - overlap.

    Args:
        window: pixels of a side of what is read at once. A raster that is smaller gives smaller windows.
        overlap: pixels that neighbouring windows share, even, under half of the window.
        anchor: (row, column) of the raster's first pixel in the endless grid. Two extents of one raster whose anchors
            say where they lie in it have the same windows, but for those that reach over a border.
    """
    step, margin = window - overlap, overlap // 2
    rows, columns = _spans(height, anchor[0], step, margin, window), _spans(width, anchor[1], step, margin, window)
    for row, top, bottom, first, last in rows:
        for column, left, right, start, end in columns:
            yield Cell(row, column, Box(top, left, bottom, right), Box(first, start, last, end))


def check_windows(window: int, overlap: int) -> None:
    """Raises ValueError for a window or an overlap that gives no grid."""
    if not is_whole(window) or not 16 <= window <= 8192:
        reject("window", "16 to 8192 pixels", window)
    if not is_whole(overlap) or overlap < 0 or overlap % 2 or 2 * overlap >= window:
        reject("overlap", f"an even number of pixels under half of the window, {window}", overlap)


def _spans(size: int, anchor: int, step: int, margin: int, window: int) -> list[tuple[int, int, int, int, int]]:
    """(k, first and last of the core, first and last of the window) along one side."""
    spans = []
    for number in range(anchor // step, (anchor + size - 1) // step + 1):
        start = number * step - anchor
        first = min(max(start - margin, 0), max(size - window, 0))
        spans.append((number, max(start, 0), min(start + step, size), first, min(first + window, size)))
    return spans
