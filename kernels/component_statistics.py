"""Statistics of labelled components: class, area, box, mean own-class score and best point, R rows.

For component r with pixels P_r and class c_r, from labels and class_map [B,H,W] and scores [B,C,H,W]:

    area |P_r|    box min x, min y, max x, max y    score 1/|P_r| Σ_p scores[c_r, p]    point argmax_p scores[c_r, p]

Two launches after a memset. Every block of pixels reduces its labels one by one, the smallest first, and adds each to
the 64-byte record of its component; few labels meet in a block, so that even a region of the whole image sends one
atomic per block and column to its record, not one per pixel. The second launch turns records into rows. Nothing of
size [C,H,W] or [R,H,W] is written; only the own class of each pixel is read: 4 bytes of scores a pixel, where masks
per region would take R·H·W.

All results are integers until the last step, so they are bitwise the same in every order of the atomics. A score is
rounded to a multiple of 2^−s, s = 47 − bit length of H·W, at most 32 (29 for 375×500, 25 for 1024×2048): any H·W scores
up to 2^16 fit 63 bits. A component with a score that is not finite, or beyond ±65,504, or whose class is not in
0..C−1, has score NaN. The point is the maximum of (ordered float, −pixel) in 63 bits: the first in raster order of
equals.
Atomics are relaxed and their results unused (RED instructions); the kernel boundary orders them before the reader.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.connected_components import dense, launch_options, strip_kernel, strips
from s2clip.kernels.tiles import architecture, launcher

LARGEST = tl.constexpr(65_504.0)  # of fp16
COLUMNS = tl.constexpr(8)  # int64 per component; all start at 0, so minima are kept as maxima counted from the far side
SUM = tl.constexpr(0)  # of scores in fixed point; for moments, x here and y in the next column
BEST = tl.constexpr(1)  # `_key` of the best pixel
AREA = tl.constexpr(2)  # pixels + 2³² · pixels without a usable score
CLASS = tl.constexpr(3)
LEFT = tl.constexpr(4)
TOP = tl.constexpr(5)
RIGHT = tl.constexpr(6)
BOTTOM = tl.constexpr(7)


class Configuration(NamedTuple):
    """Rows and columns of a program of measure, labels that it reduces one by one, records per program of report."""

    lines: int
    columns: int
    rounds: int
    report: int


def configuration(arch: int) -> Configuration:
    """One choice for all GPUs; arch 0 is the interpreter, which pays per operation and not per lane: large tiles.

    Within one row of pixels nothing is divided, and the row itself needs no minimum and maximum.
    """
    return Configuration(64, 64, 4, 1024) if arch == 0 else Configuration(1, 256, 4, 32)


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


@strip_kernel
def _measure_kernel(
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

    # One label at a time, smallest first: what begins early in the raster tends to be large, and one address takes one
    # atomic per clock. What is left after ROUNDS labels in one block are many small regions.
    for _ in range(ROUNDS):
        one = tl.min(tl.where(rest, row, 2147483647), axis=0)
        mine = rest & (row == one)
        if one < 2147483647:
            if SCORED:
                highest = tl.max(tl.where(mine, order, -2147483648), axis=0)
                first = tl.min(tl.where(mine & (order == highest), pixel, 2147483647), axis=0)
                best_of_one = _key(highest, first)
            else:
                best_of_one = tl.sum(tl.where(mine, best, 0), axis=0)
            if LINES == 1:
                top = height - first_line % height
                bottom = first_line % height + 1
            else:
                top = tl.max(tl.where(mine, height - y, 0), axis=0)
                bottom = tl.max(tl.where(mine, y + 1, 0), axis=0)
            _record(
                state,
                one,
                tl.sum(tl.where(mine, total, 0), axis=0),
                best_of_one,
                _area(tl.sum(mine.to(tl.int32), axis=0), tl.sum((mine & bad).to(tl.int32), axis=0)),
                tl.max(tl.where(mine, class_id, 0), axis=0),
                tl.max(tl.where(mine, width - x, 0), axis=0),
                top,
                tl.max(tl.where(mine, x + 1, 0), axis=0),
                bottom,
                one >= 0,
                SCORED,
            )
        rest = rest & (row != one)
    if tl.max(rest.to(tl.int32), axis=0) > 0:
        area = _area(rest.to(tl.int32), bad.to(tl.int32))
        _record(state, row, total, best, area, class_id, width - x, height - y, x + 1, y + 1, rest, SCORED)


@strip_kernel
def _report_kernel(
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


@launcher
def launch_measure(
    labels: torch.Tensor, class_map: torch.Tensor, scores: torch.Tensor, count: torch.Tensor, rows: int
) -> tuple[torch.Tensor, ...]:
    """As `reference.measure_components`. Scores are read in place; maps are copied if not contiguous."""
    batch, height, width = labels.shape
    integers = {"dtype": torch.int32, "device": labels.device}
    image_index, class_index, label, area = (torch.empty(rows, **integers) for _ in range(4))
    box, point = torch.empty((rows, 4), **integers), torch.empty((rows, 2), **integers)
    score = torch.empty(rows, dtype=torch.float32, device=labels.device)
    if rows > 0:
        count = count.to(torch.int32).contiguous()
        state, end = _measured(labels, count, rows, class_map, scores)
        tiles = configuration(architecture(labels.device))
        _report_kernel[(triton.cdiv(rows, tiles.report),)](
            *(state, count, end, image_index, class_index, label, area, box, score, point),
            *(rows, batch, height, width, 2.0 ** -_fixed_point(height * width)),
            LANES=tiles.report,
            **launch_options(1),
        )
    return image_index, class_index, label, area, box, score, point


@launcher
def launch_moments(labels: torch.Tensor, count: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
    """(area, box, total) int64 [rows], [rows,4], [rows,2] of labels 0..count[b] − 1 of each image, rows = Σ count.

    total holds Σ x and Σ y. A label without pixels has area 0 and box (W, H, −1, −1).
    """
    height, width = labels.shape[1:]
    state, _ = _measured(labels, count.to(torch.int32).contiguous(), rows)
    far = torch.tensor([width, height], device=state.device)
    box = torch.cat([far - state[:, LEFT.value : RIGHT.value], state[:, RIGHT.value :] - 1], 1)
    return state[:, AREA.value], box, state[:, SUM.value : AREA.value]


def _measured(labels, count, rows: int, class_map=None, scores=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The records [rows,COLUMNS], and the row at which each image ends."""
    end = count if len(count) == 1 else count.cumsum(0, dtype=torch.int32)
    state = torch.zeros((rows, COLUMNS.value), dtype=torch.int64, device=labels.device)
    labels = dense(labels)
    class_map = labels if class_map is None else dense(class_map)
    scored = scores is not None
    scores = scores if scored else labels[:, None]
    height, width = labels.shape[1:]
    tiles = configuration(architecture(labels.device))
    for part in strips(labels) if labels.numel() and rows else ():
        lines = labels[part].shape[0] * height
        _measure_kernel[(triton.cdiv(lines, tiles.lines) * triton.cdiv(width, tiles.columns),)](
            *(labels[part], class_map[part], scores[part], count[part], end[part], state),
            *(lines, scores.shape[1], height, width, *scores.stride(), 2.0 ** _fixed_point(height * width)),
            SCORED=scored,
            ROUNDS=tiles.rounds,
            LINES=tiles.lines,
            PIXELS=tiles.columns,
            **launch_options(1),
        )
    return state, end


def _fixed_point(image_pixels: int) -> int:
    """Bits after the point, so that H·W pixels of magnitude 2¹⁶ fit 63 bits: 29 for 375×500, 25 for 1024×2048."""
    return min(32, 47 - image_pixels.bit_length())
