"""Device code of `affinity_attention` and `progressive_affinity`; what it computes and why so: affinity_attention.py.

Buffers between the kernels are padded to whole tiles, so that inner loops load without a mask: what lies beyond N is
arbitrary in rows, which nothing reads, and 0 in columns of P, which meet values.
"""

import triton
import triton.language as tl

# Sums over positions of unit vectors as integers times 2^-40: the same in every order, and 2^22 positions fit.
FIXED_POINT = tl.constexpr(float(1 << 40))
PARTS = tl.constexpr(1024)  # channels of the mean at a time: one step for all backbones but ViT-g


@triton.jit(
    do_not_specialize=["positions", "channels", "stride_map", "stride_image", "stride_position", "maps", "first"]
)
def unit_rows_kernel(
    feature,
    unit,
    sums,
    weights,
    positions,
    padded,
    channels,
    unit_channels,
    offset,
    step,
    stride_map,
    stride_image,
    stride_position,
    maps,
    first,
    WIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """unit[b, n, o + c] = sqrt(weights[b, first + s]) feature[s] / |feature[s]|, o = offset + s step; sums over n go to

    sums [b, unit_channels + 1], times FIXED_POINT; its last counts numbers that are not finite. One program per image,
    block of positions and map s. Where WIDE, strides and channels are in units of 16 bytes.
    """
    image = tl.program_id(0).to(tl.int64)
    map_index = tl.program_id(2)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    UNIT: tl.constexpr = 128 // feature.dtype.element_ty.primitive_bitwidth if WIDE else 1
    if WIDE:
        channels = channels * UNIT
    start_of_map = feature + (image * stride_image + map_index.to(tl.int64) * stride_map) * UNIT
    rows = start_of_map + (n.to(tl.int64) * stride_position)[:, None] * UNIT + c[None, :]
    live = (n < positions)[:, None]
    squares = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, channels, BLOCK_C):
        x = tl.load(rows + start, mask=live & (start + c < channels)[None, :], other=0.0).to(tl.float32)
        squares += x * x
    length = tl.sqrt(tl.sum(squares, axis=1))
    # F.normalize's floor: a zero vector stays zero instead of becoming NaN.
    root_weight = tl.sqrt(tl.load(weights + image * maps + first + map_index))
    inverse = root_weight / tl.maximum(length, 1e-12, propagate_nan=tl.PropagateNan.ALL)
    column = sums + image * (unit_channels + 1)
    offset += map_index * step
    out = unit + (image * padded + n[:, None]) * unit_channels + offset + c[None, :]
    broken = tl.zeros([BLOCK_N, BLOCK_C], tl.int32)
    for start in range(0, channels, BLOCK_C):
        inside = live & (start + c < channels)[None, :]
        g = tl.load(rows + start, mask=inside, other=0.0).to(tl.float32) * inverse[:, None]
        tl.store(out + start, g.to(unit.dtype.element_ty), mask=inside)
        finite = tl.abs(g) < float("inf")
        broken += (inside & (finite == 0)).to(tl.int32)
        fixed = tl.sum(tl.where(inside & finite, g, 0.0), axis=0) * FIXED_POINT
        tl.atomic_add(column + offset + start + c, fixed.to(tl.int64), mask=start + c < channels, sem="relaxed")
    tl.atomic_add(column + unit_channels, tl.sum(tl.sum(broken, axis=1), axis=0).to(tl.int64), sem="relaxed")


@triton.jit
def _mean_of_level(sums, channels, positions):
    """mean_ij g_i . g_j = |mean_i g_i|^2 over the channels of one level."""
    lane = tl.arange(0, PARTS)
    squares = tl.zeros([PARTS], tl.float32)
    for start in range(0, channels, PARTS):
        total = tl.load(sums + start + lane, mask=start + lane < channels, other=0).to(tl.float32)
        total = total * (1.0 / FIXED_POINT) / positions
        squares += total * total
    return tl.sum(squares, axis=0)


@triton.jit
def _online_softmax(score, largest, total):
    """(e^(score - largest), largest, sum of those so far), and what earlier sums have to be multiplied by."""
    higher = tl.maximum(largest, score, propagate_nan=tl.PropagateNan.ALL)
    decay = tl.exp(largest - higher)
    weight = tl.exp(score - higher)
    return weight, decay, higher, total * decay + weight


@triton.jit(
    do_not_specialize=["positions", "levels", "row_start", "row_stop", "has_mean"],
    do_not_specialize_on_alignment=["sums", "given"],  # later images of a batch start anywhere
)
def affinity_kernel(
    unit,
    sums,
    given,
    affinity,
    positions,
    padded,
    channels,
    levels,
    row_start,
    row_stop,
    rows,
    pitch,
    beta,
    gamma_log2e,
    log2_scale,
    has_mean,
    SYMMETRIC: tl.constexpr,
    PROGRESSIVE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK: tl.constexpr,
    RATIO: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of P = [kept] * exp2(gamma_log2e (S - 1) + log2_scale) for rows row_start..row_stop, of every level.

    A tile has BLOCK rows and RATIO times as many columns. affinity [images, levels, rows, pitch]. given: scores
    [B, levels] where PROGRESSIVE, mean S [B] where has_mean.
    Level l adds its products to those before: S_l = (1 - r) S_(l-1) + r g g^T, r its share of the scores' softmax so
    far. The accumulator holds S_l / r, so that the products are added with weight 1.
    """
    image = tl.program_id(2).to(tl.int64)
    a = tl.program_id(0)
    b = tl.program_id(1)
    i_tile = a
    j_tile = b
    live = True
    COLUMNS: tl.constexpr = BLOCK * RATIO
    if SYMMETRIC:
        # Rows a and T-1-a of the upper triangle of squares hold T+1 together: a rectangle without idle programs. A
        # square is RATIO tiles.
        tiles = tl.cdiv(positions, COLUMNS)
        a = tl.program_id(0) // RATIO
        mirrored = b >= tiles - a
        square = tl.where(mirrored, tiles - 1 - a, a)
        i_tile = square * RATIO + tl.program_id(0) % RATIO
        j_tile = tl.where(mirrored, tiles - 1 - a + b - (tiles - a), a + b)
        live = (square != a) | (b < tiles - a)  # the middle row of an odd number of squares is its own mirror image
    if live:
        # Tile origins in int64, offsets inside a tile in int32: half the registers of an address tile.
        i0 = row_start + i_tile * BLOCK
        j0 = j_tile * COLUMNS
        i = tl.arange(0, BLOCK)
        j = tl.arange(0, COLUMNS)
        c = tl.arange(0, BLOCK_C)
        pitch_of_rows = levels * channels
        x_rows = unit + (image * padded + i0) * pitch_of_rows + (i[:, None] * pitch_of_rows + c[None, :])
        y_rows = unit + (image * padded + j0) * pitch_of_rows + (j[:, None] * pitch_of_rows + c[None, :])
        column = sums + image * (pitch_of_rows + 1)
        broken = tl.where(tl.load(column + pitch_of_rows) > 0, float("nan"), 0.0)
        tile = affinity + (image * levels * rows + i_tile * BLOCK) * pitch + j_tile * COLUMNS
        mirror = affinity + (image * levels * rows + j_tile * COLUMNS) * pitch + i_tile * BLOCK
        off_diagonal = (i0 + i)[:, None] != (j0 + j)[None, :]
        kept = (i < row_stop - i0)[:, None] & (j < positions - j0)[None, :]
        similarity = tl.zeros([BLOCK, COLUMNS], tl.float32)
        mean = 0.0 * gamma_log2e
        largest = mean + float("-inf")
        total = mean
        share = mean + 1.0
        for level in range(levels if PROGRESSIVE else 1):
            if PROGRESSIVE:
                score = tl.load(given + image * levels + level)
                weight, _, largest, total = _online_softmax(score, largest, total)
                share = tl.maximum(weight / total, 1e-30, propagate_nan=tl.PropagateNan.ALL)
                similarity *= (1.0 - share) / share
            for _ in range(0, channels, BLOCK_C):
                x = tl.load(x_rows)
                y = tl.load(y_rows)
                if UPCAST:
                    x = x.to(tl.float32)
                    y = y.to(tl.float32)
                similarity = tl.dot(x, tl.trans(y), similarity, input_precision="ieee")
                x_rows += BLOCK_C
                y_rows += BLOCK_C
            if PROGRESSIVE:
                mean = (1.0 - share) * mean + share * _mean_of_level(column + level * channels, channels, positions)
                similarity *= share
            elif has_mean != 0:
                mean = tl.load(given + image)
            else:
                mean = _mean_of_level(column, channels, positions)
            threshold = beta * mean + broken
            # Written so that NaN is neither dropped by the comparison nor lost when only the mean is NaN.
            dropped = (similarity < threshold) & off_diagonal
            exponent = tl.fma(similarity, gamma_log2e, log2_scale - gamma_log2e + 0.0 * threshold)
            exponent = tl.minimum(exponent, log2_scale, propagate_nan=tl.PropagateNan.ALL)  # rounding: S_ij <= 1
            p = tl.where(dropped | ~kept, 0.0, tl.exp2(exponent)).to(affinity.dtype.element_ty)
            tl.store(tile + (i[:, None] * pitch + j[None, :]), p)
            if SYMMETRIC and i_tile // RATIO != j_tile:
                tl.store(mirror + (j[:, None] * pitch + i[None, :]), tl.trans(p))
            tile += rows.to(tl.int64) * pitch
            mirror += rows.to(tl.int64) * pitch
