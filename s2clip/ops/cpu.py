"""Ops whose plain definition wastes a CPU's time, once more: the same results from less work.

`reference.py` stays the specification: it runs with backend="torch" and on every other device, and tests hold what is
here to it. Same arguments; `s2clip.ops` has checked that values are finite and indices in range.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.kernels import reference

TILE = 256
"""Pixels a side of what is merged at a time: 256 KiB in fp32, so that a few of them stay in a core's second cache."""


STRIP = 1 << 19
"""Upsampled logits held at a time, 2 MiB in fp32."""
ALMOST_ZERO = -torch.finfo(torch.float32).tiny


def affinity_attention(
    features: Sequence[Tensor],
    value: Tensor,
    weights: Tensor,
    beta: float,
    gamma: float,
    mean: Tensor | None,
) -> Tensor:
    """`reference.affinity_attention` in four passes over the N x N scores beside the products, not nine.

    Weights and γ go into the products; mean S = Σ_s w_s |mean f̂^s|², from the vectors; cutting is one threshold.
    """
    batch, height, width = features[0].shape[:3]
    dtype, positions = torch.promote_types(value.dtype, torch.float32), height * width
    output = value.new_empty((batch, height, width, value.shape[3]))
    if output.numel() == 0:
        return output
    factors = (gamma * weights.to(dtype)).tolist()
    scores = torch.empty((positions, positions), dtype=dtype)
    for image in range(batch):
        units = [F.normalize(maps[image].to(dtype).flatten(0, 1), dim=-1) for maps in features]
        means = torch.stack([unit.mean(0).square().sum() for unit in units])
        centre = weights[image].to(dtype) @ means if mean is None else mean[image].to(dtype)
        for place, (factor, unit) in enumerate(zip(factors[image], units, strict=True)):
            torch.addmm(scores, unit, unit.T, beta=min(place, 1), alpha=factor, out=scores)
        scores.sub_(gamma * beta * centre)
        kept = scores.diagonal().clone()
        F.threshold(scores, ALMOST_ZERO, float("-inf"), inplace=True)  # 0 stays, NaN stays
        scores.diagonal().copy_(kept)
        resized = value[image].to(dtype).permute(2, 0, 1)[None]
        resized = F.interpolate(resized, (height, width), mode="bilinear", align_corners=False)[0]
        output[image] = (scores.softmax(-1) @ resized.flatten(1).T).view(height, width, -1)
    return output


def classify_pixels(
    logits: Tensor,
    size: tuple[int, int],
    scale: float,
    class_index: Tensor,
    classes: int,
    threshold: float,
    background: int,
) -> tuple[Tensor, Tensor]:
    """`reference.classify_pixels` without the softmax: the label is the largest logit's class, P = 1/Σ exp(x − max x).

    Logits so close that their probabilities round to the same keep the order of the logits.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    labels = torch.empty((len(logits), *size), dtype=torch.int32)
    confidence = torch.empty((len(logits), *size), dtype=dtype)
    index, order = class_index.sort(stable=True)
    index = index.to(torch.int32)
    step = max(1, STRIP // (len(index) * size[1]))
    for image in range(len(logits)):
        maps = logits[image].to(dtype)[order] * scale
        for start in range(0, size[0], step):
            rows = slice(start, min(start + step, size[0]))
            strip = reference.resized_rows(maps, size[0], rows.start, rows.stop)
            strip = F.interpolate(strip, size[1], mode="linear", align_corners=False)
            largest, first = strip.max(0)
            label = labels[image, rows]
            label.copy_(index[first])
            best = strip.sub_(largest).exp_().sum(0).reciprocal_()
            confidence[image, rows] = best
            if threshold > 0:
                label.masked_fill_(best < threshold, background)
    return labels, confidence


def merge_masks(
    mask_logits: Tensor,
    class_index: Tensor,
    image_index: Tensor,
    scores: Tensor,
    labels: Tensor,
    input_size: tuple[int, int],
    padded_size: int,
) -> tuple[Tensor, Tensor]:
    """`reference.merge_masks`, region by region, and only where its mask is positive.

    σ grows, so max_c Q_c = max_r 1[x_r > 0]·σ(x_r)·scores_c(r): one running maximum over all regions, which come by
    class so that the first class wins ties. Where x_r <= 0 it decides nothing, and x_r > 0 takes a positive logit near.
    """
    dtype = torch.promote_types(torch.promote_types(mask_logits.dtype, scores.dtype), torch.float32)
    merged = torch.empty(labels.shape, dtype=torch.int32).copy_(labels)
    best = torch.zeros(labels.shape, dtype=dtype)
    if not labels.numel() or not len(mask_logits):
        return merged, best
    size = (labels.shape[1], labels.shape[2])
    vertical, horizontal = (
        Taps(_two_resizes(mask_logits.shape[1], padded_size, valid, length, dtype))
        for valid, length in zip(input_size, size, strict=True)
    )
    resize = LinearResize(scores.shape[2:], size, dtype)
    boxes = [vertical.reach(mask_logits.amax(2) > 0), horizontal.reach(mask_logits.amax(1) > 0)]
    images, classes = image_index.tolist(), class_index.tolist()
    for region in class_index.argsort(stable=True).tolist():
        image, index = images[region], classes[region]
        for rows, columns in _tiles(boxes[0][region], boxes[1][region]):
            above, near_rows = vertical.part(rows)
            across, near_columns = horizontal.part(columns)
            logits = mask_logits[region, near_rows, near_columns].to(dtype)
            if not logits.amax() > 0:
                continue
            quality = F.threshold(above @ logits @ across.T, 0, float("-inf"), inplace=True).sigmoid_()
            quality *= resize.tile(scores[image, index], rows, columns)
            so_far = best[image, rows, columns]
            merged[image, rows, columns].masked_fill_(quality > so_far, index)
            torch.maximum(so_far, quality, out=so_far)
    return merged, best


def _tiles(rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    for top in range(rows[0], rows[1], TILE):
        for left in range(columns[0], columns[1], TILE):
            yield slice(top, min(top + TILE, rows[1])), slice(left, min(left + TILE, columns[1]))


def _two_resizes(side: int, padded: int, valid: int, length: int, dtype: torch.dtype) -> Tensor:
    """[length,side]: side → padded, cut to valid, → length, both linear, as one matrix of up to 4 taps a row."""
    taps = torch.eye(side, dtype=dtype)[None]
    for new, kept in ((padded, valid), (length, length)):
        taps = F.interpolate(taps, size=new, mode="linear", align_corners=False)[..., :kept]
    return taps[0].T.contiguous()


class Taps:
    """A band matrix [n,m]: which of the m inputs the outputs of a stretch are made of."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        place = torch.arange(matrix.shape[1]).expand_as(matrix)
        self.first = place.masked_fill(matrix == 0, matrix.shape[1]).amin(1).tolist()
        self.last = place.masked_fill(matrix == 0, -1).amax(1).tolist()

    def part(self, outputs: slice) -> tuple[Tensor, slice]:
        """(matrix from the inputs that these outputs need, those inputs)."""
        inputs = slice(self.first[outputs.start], self.last[outputs.stop - 1] + 1)
        return self.matrix[outputs, inputs], inputs

    def reach(self, live: Tensor) -> list[tuple[int, int]]:
        """live [R,m] → per row start and stop of the outputs that a live input has a part in."""
        place = torch.arange(live.shape[1]).expand_as(live)
        first = place.masked_fill(~live, live.shape[1]).amin(1).tolist()
        last = place.masked_fill(~live, -1).amax(1).tolist()
        return [
            (bisect_left(self.last, low), bisect_right(self.first, high)) for low, high in zip(first, last, strict=True)
        ]


class LinearResize:
    """F.interpolate(mode="bilinear", align_corners=False) of planes [h,w] to `size`, a tile of it at a time."""

    def __init__(self, old: Sequence[int], size: Sequence[int], dtype: torch.dtype) -> None:
        self.same, self.dtype = tuple(old) == tuple(size), dtype
        self.axes = []
        for before, after in zip(old, size, strict=True):
            source = ((torch.arange(after, dtype=dtype) + 0.5) * (before / after) - 0.5).clamp(0, before - 1)
            low = source.long()
            self.axes.append((low, (low + 1).clamp(max=before - 1), source - low))

    def tile(self, plane: Tensor, rows: slice, columns: slice) -> Tensor:
        if self.same:
            return plane[rows, columns].to(self.dtype)
        (above, below, down), (left, right, across) = (
            [values[part] for values in axis] for axis, part in zip(self.axes, (rows, columns), strict=True)
        )
        strip = plane[above[0] : below[-1] + 1].to(self.dtype)
        strip = strip.index_select(1, left).lerp_(strip.index_select(1, right), across)
        below = strip.index_select(0, below - above[0])
        return strip.index_select(0, above - above[0]).lerp_(below, down[:, None])
