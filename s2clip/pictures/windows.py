"""Window geometry: sizes, boxes, padding, and the merging of overlapping windows. Knows nothing of CLIP."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Box(NamedTuple):
    """A window in pixels (or patches), half open: rows top..bottom-1, columns left..right-1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


def resized_size(
    height: int, width: int, short_side: int | None, long_side: int | None, multiple: int = 1
) -> tuple[int, int]:
    """(H, W) times f = min(short_side / min(H, W), long_side / max(H, W)), rounded half up, at least `multiple`.

    With `multiple` > 1 each side is rounded to the nearest multiple instead, so the ratio may change by half a patch.
    None leaves a limit out; a picture with neither keeps its size, but for `multiple`.
    """
    limits = [short_side / min(height, width)] if short_side is not None else []
    limits += (
        [long_side / max(height, width)] if long_side is not None and (limits or max(height, width) > long_side) else []
    )
    factor = min(limits, default=1.0)
    resized_height, resized_width = (
        max(math.floor(side * factor / multiple + 0.5), 1) * multiple for side in (height, width)
    )
    return resized_height, resized_width


def resize(image: Tensor, size: tuple[int, int], *, antialias: bool = False, rounded: bool = False) -> Tensor:
    """uint8 [3,H,W] in 0..255 → float32 [3,h,w] in [0,1], bilinear, half-pixel centres (align_corners=False).

    Without `antialias` this is `F.interpolate(mode="bilinear")`, and OpenCV's INTER_LINEAR up to its rounding to uint8:
    what the peers do. `rounded` has OpenCV's rounding too, bit by bit. Only the two source rows of each output row are
    read, so a 64-megapixel picture costs little.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image.float() / 255
    if antialias:
        smooth = F.interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return (smooth * 255).round() / 255 if rounded else smooth
    if rounded:
        return opencv_levels(image, size).float() / 255
    for axis, length in ((1, size[0]), (2, size[1])):
        low, high, fraction = _linear_taps(image.shape[axis], length, image.device)
        fraction = fraction[:, None] if axis == 1 else fraction
        image = torch.lerp(image.index_select(axis, low).float(), image.index_select(axis, high).float(), fraction)
    return image / 255


def opencv_levels(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3,H,W] → int32 [3,h,w] in 0..255: OpenCV's INTER_LINEAR of uint8, columns first, then rows.

    Weights of 11 bits; a sum of columns loses 4 bits, each row's share 16 more, the last 2 are rounded: less than a
    level below the exact value in most pixels. A border row counts twice with both weights, a border column once.
    """
    (top, bottom, row), (left, right, column) = (
        _integer_taps(old, new, image.device) for old, new in zip(image.shape[1:], size, strict=True)
    )
    column = torch.where((left < 0) | (left >= image.shape[2] - 1), column.new_tensor([[2048], [0]]), column)
    left, right = left.clamp(0, image.shape[2] - 1), right.clamp(0, image.shape[2] - 1)
    image = image.int()
    image = (image.index_select(2, left) * column[0] + image.index_select(2, right) * column[1]) >> 4
    top, bottom, row = top.clamp(0, image.shape[1] - 1), bottom.clamp(0, image.shape[1] - 1), row[:, :, None]
    upper, lower = ((image.index_select(1, line) * own) >> 16 for line, own in ((top, row[0]), (bottom, row[1])))
    return ((upper + lower + 2) >> 2).clamp(0, 255)


def _integer_taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two sources of each output cell, -1 and `old` where they lie outside, and their weights [2,new] of 2048."""
    position = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    low = position.floor()
    fraction = position - low
    weights = torch.stack([1 - fraction, fraction]).mul(2048).round().int()
    return low.long().to(device), low.long().to(device) + 1, weights.to(device)


def _linear_taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    position = (torch.arange(new, device=device, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    position = position.clamp(0, old - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=old - 1), (position - low).float()


def nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """[...,H,W] of any dtype → [...,h,w]: output row i is input row ⌊i·H/h⌋."""
    sides = labels.shape[-2:]
    if all(new and old % new == 0 for old, new in zip(sides, size, strict=True)):
        return labels[..., :: sides[0] // size[0], :: sides[1] // size[1]].contiguous()
    rows, columns = (torch.arange(new, device=labels.device) * old // new for old, new in zip(sides, size, strict=True))
    return labels.index_select(-2, rows).index_select(-1, columns)


def window_starts(size: int, crop: int | None, stride: int) -> list[int]:
    """First pixels of max(⌈(size - crop)/stride⌉, 0) + 1 windows; the last is moved back to end at the border."""
    if crop is None or crop >= size:
        return [0]
    count = math.ceil((size - crop) / stride) + 1
    return [min(index * stride, size - crop) for index in range(count)]


def window_boxes(height: int, width: int, crop: int | None, stride: int) -> list[Box]:
    """All windows in raster order. They are of one size, min(crop, height) x min(crop, width)."""
    crop_height, crop_width = (height, width) if crop is None else (min(crop, height), min(crop, width))
    return [
        Box(top, left, top + crop_height, left + crop_width)
        for top in window_starts(height, crop, stride)
        for left in window_starts(width, crop, stride)
    ]


def padding(height: int, width: int, multiple: int) -> Box:
    """Where a window of this size lies inside one padded, about equally on both sides, to a multiple."""
    top, left = (-height % multiple) // 2, (-width % multiple) // 2
    return Box(top, left, top + height, left + width)


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The size of such a window with its padding."""
    return height + -height % multiple, width + -width % multiple


def cut_windows(image: Tensor, boxes: Sequence[Box], multiple: int, fill: Tensor) -> Tensor:
    """[C,H,W] → [n,C,h,w]: the boxes, each padded with the values `fill` [C] to a multiple of `multiple`.

    ClearCLIP and ProxyCLIP pad with zeros after normalisation: the mean colour. The odd pixel goes right or bottom.
    """
    height, width = boxes[0].size
    inner = padding(height, width, multiple)
    size = padded_size(height, width, multiple)
    windows = fill.to(image, non_blocking=True)[:, None, None].expand(len(boxes), len(fill), *size).clone()
    for window, box in zip(windows, boxes, strict=True):
        window[:, inner.top : inner.bottom, inner.left : inner.right] = image[
            :, box.top : box.bottom, box.left : box.right
        ]
    return windows


class WindowMean:
    """Mean over the windows that cover a cell, summed in the order in which they are added: one map is held, not all.

    boxes of equal size, in cells of a map of `size`.
    """

    def __init__(self, boxes: Sequence[Box], size: tuple[int, int]) -> None:
        self.boxes, self.size = boxes, size
        self.added = 0
        self.total: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """The next windows' maps [n,C,h,w]."""
        if self.total is None:
            self.total = maps.new_zeros(maps.shape[1], *self.size)
        for window in maps:
            box = self.boxes[self.added]
            self.total[:, box.top : box.bottom, box.left : box.right] += window
            self.added += 1

    def result(self) -> Tensor:
        """[C,H,W]; to be asked for once, when all windows were added."""
        assert self.added == len(self.boxes), (self.added, len(self.boxes))
        assert self.total is not None
        hits = self.total.new_zeros(self.size)
        for box in self.boxes:
            hits[box.top : box.bottom, box.left : box.right] += 1
        return self.total.div_(hits)


class Splice:
    """Features averaged on the patch grid: maps [n,C,h,w] of the windows → [C, ratio·H/patch, ratio·W/patch].

    Boxes and `size`, in pixels, are multiples of `patch`; ratio = max(1, round(h · patch / box height)) is how
    much finer the maps' grid is: 2 for DINO's patches of 8 under CLIP's of 16. A map on another grid is resampled.
    """

    def __init__(self, boxes: Sequence[Box], size: tuple[int, int], patch: int) -> None:
        self.boxes, self.size, self.patch = boxes, size, patch
        self.mean: WindowMean | None = None

    def add(self, maps: Tensor) -> None:
        """The next windows' maps."""
        rows, columns = (side // self.patch for side in self.boxes[0].size)
        ratio = max(1, round(maps.shape[2] / rows))
        if self.mean is None:
            cells = [Box(*(side // self.patch * ratio for side in box)) for box in self.boxes]
            height, width = (side // self.patch * ratio for side in self.size)
            self.mean = WindowMean(cells, (height, width))
        grid = (rows * ratio, columns * ratio)
        if tuple(maps.shape[2:]) != grid:
            maps = F.interpolate(maps, grid, mode="bilinear", align_corners=False)
        self.mean.add(maps)

    def result(self) -> Tensor:
        """To be asked for once, when all windows were added."""
        assert self.mean is not None, "no window was added"
        return self.mean.result()
