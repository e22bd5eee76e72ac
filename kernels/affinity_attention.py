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

Launches: unit rows with their sums (one per group of maps that lie evenly spaced in memory), P, fold if any, result.

Never written: A and S. P is written once in half precision and read back through L2: at most STRIP_BYTES at a time
(strips of rows when one image has more, several images together when they have less), 6.2 MB at N = 1764.
The published formulation holds S, its mask, A and twelve copies of A: 150 MB at the same size.

fp16, bf16 and fp32 (products at "ieee" precision); sums in fp32, or in integers where programs add to one sum: bitwise
the same each run. Source: the proxy attention of ProxyCLIP and Trident; the tests check the identities in float64.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.kernels.affinity_kernels import affinity_kernel, fold_kernel, mix_kernel, unit_rows_kernel
from s2clip.kernels.tiles import LOG2E, architecture, launcher

# P is stored times 2**15 before the row is normalised, so that fp16 holds exp(-gamma (1 - S)) down to gamma = 24.
LOG2_P_SCALE = 15.0
# The 4090 has 72 MB of L2, an H100 50 MB: P and what streams past it must fit together.
STRIP_BYTES = 32 * 2**20
GRID = 65_535  # programs along y or z, which is where images stand
UNIT_BLOCK_N, UNIT_BLOCK_C, UNIT_WARPS = 32, 128, 4
FOLD_BLOCK_M = 32  # a column a lane of one warp: weights stay in their lanes


class Configuration(NamedTuple):
    """Tile sizes of one architecture, dtype and size bucket."""

    block: int  # rows and columns of a tile of P, rows of a tile of the result
    block_c: int
    affinity_warps: int
    affinity_stages: int
    block_d: int
    block_k: int
    mix_warps: int
    mix_stages: int
    fold_rows: int = 16


def configuration(arch: int, positions: int, dtype: torch.dtype, *, progressive: bool = False) -> Configuration:
    """Tiles by architecture (80, 86, 89, 90, 120; 0 is the interpreter), positions N and dtype.

    Progressive keeps a second tile in registers across the levels: twice the warps, so that none spills.
    """
    if arch == 0:
        return Configuration(64, 64, 1, 1, 64, 64, 1, 1, 64)
    if dtype == torch.float32:
        return Configuration(64, 32, 8 if progressive else 4, 2, 64, 32, 8, 2)
    if progressive:
        return Configuration(64, 64, 8, 3, 128, 64, 8, 3)
    if arch == 90:  # tensor cores outrun L2: a tile of P reads half as much per entry at 128, the result at 128 x 256
        return Configuration(128, 64, 8, 3, 256, 64, 8, 3)
    if positions <= 2048:
        # 128 x 128 leaves 105 tiles for two windows of 1764 positions, 64 x 64 leaves 812 for 128 multiprocessors.
        return Configuration(64, 64, 4, 3, 128, 64, 4, 3)
    return Configuration(128, 64, 8, 3, 128, 64, 8, 3)


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
    fold = coarse[0] * coarse[1] < positions
    if not fold and coarse != (height, width):
        resized = F.interpolate(
            value.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", align_corners=False
        )
        value = resized.permute(0, 2, 3, 1).to(value.dtype)
    tiles = configuration(architecture(value.device), positions, value.dtype)
    plan = strip_plan(positions, value.element_size(), tiles.block)
    widths = [maps.shape[3] for maps in features]
    offsets = [sum(widths[:index]) for index in range(len(widths))]
    pitch = -(-sum(widths) // tiles.block_c) * tiles.block_c
    unit, sums = _unit_rows(features, weights.to(torch.float32).contiguous(), offsets, pitch, plan.padded)
    given = weights if mean is None else mean
    given = given.to(torch.float32).contiguous()  # a mean that is expanded over the images has a stride of 0
    tables = _tables((height, width), coarse, value.device) if fold else None
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
    plan = strip_plan(positions, values.element_size() * levels, tiles.block)
    pitch = -(-features.shape[4] // tiles.block_c) * tiles.block_c
    weights = torch.ones((batch, levels), dtype=torch.float32, device=values.device)
    offsets = [pitch * level for level in range(levels)]
    unit, sums = _unit_rows(features.unbind(0), weights, offsets, pitch * levels, plan.padded)
    scores = scores.to(torch.float32).contiguous()
    return _mixed(unit, sums, scores, False, values, (height, width), levels, beta, gamma, plan, tiles, None)


def _mixed(unit, sums, given, has_mean, values, size, levels, beta, gamma, plan, tiles, tables) -> Tensor:
    """P and the result, strip by strip. values [levels,B,h,w,D]; given: scores, or a mean of S, or anything."""
    _, batch, coarse_height, coarse_width, channels = values.shape
    positions, inner = size[0] * size[1], coarse_height * coarse_width
    progressive, fold = levels > 1, tables is not None
    strides, values = _value_strides(values)
    output = values.new_empty((batch, *size, channels))
    upcast = architecture(values.device) == 0  # the interpreter multiplies the bit patterns of bf16
    held = min(plan.images, batch)
    affinity = values.new_empty((held, levels, plan.strip, plan.padded))
    folded_pitch = -(-inner // tiles.block_k) * tiles.block_k
    folded = values.new_empty((held, plan.strip, folded_pitch)) if fold else affinity
    tile_count = plan.padded // tiles.block
    for first in range(0, batch, plan.images):
        images = min(plan.images, batch - first)
        for start in range(0, positions, plan.strip):
            rows = min(plan.strip, plan.padded - start)
            symmetric = rows == plan.padded
            grid = ((tile_count + 1) // 2, tile_count + 1) if symmetric else (rows // tiles.block, tile_count)
            affinity_kernel[(*grid, images)](
                unit[first:],
                sums[first:],
                given[first:],
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
                PROGRESSIVE=progressive,
                UPCAST=upcast,
                BLOCK=tiles.block,
                BLOCK_C=tiles.block_c,
                num_warps=tiles.affinity_warps,
                num_stages=tiles.affinity_stages,
                enable_fp_fusion=True,
            )
            if fold:
                fold_kernel[(rows // tiles.fold_rows, folded_pitch // FOLD_BLOCK_M, images)](
                    affinity,
                    folded,
                    *tables.tensors,
                    plan.strip,
                    size[1],
                    coarse_height,
                    coarse_width,
                    plan.padded,
                    folded_pitch,
                    *tables.taps,
                    inner / positions,  # P times 2^15 and four weights of about 1 would pass fp16's largest number
                    BLOCK_ROWS=tiles.fold_rows,
                    BLOCK_M=FOLD_BLOCK_M,
                    num_warps=1,
                    num_stages=1,
                    enable_fp_fusion=True,
                )
            mix_kernel[(rows // tiles.block, -(-channels // tiles.block_d), images)](
                folded,
                values[:, first:],
                given[first:],
                output[first:].flatten(1, 2)[:, start:],
                positions - start,
                plan.strip,
                inner,
                levels,
                channels,
                folded_pitch if fold else plan.padded,
                *strides,
                positions,
                PROGRESSIVE=progressive,
                EVEN=channels % tiles.block_d == 0,
                UPCAST=upcast,
                BLOCK_M=tiles.block,
                BLOCK_D=tiles.block_d,
                BLOCK_K=tiles.block_k,
                num_warps=tiles.mix_warps,
                num_stages=tiles.mix_stages,
                enable_fp_fusion=True,
            )
    return output


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
        maps = features[first].flatten(1, 2)
        maps = maps if maps.stride(2) == 1 else maps.contiguous()
        strides = (spacing, maps.stride(0), maps.stride(1))
        item = 16 // maps.element_size()
        wide = maps.data_ptr() % 16 == 0 and all(each % item == 0 for each in (*strides, maps.shape[2]))
        item = item if wide else 1
        unit_rows_kernel[(batch, blocks, count)](
            maps,
            unit,
            sums,
            weights,
            height * width,
            padded,
            maps.shape[2] // item,
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
    even_rows = one.stride(1) == one.shape[2] * one.stride(2)  # else `flatten` copies one map alone
    if not (alike and even_rows) or one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return 0
    return max(0, other.storage_offset() - one.storage_offset())


def _value_strides(values: Tensor) -> tuple[tuple[int, int, int], Tensor]:
    """Strides of levels, images and positions in units of 16 bytes, and the values, copied where these do not exist."""
    item = 16 // values.element_size()
    channels = values.shape[4]
    rows = values.flatten(2, 3)
    if rows.stride(3) != 1 or rows.data_ptr() % 16 or any(stride % item for stride in rows.stride()[:3]):
        rows = F.pad(rows, (0, -channels % item)).contiguous()
    strides = (rows.stride(0), rows.stride(1), rows.stride(2))
    return tuple(stride // item for stride in strides), rows


class Tables(NamedTuple):
    """The bilinear resize of both axes, read from the coarse side."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]  # first and weights of rows, first and weights of columns
    taps: tuple[int, int]


@functools.lru_cache(maxsize=64)
def _tables(fine: tuple[int, int], coarse: tuple[int, int], device: torch.device) -> Tables:
    (first_y, weight_y), (first_x, weight_x) = map(fold_table, coarse, fine)
    tensors = (table.to(device, non_blocking=True) for table in (first_y, weight_y, first_x, weight_x))
    return Tables(tuple(tensors), (len(weight_y), len(weight_x)))


def fold_table(coarse: int, fine: int) -> tuple[Tensor, Tensor]:
    """(first [coarse], weights [taps,coarse]): cell m is in the fine value at first[m] + t with weights[t, m]."""
    resize = F.interpolate(torch.eye(coarse)[None], size=fine, mode="linear", align_corners=False)[0]  # [coarse, fine]
    used = resize > 0
    place = torch.arange(fine)
    first = place.expand_as(used).masked_fill(~used, fine).amin(1)
    last = place.expand_as(used).masked_fill(~used, -1).amax(1)
    taps = max(1, int((last - first).max()) + 1)
    first = first.clamp(max=fine - taps)  # the last cells, and cells that no value uses, read on from further left
    return first.int(), resize.gather(1, first[:, None] + torch.arange(taps)).T.contiguous()
