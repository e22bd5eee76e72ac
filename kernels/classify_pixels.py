"""Pixel decision: bilinear resize, softmax over words, maximum over the words of a class, argmax, in one pass.

v_q = bilinear(logits_q), p_q = exp(scale (v_q - max v)) / sum_q exp(scale (v_q - max v)); class score s_k = max p_q
over the words q of class k; label = first argmax_k s_k, `background` where s < threshold. `launch_scores` writes s_k.

B images, Q words, K classes, h x w patch logits, H x W pixels.

Every word belongs to a class, so the best class is the class of the best word and its score is 1 / sum exp(...): the
decision needs no class scores, and one exponential per word with the running maximum and sum of the streaming softmax.
The patch logits stay in cache (ADE20K: 150 x 42 x 63 in fp16 are 0.8 MB).

Never written: the upsampled logits and probabilities [B,Q,H,W]; at Q = 150 and 512 x 683 pixels 210 MB each in fp32,
read back about four times by the published chain. Written: 8 bytes per pixel.

fp16, bf16, fp32; arithmetic in fp32. One program owns its pixels: no atomics, bitwise the same each run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.tiles import LOG2E, adjacent_taps, architecture, launcher

# Nothing is specialised on: bilinear taps are gathered and ragged ends masked, so alignment would not widen an access.
SIZES = ("words", "rows", "columns", "height", "width")


class Configuration(NamedTuple):
    """Pixels of a program and its warps."""

    block: int
    warps: int


def configuration(arch: int, *, scores: bool) -> Configuration:
    """Two pixels a thread hide the cache for the decision; for the scores one, as two spill 8 bytes on sm_120."""
    if arch == 0:
        return Configuration(1024, 1)
    return Configuration(256, 8) if scores else Configuration(256, 4)


@triton.jit
def _own_pixels(pixels, BLOCK: tl.constexpr):
    """(image, pixels of this program, which of them exist); one axis of the grid, as the others end at 65,535."""
    blocks = tl.cdiv(pixels, BLOCK)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), pixel, pixel < pixels


@triton.jit
def _corners(pixel, rows, columns, height, width, scale):
    """(offset of the upper left logit of a pixel's four, their weights times scale)."""
    # Pixels beyond the last repeat it, so that no load needs a mask.
    pixel = tl.minimum(pixel, height * width - 1)
    top, share_y = adjacent_taps(pixel // width, height, rows)
    left, share_x = adjacent_taps(pixel % width, width, columns)
    upper = (1.0 - share_y) * scale
    lower = share_y * scale
    weights = (upper * (1.0 - share_x), upper * share_x, lower * (1.0 - share_x), lower * share_x)
    return top * columns + left, weights


@triton.jit
def _resized(plane, columns, corner, weights):
    """scale times the resized logits of one word."""
    upper = plane + corner
    lower = plane + columns + corner
    value = tl.load(upper).to(tl.float32) * weights[0]
    value = tl.fma(tl.load(upper + 1).to(tl.float32), weights[1], value)
    value = tl.fma(tl.load(lower).to(tl.float32), weights[2], value)
    return tl.fma(tl.load(lower + 1).to(tl.float32), weights[3], value)


@triton.jit
def _streaming_softmax(value, better, largest, total):
    """One step of max and sum exp2(value - max) with a single exponential; better: value is the new maximum."""
    decay = tl.exp2(-tl.abs(value - largest))
    total = tl.fma(tl.where(better, total, 1.0), decay, tl.where(better, 1.0, total))
    return tl.where(better, value, largest), total


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
    BLOCK: tl.constexpr,
):
    image, pixel, inside = _own_pixels(height * width, BLOCK)
    # The scale is in the weights, so that comparisons see it: below zero the order turns round, zero makes all equal.
    corner, weights = _corners(pixel, rows, columns, height, width, scale_log2e)
    plane = logits + image * words * rows * columns
    label = tl.full([BLOCK], 2147483647, tl.int32)
    largest = tl.full([BLOCK], -3.0e38, tl.float32)  # finite, so that the first difference is no inf - inf
    total = tl.zeros([BLOCK], tl.float32)
    finite = pixel >= 0
    for word in range(0, words):
        value = _resized(plane, columns, corner, weights)
        plane += rows * columns
        finite = finite & (tl.abs(value) < float("inf"))
        index = tl.load(class_index + word).to(tl.int32)
        better = (value > largest) | ((value >= largest) & (index < label))
        label = tl.where(better, index, label)
        largest, total = _streaming_softmax(value, better, largest, total)
    score = 1.0 / total
    label = tl.where(score < threshold, background, label)
    out = image * height * width + pixel
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
    BLOCK: tl.constexpr,
):
    """word_order sorts the words by class; those of class k are word_order[class_start[k]:class_start[k + 1]]."""
    image, pixel, inside = _own_pixels(height * width, BLOCK)
    corner, weights = _corners(pixel, rows, columns, height, width, scale_log2e)
    planes = logits + image * words * rows * columns
    largest = tl.full([BLOCK], -3.0e38, tl.float32)  # finite, so that the first difference is no inf - inf
    total = tl.zeros([BLOCK], tl.float32)
    finite = pixel >= 0
    plane = planes
    for _ in range(0, words):
        value = _resized(plane, columns, corner, weights)
        plane += rows * columns
        finite = finite & (tl.abs(value) < float("inf"))
        largest, total = _streaming_softmax(value, value > largest, largest, total)
    share = 1.0 / total
    out = scores + image * classes * height * width + pixel
    for index in range(0, classes):
        score = tl.zeros([BLOCK], tl.float32)
        for position in range(tl.load(class_start + index), tl.load(class_start + index + 1)):
            value = _resized(planes + tl.load(word_order + position) * rows * columns, columns, corner, weights)
            score = tl.maximum(score, tl.exp2(value - largest) * share)
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
    block, warps = configuration(architecture(logits.device), scores=False)
    _classify_pixels_kernel[(triton.cdiv(height * width, block) * batch,)](
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
    block, warps = configuration(architecture(logits.device), scores=True)
    _class_scores_kernel[(triton.cdiv(height * width, block) * batch,)](
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
        BLOCK=block,
        num_warps=warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return scores
