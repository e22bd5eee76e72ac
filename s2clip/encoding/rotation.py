"""PEARL's attention: keys turned towards the queries before they meet (Pei et al. 2026, arXiv:2603.21528).

Per head, with w = |q| over the patches, normalised, and y_c = y − Σ w y:

    M = k_cᵀ q_c,   R = M (MᵀM)^(−1/2)   by Newton-Schulz steps, the rotation that takes k_c nearest to q_c
    A = softmax(q(kR)ᵀ/√d + α k_c k_cᵀ/√d),   result A v
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.methods.stages import KeyRotation

SMALL = 1e-6


def rotated_attention(
    query: Tensor, key: Tensor, value: Tensor, rotation: KeyRotation, *, cls_token: bool, bias: Tensor | None = None
) -> Tensor:
    """query, key, value [B,H,N,d], bias [N,N] or None → [B,H,N,d] in their dtype; computed in at least fp32.

    cls_token: the first token is CLS, which has no part in the means. Both similarities are one product of vectors
    twice as long, so that the attention stays one call that keeps no N×N.
    """
    dtype, size = query.dtype, query.shape[-1]
    query, key, value = (part.to(torch.promote_types(dtype, torch.float32)) for part in (query, key, value))
    weight = query.norm(dim=-1, keepdim=True)
    if cls_token:
        weight[..., :1, :] = 0
    weight = weight / (weight.sum(-2, keepdim=True) + SMALL)
    own_query = query - (weight * query).sum(-2, keepdim=True)
    own_key = key - (weight * key).sum(-2, keepdim=True)
    turned = key @ nearest_rotation(own_key.mT @ own_query, rotation.iterations)
    root = rotation.share**0.5 * own_key
    both = torch.cat([query, root], -1), torch.cat([turned, root], -1)
    bias = None if bias is None else bias.to(query.dtype)
    value = F.pad(value, (0, size))  # the calls that keep no N×N want one length: half the time at 442 tokens
    return F.scaled_dot_product_attention(*both, value, attn_mask=bias, scale=size**-0.5)[..., :size].to(dtype)


def nearest_rotation(matrix: Tensor, iterations: int) -> Tensor:
    """M (MᵀM)^(−1/2) of matrices [...,d,d], approached by Newton-Schulz steps from MᵀM/‖MᵀM‖ + 1e-6 I."""
    identity = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    square = matrix.mT @ matrix
    norm = square.flatten(-2).norm(dim=-1)[..., None, None].clamp_min(SMALL)
    root, inverse = square / norm + SMALL * identity, identity.expand_as(square)
    for _ in range(iterations):
        step = 0.5 * (3.0 * identity - inverse @ root)
        root, inverse = root @ step, step @ inverse
    return matrix @ (inverse / norm.sqrt())
