"""Device code of the affinity's second product, P times values, rows of P normalised: affinity_attention.py says why.

P is 0 in the columns beyond its positions, so that loops over whole tiles need a mask for values alone.
"""

# ruff: noqa: RUF005 - device code grows tuples by adding: Triton has no unpacking in displays
import triton
import triton.language as tl

from s2clip.kernels.affinity_kernels import _online_softmax

SMALLEST = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _products(
    p_tile,
    v_tile,
    inner,
    value_step,
    channels_left,
    SUMS: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(sum_k p[i, k] v[k, d] of CHUNKS tiles of BLOCK_D channels, sum_k p[i, k] if SUMS)."""
    k = tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    products = ()
    for _chunk in tl.static_range(CHUNKS):
        products = products + (tl.zeros([BLOCK_M, BLOCK_D], tl.float32),)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, inner, BLOCK_K):
        p = tl.load(p_tile)
        if UPCAST:
            p = p.to(tl.float32)
        more = ()
        for chunk in tl.static_range(CHUNKS):
            mask = (start + k < inner)[:, None]
            if not EVEN:
                mask = mask & (chunk * BLOCK_D + d < channels_left)[None, :]
            v = tl.load(v_tile + chunk * BLOCK_D, mask=mask, other=0.0)
            if UPCAST:
                v = v.to(tl.float32)
            more = more + (tl.dot(p, v, products[chunk], input_precision="ieee"),)
        products = more
        if SUMS:
            row_sum += tl.sum(p.to(tl.float32), axis=1)
        p_tile += BLOCK_K
        v_tile += value_step
    return products, row_sum


@triton.jit
def _store(
    place, tile, live, channels, channels_left, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """`live` rows of a tile [BLOCK_M, BLOCK_D] of the result."""
    i = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    mask = (i < live)[:, None]
    if not EVEN:
        mask = mask & (d < channels_left)[None, :]
    tl.store(place + (i * channels)[:, None] + d[None, :], tile.to(place.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["live_rows", "inner", "levels", "stride_level", "stride_image", "stride_row", "out_rows"],
    do_not_specialize_on_alignment=["scores"],
)
def mix_kernel(
    weights,
    value,
    scores,
    out,
    live_rows,
    rows,
    inner,
    levels,
    channels,
    pitch,
    stride_level,
    stride_image,
    stride_row,
    out_rows,
    PROGRESSIVE: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[i, d] = sum_k weights[i, k] value[k, d] / sum_k weights[i, k], of levels weighted by their scores' softmax.

    weights [images, levels, rows, pitch], 0 from inner to pitch. Strides in units of 16 bytes. EVEN: channels are a
    multiple of BLOCK_D.
    """
    UNIT: tl.constexpr = 128 // value.dtype.element_ty.primitive_bitwidth
    image = tl.program_id(2).to(tl.int64)
    i0 = tl.program_id(0) * BLOCK_M
    d0 = tl.program_id(1) * BLOCK_D
    i = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    largest = float("-inf")
    total = 0.0
    p_of_level = weights + (image * levels * rows + i0) * pitch
    v_of_level = value + image * stride_image * UNIT + d0
    for level in range(levels if PROGRESSIVE else 1):
        products, row_sum = _products(
            p_of_level + (i * pitch)[:, None] + k[None, :],
            v_of_level + (k * stride_row * UNIT)[:, None] + d[None, :],
            inner,
            BLOCK_K * stride_row * UNIT,
            channels - d0,
            *(True, EVEN, UPCAST, 1, BLOCK_M, BLOCK_D, BLOCK_K),
        )
        # Rows past the last have no sum. One use of row_sum, not two: Triton 3.6 fails on a loop's sum used twice.
        inverse = 1.0 / tl.maximum(row_sum, SMALLEST, propagate_nan=tl.PropagateNan.ALL)
        if PROGRESSIVE:
            score = tl.load(scores + image * levels + level)
            weight, decay, largest, total = _online_softmax(score, largest, total)
            mixed = mixed * decay + products[0] * (inverse * weight)[:, None]
            p_of_level += rows.to(tl.int64) * pitch
            v_of_level += stride_level.to(tl.int64) * UNIT
        else:
            mixed = products[0] * inverse[:, None]
    if PROGRESSIVE:
        mixed = mixed * (1.0 / total)
    place = out + (image * out_rows + i0) * channels + d0
    _store(place, mixed, live_rows - i0, channels, channels - d0, EVEN, BLOCK_M, BLOCK_D)


@triton.jit
def _folded_row(
    source,
    target,
    tables,
    sizes,
    taps_y,
    shrink,
    step,
    TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """target[i, m] = shrink sum_j source[i, j] U_jm, U the bilinear resize from the coarse grid; its sums over m.

    Per axis a coarse cell has a part in `taps` fine ones from `first` on, with weights [taps, coarse]. step is 1, which
    the compiler does not know: lanes lie along the cells, where they read side by side, not in pieces of 16 bytes.
    """
    first_y, weight_y, first_x, weight_x = tables
    width, coarse_height, coarse_width, pitch, folded_pitch = sizes
    i = tl.arange(0, BLOCK_M)
    sums = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
    for first in range(0, folded_pitch, BLOCK_F):
        m = first + tl.arange(0, BLOCK_F)
        inside = m < coarse_height * coarse_width
        my = m // coarse_width
        mx = m % coarse_width
        corner = tl.load(first_y + my, mask=inside, other=0) * width + tl.load(first_x + mx, mask=inside, other=0)
        place = source + (i * pitch)[:, None] + corner[None, :]
        total = tl.zeros([BLOCK_M, BLOCK_F], tl.float32)
        for tap_y in tl.range(0, taps_y, num_stages=1):  # nothing here is worth a copy to shared memory
            down = tl.load(weight_y + tap_y * coarse_height + my, mask=inside, other=0.0)
            for tap_x in tl.static_range(TAPS):
                across = tl.load(weight_x + tap_x * coarse_width + mx, mask=inside, other=0.0)
                total = tl.fma(tl.load(place + tap_x).to(tl.float32), (down * across)[None, :], total)
            place += width
        rounded = tl.where(inside[None, :], total * shrink, 0.0).to(target.dtype.element_ty)
        tl.store(target + (i * folded_pitch)[:, None] + (m * step)[None, :], rounded)
        sums += rounded.to(tl.float32)
    return tl.sum(sums, axis=1)


@triton.jit(
    do_not_specialize=["live_rows", "width", "coarse_height", "coarse_width", "taps_y", "step", "stride_image"]
    + ["stride_row", "out_rows"]
)
def folded_mix_kernel(
    affinity,
    folded,
    value,
    out,
    first_y,
    weight_y,
    first_x,
    weight_x,
    live_rows,
    rows,
    width,
    coarse_height,
    coarse_width,
    channels,
    pitch,
    folded_pitch,
    taps_y,
    step,
    shrink,
    stride_image,
    stride_row,
    out_rows,
    TAPS: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """out[i, d] = sum_m F[i, m] value[m, d] / sum_m F[i, m], F the rows of P folded onto the coarse grid.

    A program folds its own rows, into `folded` [images, programs along D, rows, folded_pitch], and reads them back
    tile by tile: CHUNKS tiles of channels share what is folded. TAPS along a row. Strides in units of 16 bytes.
    """
    UNIT: tl.constexpr = 128 // value.dtype.element_ty.primitive_bitwidth
    image = tl.program_id(2).to(tl.int64)
    i0 = tl.program_id(0) * BLOCK_M
    d0 = tl.program_id(1) * CHUNKS * BLOCK_D
    i = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    own = folded + ((image * tl.num_programs(1) + tl.program_id(1)) * rows + i0) * folded_pitch
    row_sum = _folded_row(
        affinity + (image * rows + i0) * pitch,
        own,
        (first_y, weight_y, first_x, weight_x),
        (width, coarse_height, coarse_width, pitch, folded_pitch),
        taps_y,
        shrink,
        step,
        *(TAPS, BLOCK_M, BLOCK_F),
    )
    tl.debug_barrier()  # what follows reads what other threads of the program have written
    products, _ = _products(
        own + (i * folded_pitch)[:, None] + k[None, :],
        value + image * stride_image * UNIT + d0 + (k * stride_row * UNIT)[:, None] + d[None, :],
        coarse_height * coarse_width,
        BLOCK_K * stride_row * UNIT,
        channels - d0,
        *(False, EVEN, UPCAST, CHUNKS, BLOCK_M, BLOCK_D, BLOCK_K),
    )
    inverse = 1.0 / tl.maximum(row_sum, SMALLEST, propagate_nan=tl.PropagateNan.ALL)
    for chunk in tl.static_range(CHUNKS):
        start = d0 + chunk * BLOCK_D
        place = out + (image * out_rows + i0) * channels + start
        tile = products[chunk] * inverse[:, None]
        _store(place, tile, live_rows - i0, channels, channels - start, EVEN, BLOCK_M, BLOCK_D)
