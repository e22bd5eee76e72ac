"""The dtype that the references compute in."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64; tests replace it to see what torch makes of a formula in its own dtype."""
    return torch.promote_types(dtype, torch.float32)
