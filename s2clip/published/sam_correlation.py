"""SAM's last attention as a correlation between the cells of a picture (Trident, arXiv:2411.09219).

    P^a   = softmax(Q^a K^aᵀ/√d + b^a)         head a of H, over all g² cells of SAM's frame, padding included
    c^a_ij = v̂^a_i · v̂^a_j                     cells i, j of the picture
    τ_i   = min(φ · mean_{a,j} c^a_ij, 0.9)    φ · (1/H) Σ_a v̂^a_i · (mean_j v̂^a_j): no pair is formed
    A_ij  = (1/H) Σ_a P^a_ij [c^a_ij > τ_i],   rows divided by their sums

A is the same for every channel it is applied to, and c_ii = 1 > 0.9 keeps every row's own cell. Rows are made a few at
a time: H·g²·n numbers for n rows, 16 MiB in fp32 for each array at work and 113 MB in all for a picture of 640x480 in
SAM ViT-B (H = 12, g = 64), where each array for all rows would take 805 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from s2clip.backbones.sam_attention import LastAttention

TILE = 1 << 22
"""Numbers of one tile, all heads together."""
CEILING = 0.9
OWN_CELL = 1e-30
"""Added to A_ii: nothing beside a probability, and all there is where a value of zeros has no cosine with itself."""


def correlate(
    attention: LastAttention,
    valid: tuple[int, int],
    features: Tensor,
    *,
    cosine_factor: float = 1.2,
    neg_threshold_floor: float | None = None,
    tile: int = TILE,
) -> Tensor:
    """A·resize(features): [D,r,c] on any grid of the picture → [D,h,w] on SAM's valid grid (h,w), in at least fp32.

    cosine_factor [φ]: the threshold in multiples of a cell's mean cosine. neg_threshold_floor: in place of thresholds
    below 0; None leaves them. features are resized bilinearly (align_corners=False).
    """
    dtype = torch.promote_types(attention.query.dtype, torch.float32)
    resized = F.interpolate(features[None].to(dtype), valid, mode="bilinear", align_corners=False)[0].flatten(1).T
    grid = attention.grid
    heads, cells = len(attention.query), valid[0] * valid[1]
    inside = torch.arange(grid[0] * grid[1], device=resized.device).view(grid)[: valid[0], : valid[1]].flatten()
    value = F.normalize(attention.value[:, inside].to(dtype), dim=-1)
    threshold = thresholds(value, cosine_factor, neg_threshold_floor)
    mixed = torch.empty_like(resized)
    rows = max(1, tile // (heads * grid[0] * grid[1]))
    for start in range(0, cells, rows):
        part = slice(start, start + rows)
        probability = attention.probability(inside[part], dtype)[..., : valid[0], : valid[1]].flatten(2)
        kept = value[:, part] @ value.mT > threshold[part, None]
        weights = probability.where(kept, 0).mean(0)
        weights.diagonal(start)[:] += OWN_CELL
        mixed[part] = weights @ resized / weights.sum(1, keepdim=True)
    return mixed.T.unflatten(1, valid)


def thresholds(value: Tensor, cosine_factor: float, neg_threshold_floor: float | None) -> Tensor:
    """τ [N] of unit values [H,N,d]."""
    tau = cosine_factor * torch.einsum("hnd,hd->n", value, value.mean(1)) / len(value)
    if neg_threshold_floor is not None:
        tau = tau.where(tau >= 0, neg_threshold_floor)
    return tau.clamp(max=CEILING)
