"""What the launchers and kernels share: the architecture of a device, and device functions, tile in, tile out."""

import functools
from collections.abc import Callable

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
SHIPPED_ARCHITECTURES = (80, 86, 89, 90, 120)


@functools.cache
def _shipped(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    fitting = [arch for arch in SHIPPED_ARCHITECTURES if arch <= 10 * major + minor]
    return fitting[-1] if fitting else SHIPPED_ARCHITECTURES[0]


def architecture(device: torch.device) -> int:
    """The newest shipped architecture that the GPU can run; 0 for the CPU, which means Triton's interpreter."""
    if device.type != "cuda":
        return 0
    return _shipped(torch.cuda.current_device() if device.index is None else device.index)


def launcher(launch: Callable) -> Callable:
    """`launch` on the device of its first tensor: Triton launches on the current device, which need not be that one."""

    @functools.wraps(launch)
    def on_its_device(*arguments):
        data = arguments[0] if isinstance(arguments[0], torch.Tensor) else arguments[0][0]
        if not data.is_cuda:
            return launch(*arguments)
        with torch.cuda.device_of(data):
            return launch(*arguments)

    return on_its_device


@triton.jit
def bilinear_taps(position, out_size, in_size):
    """(low, high, share of high) of F.interpolate(mode="bilinear", align_corners=False) along one axis."""
    scale = tl.div_rn(in_size.to(tl.float32), out_size.to(tl.float32))
    source = tl.maximum((position.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(source.to(tl.int32), in_size - 1)
    high = tl.minimum(low + 1, in_size - 1)
    return low, high, source - low.to(tl.float32)


@triton.jit
def adjacent_taps(position, out_size, in_size):
    """(low, share of low + 1) as `bilinear_taps`, of at least two: at the far end all of it is the last one's."""
    low, _, share = bilinear_taps(position, out_size, in_size)
    return tl.minimum(low, in_size - 2), tl.where(low > in_size - 2, 1.0, share)


@triton.jit
def bilinear(plane, top, bottom, left, right, share_y, share_x):
    """Resized values of one plane; `top` and `bottom` are offsets of rows, `left` and `right` of columns."""
    top_left = tl.load(plane + top + left).to(tl.float32)
    top_right = tl.load(plane + top + right).to(tl.float32)
    bottom_left = tl.load(plane + bottom + left).to(tl.float32)
    bottom_right = tl.load(plane + bottom + right).to(tl.float32)
    upper = tl.fma(top_right, share_x, top_left * (1.0 - share_x))
    lower = tl.fma(bottom_right, share_x, bottom_left * (1.0 - share_x))
    return tl.fma(lower, share_y, upper * (1.0 - share_y))
