"""Affinity attention: A = softmax over the kept entries of gamma * (S - beta * mean S); result A . resize(value).

S_ij = sum_s w_s f^s_i . f^s_j with unit vectors f; an entry is kept when S_ij >= beta * mean S or i = j.

B images, N = H*W feature positions, M = h*w value positions, C = sum of C_s feature channels, D value channels.

Four identities turn this into two matrix products:
* sqrt(w_s) f^s concatenated over s gives unit rows g with S = g g^T, so several maps cost one product;
* mean S = |mean_i g_i|^2, one reduction of N*C numbers instead of N*N;
* S_ii = 1 is the largest entry of its row, so the softmax needs no maximum: P_ij = exp(gamma * (S_ij - 1)), and P is
  symmetric: only the tiles on and above the diagonal are computed, each stored twice;
* bilinear resize is linear, A (U v) = (A U) v: where the value grid is coarser, the fold A U has M columns instead of N
  (N = 1764, M = 441: 7.2 GFLOP instead of 19.1).

Never written: A and S. P is written once in half precision and read back through L2: at most STRIP_BYTES at a time
(strips of rows when one image has more, several images together when they have less), 6.2 MB at N = 1764.
The published formulation holds S, its mask, A and twelve copies of A: 150 MB at the same size.

fp16, bf16 and fp32 (products at "ieee" precision); sums in fp32; no atomics, one order of summation per output.
Source: the proxy attention of ProxyCLIP and Trident; the tests check the four identities in float64.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from s2clip.kernels.inspect import Case
from s2clip.kernels.tiles import architecture, launcher

LOG2E = 1.4426950408889634
# P is stored times 2**15 before the row is normalised, so that fp16 holds exp(-gamma (1 - S)) down to gamma = 24.
LOG2_P_SCALE = 15.0
# The 4090 has 72 MB of L2, an H100 50 MB: P and what streams past it must fit together.
STRIP_BYTES = 32 * 2**20
PITCH = 64
GRID = 65_535  # programs along y or z, which is where images stand


class Configuration(NamedTuple):
    """Tile sizes of one architecture, dtype and size bucket."""

    block: int  # rows and columns of a tile of P
    block_c: int
    affinity_warps: int
    affinity_stages: int
    block_m: int  # rows of a tile of the result
    block_d: int
    block_k: int
    mix_warps: int
    mix_stages: int


def configuration(arch: int, positions: int, dtype: torch.dtype) -> Configuration:
    """Tiles by architecture (80, 86, 89, 90, 120; 0 is the interpreter), positions N and dtype."""
    if arch == 0:
        return Configuration(64, 64, 1, 1, 64, 64, 64, 1, 1)
    if dtype == torch.float32:
        return Configuration(64, 32, 4, 2, 64, 64, 32, 8, 2)
    if positions <= 2048:
        # 128 x 128 leaves 105 tiles for two windows of 1764 positions, 64 x 64 leaves 812 for 128 multiprocessors.
        return Configuration(64, 64, 4, 3, 64, 128, 64, 4, 3)
    return Configuration(128, 64, 8, 3, 128, 128, 64, 8, 3)


@triton.jit(do_not_specialize=["positions", "stride_image", "weights", "maps"])
def _unit_rows_kernel(
    feature,
    unit,
    column_sums,
    positions,
    channels,
    stride_image,
    stride_position,
    unit_channels,
    offset,
    weights,
    maps,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """unit[b, n, offset + c] = sqrt(weights[b]) * feature / |feature|, and its sums over the rows of each block."""
    image = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    rows = feature + image * stride_image + n[:, None] * stride_position
    squares = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, channels, BLOCK_C):
        inside = (n[:, None] < positions) & (start + c[None, :] < channels)
        x = tl.load(rows + start + c[None, :], mask=inside, other=0.0).to(tl.float32)  # [BLOCK_N, BLOCK_C]
        squares += tl.sum(x * x, axis=1)
    # F.normalize's floor: a zero vector stays zero instead of becoming NaN.
    root_weight = tl.sqrt(tl.load(weights + image * maps))
    inverse = root_weight / tl.maximum(tl.sqrt(squares), 1e-12, propagate_nan=tl.PropagateNan.ALL)
    for start in range(0, channels, BLOCK_C):
        inside = (n[:, None] < positions) & (start + c[None, :] < channels)
        x = tl.load(rows + start + c[None, :], mask=inside, other=0.0).to(tl.float32)
        g = x * inverse[:, None]
        out = unit + (image * positions + n[:, None]) * unit_channels + offset + start + c[None, :]
        tl.store(out, g.to(unit.dtype.element_ty), mask=inside)
        g = tl.where(inside, g, 0.0)
        sums = column_sums + (image * tl.num_programs(1) + block) * unit_channels + offset + start + c
        tl.store(sums, tl.sum(g, axis=0), mask=start + c < channels)


@triton.jit(do_not_specialize=["positions", "blocks"])
def _mean_kernel(
    column_sums, mean_parts, positions, blocks, unit_channels, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr
):
    """mean_parts[b, part] = sum of (sum_n g_nc / N)^2 over the channels of one part; their sum is mean S."""
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    c = part * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.arange(0, BLOCK_B)
    column = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, blocks, BLOCK_B):
        sums = column_sums + (image * blocks + start + b[:, None]) * unit_channels + c[None, :]
        inside = (start + b[:, None] < blocks) & (c[None, :] < unit_channels)
        column += tl.sum(tl.load(sums, mask=inside, other=0.0), axis=0)
    column = column / positions
    tl.store(mean_parts + image * tl.num_programs(1) + part, tl.sum(column * column, axis=0))


@triton.jit(do_not_specialize=["positions", "mean_parts", "parts", "row_start", "row_stop"])
def _affinity_kernel(
    unit,
    mean_parts,
    affinity,
    positions,
    parts,
    unit_channels,
    row_start,
    row_stop,
    pitch,
    beta,
    gamma_log2e,
    log2_scale,
    SYMMETRIC: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """One tile of P = [kept] * exp2(gamma_log2e (S - 1) + log2_scale) for rows row_start..row_stop."""
    image = tl.program_id(2).to(tl.int64)
    a = tl.program_id(0)
    b = tl.program_id(1)
    i_tile = a
    j_tile = b
    live = True
    if SYMMETRIC:
        # Row a and row T-1-a of the upper triangle hold T+1 tiles together: a rectangle without idle programs.
        tiles = tl.cdiv(positions, BLOCK)
        mirrored = b >= tiles - a
        i_tile = tl.where(mirrored, tiles - 1 - a, a)
        j_tile = tl.where(mirrored, tiles - 1 - a + b - (tiles - a), a + b)
        live = (i_tile != a) | (b < tiles - a)  # the middle row of an odd number of tiles is its own mirror image
    if live:
        # Tile origins in int64, offsets inside a tile in int32: half the registers of an address tile.
        i0 = row_start + i_tile * BLOCK
        j0 = j_tile * BLOCK
        local = tl.arange(0, BLOCK)
        c = tl.arange(0, BLOCK_C)
        i_live = local < row_stop - i0
        j_live = local < positions - j0
        x_rows = unit + (image * positions + i0) * unit_channels + local[:, None] * unit_channels + c[None, :]
        y_rows = unit + (image * positions + j0) * unit_channels + local[:, None] * unit_channels + c[None, :]
        similarity = tl.zeros([BLOCK, BLOCK], tl.float32)
        for start in range(0, unit_channels, BLOCK_C):
            inside = start + c < unit_channels
            x = tl.load(x_rows + start, mask=i_live[:, None] & inside[None, :], other=0.0)
            y = tl.load(y_rows + start, mask=j_live[:, None] & inside[None, :], other=0.0)
            if UPCAST:
                x = x.to(tl.float32)
                y = y.to(tl.float32)
            similarity = tl.dot(x, tl.trans(y), similarity, input_precision="ieee")
        part = tl.arange(0, BLOCK_PARTS)
        mean = tl.zeros([BLOCK_PARTS], tl.float32)
        for start in range(0, parts, BLOCK_PARTS):
            mean += tl.load(mean_parts + image * parts + start + part, mask=start + part < parts, other=0.0)
        threshold = beta * tl.sum(mean, axis=0)
        # Written so that NaN is neither dropped by the comparison nor lost when only the mean is NaN.
        dropped = (similarity < threshold) & ((i0 + local)[:, None] != (j0 + local)[None, :])
        exponent = tl.fma(similarity, gamma_log2e, log2_scale - gamma_log2e) + 0.0 * threshold
        exponent = tl.minimum(exponent, log2_scale, propagate_nan=tl.PropagateNan.ALL)  # rounding: S_ij <= S_ii = 1
        p = tl.where(dropped | ~j_live[None, :], 0.0, tl.exp2(exponent)).to(affinity.dtype.element_ty)
        strip = affinity + image * (row_stop - row_start) * pitch
        tile = strip + (i0 - row_start).to(tl.int64) * pitch + j0
        inside = i_live[:, None] & (local < pitch - j0)[None, :]
        tl.store(tile + local[:, None] * pitch + local[None, :], p, mask=inside)
        if SYMMETRIC:
            mirror = strip + j0.to(tl.int64) * pitch + i0
            columns = tl.where(i_tile != j_tile, BLOCK, 0)  # off the diagonal i_tile is never the last tile
            inside = j_live[:, None] & (local < columns)[None, :]
            tl.store(mirror + local[:, None] * pitch + local[None, :], tl.trans(p), mask=inside)


@triton.jit
def _positive(row_sum):
    """Rows past the last have no sum. One use of row_sum, not two: Triton 3.6 fails on a loop's sum used twice."""
    return tl.maximum(row_sum, 1.1754943508222875e-38, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["rows", "height", "width", "value_height", "value_width", "taps_y", "taps_x"])
def _fold_kernel(
    affinity,
    folded,
    rows,
    height,
    width,
    value_height,
    value_width,
    pitch,
    folded_pitch,
    taps_y,
    taps_x,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """folded[i, m] = sum_j P_ij U_jm / sum_j P_ij, U the bilinear resize from value_height x value_width."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    image = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, BLOCK_M)
    row = affinity + (image * rows + i[:, None]) * pitch
    positions = height * width
    row_sum = tl.zeros([BLOCK_ROWS], tl.float32)
    for start in range(0, positions, BLOCK_M):
        inside = (i[:, None] < rows) & (start + k[None, :] < positions)
        row_sum += tl.sum(tl.load(row + start + k[None, :], mask=inside, other=0.0).to(tl.float32), axis=1)
    inverse = 1.0 / _positive(row_sum)
    scale_y = value_height.to(tl.float32) / height.to(tl.float32)
    scale_x = value_width.to(tl.float32) / width.to(tl.float32)
    for start in range(0, value_height * value_width, BLOCK_M):
        m = start + k
        my = m // value_width
        mx = m % value_width
        # Source rows whose support can touch value row my: source coordinate in (my - 1, my + 1).
        first_y = tl.floor((my.to(tl.float32) - 0.5) / scale_y - 0.5).to(tl.int32)
        first_x = tl.floor((mx.to(tl.float32) - 0.5) / scale_x - 0.5).to(tl.int32)
        total = tl.zeros([BLOCK_ROWS, BLOCK_M], tl.float32)
        for tap_y in range(0, taps_y):
            y = first_y + tap_y
            weight_y = _bilinear_weight(y, my, scale_y, height, value_height)
            for tap_x in range(0, taps_x):
                x = first_x + tap_x
                weight = weight_y * _bilinear_weight(x, mx, scale_x, width, value_width)
                used = (m < value_height * value_width) & (weight != 0.0)
                p = tl.load(row + (y * width + x)[None, :], mask=(i[:, None] < rows) & used[None, :], other=0.0)
                total += p.to(tl.float32) * weight[None, :]
        out = folded + (image * rows + i[:, None]) * folded_pitch + m[None, :]
        inside = (i[:, None] < rows) & (m[None, :] < folded_pitch)
        tl.store(out, (total * inverse[:, None]).to(folded.dtype.element_ty), mask=inside)


@triton.jit
def _bilinear_weight(source, target, scale, source_size, target_size):
    """Weight of value index `target` at position `source` of the fine grid, as F.interpolate(align_corners=False)."""
    coordinate = tl.maximum((source.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(coordinate.to(tl.int32), target_size - 1)
    high = tl.minimum(low + 1, target_size - 1)
    fraction = coordinate - low.to(tl.float32)
    weight = tl.where(low == target, 1.0 - fraction, 0.0) + tl.where(high == target, fraction, 0.0)
    return tl.where((source >= 0) & (source < source_size), weight, 0.0)


@triton.jit(do_not_specialize=["rows", "inner", "out_image_stride"])
def _mix_kernel(
    weights,
    value,
    out,
    rows,
    inner,
    value_channels,
    weights_pitch,
    out_image_stride,
    NORMALISE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[i, d] = sum_k weights[i, k] value[k, d], divided by the row sum of the weights where NORMALISE."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    image = tl.program_id(2).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, inner, BLOCK_K):
        inside = start + k < inner  # the weights are zero from there to their pitch
        p = tl.load(
            weights + (image * rows + i[:, None]) * weights_pitch + start + k[None, :],
            mask=(i[:, None] < rows) & (start + k[None, :] < weights_pitch),
            other=0.0,
        )
        v = tl.load(
            value + (image * inner + start + k[:, None]) * value_channels + d[None, :],
            mask=inside[:, None] & (d[None, :] < value_channels),
            other=0.0,
        )
        if UPCAST:
            p = p.to(tl.float32)
            v = v.to(tl.float32)
        accumulator = tl.dot(p, v, accumulator, input_precision="ieee")
        if NORMALISE:
            row_sum += tl.sum(p.to(tl.float32), axis=1)
    if NORMALISE:
        accumulator = accumulator / _positive(row_sum)[:, None]
    tl.store(
        out + image * out_image_stride + i[:, None] * value_channels + d[None, :],
        accumulator.to(out.dtype.element_ty),
        mask=(i[:, None] < rows) & (d[None, :] < value_channels),
    )


UNIT_BLOCK_N, UNIT_BLOCK_C, UNIT_WARPS = 32, 128, 4
MEAN_BLOCK_B, MEAN_BLOCK_C = 64, 128
FOLD_WARPS = 4
BLOCK_PARTS = 16


def _fold_blocks(arch: int) -> tuple[int, int]:
    """Rows and value positions a fold program holds: 4 rows of 1792 halves are 14 KB, far inside L1."""
    return (64, 64) if arch == 0 else (4, 128)


def strip_plan(positions: int, item_bytes: int, block: int) -> tuple[int, int, int]:
    """(pitch, rows of P held at a time, images held at a time); it depends on no other image of the batch."""
    pitch = -(-positions // PITCH) * PITCH
    rows = STRIP_BYTES // (pitch * item_bytes)
    if rows >= positions:
        return pitch, positions, min(rows // positions, GRID)
    return pitch, max(block, rows // block * block), 1


@launcher
def launch(
    features: Sequence[torch.Tensor],
    value: torch.Tensor,
    weights: torch.Tensor,
    beta: float,
    gamma: float,
    mean: torch.Tensor | None,
) -> torch.Tensor:
    """As `reference.affinity_attention`."""
    batch, height, width = features[0].shape[:3]
    positions, channels = height * width, value.shape[-1]
    output = torch.empty((batch, height, width, channels), dtype=value.dtype, device=value.device)
    if output.numel() == 0:
        return output
    dtype = torch.promote_types(features[0].dtype, value.dtype)
    arch = architecture(value.device)
    tiles = configuration(arch, positions, dtype)
    upcast = arch == 0  # the interpreter multiplies the bit patterns of bf16

    unit, mean_parts = _unit_rows(features, weights, dtype)
    if mean is not None:
        mean_parts = mean.to(torch.float32).reshape(batch, 1).contiguous()  # an expanded one keeps its stride of 0

    fold = value.shape[1] * value.shape[2] < positions
    if not fold and value.shape[1:3] != (height, width):
        resized = F.interpolate(
            value.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear", align_corners=False
        )
        value = resized.permute(0, 2, 3, 1)
    value_height, value_width = value.shape[1:3]
    value = value.to(dtype).reshape(batch, value_height * value_width, channels)
    value = value.contiguous()

    pitch, strip, images = strip_plan(positions, dtype.itemsize, tiles.block)
    folded_pitch = -(-value.shape[1] // PITCH) * PITCH
    affinity = torch.empty((min(images, batch), strip, pitch), dtype=dtype, device=value.device)
    fold_rows, fold_block = _fold_blocks(arch)
    folded = torch.empty((min(images, batch), strip, folded_pitch), dtype=dtype, device=value.device) if fold else None
    tile_count = -(-positions // tiles.block)

    for first in range(0, batch, images):
        held = min(images, batch - first)
        for start in range(0, positions, strip):
            rows = min(strip, positions - start)
            symmetric = rows == positions
            grid = ((tile_count + 1) // 2, tile_count + 1) if symmetric else (-(-rows // tiles.block), tile_count)
            _affinity_kernel[(*grid, held)](
                unit[first:],
                mean_parts[first:],
                affinity,
                positions,
                mean_parts.shape[1],
                unit.shape[2],
                start,
                start + rows,
                pitch,
                float(beta),
                gamma * LOG2E,
                LOG2_P_SCALE,
                SYMMETRIC=symmetric,
                UPCAST=upcast,
                BLOCK=tiles.block,
                BLOCK_C=tiles.block_c,
                BLOCK_PARTS=BLOCK_PARTS,
                num_warps=tiles.affinity_warps,
                num_stages=tiles.affinity_stages,
                enable_fp_fusion=True,
            )
            if fold:
                _fold_kernel[(-(-rows // fold_rows), held)](
                    affinity,
                    folded,
                    rows,
                    height,
                    width,
                    value_height,
                    value_width,
                    pitch,
                    folded_pitch,
                    _taps(value_height, height),
                    _taps(value_width, width),
                    BLOCK_ROWS=fold_rows,
                    BLOCK_M=fold_block,
                    num_warps=FOLD_WARPS,
                    num_stages=1,
                    enable_fp_fusion=False,  # the weights must round as F.interpolate's
                )
            _mix_kernel[(-(-rows // tiles.block_m), -(-channels // tiles.block_d), held)](
                folded if fold else affinity,
                value[first:],
                output[first:].flatten(1, 2)[:, start:],
                rows,
                value.shape[1],
                channels,
                folded_pitch if fold else pitch,
                positions * channels,
                NORMALISE=not fold,
                UPCAST=upcast,
                BLOCK_M=tiles.block_m,
                BLOCK_D=tiles.block_d,
                BLOCK_K=tiles.block_k,
                num_warps=tiles.mix_warps,
                num_stages=tiles.mix_stages,
                enable_fp_fusion=True,
            )
    return output


def _unit_rows(
    features: Sequence[torch.Tensor], weights: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows g [B,N,C padded to 16], parts of mean S [B,parts])."""
    batch, height, width = features[0].shape[:3]
    positions = height * width
    channels = sum(maps.shape[-1] for maps in features)
    padded = -(-channels // 16) * 16  # a multiple of 16 keeps the loads 16 bytes wide and the kernel compiled once
    device = features[0].device
    blocks = -(-positions // UNIT_BLOCK_N)
    unit = torch.empty((batch, positions, padded), dtype=dtype, device=device)
    column_sums = torch.empty((batch, blocks, padded), dtype=torch.float32, device=device)
    if padded > channels:
        unit[..., channels:] = 0
        column_sums[..., channels:] = 0
    offset = 0
    weights = weights.to(torch.float32).contiguous()
    for index, maps in enumerate(features):
        maps = maps.flatten(1, 2)
        if maps.stride(-1) != 1:
            maps = maps.contiguous()
        _unit_rows_kernel[(batch, blocks)](
            maps,
            unit,
            column_sums,
            positions,
            maps.shape[-1],
            maps.stride(0),
            maps.stride(1),
            padded,
            offset,
            weights[:, index:],
            len(features),
            BLOCK_N=UNIT_BLOCK_N,
            BLOCK_C=UNIT_BLOCK_C,
            num_warps=UNIT_WARPS,
            num_stages=1,
            enable_fp_fusion=True,
        )
        offset += maps.shape[-1]
    parts = -(-padded // MEAN_BLOCK_C)
    mean_parts = torch.empty((batch, parts), dtype=torch.float32, device=device)
    _mean_kernel[(batch, parts)](
        column_sums,
        mean_parts,
        positions,
        blocks,
        padded,
        BLOCK_B=MEAN_BLOCK_B,
        BLOCK_C=MEAN_BLOCK_C,
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return unit, mean_parts


def _taps(coarse: int, fine: int) -> int:
    """Fine positions per axis whose bilinear support can touch one coarse position: 2 fine/coarse, and both ends."""
    return -(-2 * fine // coarse) + 2


def compile_cases(arch: int) -> Iterator[Case]:
    """Every configuration shipped for `arch`."""
    for dtype, pointer in ((torch.float16, "*fp16"), (torch.bfloat16, "*bf16"), (torch.float32, "*fp32")):
        yield _unit_rows_case(pointer)
        yield _fold_case(pointer, *_fold_blocks(arch))
        for tiles in sorted({configuration(arch, positions, dtype) for positions in (1, 4096)}):
            for switch in (True, False):
                yield _affinity_case(pointer, tiles, symmetric=switch)
                yield _mix_case(pointer, tiles, normalise=switch)
    pointers, sizes = ("column_sums", "mean_parts"), ("positions", "blocks", "unit_channels")
    signature = dict.fromkeys(pointers, "*fp32") | dict.fromkeys(sizes, "i32")
    blocks = {"BLOCK_B": MEAN_BLOCK_B, "BLOCK_C": MEAN_BLOCK_C}
    yield Case(_mean_kernel, "fp32", signature, blocks, 4, 1, (*pointers, "unit_channels"))


def _unit_rows_case(pointer: str) -> Case:
    sizes = ("positions", "channels", "stride_position", "unit_channels", "offset", "maps")
    signature = {"feature": pointer, "unit": pointer, "column_sums": "*fp32", "weights": "*fp32"}
    signature |= dict.fromkeys(sizes, "i32") | {"stride_image": "i64"}
    aligned = ("feature", "unit", "column_sums", "channels", "stride_position", "unit_channels", "offset")
    blocks = {"BLOCK_N": UNIT_BLOCK_N, "BLOCK_C": UNIT_BLOCK_C}
    return Case(_unit_rows_kernel, pointer[1:], signature, blocks, UNIT_WARPS, 1, aligned)


def _fold_case(pointer: str, rows: int, block: int) -> Case:
    sizes = ("rows", "height", "width", "value_height", "value_width", "pitch", "folded_pitch", "taps_y", "taps_x")
    signature = {"affinity": pointer, "folded": pointer, **dict.fromkeys(sizes, "i32")}
    aligned = ("affinity", "folded", "pitch", "folded_pitch")
    blocks = {"BLOCK_ROWS": rows, "BLOCK_M": block}
    return Case(_fold_kernel, pointer[1:], signature, blocks, FOLD_WARPS, 1, aligned, enable_fp_fusion=False)


def _affinity_case(pointer: str, tiles: Configuration, *, symmetric: bool) -> Case:
    name = f"{pointer[1:]} {tiles.block}x{tiles.block} {'symmetric' if symmetric else 'strip'}"
    sizes = ("positions", "parts", "unit_channels", "row_start", "row_stop", "pitch")
    signature = {"unit": pointer, "mean_parts": "*fp32", "affinity": pointer, **dict.fromkeys(sizes, "i32")}
    signature |= dict.fromkeys(("beta", "gamma_log2e", "log2_scale"), "fp32")
    constants = {"SYMMETRIC": symmetric, "UPCAST": False, "BLOCK": tiles.block, "BLOCK_C": tiles.block_c}
    constants["BLOCK_PARTS"] = BLOCK_PARTS
    aligned = ("unit", "affinity", "unit_channels", "pitch")
    return Case(_affinity_kernel, name, signature, constants, tiles.affinity_warps, tiles.affinity_stages, aligned)


def _mix_case(pointer: str, tiles: Configuration, *, normalise: bool) -> Case:
    name = f"{pointer[1:]} {tiles.block_m}x{tiles.block_d}x{tiles.block_k} {'affinity' if normalise else 'folded'}"
    sizes = ("rows", "inner", "value_channels", "weights_pitch")
    signature = dict.fromkeys(("weights", "value", "out"), pointer) | dict.fromkeys(sizes, "i32")
    signature |= {"out_image_stride": "i64"}
    constants = {"NORMALISE": normalise, "UPCAST": False}
    constants |= {"BLOCK_M": tiles.block_m, "BLOCK_D": tiles.block_d, "BLOCK_K": tiles.block_k}
    aligned = ("weights", "value", "out", "value_channels", "weights_pitch")
    return Case(_mix_kernel, name, signature, constants, tiles.mix_warps, tiles.mix_stages, aligned)
