"""Connected components of masks with the names and results of OpenCV's and SAM2's functions."""

import torch
from torch import Tensor

from s2clip.ops import checks
from s2clip.ops.components import label_components

LARGEST = 2**31 - 1


def connected_components_with_stats(
    image: Tensor, connectivity: int = 8
) -> tuple[int, Tensor, Tensor, Tensor] | tuple[list[int], Tensor, list[Tensor], list[Tensor]]:
    """(num_labels, labels, stats, centroids) as OpenCV's `connectedComponentsWithStats`, on the image's device.

    image: [H,W] or [B,H,W], any dtype; what is not 0 is foreground. connectivity: 4 or 8.
    num_labels counts the background, label 0. labels: int32, the shape of image, numbered in raster order as OpenCV's
    SAUF (CCL_WU). stats: int32 [num_labels,5], left, top, width, height, area; the row of a background without pixels
    is −1, 2³¹−1, 0, 0, 0 as OpenCV 5 gives it. centroids: float64 [num_labels,2], (x, y), NaN for such a background.
    For a batch num_labels, stats and centroids are lists with an entry per image. One host read, for the numbers.
    Raises ValueError for another number of axes or connectivity.
    """
    checks.any_tensor("image", image, "[H,W] or [B,H,W]", (2, 3))
    labels, count = label_components((image != 0).to(torch.uint8), connectivity=connectivity, ignore_index=0)
    numbers = [number + 1 for number in count.tolist()]
    measured = [_stats(*pair) for pair in zip(labels if image.ndim == 3 else labels[None], numbers, strict=True)]
    if image.ndim == 2:
        return numbers[0], labels, *measured[0]
    return numbers, labels, [stats for stats, _ in measured], [centroids for _, centroids in measured]


def _stats(labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """stats [number,5] and centroids [number,2] of labels 0..number−1."""
    area, box, total = (_moments_by_kernel if labels.is_cuda else _moments)(labels, number)
    left, top, right, bottom = box.unbind(1)
    stats = torch.stack([left, top, right - left + 1, bottom - top + 1, area], 1)
    absent = torch.tensor([-1, LARGEST, 0, 0, 0], device=labels.device)
    stats = torch.where(area[:, None] > 0, stats, absent).to(torch.int32)
    return stats, total.double() / area[:, None]


def _moments_by_kernel(labels: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    from s2clip.kernels.component_statistics import launch_moments

    count = torch.full((1,), number, dtype=torch.int32, device=labels.device)
    moments: tuple[Tensor, Tensor, Tensor] = launch_moments(labels[None], count, number)
    return moments


def _moments(labels: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """area [number], box [number,4], (Σ x, Σ y) [number,2], int64: sums of integers, so the order plays no part."""
    height, width = labels.shape
    row = labels.flatten().long()
    pixel = torch.arange(row.numel(), device=row.device)
    x, y = pixel % max(width, 1), pixel // max(width, 1)

    def reduce(values: Tensor, start: int, how: str) -> Tensor:
        return torch.full((number,), start, device=row.device).scatter_reduce_(0, row, values, how)

    area, *total = (reduce(values, 0, "sum") for values in (torch.ones_like(row), x, y))
    low = [reduce(x, width, "amin"), reduce(y, height, "amin")]
    high = [reduce(x, -1, "amax"), reduce(y, -1, "amax")]
    return area, torch.stack([*low, *high], 1), torch.stack(total, 1)


def get_connected_components(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(labels, areas) as SAM2's `get_connected_components`: 8-connected, any H and W, nothing to build.

    mask: [N,1,H,W], any dtype; what is not 0 is foreground.
    Returns labels int32 [N,1,H,W], 0 for background and 1, 2, … per mask (SAM2 numbers with gaps), and areas int32
    [N,1,H,W], the number of pixels of each pixel's component, 0 for background. No host read.
    Raises ValueError for another shape.
    """
    checks.any_tensor("mask", mask, "[N,1,H,W]", (4,))
    checks.shape("mask", mask, (mask.shape[0], 1, *mask.shape[2:]), "[N,1,H,W]")
    labels, _ = label_components((mask[:, 0] != 0).to(torch.uint8), connectivity=8, ignore_index=0)
    flat = labels.flatten(1).long()
    area = torch.zeros((flat.shape[0], flat.shape[1] + 1), dtype=torch.int32, device=mask.device)
    area.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
    areas = area.gather(1, flat).masked_fill_(flat == 0, 0)
    return labels[:, None], areas.view(mask.shape)
