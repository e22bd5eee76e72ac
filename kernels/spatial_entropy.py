"""Spatial entropy of feature maps (Algorithm 1 of the source): how spread out each channel is over the positions.

Per channel over the N = H*W positions: standardise with the mean mu and the population deviation sigma, P = softmax,
clamped at eps from below, renormalised; H = -sum P log P = (S log S - T)/S with S = sum P' and T = sum P' log P' of the
clamped values P'. Result: mean of H over the C channels; 0 where it is not finite. eps = max(min sigma / 100, 1e-6)
with the smallest sigma of the image's channels, which is why there are two kernels.

B images, C channels. Never written: the standardised maps and the distributions [B,C,N]; the eager chain writes and
reads each about ten times. Written: three numbers per channel.

fp16, bf16, fp32; arithmetic in fp32, the mean over the channels in integers, so that any order of programs gives the
same bits. Tiles are channels x positions, so that token maps [B,N,C] seen as [B,C,H,W] and plain maps are both read
along their contiguous axis. Loops add tiles to tiles, which needs no barrier; one reduction follows. Three steps:
* moments about the mean of the first tile: one pass, and the shift is at most sqrt(N / BLOCK_N) deviations from mu, so
  that the variance loses no more than N / BLOCK_N roundings;
* S, with log2 P = (x - max x) a - log2 S linear in x;
* max(P, eps) = 2^max(log2 P, log2 eps): the logarithm is at hand before the power, and none is computed.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.tiles import LOG2E, architecture, launcher

EVERY = tl.constexpr(1024)  # deviations at a time
# An image's entropy as an integer times 2^-42, below 32, and above it how many programs have added theirs.
FIXED_POINT = tl.constexpr(float(1 << 42))
ONE_PROGRAM = tl.constexpr(1 << 48)
FIGURES = ("deviation", "largest", "state", "result")
# One stride is 1, which TOKENS says; then the others come in units of 16 bytes.
RUN_TIME = [*FIGURES, "channels", "positions", "stride_image", "stride"]


class Configuration(NamedTuple):
    """Channels and positions of a tile, and warps."""

    block_c: int
    block_n: int
    warps: int


def configuration(arch: int) -> Configuration:
    """16 channels of two bytes fill a 32-byte sector of a token map; 768 channels are 48 programs an image.

    The interpreter (0) combines a tile's positions one by one in Python: few of them.
    """
    return Configuration(32, 32, 1) if arch == 0 else Configuration(16, 64, 4)


@triton.jit
def _maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _places(features, image, stride_image, stride, TOKENS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """(channels of this program, places of its first tile, from one tile to the next)."""
    UNIT: tl.constexpr = 128 // features.dtype.element_ty.primitive_bitwidth
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    step = stride.to(tl.int64)
    if TOKENS:
        place = features + image * stride_image * UNIT + (n * stride * UNIT)[None, :] + c[:, None]
        step = step * (BLOCK_N * UNIT)
    else:
        place = features + image * stride_image + (c * step)[:, None] + n[None, :]
        step = step * 0 + BLOCK_N
    return c, place, step


@triton.jit
def _add_moments(away, x, total, squares, top):
    return total + away, tl.fma(away, away, squares), _maximum(top, x)


@triton.jit(do_not_specialize=RUN_TIME)
def _moments_kernel(
    features,
    deviation,
    largest,
    state,
    result,
    channels,
    positions,
    stride_image,
    stride,
    TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Population deviation and maximum of every channel; zeros for what `_entropy_kernel` adds to."""
    if TOKENS:
        channels = channels * (128 // features.dtype.element_ty.primitive_bitwidth)
    image = tl.program_id(0).to(tl.int64)
    c, place, step = _places(features, image, stride_image, stride, TOKENS, BLOCK_C, BLOCK_N)
    own = (c < channels)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    first = tl.load(place, mask=own & (n < positions), other=0.0).to(tl.float32)
    shift = tl.sum(first, axis=1) / tl.minimum(positions, BLOCK_N)
    total = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    top = tl.full([BLOCK_C, BLOCK_N], float("-inf"), tl.float32)
    for _ in range(0, positions // BLOCK_N):
        x = tl.load(place, mask=own, other=0.0).to(tl.float32)
        total, squares, top = _add_moments(x - shift[:, None], x, total, squares, top)
        place += step
    left = positions % BLOCK_N
    if left > 0:
        x = tl.load(place, mask=own & (n < left), other=0.0).to(tl.float32)
        away = tl.where(n < left, x - shift[:, None], 0.0)
        total, squares, top = _add_moments(away, tl.where(n < left, x, float("-inf")), total, squares, top)
    away = tl.sum(total, axis=1) / positions
    variance = _maximum(tl.sum(squares, axis=1) / positions - away * away, 0.0)
    if tl.program_id(1) == 0:
        tl.store(state + image, 0)
        tl.store(result + image, 0.0)
    out = image * channels + c
    tl.store(deviation + out, tl.sqrt(variance), mask=c < channels)
    tl.store(largest + out, tl.reduce(top, 1, _maximum), mask=c < channels)


@triton.jit(do_not_specialize=RUN_TIME)
def _entropy_kernel(
    features,
    deviation,
    largest,
    state,
    result,
    channels,
    positions,
    stride_image,
    stride,
    TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Entropy of every channel in nats; an image's last program writes their mean, unless one is not finite."""
    if TOKENS:
        channels = channels * (128 // features.dtype.element_ty.primitive_bitwidth)
    image = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, EVERY)
    smallest = tl.full([EVERY], float("inf"), tl.float32)
    for start in range(0, channels, EVERY):
        every = tl.load(deviation + image * channels + start + lane, mask=start + lane < channels, other=float("inf"))
        smallest = tl.minimum(smallest, every)
    epsilon = tl.maximum(tl.min(smallest, axis=0) * 1e-2, 1e-6)

    c, start_place, step = _places(features, image, stride_image, stride, TOKENS, BLOCK_C, BLOCK_N)
    own = (c < channels)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    figures = image * channels + c
    spread = tl.load(deviation + figures, mask=c < channels, other=0.0) + epsilon
    rate = (1.0 / spread * LOG2E)[:, None]
    top = tl.load(largest + figures, mask=c < channels, other=0.0)[:, None]
    # (x - top) rate is fma(x, rate, shift) + lost, one operation an element; lost is what rounding took from shift.
    shift = -top * rate
    lost = tl.fma(top, rate, shift)
    least = tl.log2(epsilon)
    left = positions % BLOCK_N
    powers = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    place = start_place
    for _ in range(0, positions // BLOCK_N):
        powers += tl.exp2(tl.fma(tl.load(place, mask=own, other=0.0).to(tl.float32), rate, shift))
        place += step
    if left > 0:
        x = tl.load(place, mask=own & (n < left), other=0.0).to(tl.float32)
        powers += tl.where(n < left, tl.exp2(tl.fma(x, rate, shift)), 0.0)
    share = -lost - tl.log2(tl.sum(powers, axis=1)[:, None] * tl.exp2(-lost) + epsilon)
    mass = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    surprise = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    place = start_place
    for _ in range(0, positions // BLOCK_N):
        x = tl.load(place, mask=own, other=0.0).to(tl.float32)
        exponent = _maximum(tl.fma(x, rate, shift) + share, least)
        probability = tl.exp2(exponent)
        mass += probability
        surprise = tl.fma(probability, exponent, surprise)
        place += step
    if left > 0:
        x = tl.load(place, mask=own & (n < left), other=0.0).to(tl.float32)
        exponent = _maximum(tl.fma(x, rate, shift) + share, least)
        probability = tl.where(n < left, tl.exp2(exponent), 0.0)
        mass += probability
        surprise = tl.fma(probability, tl.where(n < left, exponent, 0.0), surprise)
    total = tl.where(c < channels, tl.sum(mass, axis=1), 1.0)
    nats = tl.where(c < channels, tl.log(total) - tl.sum(surprise, axis=1) / (total * LOG2E), 0.0)
    part = tl.maximum(tl.sum(nats, axis=0), 0.0, propagate_nan=tl.PropagateNan.ALL) / channels
    if part < float("inf"):
        fixed = (part * FIXED_POINT).to(tl.int64)
        before = tl.atomic_add(state + image, fixed + ONE_PROGRAM, sem="relaxed")
        if before >> 48 == tl.num_programs(1) - 1:
            tl.store(result + image, ((before & (ONE_PROGRAM - 1)) + fixed).to(tl.float32) * (1.0 / FIXED_POINT))


def _readable(features: torch.Tensor) -> bool:
    """Whether positions are evenly spaced, and maps adjacent in a row, or tokens in whole pieces of 16 bytes."""
    if features.stride(2) != features.shape[3] * features.stride(3) or features.data_ptr() % 16:
        return False
    unit = 16 // features.element_size()
    sizes = (features.shape[1], features.stride(0), features.stride(3))
    return features.stride(3) == 1 or (features.stride(1) == 1 and all(size % unit == 0 for size in sizes))


@launcher
def launch(features: torch.Tensor) -> torch.Tensor:
    """As `reference.spatial_entropy`."""
    batch, channels, height, width = features.shape
    result = torch.empty(batch, dtype=torch.float32, device=features.device)
    if features.numel() == 0 or height * width == 1:  # one position has all of the mass
        return result.zero_()
    if not _readable(features):
        features = features.clone(memory_format=torch.contiguous_format)
    tokens = features.stride(3) != 1
    unit = 16 // features.element_size() if tokens else 1
    chosen = configuration(architecture(features.device))
    deviation, largest = torch.empty((2, batch, channels), dtype=torch.float32, device=features.device)
    state = torch.empty(batch, dtype=torch.int64, device=features.device)
    given = (features, deviation, largest, state, result, channels // unit, height * width)
    given += (features.stride(0) // unit, features.stride(3 if tokens else 1) // unit)
    grid = (batch, triton.cdiv(channels, chosen.block_c))
    tiles = {"TOKENS": tokens, "BLOCK_C": chosen.block_c, "BLOCK_N": chosen.block_n}
    tiles |= {"num_warps": chosen.warps, "num_stages": 1, "enable_fp_fusion": True}
    _moments_kernel[grid](*given, **tiles)
    _entropy_kernel[grid](*given, **tiles)
    return result
