"""Spatial entropy of feature maps (Algorithm 1 of the source): how spread out each channel is over the positions.

Per channel over the N = H*W positions: standardise with the mean mu and the population deviation sigma, P = softmax,
clamped at eps from below, renormalised; H = -sum P log P = (S log S - T)/S with S = sum P' and T = sum P' log P' of the
clamped values P'. Result: mean of H over the C channels; 0 where it is not finite. eps = max(min sigma / 100, 1e-6)
with the smallest sigma of the image's channels, which is why there are two kernels.

B images, C channels. Never written: the standardised maps and the distributions [B,C,N]; the eager chain writes and
reads each about ten times. Written: four numbers per channel.

fp16, bf16, fp32; arithmetic in fp32; two-pass variance; fixed order of summation, no atomics. Tiles are channels x
positions, so that token maps [B,N,C] seen as [B,C,H,W] and plain maps are both read along their contiguous axis.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from s2clip.kernels.tiles import architecture, launcher

FIGURES = ("mean", "deviation", "largest", "entropy")
# Rows end where they end, so no multiple of 16 would widen an access; that one stride is 1 is what TOKENS says.
RUN_TIME = ["features", *FIGURES, "channels", "positions", "stride_image", "stride"]


class Configuration(NamedTuple):
    """Channels and positions of a tile, and warps."""

    block_c: int
    block_n: int
    warps: int


def configuration(arch: int) -> Configuration:
    """16 channels of two bytes fill a 32-byte sector of a token map; 768 channels are 48 programs an image."""
    return Configuration(32, 256, 1) if arch == 0 else Configuration(16, 64, 4)


@triton.jit
def _maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=RUN_TIME)
def _moments_kernel(
    features,
    mean,
    deviation,
    largest,
    channels,
    positions,
    stride_image,
    stride,
    TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Mean, population deviation and maximum of every channel."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    step_c = 1 if TOKENS else stride
    step_n = stride if TOKENS else 1
    plane = features + image * stride_image + c.to(tl.int64)[:, None] * step_c
    total = tl.zeros([BLOCK_C], tl.float32)
    top = tl.full([BLOCK_C, BLOCK_N], float("-inf"), tl.float32)
    for start in range(0, positions, BLOCK_N):
        inside = (c[:, None] < channels) & (start + n[None, :] < positions)
        x = tl.load(plane + (start + n).to(tl.int64)[None, :] * step_n, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(x, axis=1)
        top = _maximum(top, tl.where(inside, x, float("-inf")))
    centre = total / positions
    squares = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, positions, BLOCK_N):
        inside = (c[:, None] < channels) & (start + n[None, :] < positions)
        x = tl.load(plane + (start + n).to(tl.int64)[None, :] * step_n, mask=inside, other=0.0).to(tl.float32)
        away = tl.where(inside, x - centre[:, None], 0.0)
        squares += tl.sum(away * away, axis=1)
    out = image * channels + c
    tl.store(mean + out, centre, mask=c < channels)
    tl.store(deviation + out, tl.sqrt(squares / positions), mask=c < channels)
    tl.store(largest + out, tl.reduce(top, 1, _maximum), mask=c < channels)


@triton.jit(do_not_specialize=RUN_TIME)
def _entropy_kernel(
    features,
    mean,
    deviation,
    largest,
    entropy,
    channels,
    positions,
    stride_image,
    stride,
    TOKENS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Entropy of every channel, in nats."""
    image = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    smallest = tl.full([BLOCK_N], float("inf"), tl.float32)
    for start in range(0, channels, BLOCK_N):
        every = tl.load(deviation + image * channels + start + n, mask=start + n < channels, other=float("inf"))
        smallest = tl.minimum(smallest, every)
    epsilon = tl.maximum(tl.min(smallest, axis=0) * 1e-2, 1e-6)

    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = image * channels + c
    centre = tl.load(mean + own, mask=c < channels, other=0.0)
    inverse = 1.0 / (tl.load(deviation + own, mask=c < channels, other=0.0) + epsilon)
    top = (tl.load(largest + own, mask=c < channels, other=0.0) - centre) * inverse
    step_c = 1 if TOKENS else stride
    step_n = stride if TOKENS else 1
    plane = features + image * stride_image + c.to(tl.int64)[:, None] * step_c
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, positions, BLOCK_N):
        inside = (c[:, None] < channels) & (start + n[None, :] < positions)
        x = tl.load(plane + (start + n).to(tl.int64)[None, :] * step_n, mask=inside, other=0.0).to(tl.float32)
        exponent = (x - centre[:, None]) * inverse[:, None] - top[:, None]
        total += tl.sum(tl.exp(tl.where(inside, exponent, float("-inf"))), axis=1)
    share = 1.0 / (total + epsilon)
    mass = tl.zeros([BLOCK_C], tl.float32)
    surprise = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, positions, BLOCK_N):
        inside = (c[:, None] < channels) & (start + n[None, :] < positions)
        x = tl.load(plane + (start + n).to(tl.int64)[None, :] * step_n, mask=inside, other=0.0).to(tl.float32)
        exponent = (x - centre[:, None]) * inverse[:, None] - top[:, None]
        power = tl.exp(tl.where(inside, exponent, float("-inf")))
        probability = _maximum(power * share[:, None], epsilon)
        mass += tl.sum(tl.where(inside, probability, 0.0), axis=1)
        surprise += tl.sum(tl.where(inside, probability * tl.log(probability), 0.0), axis=1)
    mass = tl.where(c < channels, mass, 1.0)
    tl.store(entropy + own, (mass * tl.log(mass) - surprise) / mass, mask=c < channels)


@triton.jit(do_not_specialize=["entropy", "result", "channels"])
def _average_kernel(entropy, result, channels, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, channels, BLOCK):
        total += tl.load(entropy + image * channels + start + c, mask=start + c < channels, other=0.0)
    average = tl.sum(total, axis=0) / channels
    tl.store(result + image, tl.where(tl.abs(average) < float("inf"), average, 0.0))


AVERAGE_BLOCK = 256


@launcher
def launch(features: torch.Tensor) -> torch.Tensor:
    """As `reference.spatial_entropy`."""
    batch, channels, height, width = features.shape
    result = torch.empty(batch, dtype=torch.float32, device=features.device)
    if features.numel() == 0:
        return result.zero_()
    if features.stride(2) != width * features.stride(3) or 1 not in (features.stride(1), features.stride(3)):
        features = features.contiguous()
    tokens = features.stride(3) != 1
    positions = height * width
    block_c, block_n, warps = configuration(architecture(features.device))
    mean, deviation, largest, entropy = torch.empty((4, batch, channels), dtype=torch.float32, device=features.device)
    grid = (batch, triton.cdiv(channels, block_c))
    strides = (features.stride(0), features.stride(3 if tokens else 1))
    tiles = {"TOKENS": tokens, "BLOCK_C": block_c, "BLOCK_N": block_n}
    tiles |= {"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True}
    _moments_kernel[grid](features, mean, deviation, largest, channels, positions, *strides, **tiles)
    _entropy_kernel[grid](features, mean, deviation, largest, entropy, channels, positions, *strides, **tiles)
    _average_kernel[(batch,)](
        entropy, result, channels, BLOCK=AVERAGE_BLOCK, num_warps=4, num_stages=1, enable_fp_fusion=True
    )
    return result
