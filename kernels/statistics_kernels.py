"""Device code of `measure_components`; what it computes and why so: component_statistics.py."""

import triton
import triton.language as tl

from s2clip.kernels.labelling_kernels import strip_kernel

LARGEST = tl.constexpr(65_504.0)  # of fp16
NONE = tl.constexpr(2**31 - 1)  # beyond every label and pixel
TOO_MANY = tl.constexpr(1 << 16)  # pixels of a block
COLUMNS = tl.constexpr(8)  # int64 per component; all start at 0, so minima are kept as maxima counted from the far side
SUM = tl.constexpr(0)  # of scores in fixed point; for moments, x here and y in the next column
BEST = tl.constexpr(1)  # `_key` of the best pixel
AREA = tl.constexpr(2)  # pixels + 2³² · pixels without a usable score
CLASS = tl.constexpr(3)
LEFT = tl.constexpr(4)
TOP = tl.constexpr(5)
RIGHT = tl.constexpr(6)
BOTTOM = tl.constexpr(7)


@triton.jit
def _raise(cell, value, mask):
    """Maximum into memory. Cells only grow, so a stale read can cost an atomic but never lose one."""
    value = value.to(tl.int64)
    higher = mask & (value > tl.load(cell, mask=mask, other=0))
    tl.atomic_max(cell, value, mask=higher, sem="relaxed")


@triton.jit
def _record(state, row, total, best, area, class_id, left, top, right, bottom, mask, SCORED: tl.constexpr):
    """Scalars or lanes into the records [rows,COLUMNS]."""
    cell = state + row.to(tl.int64) * COLUMNS
    tl.atomic_add(cell + AREA, area, mask=mask, sem="relaxed")
    tl.atomic_add(cell + SUM, total, mask=mask, sem="relaxed")
    if SCORED:
        _raise(cell + BEST, best, mask)
        _raise(cell + CLASS, class_id, mask)
    else:
        tl.atomic_add(cell + BEST, best, mask=mask, sem="relaxed")
    _raise(cell + LEFT, left, mask)
    _raise(cell + TOP, top, mask)
    _raise(cell + RIGHT, right, mask)
    _raise(cell + BOTTOM, bottom, mask)


@triton.jit
def _fixed(own, bad, scale):
    """The multiple of 1/scale nearest to own, as int64; halves go up."""
    scaled = tl.where(bad, 0.0, own) * scale
    floor = tl.floor(scaled)
    return floor.to(tl.int64) + (scaled - floor >= 0.5).to(tl.int64)


@triton.jit
def _ordered(own):
    """An int32 that orders as the floats do, equal for both zeros, smallest for what is not finite."""
    bits = tl.where(own == 0, 0.0, own).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(tl.abs(own) < float("inf"), order, -2147483648)


@triton.jit
def _key(order, pixel):
    """63 bits: the larger score wins, then the earlier pixel; never 0."""
    return ((order.to(tl.int64) + 2147483648) << 31) + (2147483647 - pixel)


@triton.jit
def _integer(values):
    """int32, or int64 where the dtype holds more; of uint32 what is beyond turns negative, which counts as nothing."""
    return values.to(tl.int32 if values.dtype.primitive_bitwidth < 64 else tl.int64)


@triton.jit
def _area(pixels, bad):
    return pixels.to(tl.int64) + (bad.to(tl.int64) << 32)


@triton.jit
def _sum(values, SIZE: tl.constexpr):
    """Of int64 below 2^48: each lane adds its own, then the warp their lower 26 bits and the rest in 32 bits each."""
    if SIZE > 256:
        total = tl.sum(values, axis=0)
    else:
        of_lane = tl.sum(tl.reshape(values, [SIZE // 32, 32]), axis=0)
        low = tl.sum((of_lane & ((1 << 26) - 1)).to(tl.int32), axis=0)
        total = (tl.sum((of_lane >> 26).to(tl.int32), axis=0).to(tl.int64) << 26) + low
    return total


@triton.jit
def _where(mine, values, other, WHOLE: tl.constexpr):
    return values if WHOLE else tl.where(mine, values, other)


@triton.jit
def _add_label(
    state,
    one,
    mine,
    facts,
    first_line,
    height,
    width,
    SCORED: tl.constexpr,
    LINES: tl.constexpr,
    PIXELS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The block's pixels of label `one` into its record; WHOLE: all are."""
    order, pixel, total, best, pixels, class_id, x, y = facts
    if SCORED:
        own = _where(mine, order, -2147483648, WHOLE)
        highest = tl.max(own, axis=0)
        here = own == highest if WHOLE else mine & (own == highest)
        best_of_one = _key(highest, tl.min(tl.where(here, pixel, NONE), axis=0))
    else:
        best_of_one = _sum(_where(mine, best, 0, WHOLE), LINES * PIXELS)
    first_column = tl.program_id(0) % tl.cdiv(width, PIXELS) * PIXELS
    left = width - first_column
    right = first_column + PIXELS
    if not WHOLE:
        left = tl.max(tl.where(mine, width - x, 0), axis=0)
        right = tl.max(tl.where(mine, x + 1, 0), axis=0)
    top = height - first_line % height
    bottom = first_line % height + LINES
    if not WHOLE and LINES > 1:
        top = tl.max(tl.where(mine, height - y, 0), axis=0)
        bottom = tl.max(tl.where(mine, y + 1, 0), axis=0)
    number = tl.sum(_where(mine, pixels, 0, WHOLE), axis=0)
    area = _area(number % TOO_MANY, number // TOO_MANY)
    all_of_one = _sum(_where(mine, total, 0, WHOLE), LINES * PIXELS)
    class_of_one = tl.max(_where(mine, class_id, 0, WHOLE), axis=0)
    _record(state, one, all_of_one, best_of_one, area, class_of_one, left, top, right, bottom, one >= 0, SCORED)


@strip_kernel
def measure_kernel(
    labels,
    class_map,
    scores,
    count,
    end,
    state,
    lines: tl.int32,
    classes: tl.int32,
    height: tl.int32,
    width: tl.int32,
    batch_stride: tl.int64,
    class_stride: tl.int64,
    row_stride: tl.int64,
    column_stride: tl.int64,
    scale: tl.float32,
    SCORED: tl.constexpr,
    ROUNDS: tl.constexpr,
    LINES: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """With SCORED labels 1..count, as `launch_measure`; without, labels 0..count − 1 as `launch_moments`."""
    lane = tl.arange(0, LINES * PIXELS)
    programs_of_line = tl.cdiv(width, PIXELS)
    first_line = tl.program_id(0) // programs_of_line * LINES
    line = first_line + lane // PIXELS
    x = tl.program_id(0) % programs_of_line * PIXELS + lane % PIXELS
    inside = (line < lines) & (x < width)
    pixel = line * width + x
    image = line // height
    y = line - image * height
    index = _integer(tl.load(labels + pixel, mask=inside, other=0))
    if SCORED:
        index -= 1
    rows = tl.load(count + image, mask=inside, other=0)
    rest = inside & (index >= 0) & (index < rows)
    row = (tl.load(end + image, mask=rest, other=0) - rows + index).to(tl.int32)

    class_id = tl.zeros([LINES * PIXELS], tl.int32)
    order = class_id
    bad = inside & (pixel < 0)
    total = x.to(tl.int64)
    best = y.to(tl.int64)
    if SCORED:
        class_id = _integer(tl.load(class_map + pixel, mask=rest, other=0))
        known = rest & (class_id >= 0) & (class_id < classes)
        offset = image * batch_stride + class_id * class_stride + y * row_stride + x * column_stride
        own = tl.load(scores + offset, mask=known, other=float("nan")).to(tl.float32)
        bad = (tl.abs(own) <= LARGEST) == 0
        total = _fixed(own, bad, scale)
        order = _ordered(own)
        best = _key(order, pixel)
    class_id = tl.maximum(class_id.to(tl.int32), -1) + 1
    pixels = 1 + bad.to(tl.int32) * TOO_MANY

    # Many blocks have one label. Of others one at a time, smallest first: what begins early in the raster tends to be
    # large, and one address takes one atomic per clock. What is left after ROUNDS labels are many small regions.
    own_label = tl.where(rest, row, -1)
    lowest = tl.min(own_label, axis=0)
    uniform = (lowest >= 0) & (lowest == tl.max(own_label, axis=0))
    if uniform:
        facts = (order, pixel, total, best, pixels, class_id, x, y)
        _add_label(state, lowest, rest, facts, first_line, height, width, SCORED, LINES, PIXELS, True)
    if uniform == 0:
        one = tl.min(tl.where(rest, row, NONE), axis=0)
        rounds = one * 0
        while (one < NONE) & (rounds < ROUNDS):
            mine = rest & (row == one)
            facts = (order, pixel, total, best, pixels, class_id, x, y)
            _add_label(state, one, mine, facts, first_line, height, width, SCORED, LINES, PIXELS, False)
            rest = rest & (row != one)
            one = tl.min(tl.where(rest, row, NONE), axis=0)
            rounds += 1
        if one < NONE:
            area = _area(rest.to(tl.int32), bad.to(tl.int32))
            _record(state, row, total, best, area, class_id, width - x, height - y, x + 1, y + 1, rest, SCORED)


@strip_kernel
def report_kernel(
    state,
    count,
    end,
    image_index,
    class_index,
    label,
    area,
    box,
    score,
    point,
    rows: tl.int32,
    images: tl.int32,
    height: tl.int32,
    width: tl.int32,
    resolution: tl.float32,
    LANES: tl.constexpr,
):
    row = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = row < rows
    column = state + row.to(tl.int64) * COLUMNS
    total = tl.load(column + SUM, mask=inside, other=0)
    best = tl.load(column + BEST, mask=inside, other=0)
    pixels_and_bad = tl.load(column + AREA, mask=inside, other=0)

    # How many images end at or before this row, by bisection.
    image = tl.zeros([LANES], tl.int32)
    beyond = image + images
    while tl.max(beyond - image, axis=0) > 0:
        middle = (image + beyond) // 2
        search = inside & (image < beyond)
        ended = search & (tl.load(end + middle, mask=search, other=0) <= row)
        image = tl.where(ended, middle + 1, image)
        beyond = tl.where(ended, beyond, middle)
    start = tl.load(end + image, mask=inside, other=0) - tl.load(count + image, mask=inside, other=0)

    pixels = (pixels_and_bad & 0xFFFFFFFF).to(tl.int32)
    seen = pixels > 0
    mean = total.to(tl.float64) / tl.maximum(pixels, 1).to(tl.float64) * resolution
    whole = seen & (pixels_and_bad >> 32 == 0)
    pixel = (2147483647 - (best & 2147483647)).to(tl.int32) % (height * width)

    corner = row.to(tl.int64) * 4
    tl.store(image_index + row, image, mask=inside)
    tl.store(class_index + row, tl.load(column + CLASS, mask=inside, other=0).to(tl.int32) - 1, mask=inside)
    tl.store(label + row, row - start + 1, mask=inside)
    tl.store(area + row, pixels, mask=inside)
    tl.store(box + corner, width - tl.load(column + LEFT, mask=inside, other=0).to(tl.int32), mask=inside)
    tl.store(box + corner + 1, height - tl.load(column + TOP, mask=inside, other=0).to(tl.int32), mask=inside)
    tl.store(box + corner + 2, tl.load(column + RIGHT, mask=inside, other=0).to(tl.int32) - 1, mask=inside)
    tl.store(box + corner + 3, tl.load(column + BOTTOM, mask=inside, other=0).to(tl.int32) - 1, mask=inside)
    tl.store(score + row, tl.where(whole, mean.to(tl.float32), float("nan")), mask=inside)
    tl.store(point + corner // 2, tl.where(seen, pixel % width, -1), mask=inside)
    tl.store(point + corner // 2 + 1, tl.where(seen, pixel // width, -1), mask=inside)
