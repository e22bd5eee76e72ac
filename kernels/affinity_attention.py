"""Affinity attention: A = softmax over the kept entries of gamma * (S - beta * mean S); result A . resize(value).

S_ij = sum_s w_s f^s_i . f^s_j with unit vectors f; an entry is kept when S_ij >= beta * mean S or i = j.

B images, N = H*W feature positions, M = h*w value positions, C = sum of C_s feature channels, D value channels.

Four identities turn this into two matrix products:
* sqrt(w_s) f^s concatenated over s gives unit rows g with S = g g^T, so several maps cost one product;
* mean S = |mean_i g_i|^2, one reduction of N*C numbers instead of N*N;
* S_ii = 1 is the largest entry of its row, so the softmax needs no maximum: P_ij = exp(gamma * (S_ij - 1)), and P is
  symmetric: only the tiles on and above the diagonal are computed, each stored twice;
* bilinear resize is linear, A (U v) = (A U) v: where the value grid is coarser, the fold A U has M columns instead of N
  (N = 1764, M = 441: 7.2 GFLOP instead of 19.1), and its rows have the sums of P's.

Progressive: level l = 1..L has S of the maps up to l, so its tile is the last level's plus one product: L products
where each level on its own would take L (L + 1) / 2, and three launches where it would take L (L + 7) / 2.

Launches: unit rows with their sums (one per group of maps that lie evenly spaced in memory), P, result: a program of
the last folds the rows that it multiplies.

Never written: A and S. P is written once in half precision and read back through L2: at most STRIP_BYTES at a time
(strips of rows when one image has more, several images together when they have less), 6.2 MB at N = 1764.
The published formulation holds S, its mask, A and twelve copies of A: 150 MB at the same size.

fp16, bf16 and fp32 (products at "ieee" precision); sums in fp32, or in integers where programs add to one sum: bitwise
the same each run. Source: the proxy attention of ProxyCLIP and Trident; the tests check the identities in float64.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.kernels.affinity_kernels import affinity_kernel, unit_rows_kernel
from s2clip.kernels.affinity_tiles import Mix, Tables, chunks_of, configuration, fold_tables
from s2clip.kernels.mix_kernels import folded_mix_kernel, mix_kernel
from s2clip.kernels.tiles import LOG2E, architecture, launcher

# P is stored times 2**15 before the row is normalised, so that fp16 holds exp(-gamma (1 - S)) down to gamma = 24.
LOG2_P_SCALE = 15.0
# The 4090 has 72 MB of L2, an H100 50 MB: P and what streams past it must fit together.
STRIP_BYTES = 32 * 2**20
GRID = 65_535  # programs along y or z, which is where images stand
UNIT_BLOCK_N, UNIT_BLOCK_C, UNIT_WARPS = 32, 128, 4
FOLD_BLOCK = 64  # cells folded at a time: a lane has one, of eight rows or more, and its weights


class Plan(NamedTuple):
    """How much of P is held at a time; it depends on no other image of the batch."""

    padded: int  # positions in whole tiles: rows of the unit vectors, columns of P
    strip: int  # rows of P
    images: int


def strip_plan(positions: int, row_bytes: int, block: int) -> Plan:
    """row_bytes: of one position in one row of P, all levels together."""
    padded = -(-positions // block) * block
    rows = STRIP_BYTES // (padded * row_bytes)
    if rows >= padded:
        return Plan(padded, padded, min(rows // padded, GRID))
    return Plan(padded, max(block, rows // block * block), 1)


@launcher
def launch(
    features: Sequence[Tensor], value: Tensor, weights: Tensor, beta: float, gamma: float, mean: Tensor | None
) -> Tensor:
    """As `reference.affinity_attention`."""
    batch, height, width = features[0].shape[:3]
    positions, channels = height * width, value.shape[3]
    if batch * positions * channels == 0:
        return torch.empty((batch, height, width, channels), dtype=value.dtype, device=value.device)
    coarse = (value.shape[1], value.shape[2])
    smaller = coarse[0] * coarse[1] < positions
    tables = fold_tables((height, width), coarse, value.device) if smaller else None
    if tables is None and coarse != (height, width):
        resized = F.interpolate(
            value.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", align_corners=False
        )
        value = resized.permute(0, 2, 3, 1).to(value.dtype)
    tiles = configuration(architecture(value.device), positions, value.dtype)
    plan = strip_plan(positions, value.element_size(), tiles.columns)
    widths = [maps.shape[3] for maps in features]
    offsets = [sum(widths[:index]) for index in range(len(widths))]
    pitch = -(-sum(widths) // tiles.block_c) * tiles.block_c
    unit, sums = _unit_rows(features, weights.to(torch.float32).contiguous(), offsets, pitch, plan.padded)
    given = weights if mean is None else mean
    given = given.to(torch.float32).contiguous()  # a mean that is expanded over the images has a stride of 0
    return _mixed(
        unit, sums, given, mean is not None, value[None], (height, width), 1, beta, gamma, plan, tiles, tables
    )


@launcher
def launch_progressive(features: Tensor, values: Tensor, scores: Tensor, beta: float, gamma: float) -> Tensor:
    """As `reference.progressive_affinity`."""
    levels, batch, height, width = features.shape[:4]
    positions, channels = height * width, values.shape[4]
    if levels * batch * positions * channels == 0:
        return torch.empty((batch, height, width, channels), dtype=values.dtype, device=values.device)
    tiles = configuration(architecture(values.device), positions, values.dtype, progressive=True)
    plan = strip_plan(positions, values.element_size() * levels, tiles.columns)
    pitch = -(-features.shape[4] // tiles.block_c) * tiles.block_c
    weights = torch.ones((batch, levels), dtype=torch.float32, device=values.device)
    offsets = [pitch * level for level in range(levels)]
    unit, sums = _unit_rows(features.unbind(0), weights, offsets, pitch * levels, plan.padded)
    scores = scores.to(torch.float32).contiguous()
    return _mixed(unit, sums, scores, False, values, (height, width), levels, beta, gamma, plan, tiles, None)


def _mixed(unit, sums, given, has_mean, values, size, levels, beta, gamma, plan, tiles, tables) -> Tensor:
    """P and the result, strip by strip. values [levels,B,h,w,D]; given: scores, or a mean of S, or anything."""
    batch, channels = values.shape[1], values.shape[4]
    positions = size[0] * size[1]
    strides, values = _value_strides(values)
    output = values.new_empty((batch, *size, channels))
    upcast = architecture(values.device) == 0  # the interpreter multiplies the bit patterns of bf16
    held = min(plan.images, batch)
    affinity = values.new_empty((held, levels, plan.strip, plan.padded))
    tile_count = plan.padded // tiles.columns
    for first in range(0, batch, plan.images):
        images = min(plan.images, batch - first)
        for start in range(0, positions, plan.strip):
            rows = min(plan.strip, plan.padded - start)
            symmetric = rows == plan.padded
            grid = ((tile_count + 1) // 2 * tiles.ratio, tile_count + 1)
            affinity_kernel[(*(grid if symmetric else (rows // tiles.block, tile_count)), images)](
                _after(unit, first),
                _after(sums, first),
                _after(given, first),
                affinity,
                positions,
                plan.padded,
                unit.shape[2] // levels,
                levels,
                start,
                min(start + rows, positions),
                plan.strip,
                plan.padded,
                float(beta),
                gamma * LOG2E.value,
                LOG2_P_SCALE,
                int(has_mean),
                SYMMETRIC=symmetric,
                PROGRESSIVE=levels > 1,
                UPCAST=upcast,
                BLOCK=tiles.block,
                RATIO=tiles.ratio,
                BLOCK_C=tiles.block_c,
                num_warps=tiles.warps,
                num_stages=tiles.stages,
                enable_fp_fusion=True,
            )
            here = output if first == start == 0 else output[first:].flatten(1, 2)[:, start:]
            if tables is not None:
                value = values if first == 0 else values[:, first:]
                sizes = (images, rows, positions, positions - start)
                _fold_and_mix(affinity, value, strides[1:], here, sizes, tiles.folded, upcast, tables)
                continue
            mix = tiles.mix
            mix_kernel[(rows // mix.rows, -(-channels // mix.block_d), images)](
                affinity,
                values if first == 0 else values[:, first:],
                _after(given, first),
                here,
                positions - start,
                plan.strip,
                positions,
                levels,
                channels,
                plan.padded,
                *strides,
                positions,
                PROGRESSIVE=levels > 1,
                EVEN=channels % mix.block_d == 0,
                UPCAST=upcast,
                BLOCK_M=mix.rows,
                BLOCK_D=mix.block_d,
                BLOCK_K=mix.block_k,
                num_warps=mix.warps,
                num_stages=mix.stages,
                enable_fp_fusion=True,
            )
    return output


def _after(tensor: Tensor, first: int) -> Tensor:
    """tensor[first:]; a view costs a microsecond, and most calls hold all images at once."""
    return tensor[first:] if first else tensor


def _fold_and_mix(affinity, value, strides, output, sizes, mix: Mix, upcast: bool, tables: Tables) -> None:
    """One strip of the result, `output` from the strip's first row on.

    P is times 2^15: four weights of about 1 would pass fp16's largest number, so what is folded is times m / N.
    """
    images, rows, positions, live = sizes
    channels = output.shape[-1]
    parts, chunks = chunks_of(channels, mix)
    height, width = tables.coarse
    whole = max(FOLD_BLOCK, mix.block_k)
    pitch = -(-height * width // whole) * whole
    strip = affinity.shape[2]
    folded = affinity.new_empty((images, parts, strip, pitch))
    folded_mix_kernel[(rows // mix.rows, parts, images)](
        affinity,
        folded,
        value,
        output,
        *tables.tensors,
        live,
        strip,
        tables.width,
        height,
        width,
        channels,
        affinity.shape[3],
        pitch,
        tables.taps[0],
        1,
        height * width / positions,
        *strides,
        positions,
        TAPS=tables.taps[1],
        EVEN=channels % (chunks * mix.block_d) == 0,
        UPCAST=upcast,
        CHUNKS=chunks,
        BLOCK_M=mix.rows,
        BLOCK_D=mix.block_d,
        BLOCK_K=mix.block_k,
        BLOCK_F=FOLD_BLOCK,
        num_warps=mix.warps,
        num_stages=mix.stages,
        enable_fp_fusion=True,
    )


def _unit_rows(
    features: Sequence[Tensor], weights: Tensor, offsets: list[int], pitch: int, padded: int
) -> tuple[Tensor, Tensor]:
    """(rows g [B,padded,pitch], sums over the positions [B,pitch+1]); rows past the last are arbitrary."""
    batch, height, width = features[0].shape[:3]
    filled = sum(maps.shape[3] for maps in features)
    allocate = features[0].new_empty if filled == pitch else features[0].new_zeros
    unit = allocate((batch, padded, pitch))
    sums = torch.zeros((batch, pitch + 1), dtype=torch.int64, device=unit.device)
    blocks = -(-height * width // UNIT_BLOCK_N)
    for first, count, spacing in _evenly_spaced(features):
        maps = features[first]
        position = _position_stride(maps)
        if position is None:
            maps = maps.clone(memory_format=torch.contiguous_format)
            position = maps.shape[3]
        channels, strides = maps.shape[3], (spacing, maps.stride(0), position)
        item = 16 // maps.element_size()
        wide = maps.data_ptr() % 16 == 0 and all(each % item == 0 for each in (*strides, channels))
        item = item if wide else 1
        unit_rows_kernel[(batch, blocks, count)](
            maps,
            unit,
            sums,
            weights,
            height * width,
            padded,
            channels // item,
            pitch,
            offsets[first],
            offsets[first + 1] - offsets[first] if count > 1 else 0,
            *(stride // item for stride in strides),
            weights.shape[1],
            first,
            WIDE=wide,
            BLOCK_N=UNIT_BLOCK_N,
            BLOCK_C=UNIT_BLOCK_C,
            num_warps=UNIT_WARPS,
            num_stages=1,
            enable_fp_fusion=True,
        )
    return unit, sums


def _evenly_spaced(maps: Sequence[Tensor]) -> Iterator[tuple[int, int, int]]:
    """(first, count, elements from one to the next) of runs of alike maps that lie evenly in one memory."""
    first = 0
    while first < len(maps):
        count = 1
        spacing = _spacing(maps[first], maps[first + 1]) if first + 1 < len(maps) else 0
        while (
            spacing and first + count < len(maps) and _spacing(*maps[first + count - 1 : first + count + 1]) == spacing
        ):
            count += 1
        yield first, count, spacing if count > 1 else 0
        first += count


def _spacing(one: Tensor, other: Tensor) -> int:
    alike = one.shape == other.shape and one.stride() == other.stride() and one.stride(3) == 1
    if (
        not alike
        or _position_stride(one) is None
        or one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    ):
        return 0
    return max(0, other.storage_offset() - one.storage_offset())


def _value_strides(values: Tensor) -> tuple[tuple[int, int, int], Tensor]:
    """Strides of levels, images and positions in units of 16 bytes, and the values, copied where these do not exist."""
    item = 16 // values.element_size()
    channels = values.shape[4]
    position = _position_stride(values)
    level, image = values.stride()[:2]
    if position is None or values.data_ptr() % 16 or level % item or image % item or position % item:
        values = F.pad(values, (0, -channels % item)).contiguous()
        (level, image), position = values.stride()[:2], values.shape[4]
    return (level // item, image // item, position // item), values


def _position_stride(maps: Tensor) -> int | None:
    """Elements from one position of [..,H,W,C] to the next; None where they are uneven, or channels not adjacent."""
    height, width, _ = maps.shape[-3:]
    row, column, channel = maps.stride()[-3:]
    if channel != 1 or (height > 1 and width > 1 and row != width * column):
        return None
    return column if width > 1 else row
