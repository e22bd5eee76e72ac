"""Label maps to polygons, tile by tile: regions that tiles cut apart become one again, and only open ones are held."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from s2clip.results.geo.tiles import Extent


class Region(NamedTuple):
    """One 4-connected region of equal class."""

    class_index: int
    score: float
    """Mean confidence of its pixels."""
    pixels: int
    shape: Any
    """shapely polygon with holes, in (column, row) pixel edges."""


class _Open:
    """A region that may go on in the next row of tiles."""

    def __init__(self, class_index: int) -> None:
        self.class_index, self.pixels, self.confidence = class_index, 0, 0.0
        self.parts: list[Any] = []

    def take(self, other: "_Open") -> None:
        self.pixels += other.pixels
        self.confidence += other.confidence
        self.parts += other.parts

    def closed(self) -> Region:
        import shapely

        shape = self.parts[0]
        if len(self.parts) > 1:
            shape = _with_corners_only(shapely.union_all(self.parts))
        return Region(self.class_index, self.confidence / self.pixels, self.pixels, shape)


def _with_corners_only(shape: Any) -> Any:
    """A polygon along pixel edges without points amid its sides, where tiles met.

    `shapely.simplify` keeps such a point where a ring begins, or not, by the version of GEOS.
    """
    import shapely

    rings = []
    for ring in (shape.exterior, *shape.interiors):
        points = shapely.get_coordinates(ring)[:-1]
        amid = (np.roll(points, 1, axis=0) == points) & (np.roll(points, -1, axis=0) == points)
        rings.append(points[~amid.any(axis=1)])
    return shapely.Polygon(rings[0], rings[1:])


def regions(
    tiles: Iterable[tuple[int, Extent, Callable[[], tuple[np.ndarray, np.ndarray]] | None]], void: int, certain: float
) -> Iterator[Region]:
    """Every region once, as soon as the row of tiles below it holds no more of it.

    Args:
        tiles: (row of tiles, core, what reads its labels and confidence [h,w], or None where no pixel has a label) in
            raster order; cores that touch share whole sides.
        void: the label of pixels in no region.
        certain: the value of a confidence of 1.
    """
    found: dict[int, _Open] = {}
    parents: dict[int, int] = {}
    above: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    below: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    left: tuple[int, np.ndarray, np.ndarray] | None = None
    current, last = None, 0

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def join(one: tuple[np.ndarray, np.ndarray], two: tuple[np.ndarray, np.ndarray]) -> None:
        same = (one[1] == two[1]) & (one[1] != void)
        for a, b in np.unique(np.stack([one[0][same], two[0][same]], 1), axis=0).tolist():
            a, b = root(a), root(b)
            if a != b:
                parents[b] = a
                found[a].take(found.pop(b))

    def settled() -> Iterator[Region]:
        """What does not reach the row's lower side."""
        nonlocal above, below
        above = {place: (_roots(numbers, root), labels) for place, (numbers, labels) in below.items()}
        below = {}
        kept = {int(one) for numbers, _ in above.values() for one in np.unique(numbers)} - {0}
        for number in [one for one in found if one not in kept]:
            yield found.pop(number).closed()
        parents.clear()
        parents.update({one: one for one in kept})

    for row, core, read in tiles:
        if current is not None and row != current:
            yield from settled()
            left = None
        current = row
        if read is None:
            continue
        labels, confidence = read()
        numbers = _numbered(labels, confidence, core, void, certain, last, found)
        last = max(last, int(numbers.max(initial=0)))
        parents.update({one: one for one in found if one not in parents})
        if left is not None and left[0] == core.left:
            join((left[1], left[2]), (numbers[:, 0], labels[:, 0]))
        if core.left in above:
            join(above[core.left], (numbers[0], labels[0]))
        left = core.right, numbers[:, -1].copy(), labels[:, -1].copy()
        below[core.left] = numbers[-1].copy(), labels[-1].copy()
    below = {}
    yield from settled()


def _roots(numbers: np.ndarray, root: Callable[[int], int]) -> np.ndarray:
    unique, inverse = np.unique(numbers, return_inverse=True)
    return np.array([root(one) if one else 0 for one in unique.tolist()])[inverse.reshape(numbers.shape)]


def _numbered(
    labels: np.ndarray,
    confidence: np.ndarray,
    core: Extent,
    void: int,
    certain: float,
    last: int,
    found: dict[int, _Open],
) -> np.ndarray:
    """int64 [h,w], numbers of the tile's regions from last + 1, 0 for none; each is put into `found`."""
    import shapely
    import torch
    from rasterio.features import shapes
    from rasterio.transform import Affine

    from s2clip import ops

    known = np.where(labels == void, -1, labels.astype(np.int64))
    local = ops.label_components(torch.from_numpy(known), connectivity=4, ignore_index=-1)[0].numpy()
    pixels = np.bincount(local.ravel())
    sums = np.bincount(local.ravel(), weights=confidence.ravel() / certain)
    place = Affine.translation(core.left, core.top)
    for shape, value in shapes(local.astype(np.int32), mask=local > 0, connectivity=4, transform=place):
        number = int(value)
        rings = shape["coordinates"]
        if last + number not in found:
            column, row = (int(side) for side in rings[0][0])
            one = found[last + number] = _Open(_class_of(known, local, number, column - core.left, row - core.top))
            one.pixels, one.confidence = int(pixels[number]), float(sums[number])
        found[last + number].parts.append(shapely.Polygon(rings[0], rings[1:]))
    return np.where(local > 0, local.astype(np.int64) + last, 0)


def _class_of(known: np.ndarray, local: np.ndarray, number: int, column: int, row: int) -> int:
    """The class of a region, found at a corner of its outline: one of the four pixels there is its own."""
    for y in (row - 1, row):
        for x in (column - 1, column):
            if 0 <= y < local.shape[0] and 0 <= x < local.shape[1] and local[y, x] == number:
                return int(known[y, x])
    raise AssertionError("a corner of an outline touches its region")
