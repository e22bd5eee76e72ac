"""What the launchers and kernels share: the architecture of a device, and device functions, tile in, tile out."""

import functools

import torch

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
