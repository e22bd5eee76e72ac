"""Spatial entropy of feature maps."""

import torch
from torch import Tensor

from s2clip.ops import checks
from s2clip.ops.registry import Op


def spatial_entropy(features: Tensor, *, backend: str = "auto") -> Tensor:
    """mean over channels of −Σ_n P_n log P_n, in nats; P the softmax over positions of the standardised channel.

    features: [B,C,H,W], any float dtype. Per channel over its N = H·W positions: F̂ = (F − μ)/(σ + ε), P = softmax(F̂)
        with ε added to its denominator, clamped at ε from below and renormalised; ε = max(10⁻²·min σ, 10⁻⁶).
    Returns [B] in at least fp32, from 0 to log N; 0 where that is not finite or there is nothing to average.
    Raises ValueError for other shapes and dtypes.

    Source: Algorithm 1 of the paper. It takes the smallest σ of the whole batch; ours is that of the image, so that an
    entropy does not depend on the other images. σ is that of the population.
    """
    checks.tensor("features", features, "[B,C,H,W]", checks.FLOATS)
    return _spatial_entropy(backend, features, features)


_spatial_entropy: Op[Tensor] = Op(
    "spatial_entropy",
    "(Tensor features) -> Tensor",
    fake=lambda features: features.new_empty(
        features.shape[:1], dtype=torch.promote_types(features.dtype, torch.float32)
    ),
)
