"""Spatial entropy of feature maps (Algorithm 1 of the source): how spread out each channel is over the positions.

Per channel over the N = H*W positions: standardise with the mean mu and the population deviation sigma, P = softmax,
clamped at eps from below, renormalised; H = -sum P log P = (S log S - T)/S with S = sum P' and T = sum P' log P' of the
clamped values P'. Result: mean of H over the C channels; 0 where it is not finite. eps = max(min sigma / 100, 1e-6)
with the smallest sigma of the image's channels, which is why there are two kernels.

B images, C channels. Never written: the standardised maps and the distributions [B,C,N]; the eager chain writes and
reads each about ten times. Written: five numbers per channel.

fp16, bf16, fp32; arithmetic in fp32, the mean over the channels in integers, so that any order of programs gives the
same bits. Tiles are channels x positions, so that token maps [B,N,C] seen as [B,C,H,W] and plain maps are both read
along their contiguous axis. Loops add tiles to tiles, which needs no barrier; one reduction follows. Three passes:
* moments about the mean of the first tile: the shift is at most sqrt(N / BLOCK_N) deviations from mu, so that the
  variance loses no more than N / BLOCK_N roundings;
* S. Whatever the other channels are, eps lies between 1e-6 and max(sigma / 100, 1e-6), within 0.5 % of sigma + eps
  from their middle e. Hence the first kernel, which waits for memory, has S at e for the powers 2^y, and the mean and
  variance of y under them; in the second log2 S = log2 S_e + d mean + d^2 variance ln 2 / 2 with d = (e - eps) /
  (sigma + eps). Left out is d^3 / 6 of the third moment, 1.4e-6 of S for the most lopsided map of 1764 positions;
* max(P, eps) = 2^max(log2 P, log2 eps): the logarithm is at hand before the power, and none is computed. H does not
  see a factor common to all P', so that log2 P is taken without log2 S and compared with log2(eps S) instead.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.tiles import LOG2E, architecture, launcher

EVERY = tl.constexpr(64)  # smallest deviations of programs at a time
FACTS = tl.constexpr(5)  # numbers per channel
LN2 = tl.constexpr(0.6931471805599453)
# An image's entropy as an integer times 2^-42, below 32, and above it how many programs have added theirs.
FIXED_POINT = tl.constexpr(float(1 << 42))
ONE_PROGRAM = tl.constexpr(1 << 48)
FIGURES = ("smallest", "state", "result")
# One stride is 1, which TOKENS says; then the others come in units of 8 bytes. A lane that reads 8 holds four channels
# of fp16: what is done once per channel, by every lane, would cost as much as half of a pass with 16 bytes and eight.
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
    return Configuration(32, 32, 1) if arch == 0 else Configuration(16, 128, 4)


@triton.jit
def _maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _places(features, image, stride_image, stride, TOKENS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """(channels of this program, places of its first tile, from one tile to the next)."""
    UNIT: tl.constexpr = 64 // features.dtype.element_ty.primitive_bitwidth
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


@triton.jit
def _joined_moments(total, squares, top, other_total, other_squares, other_top):
    return total + other_total, squares + other_squares, _maximum(top, other_top)


@triton.jit
def _add_powers(exponent, power, mass, first, second):
    """Sums of power, power * exponent and power * exponent^2."""
    return mass + power, tl.fma(power, exponent, first), tl.fma(power * exponent, exponent, second)


@triton.jit
def _sums_of_three(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _sums_of_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _middle_epsilon(deviation):
    """Of the two ends between which eps of the image is, given one of its channels' deviations."""
    return 0.5 * (tl.maximum(deviation * 1e-2, 1e-6) + 1e-6)


@triton.jit
def _line(top, spread):
    """(rate, shift, lost): (x - top) / spread * log2(e) is fma(x, rate, shift) - lost, one operation an element.

    lost is what rounding took from shift.
    """
    rate = 1.0 / spread * LOG2E
    shift = -top * rate
    return rate, shift, tl.fma(top, rate, shift)


@triton.jit(do_not_specialize=RUN_TIME)
def _moments_kernel(
    features,
    figures,
    smallest,
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
    """Per channel population deviation, maximum and figures of S; the program's smallest deviation.

    Zeros for what `_entropy_kernel` adds to.
    """
    if TOKENS:
        channels = channels * (64 // features.dtype.element_ty.primitive_bitwidth)
    image = tl.program_id(0).to(tl.int64)
    c, start_place, step = _places(features, image, stride_image, stride, TOKENS, BLOCK_C, BLOCK_N)
    own = (c < channels)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    left = positions % BLOCK_N
    first = tl.load(start_place, mask=own & (n < positions), other=0.0).to(tl.float32)
    shift = tl.sum(first, axis=1) / tl.minimum(positions, BLOCK_N)
    zeros = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    total, squares, top = zeros, zeros, zeros - float("inf")
    place = start_place
    for _ in range(0, positions // BLOCK_N):
        x = tl.load(place, mask=own, other=0.0).to(tl.float32)
        total, squares, top = _add_moments(x - shift[:, None], x, total, squares, top)
        place += step
    if left > 0:
        x = tl.load(place, mask=own & (n < left), other=0.0).to(tl.float32)
        away = tl.where(n < left, x - shift[:, None], 0.0)
        total, squares, top = _add_moments(away, tl.where(n < left, x, float("-inf")), total, squares, top)
    total, squares, largest = tl.reduce((total, squares, top), 1, _joined_moments)
    away = total / positions
    deviation = tl.sqrt(_maximum(squares / positions - away * away, 0.0))

    rate, shift, lost = _line(largest, deviation + _middle_epsilon(deviation))
    mass, first, second = zeros, zeros, zeros
    place = start_place
    for _ in range(0, positions // BLOCK_N):
        exponent = tl.fma(tl.load(place, mask=own, other=0.0).to(tl.float32), rate[:, None], shift[:, None])
        mass, first, second = _add_powers(exponent, tl.exp2(exponent), mass, first, second)
        place += step
    if left > 0:
        x = tl.load(place, mask=own & (n < left), other=0.0).to(tl.float32)
        exponent = tl.where(n < left, tl.fma(x, rate[:, None], shift[:, None]), 0.0)
        power = tl.where(n < left, tl.exp2(exponent), 0.0)
        mass, first, second = _add_powers(exponent, power, mass, first, second)
    mass, first, second = tl.reduce((mass, first, second), 1, _sums_of_three)
    mean = first / mass

    program = tl.program_id(1)
    if program == 0:
        tl.store(state + image, 0)
        tl.store(result + image, 0.0)
    lowest = tl.min(tl.where(c < channels, deviation, float("inf")), axis=0)
    tl.store(smallest + image * tl.num_programs(1) + program, lowest)
    fact = figures + (image * tl.num_programs(1) + program) * (FACTS * BLOCK_C) + tl.arange(0, BLOCK_C)
    tl.store(fact, deviation)
    tl.store(fact + BLOCK_C, largest)
    tl.store(fact + 2 * BLOCK_C, mass * tl.exp2(-lost))
    tl.store(fact + 3 * BLOCK_C, mean)
    tl.store(fact + 4 * BLOCK_C, (second / mass - mean * mean) * (0.5 * LN2))


@triton.jit(do_not_specialize=RUN_TIME)
def _entropy_kernel(
    features,
    figures,
    smallest,
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
        channels = channels * (64 // features.dtype.element_ty.primitive_bitwidth)
    image = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(1)
    lane = tl.arange(0, EVERY)
    lowest = tl.full([EVERY], float("inf"), tl.float32)
    for start in range(0, programs, EVERY):
        every = tl.load(smallest + image * programs + start + lane, mask=start + lane < programs, other=float("inf"))
        lowest = tl.minimum(lowest, every)
    epsilon = tl.maximum(tl.min(lowest, axis=0) * 1e-2, 1e-6)

    c, place, step = _places(features, image, stride_image, stride, TOKENS, BLOCK_C, BLOCK_N)
    own = (c < channels)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    fact = figures + (image * programs + tl.program_id(1)) * (FACTS * BLOCK_C) + tl.arange(0, BLOCK_C)
    deviation = tl.load(fact)
    largest = tl.load(fact + BLOCK_C)
    drift = (_middle_epsilon(deviation) - epsilon) / (deviation + epsilon)
    growth = tl.fma(tl.load(fact + 4 * BLOCK_C), drift, tl.load(fact + 3 * BLOCK_C)) * drift
    power = tl.load(fact + 2 * BLOCK_C) * tl.exp2(growth)
    rate, shift, lost = _line(largest, deviation + epsilon)
    least = (lost + tl.log2(epsilon * (power + epsilon)))[:, None]

    left = positions % BLOCK_N
    mass = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    surprise = tl.zeros([BLOCK_C, BLOCK_N], tl.float32)
    for _ in range(0, positions // BLOCK_N):
        x = tl.load(place, mask=own, other=0.0).to(tl.float32)
        exponent = _maximum(tl.fma(x, rate[:, None], shift[:, None]), least)
        probability = tl.exp2(exponent)
        mass += probability
        surprise = tl.fma(probability, exponent, surprise)
        place += step
    if left > 0:
        x = tl.load(place, mask=own & (n < left), other=0.0).to(tl.float32)
        exponent = tl.where(n < left, _maximum(tl.fma(x, rate[:, None], shift[:, None]), least), 0.0)
        probability = tl.where(n < left, tl.exp2(exponent), 0.0)
        mass += probability
        surprise = tl.fma(probability, exponent, surprise)
    mass, surprise = tl.reduce((mass, surprise), 1, _sums_of_two)
    nats = tl.where(c < channels, (tl.log2(mass) - surprise / mass) * LN2, 0.0)
    part = tl.maximum(tl.sum(nats, axis=0), 0.0, propagate_nan=tl.PropagateNan.ALL) / channels
    if part < float("inf"):
        fixed = (part * FIXED_POINT).to(tl.int64)
        before = tl.atomic_add(state + image, fixed + ONE_PROGRAM, sem="relaxed")
        if before >> 48 == programs - 1:
            tl.store(result + image, ((before & (ONE_PROGRAM - 1)) + fixed).to(tl.float32) * (1.0 / FIXED_POINT))


def _readable(features: torch.Tensor) -> bool:
    """Whether positions are evenly spaced, and maps adjacent in a row, or tokens in whole pieces of 8 bytes."""
    if features.stride(2) != features.shape[3] * features.stride(3) or features.data_ptr() % 16:
        return False
    unit = 8 // features.element_size()
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
    unit = 8 // features.element_size() if tokens else 1
    chosen = configuration(architecture(features.device))
    grid = (batch, triton.cdiv(channels, chosen.block_c))
    figures = torch.empty((*grid, FACTS.value, chosen.block_c), dtype=torch.float32, device=features.device)
    smallest = torch.empty(grid, dtype=torch.float32, device=features.device)
    state = torch.empty(batch, dtype=torch.int64, device=features.device)
    given = (features, figures, smallest, state, result, channels // unit, height * width)
    given += (features.stride(0) // unit, features.stride(3 if tokens else 1) // unit)
    tiles = {"TOKENS": tokens, "BLOCK_C": chosen.block_c, "BLOCK_N": chosen.block_n}
    tiles |= {"num_warps": chosen.warps, "num_stages": 1, "enable_fp_fusion": True}
    _moments_kernel[grid](*given, **tiles)
    _entropy_kernel[grid](*given, **tiles)
    return result
