"""Pixel decision: bilinear resize, softmax over words, maximum over the words of a class, argmax, in one pass.

v_q = bilinear(logits_q), p_q = exp(scale (v_q - max v)) / sum_q exp(scale (v_q - max v)); class score s_k = max p_q
over the words q of class k; label = first argmax_k s_k, `background` where s < threshold. `launch_scores` writes s_k.

B images, Q words, K classes, h x w patch logits, H x W pixels.

Every word belongs to a class, so the best class is the class of the best word and its score is 1 / sum exp(...): the
decision needs no class scores. The patch logits stay in cache (ADE20K: 150 x 42 x 63 in fp16 are 0.8 MB).

Exponents are taken from r, the first word's logit at one patch beside the pixel, not from max v: sum_q exp(scale (v_q -
r)) is in the range of fp32 for logits that differ by less than 80 / scale, it needs no running maximum, and resizing
subtracts r for nothing. Programs where a sum is not within 1e-30..inf, or a logit not finite, do their pixels again,
one by one, with the maximum and sum of the streaming softmax.

Never written: the upsampled logits and probabilities [B,Q,H,W]; at Q = 150 and 512 x 683 pixels 210 MB each in fp32,
read back about four times by the published chain. Written: 8 bytes per pixel.

fp16, bf16, fp32; arithmetic in fp32. One program owns its pixels: no atomics, bitwise the same each run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.tiles import LOG2E, adjacent_taps, architecture, bilinear, bilinear_taps, launcher

# Nothing is specialised on: bilinear taps are gathered and ragged ends masked, so alignment would not widen an access.
SIZES = ("words", "rows", "columns", "height", "width")
ROWS = 4


class Configuration(NamedTuple):
    """Columns of pixels of a program, and its warps."""

    block: int
    warps: int


def configuration(arch: int) -> Configuration:
    """One column a lane."""
    return Configuration(256, 1) if arch == 0 else Configuration(64, 2)


def rows_of_program(height: int, rows: int) -> int:
    """ROWS pixels of a column share what is resized across: where the map grows as much, they see three logits."""
    return ROWS if height >= ROWS * rows else 1


@triton.jit
def _pixels(height, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(image, rows, columns of this program); one axis of the grid, as the others end at 65,535."""
    blocks = tl.cdiv(width, BLOCK)
    strips = tl.cdiv(height, ROWS)
    program = tl.program_id(0)
    y = program // blocks % strips * ROWS + tl.arange(0, ROWS)
    x = program % blocks * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks // strips).to(tl.int64), y, x


@triton.jit
def _taps(y, x, rows, columns, height, width, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(offsets of the left logit in three rows of logits, shares across, weights down times scale)."""
    # Pixels beyond the last repeat it, so that no load needs a mask.
    top, share_y = adjacent_taps(tl.minimum(y, height - 1), height, rows)
    left, share_x = adjacent_taps(tl.minimum(x, width - 1), width, columns)
    strip = tl.program_id(0) // tl.cdiv(width, BLOCK) % tl.cdiv(height, ROWS)
    first, _ = adjacent_taps(strip * ROWS, height, rows)
    below = (top > first)[:, None]  # whether a pixel's two rows are the last two of the three
    upper = ((1.0 - share_y) * scale)[:, None]
    lower = (share_y * scale)[:, None]
    down = (tl.where(below, 0.0, upper), tl.where(below, upper, lower), tl.where(below, lower, 0.0))
    third = tl.minimum(first + 2, rows - 1)
    lines = (first * columns + left[None, :], (first + 1) * columns + left[None, :], third * columns + left[None, :])
    return lines, ((1.0 - share_x)[None, :], share_x[None, :]), down


@triton.jit
def _line(place, across):
    """Logits of one row resized across."""
    value = tl.load(place).to(tl.float32) * across[0]
    return tl.fma(tl.load(place + 1).to(tl.float32), across[1], value)


@triton.jit
def _resized(plane, lines, across, down, reference, check, ROWS: tl.constexpr):
    """(scale times the resized logits of one word less the reference [ROWS,BLOCK], check).

    check [1,BLOCK]: not finite from the first logit on that is not, as products and sums keep that.
    """
    first = _line(plane + lines[0], across)
    second = _line(plane + lines[1], across)
    value = tl.fma(second, down[1], tl.fma(first, down[0], -reference))
    check = tl.fma(first, second, check)
    if ROWS > 1:
        third = _line(plane + lines[2], across)
        value = tl.fma(third, down[2], value)
        check = tl.fma(third, third, check)
    return value, check


@triton.jit
def _within_range(total, check):
    """[ROWS,BLOCK]: whether sums of powers lost nothing, and all logits were finite."""
    return (total > 1e-30) & (total < float("inf")) & (tl.abs(check) < float("inf"))


@triton.jit
def _own_taps(y, x, rows, columns, height, width):
    """Offsets of a pixel's two rows and two columns of logits, and shares of the second ones."""
    top, bottom, share_y = bilinear_taps(tl.minimum(y, height - 1), height, rows)
    left, right, share_x = bilinear_taps(tl.minimum(x, width - 1), width, columns)
    lines = (top * columns)[:, None], (bottom * columns)[:, None]
    return lines, (left[None, :], right[None, :]), (share_y[:, None], share_x[None, :])


@triton.jit
def _alone(plane, taps, scale, unsound):
    """(scale times the resized logits, 0 where not finite; `unsound`, NaN from the first that is not finite on)."""
    rows, columns, shares = taps
    value = bilinear(plane, rows[0], rows[1], columns[0], columns[1], shares[0], shares[1])
    return tl.where(tl.abs(value) < float("inf"), value * scale, 0.0), tl.fma(value, 0.0, unsound)


@triton.jit
def _streaming_softmax(plane, class_index, words, step, taps, scale, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(label of the largest, it, sum exp2(value - it), whether all were finite) of pixels with taps of their own."""
    label = tl.full([ROWS, BLOCK], 2147483647, tl.int32)
    largest = tl.full([ROWS, BLOCK], -3.0e38, tl.float32)  # finite, so that the first difference is no inf - inf
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    unsound = tl.zeros([ROWS, BLOCK], tl.float32)
    for word in range(0, words):
        value, unsound = _alone(plane, taps, scale, unsound)
        plane += step
        index = tl.load(class_index + word).to(tl.int32)
        better = (value > largest) | ((value >= largest) & (index < label))
        label = tl.where(better, index, label)
        decay = tl.exp2(-tl.abs(value - largest))
        total = tl.fma(tl.where(better, total, 1.0), decay, tl.where(better, 1.0, total))
        largest = tl.where(better, value, largest)
    return label, largest, total, unsound == unsound


@triton.jit(do_not_specialize=["logits", "class_index", "labels", "confidence", "background", *SIZES])
def _classify_pixels_kernel(
    logits,
    class_index,
    labels,
    confidence,
    words,
    rows,
    columns,
    height,
    width,
    scale_log2e,
    threshold,
    background,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image, y, x = _pixels(height, width, ROWS, BLOCK)
    # The scale is in the weights, so that comparisons see it: below zero the order turns round, zero makes all equal.
    lines, across, down = _taps(y, x, rows, columns, height, width, scale_log2e, ROWS, BLOCK)
    planes = logits + image * words * rows * columns
    reference = tl.load(planes + lines[1]).to(tl.float32) * scale_log2e
    label = tl.full([ROWS, BLOCK], 2147483647, tl.int32)
    largest = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    check = tl.zeros([1, BLOCK], tl.float32)
    latest = words * 0
    plane = planes
    for word in range(0, words):
        value, check = _resized(plane, lines, across, down, reference, check, ROWS)
        plane += rows * columns
        index = tl.load(class_index + word).to(tl.int32)
        better = value > largest
        if index < latest:  # of equals the first class: a matter of strict comparison where words are in its order
            better = better | ((value == largest) & (index < label))
        latest = tl.maximum(latest, index)
        label = tl.where(better, index, label)
        largest = tl.maximum(largest, value)
        total += tl.exp2(value)
    finite = _within_range(total, check)
    if tl.min(finite.to(tl.int32)) == 0:
        taps = _own_taps(y, x, rows, columns, height, width)
        label, _largest, total, finite = _streaming_softmax(
            planes, class_index, words, rows * columns, taps, scale_log2e, ROWS, BLOCK
        )
        largest = tl.zeros([ROWS, BLOCK], tl.float32)
    score = tl.div_rn(tl.exp2(largest), total)
    label = tl.where(score < threshold, background, label)
    inside = (y < height)[:, None] & (x < width)[None, :]
    out = image * height * width + y[:, None] * width + x[None, :]
    tl.store(labels + out, tl.where(finite, label, -1), mask=inside)
    tl.store(confidence + out, tl.where(finite, score, float("nan")), mask=inside)


@triton.jit(do_not_specialize=["logits", "word_order", "class_start", "scores", "classes", *SIZES])
def _class_scores_kernel(
    logits,
    word_order,
    class_start,
    scores,
    words,
    classes,
    rows,
    columns,
    height,
    width,
    scale_log2e,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """word_order sorts the words by class; those of class k are word_order[class_start[k]:class_start[k + 1]]."""
    image, y, x = _pixels(height, width, ROWS, BLOCK)
    lines, across, down = _taps(y, x, rows, columns, height, width, scale_log2e, ROWS, BLOCK)
    planes = logits + image * words * rows * columns
    reference = tl.load(planes + lines[1]).to(tl.float32) * scale_log2e
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    check = tl.zeros([1, BLOCK], tl.float32)
    plane = planes
    for _ in range(0, words):
        value, check = _resized(plane, lines, across, down, reference, check, ROWS)
        plane += rows * columns
        total += tl.exp2(value)
    inside = (y < height)[:, None] & (x < width)[None, :]
    out = scores + image * classes * height * width + y[:, None] * width + x[None, :]
    finite = _within_range(total, check)
    if tl.min(finite.to(tl.int32)) == 1:
        share = 1.0 / total
        for index in range(0, classes):
            largest = tl.full([ROWS, BLOCK], float("-inf"), tl.float32)
            for position in range(tl.load(class_start + index), tl.load(class_start + index + 1)):
                plane = planes + tl.load(word_order + position) * rows * columns
                value, _check = _resized(plane, lines, across, down, reference, check, ROWS)
                largest = tl.maximum(largest, value)
            tl.store(out, (tl.exp2(largest) * share).to(scores.dtype.element_ty), mask=inside)
            out += height * width
    else:
        taps = _own_taps(y, x, rows, columns, height, width)
        _label, top, total, finite = _streaming_softmax(
            planes, word_order, words, rows * columns, taps, scale_log2e, ROWS, BLOCK
        )
        share = 1.0 / total
        for index in range(0, classes):
            score = tl.zeros([ROWS, BLOCK], tl.float32)
            for position in range(tl.load(class_start + index), tl.load(class_start + index + 1)):
                plane = planes + tl.load(word_order + position) * rows * columns
                value, _check = _alone(plane, taps, scale_log2e, score)
                score = tl.maximum(score, tl.exp2(value - top) * share)
            tl.store(out, tl.where(finite, score, float("nan")).to(scores.dtype.element_ty), mask=inside)
            out += height * width


def _two_at_least(logits: torch.Tensor) -> torch.Tensor:
    """Contiguous, a grid of one row or column as two equal ones: a pixel has four logits, side by side."""
    rows, columns = (-1 if count > 1 else 2 for count in logits.shape[2:])
    return logits.expand(-1, -1, rows, columns).contiguous()


@launcher
def launch(
    logits: torch.Tensor,
    size: tuple[int, int],
    scale: float,
    class_index: torch.Tensor,
    classes: int,
    threshold: float,
    background: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.classify_pixels`."""
    logits = _two_at_least(logits)
    batch, words, rows, columns = logits.shape
    height, width = size
    labels = torch.empty((batch, height, width), dtype=torch.int32, device=logits.device)
    confidence = torch.empty((batch, height, width), dtype=torch.float32, device=logits.device)
    if labels.numel() == 0:
        return labels, confidence
    block, warps = configuration(architecture(logits.device))
    own_rows = rows_of_program(height, rows)
    _classify_pixels_kernel[(triton.cdiv(height, own_rows) * triton.cdiv(width, block) * batch,)](
        logits,
        class_index.contiguous(),
        labels,
        confidence,
        words,
        rows,
        columns,
        height,
        width,
        scale * LOG2E.value,
        float(threshold),
        background,
        ROWS=own_rows,
        BLOCK=block,
        num_warps=warps,
        num_stages=1,
        enable_fp_fusion=False,  # equal logits of two words must stay equal, whatever the compiler would fuse
    )
    return labels, confidence


@launcher
def launch_scores(
    logits: torch.Tensor, size: tuple[int, int], scale: float, class_index: torch.Tensor, classes: int
) -> torch.Tensor:
    """As `reference.class_scores`."""
    logits = _two_at_least(logits)
    batch, words, rows, columns = logits.shape
    height, width = size
    scores = torch.empty((batch, classes, height, width), dtype=logits.dtype, device=logits.device)
    if scores.numel() == 0:
        return scores
    sorted_index, word_order = class_index.sort(stable=True)
    boundaries = torch.arange(classes + 1, dtype=sorted_index.dtype, device=sorted_index.device)
    class_start = torch.searchsorted(sorted_index, boundaries).to(torch.int32)
    block, warps = configuration(architecture(logits.device))
    own_rows = rows_of_program(height, rows)
    _class_scores_kernel[(triton.cdiv(height, own_rows) * triton.cdiv(width, block) * batch,)](
        logits,
        word_order,
        class_start,
        scores,
        words,
        classes,
        rows,
        columns,
        height,
        width,
        scale * LOG2E.value,
        ROWS=own_rows,
        BLOCK=block,
        num_warps=warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return scores
