"""The definitions of `label_components` and `measure_components`; `reference` offers them beside the other ops'."""

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.kernels import precision


def label_components(class_map: Tensor, connectivity: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Components of equal class, numbered per image in raster order of first pixels: labels [B,H,W], count [B], int32.

    Horizontal runs of one class are the nodes; two runs of neighbouring rows that touch are an edge. In each round
    every root takes the smallest root it shares an edge with as parent, then pointers are doubled until all point to
    roots: rounds grow with the logarithm of the number of runs, not with the length of a spiral. The root of a
    component is its first run in raster order, so counting the roots numbers the components.

    An image with a negative class other than ignore_index gets count −1 and labels 0; `ops` raises where it can look.
    """
    batch = class_map.shape[0]
    device = class_map.device
    if class_map.numel() == 0:
        return torch.zeros(class_map.shape, dtype=torch.int32, device=device), torch.zeros(
            batch, dtype=torch.int32, device=device
        )

    flat = class_map.flatten()
    starts = torch.ones(class_map.shape, dtype=torch.bool, device=device)
    starts[..., 1:] = class_map[..., 1:] != class_map[..., :-1]
    runs = starts.flatten().cumsum(0) - 1
    roots = _union(*_touching_runs(class_map, runs, starts, connectivity), nodes=int(runs[-1]) + 1)

    first = starts.flatten().nonzero().squeeze(1)
    run_class = flat[first]
    run_image = first // class_map[0].numel()
    counted = roots == torch.arange(roots.numel(), device=device)
    if ignore_index is not None:
        counted &= run_class != ignore_index
    count = run_image[counted].bincount(minlength=batch)
    before = count.cumsum(0) - count
    label = torch.where(counted, counted.cumsum(0) - before[run_image], 0)[roots].to(torch.int32)

    if class_map.dtype.is_signed:
        wrong = run_class < 0 if ignore_index is None else (run_class < 0) & (run_class != ignore_index)
        wrong = run_image[wrong].bincount(minlength=batch) > 0
        count = count.masked_fill(wrong, -1)
        label = label.masked_fill(wrong[run_image], 0)
    return label.index_select(0, runs).view(class_map.shape), count.to(torch.int32)


def _touching_runs(class_map: Tensor, runs: Tensor, starts: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    """Pairs (run, run of the row above) that hold the same class and touch; every touching pair at least once."""
    width = class_map.shape[2]
    vertical, falling, rising = torch.zeros((3, *class_map.shape), dtype=torch.bool, device=class_map.device)
    vertical[:, 1:] = class_map[:, 1:] == class_map[:, :-1]
    touching = [(vertical & (starts | starts.roll(1, 1)), width)]  # once per pair: where the later of the two starts
    if connectivity == 8:  # a diagonal counts only where the pixel above has not made the pair already
        falling[:, 1:, 1:] = (class_map[:, 1:, 1:] == class_map[:, :-1, :-1]) & ~vertical[:, 1:, 1:]
        rising[:, 1:, :-1] = (class_map[:, 1:, :-1] == class_map[:, :-1, 1:]) & ~vertical[:, 1:, :-1]
        touching += [(falling, width + 1), (rising, width - 1)]
    pixels = [(mask.flatten().nonzero().squeeze(1), back) for mask, back in touching]
    return torch.cat([runs[pixel] for pixel, _ in pixels]), torch.cat([runs[pixel - back] for pixel, back in pixels])


def _union(left: Tensor, right: Tensor, nodes: int) -> Tensor:
    """The smallest node of each node's component, from edges (left, right)."""
    parent = torch.arange(nodes, device=left.device)
    while left.numel():
        parent.scatter_reduce_(0, torch.maximum(left, right), torch.minimum(left, right), "amin")
        while True:
            grandparent = parent[parent]
            if torch.equal(grandparent, parent):
                break
            parent = grandparent
        left, right = parent[left], parent[right]
        apart = left != right
        left, right = left[apart], right[apart]
    return parent


def measure_components(
    labels: Tensor, class_map: Tensor, scores: Tensor, count: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(image_index, class_index, label, area, box, score, point) of labels 1..count[b] of each image, rows = Σ count.

    labels, class_map [B,H,W]; scores [B,C,H,W]; count [B]. A pixel's own score is scores[b, class_map[b,y,x], y, x],
    and NaN where that class is not in 0..C−1. score [rows] is the mean of the own scores, in at least fp32, each first
    rounded to a multiple of 2^−s with s = 47 − bit length of H·W, at most 32: the sum of integers is the same in every
    order, and H·W of them up to 2^16 fit 63 bits. It is NaN if an own score is not finite or beyond ±65,504. point
    [rows,2] is the (x, y) of the largest finite own score, first in raster order on ties; the first pixel if none is
    finite. box [rows,4] is x0, y0, x1, y1, inclusive. All but score are int32. Labels outside 1..count are skipped. A
    label without pixels has area 0, class −1, box (W, H, −1, −1), score NaN, point (−1, −1). A label over several
    classes, which label_components never makes, gets the largest class.

    What is scattered to the labels are horizontal runs, of which there are far fewer than pixels.
    """
    batch, height, width = labels.shape
    device = labels.device
    count = count.long()
    offset = count.cumsum(0) - count
    image_index = torch.arange(batch, device=device).repeat_interleave(count, output_size=rows)

    def column(start: float, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.full((rows + 1,), start, dtype=dtype, device=device)  # the last row takes what is skipped

    area, classes, right, bottom = column(0), column(-1), column(-1), column(-1)
    left, top, first = column(width), column(height), column(height * width)
    total, unusable, peak = column(0), column(0), column(float("-inf"), precision.at_least_float32(scores.dtype))
    bits = min(32, 47 - (height * width).bit_length())
    for image in range(batch if labels.numel() else 0):
        start, length = _runs(labels[image], class_map[image])
        own = _own_scores(scores[image], class_map[image].flatten()).to(peak.dtype)
        usable = own.abs() <= 65_504
        fixed = (own.double() * 2.0**bits + 0.5).floor().masked_fill(~usable, 0).long()
        own = own.masked_fill(~own.isfinite(), float("-inf"))

        label = labels[image].flatten()[start].long()
        row = torch.where((label >= 1) & (label <= count[image]), label - 1 + offset[image], rows)
        area.index_add_(0, row, length)
        total.index_add_(0, row, _sums(fixed, start))
        unusable.index_add_(0, row, _sums((~usable).long(), start))
        classes.scatter_reduce_(0, row, class_map[image].flatten()[start].long(), "amax")
        left.scatter_reduce_(0, row, start % width, "amin")
        right.scatter_reduce_(0, row, (start + length - 1) % width, "amax")
        top.scatter_reduce_(0, row, start // width, "amin")
        bottom.scatter_reduce_(0, row, start // width, "amax")
        peak.scatter_reduce_(0, row, torch.segment_reduce(own, "max", lengths=length), "amax")
        best = (own == peak[row].repeat_interleave(length)).nonzero().squeeze(1)
        first.scatter_reduce_(0, row[torch.searchsorted(start, best, right=True) - 1], best, "amin")

    everything = (area, classes, left, top, right, bottom, first, total, unusable)
    area, classes, left, top, right, bottom, first, total, unusable = (values[:rows] for values in everything)
    label = torch.arange(rows, device=device) - offset[image_index] + 1
    box = torch.stack([left, top, right, bottom], 1)
    point = torch.stack([first % max(width, 1), first // max(width, 1)], 1).where(area[:, None] > 0, -1)
    integers = [column.to(torch.int32) for column in (image_index, classes, label, area, box, point)]
    mean = (total.double() / area / 2.0**bits).masked_fill(unusable > 0, float("nan"))
    return *integers[:5], mean.to(peak.dtype), integers[5]


def _runs(labels: Tensor, class_map: Tensor) -> tuple[Tensor, Tensor]:
    """(first pixels, lengths) of the stretches of a row on which both maps [H,W] are constant."""
    starts = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
    starts[:, 1:] = (labels[:, 1:] != labels[:, :-1]) | (class_map[:, 1:] != class_map[:, :-1])
    first = starts.flatten().nonzero().squeeze(1)
    return first, first.diff(append=first.new_tensor([starts.numel()]))


def _own_scores(scores: Tensor, class_map: Tensor) -> Tensor:
    """scores [C,H,W] of each pixel's class [H·W]; NaN where that is not in 0..C−1."""
    known = (class_map >= 0) & (class_map < len(scores))
    if len(scores) == 1:
        own = scores.flatten()
    else:
        own = scores.flatten(1).gather(0, class_map.long().where(known, 0)[None]).squeeze(0)
    return own.masked_fill(~known, float("nan"))


def _sums(values: Tensor, start: Tensor) -> Tensor:
    """Sums of int64 values [n] from each start to the next: differences of one running sum, exact as integers are."""
    until = F.pad(values.cumsum(0), (1, 0))
    return until[start].diff(append=until[-1:])
