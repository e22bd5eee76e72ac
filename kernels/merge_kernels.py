"""Device code of `merge_masks`; what it computes and why so: merge_masks.py."""

# ruff: noqa: RUF005 - device code grows tuples by adding: Triton has no unpacking in displays
import triton
import triton.language as tl

from s2clip.kernels.tiles import LOG2E, bilinear, bilinear_taps

# A strip's last live column is at least this where one of its logits is not finite: a tile of weight 0 must not see it.
BROKEN = tl.constexpr(1 << 30)
SURVEYED = ("mask_logits", "order", "class_of", "image_start", "live", "side", "strips")  # arguments of both kernels


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
def _maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _line(mask, row, tap_x, weight_x, BLOCK_X: tl.constexpr):
    """[1,BLOCK_X]: a row of logits resized across."""
    across = tl.zeros([BLOCK_X], tl.float32)
    for j in tl.static_range(len(tap_x)):
        across = tl.fma(weight_x[j], tl.load(mask + row + tap_x[j]).to(tl.float32), across)
    return across[None, :]


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
def survey_kernel(
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
            left = tl.full([BLOCK], 2147483647, tl.int32)
            right = tl.full([BLOCK], -1, tl.int32)
            for start in range(0, side, BLOCK):
                x = start + lane
                inside = (y < side) & (x < side)[None, :]
                logit = tl.load(mask + y * side + x[None, :], mask=inside, other=0.0).to(tl.float32)
                highest = tl.reduce(logit, 0, _maximum)
                lowest = tl.reduce(logit, 0, _minimum)
                finite = (highest < float("inf")) & (lowest > float("-inf"))
                left = tl.minimum(left, tl.where((highest > 0.0) | (finite == 0), x, 2147483647))
                right = tl.where(highest > 0.0, tl.maximum(right, x), right)
                right = tl.where(finite, right, tl.maximum(right, x + BROKEN))
            tl.store(out + strip * 2, tl.min(left, axis=0))
            tl.store(out + strip * 2 + 1, tl.max(right, axis=0))
    elif first_strip == 0:
        tl.store(image_start + region - regions, rank)


@triton.jit(
    do_not_specialize=[
        *(*SURVEYED, "scores", "labels", "merged", "quality", "padded", "valid_y", "valid_x", "height", "width"),
        *("rows", "columns", "stride_image", "stride_class", "stride_row", "stride_column"),
    ]
)
def merge_masks_kernel(
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
    LINES: tl.constexpr,
    REGIONS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """LINES: rows of logits that the tile's pixels see at most; 0 for any number, each pixel with taps of its own."""
    tiles = tl.cdiv(width, BLOCK_X)
    rows_of_tiles = tl.cdiv(height, BLOCK_Y)
    image = tl.program_id(0) // tiles // rows_of_tiles
    y_start = tl.program_id(0) // tiles % rows_of_tiles * BLOCK_Y
    x_start = tl.program_id(0) % tiles * BLOCK_X
    # Pixels beyond the edge repeat the last one, so that no load needs a mask.
    y = tl.minimum(y_start + tl.arange(0, BLOCK_Y), height - 1)
    x = tl.minimum(x_start + tl.arange(0, BLOCK_X), width - 1)
    tap_y, weight_y = _axis_taps(y, height, valid_y, padded, side, LINES > 0)
    tap_x, weight_x = _axis_taps(x, width, valid_x, padded, side, LINES > 0)

    top = _axis_taps(y_start, height, valid_y, padded, side, LINES > 0)[0][0]
    left = _axis_taps(x_start, width, valid_x, padded, side, LINES > 0)[0][0]
    bottom = _axis_taps(tl.minimum(y_start + BLOCK_Y, height) - 1, height, valid_y, padded, side, LINES > 0)[0][-1]
    right = _axis_taps(tl.minimum(x_start + BLOCK_X, width) - 1, width, valid_x, padded, side, LINES > 0)[0][-1]
    down = ()
    for line in tl.static_range(LINES):
        weight = tl.zeros([BLOCK_Y], tl.float32)
        for i in tl.static_range(len(tap_y)):
            weight += tl.where(tap_y[i] == top + line, weight_y[i], 0.0)
        down = down + (weight[:, None],)

    above, below, share_y = bilinear_taps(y, height, rows)
    before, after, share_x = bilinear_taps(x, width, columns)
    best = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    pixel = image.to(tl.int64) * height * width + y[:, None] * width + x[None, :]
    label = tl.load(labels + pixel).to(tl.int32)
    evidence = tl.full([BLOCK_Y, BLOCK_X], float("-inf"), tl.float32)
    first = tl.load(image_start + image)
    last = tl.load(image_start + image + 1)
    for start in range(first, last, REGIONS):
        rank = start + tl.arange(0, REGIONS)
        seen = rank < start
        broken = rank < start
        notes = live + rank.to(tl.int64) * strips * 2
        for strip in range(top // STRIP, bottom // STRIP + 1):
            first_live = tl.load(notes + strip * 2, mask=rank < last, other=2147483647)
            last_live = tl.load(notes + strip * 2 + 1, mask=rank < last, other=-1)
            seen = seen | ((first_live <= right) & (last_live >= left))
            broken = broken | (last_live >= BROKEN)
        # The next region that the tile sees, and in the lowest bit whether it is sound.
        ticket = tl.where(seen, rank * 2 + (broken == 0).to(tl.int32), 2147483647)
        current = tl.min(ticket, axis=0)
        while current < 2147483647:
            following = tl.min(tl.where(ticket > current, ticket, 2147483647), axis=0)
            mask = mask_logits + tl.load(order + current // 2).to(tl.int64) * side * side
            logit = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
            if LINES == 0:
                for i in tl.static_range(len(tap_y)):
                    row = (mask + tap_y[i] * side)[:, None]
                    across = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
                    for j in tl.static_range(len(tap_x)):
                        value = tl.load(row + tap_x[j][None, :]).to(tl.float32)
                        across = tl.fma(weight_x[j][None, :], value, across)
                    logit = tl.fma(weight_y[i][:, None], across, logit)
            if LINES > 0 and current % 2 != 0:
                for line in tl.static_range(LINES):
                    across = _line(mask, tl.minimum(top + line, side - 1) * side, tap_x, weight_x, BLOCK_X)
                    logit = tl.fma(down[line], across, logit)
            if LINES > 0 and current % 2 == 0:  # what is not finite must not meet a weight of 0
                for line in tl.static_range(LINES):
                    across = _line(mask, tl.minimum(top + line, side - 1) * side, tap_x, weight_x, BLOCK_X)
                    logit = tl.where(down[line] != 0.0, tl.fma(down[line], across, logit), logit)
            evidence = _maximum(evidence, logit)
            # A class ends with its last region among the 64; should it go on after them, the larger product stays.
            index = tl.load(class_of + current // 2)
            more = following < 2147483647
            if tl.load(class_of + following // 2, mask=more, other=-1) != index:
                score = bilinear(
                    scores + image.to(tl.int64) * stride_image + index.to(tl.int64) * stride_class,
                    (above * stride_row)[:, None],
                    (below * stride_row)[:, None],
                    (before * stride_column)[None, :],
                    (after * stride_column)[None, :],
                    share_y[:, None],
                    share_x[None, :],
                )
                product = tl.where(evidence > 0.0, score / (1.0 + tl.exp2(evidence * -LOG2E)), 0.0)
                unsound = (evidence != evidence) | ((tl.abs(product) < float("inf")) == 0)
                better = ((product > best) | unsound) & (best == best)  # a pixel once unsound stays so
                best = tl.where(better, tl.where(unsound, float("nan"), product), best)
                label = tl.where(better, index, label)
                evidence = tl.full([BLOCK_Y, BLOCK_X], float("-inf"), tl.float32)
            current = following
    inside = (y_start + tl.arange(0, BLOCK_Y) < height)[:, None] & (x_start + tl.arange(0, BLOCK_X) < width)[None, :]
    tl.store(merged + pixel, tl.where(best == best, label, -1), mask=inside)
    tl.store(quality + pixel, best, mask=inside)
