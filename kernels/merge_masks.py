"""Label map after SAM: masks resized twice, best class per pixel, old label where no mask is, in one pass.

x_r = bilinear(cut(bilinear(mask_r, P x P), V), H x W); X_c = max x_r over the regions r of class c in the image;
Q_c = 1[X_c > 0] sigmoid(X_c) bilinear(score_c, H x W); label = first argmax_c Q_c, the old one where all are 0.

R regions, M x M mask logits, P the padded square (1024), V its valid corner, B images, K classes, H x W pixels.

A bilinear resize is separable, and so are two of them: per axis a pixel sees at most 3 logits where P >= 2M, 4 in
general, and their weights are worked out once per pixel, not per region. sigmoid rises, so one is enough per class, at
X_c. Two launches: `_survey` orders the regions by image and class, and notes in which columns of each strip of rows a
mask has a logit above 0 (or one that is not finite); `_merge` skips a region where a tile of pixels sees none, since
weights are not negative and x_r <= 0 changes nothing.

Never written: [R,P,P], [R,H,W], [K,H,W]; at R = 60, 1024 x 2048 pixels and P = 1024 that is 252 MB, 503 MB and (K = 19)
159 MB in fp32. Written: 8 bytes per pixel and 8 bytes per strip of a mask.

fp16, bf16, fp32 in any mixture; arithmetic in fp32. One program owns its pixels, and a maximum does not depend on
order: no atomics, bitwise the same each run. Source of the step: Trident (arXiv:2411.09219).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.tiles import architecture, bilinear, bilinear_taps, launcher

STRIP = 8  # rows of a mask per note of live columns
SURVEYED = ("mask_logits", "order", "class_of", "image_start", "live", "side", "strips")  # arguments of both kernels


class Configuration(NamedTuple):
    """Tile of pixels, strips of a mask per program of the survey, columns or regions it reads at a time, and warps."""

    block_y: int
    block_x: int
    warps: int
    strips: int
    survey_block: int
    survey_warps: int


def configuration(arch: int) -> Configuration:
    """Wide tiles: 32 pixels of a row see about 10 neighbouring logits. Arch 0 pays per operation, not per pixel."""
    if arch == 0:
        return Configuration(block_y=32, block_x=64, warps=1, strips=32, survey_block=64, survey_warps=1)
    return Configuration(block_y=16, block_x=32, warps=4, strips=8, survey_block=128, survey_warps=4)


@triton.jit
def _axis_taps(position, out_size, valid, padded, side, MERGED: tl.constexpr):
    """(low-resolution indices, weights) of a pixel along one axis, ascending, through both resizes.

    MERGED: neighbours on the padded grid are at most half a logit apart, so the third index equals the second or first.
    """
    near, far, share = bilinear_taps(position, out_size, valid)
    low, high, low_share = bilinear_taps(near, padded, side)
    next_low, next_high, next_share = bilinear_taps(far, padded, side)
    first = (1.0 - share) * (1.0 - low_share)
    second = (1.0 - share) * low_share
    third = share * (1.0 - next_share)
    fourth = share * next_share
    taps, weights = (low, high, next_low, next_high), (first, second, third, fourth)
    if MERGED:
        same = next_low == low
        first += tl.where(same, third, 0.0)
        second += tl.where(same, 0.0, third)
        taps, weights = (low, high, next_high), (first, second, fourth)
    return taps, weights


@triton.jit
def _key(class_index, image_index, region, regions, batch, classes):
    """image * K + class orders the regions; those without an image or a class come last, lanes beyond R after them."""
    inside = region < regions
    image = tl.load(image_index + region, mask=inside, other=-1)
    index = tl.load(class_index + region, mask=inside, other=-1)
    known = (image >= 0) & (image < batch) & (index >= 0) & (index < classes)
    last = batch.to(tl.int64) * classes
    return tl.where(known, image * classes + index, tl.where(inside, last, last + 1))


@triton.jit(do_not_specialize=[*SURVEYED, "class_index", "image_index", "regions", "batch", "classes"])
def _survey_kernel(
    mask_logits,
    class_index,
    image_index,
    order,
    class_of,
    image_start,
    live,
    regions,
    side,
    strips,
    batch,
    classes,
    STRIP: tl.constexpr,
    STRIPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r < R: rank of region r, and live columns in STRIPS strips of it. Program R + b: image b's first rank."""
    region = tl.program_id(0)
    is_region = region < regions
    key = _key(class_index, image_index, region, regions, batch, classes)
    key = tl.where(is_region, key, (region - regions).to(tl.int64) * classes)
    lane = tl.arange(0, BLOCK)
    smaller = tl.zeros([BLOCK], tl.int32)
    for start in range(0, regions, BLOCK):
        other = start + lane
        other_key = _key(class_index, image_index, other, regions, batch, classes)
        smaller += ((other_key < key) | ((other_key == key) & (other < region) & is_region)).to(tl.int32)
    rank = tl.sum(smaller, axis=0)
    first_strip = tl.program_id(1) * STRIPS
    if is_region:
        if first_strip == 0:
            tl.store(order + rank, region)
            tl.store(class_of + rank, tl.load(class_index + region).to(tl.int32))
        mask = mask_logits + region.to(tl.int64) * side * side
        out = live + rank.to(tl.int64) * strips * 2
        row = tl.arange(0, STRIP)[:, None]
        for strip in range(first_strip, tl.minimum(first_strip + STRIPS, strips)):
            y = strip * STRIP + row
            left = tl.full([STRIP, BLOCK], 2147483647, tl.int32)
            right = tl.full([STRIP, BLOCK], -1, tl.int32)
            for start in range(0, side, BLOCK):
                x = start + lane[None, :]
                logit = tl.load(mask + y * side + x, mask=(y < side) & (x < side), other=0.0).to(tl.float32)
                alive = (logit > 0.0) | (tl.abs(logit) == float("inf")) | (logit != logit)
                left = tl.minimum(left, tl.where(alive, x, 2147483647))
                right = tl.where(alive, x, right)
            tl.store(out + strip * 2, tl.min(left))
            tl.store(out + strip * 2 + 1, tl.max(right))
    elif first_strip == 0:
        tl.store(image_start + region - regions, rank)


@triton.jit(
    do_not_specialize=[
        *(*SURVEYED, "scores", "labels", "merged", "quality", "padded", "valid_y", "valid_x", "height", "width"),
        *("rows", "columns", "stride_image", "stride_class", "stride_row", "stride_column"),
    ]
)
def _merge_kernel(
    mask_logits,
    scores,
    labels,
    order,
    class_of,
    image_start,
    live,
    merged,
    quality,
    side,
    strips,
    padded,
    valid_y,
    valid_x,
    height,
    width,
    rows,
    columns,
    stride_image,
    stride_class,
    stride_row,
    stride_column,
    STRIP: tl.constexpr,
    MERGED: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    tiles = tl.cdiv(width, BLOCK_X)
    rows_of_tiles = tl.cdiv(height, BLOCK_Y)
    image = tl.program_id(0) // tiles // rows_of_tiles
    y_start = tl.program_id(0) // tiles % rows_of_tiles * BLOCK_Y
    x_start = tl.program_id(0) % tiles * BLOCK_X
    # Pixels beyond the edge repeat the last one, so that no load needs a mask.
    y = tl.minimum(y_start + tl.arange(0, BLOCK_Y), height - 1)
    x = tl.minimum(x_start + tl.arange(0, BLOCK_X), width - 1)
    tap_y, weight_y = _axis_taps(y, height, valid_y, padded, side, MERGED)
    tap_x, weight_x = _axis_taps(x, width, valid_x, padded, side, MERGED)

    top = _axis_taps(y_start, height, valid_y, padded, side, MERGED)[0][0]
    left = _axis_taps(x_start, width, valid_x, padded, side, MERGED)[0][0]
    bottom = _axis_taps(tl.minimum(y_start + BLOCK_Y, height) - 1, height, valid_y, padded, side, MERGED)[0][-1]
    right = _axis_taps(tl.minimum(x_start + BLOCK_X, width) - 1, width, valid_x, padded, side, MERGED)[0][-1]

    best = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    pixel = image.to(tl.int64) * height * width + y[:, None] * width + x[None, :]
    label = tl.load(labels + pixel).to(tl.int32)
    evidence = tl.full([BLOCK_Y, BLOCK_X], float("-inf"), tl.float32)
    seen = 0
    first = tl.load(image_start + image)
    last = tl.load(image_start + image + 1)
    notes = live + first.to(tl.int64) * strips * 2
    for rank in range(first, last):
        touched = 0
        for strip in range(top // STRIP, bottom // STRIP + 1):
            alive = (tl.load(notes + strip * 2) <= right) & (tl.load(notes + strip * 2 + 1) >= left)
            touched |= alive.to(tl.int32)
        notes += strips * 2
        if touched != 0:
            mask = mask_logits + tl.load(order + rank).to(tl.int64) * side * side
            logit = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
            for i in tl.static_range(len(tap_y)):
                line = (mask + tap_y[i] * side)[:, None]
                across = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
                for j in tl.static_range(len(tap_x)):
                    value = tl.load(line + tap_x[j][None, :]).to(tl.float32)
                    across = tl.fma(weight_x[j][None, :], value, across)
                logit = tl.fma(weight_y[i][:, None], across, logit)
            evidence = tl.maximum(evidence, logit, propagate_nan=tl.PropagateNan.ALL)
            seen = 1
        index = tl.load(class_of + rank)
        if (seen != 0) & (tl.load(class_of + rank + 1, mask=rank + 1 < last, other=-1) != index):
            above, below, share_y = bilinear_taps(y, height, rows)
            before, after, share_x = bilinear_taps(x, width, columns)
            plane = scores + image.to(tl.int64) * stride_image + index.to(tl.int64) * stride_class
            score = bilinear(
                plane,
                (above.to(tl.int64) * stride_row)[:, None],
                (below.to(tl.int64) * stride_row)[:, None],
                (before.to(tl.int64) * stride_column)[None, :],
                (after.to(tl.int64) * stride_column)[None, :],
                share_y[:, None],
                share_x[None, :],
                evidence > 0.0,
            )
            product = tl.where(evidence > 0.0, score / (1.0 + tl.exp(-evidence)), 0.0)
            broken = (evidence != evidence) | (product != product) | (tl.abs(product) == float("inf"))
            better = ((product > best) | broken) & (best == best)  # a pixel once broken stays so
            best = tl.where(better, tl.where(broken, float("nan"), product), best)
            label = tl.where(better, index, label)
            evidence = tl.full([BLOCK_Y, BLOCK_X], float("-inf"), tl.float32)
            seen = 0
    inside = (y_start + tl.arange(0, BLOCK_Y) < height)[:, None] & (x_start + tl.arange(0, BLOCK_X) < width)[None, :]
    tl.store(merged + pixel, tl.where(best == best, label, -1), mask=inside)
    tl.store(quality + pixel, best, mask=inside)


@launcher
def launch(
    mask_logits: torch.Tensor,
    class_index: torch.Tensor,
    image_index: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    input_size: tuple[int, int],
    padded_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.merge_masks`."""
    regions, side = mask_logits.shape[:2]
    batch, classes, rows, columns = scores.shape
    height, width = labels.shape[1:]
    device = labels.device
    merged = torch.empty(labels.shape, dtype=torch.int32, device=device)
    quality = torch.empty(labels.shape, dtype=torch.float32, device=device)
    if regions == 0 or labels.numel() == 0:
        return merged.copy_(labels), quality.zero_()
    chosen = configuration(architecture(device))
    mask_logits, class_index, image_index = (each.contiguous() for each in (mask_logits, class_index, image_index))
    strips = triton.cdiv(side, STRIP)
    merged_taps = 2 * side <= padded_size
    order, class_of = torch.empty((2, regions), dtype=torch.int32, device=device)
    image_start = torch.empty(batch + 1, dtype=torch.int32, device=device)
    live = torch.empty((regions, strips, 2), dtype=torch.int32, device=device)
    surveyed = (order, class_of, image_start, live)
    _survey_kernel[(regions + batch + 1, triton.cdiv(strips, chosen.strips))](
        mask_logits,
        class_index,
        image_index,
        *surveyed,
        regions,
        side,
        strips,
        batch,
        classes,
        STRIP=STRIP,
        STRIPS=chosen.strips,
        BLOCK=chosen.survey_block,
        num_warps=chosen.survey_warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    _merge_kernel[(triton.cdiv(height, chosen.block_y) * triton.cdiv(width, chosen.block_x) * batch,)](
        mask_logits,
        scores,
        labels.contiguous(),
        *surveyed,
        merged,
        quality,
        side,
        strips,
        padded_size,
        *input_size,
        height,
        width,
        rows,
        columns,
        *scores.stride(),
        STRIP=STRIP,
        MERGED=merged_taps,
        BLOCK_Y=chosen.block_y,
        BLOCK_X=chosen.block_x,
        num_warps=chosen.warps if merged_taps else 2 * chosen.warps,  # four taps an axis spill 8 bytes otherwise
        num_stages=1,
        enable_fp_fusion=False,  # a tile's outermost taps must be those of its pixels; sums are fma as written
    )
    return merged, quality
