"""What CLIP's own attention says of two patches of a window, as FreeCP reads it (Chen et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s2clip.backbones.precision import at_least_float32

BALANCES = 3
"""How often columns and rows are normalised in turn."""


def attention_flow(clip, states: Sequence[Tensor]) -> Tensor:
    """T [B,N,N] of the patches: ((S + Sᵀ)/2)², S the balanced mean of softmax(qkᵀ/√d) over heads and blocks 1..L−1.

    states: X_0..X_{L−1} [B,1+N,D], CLS first. CLS takes part in the softmax and is then left out. Balanced: columns,
    then rows, divided by their sums, three times.
    """
    total: Tensor | None = None
    for index, state in enumerate(states[:-1]):
        query, key, _ = clip.project_qkv(state, index)
        scores = at_least_float32(query @ key.mT) * query.shape[-1] ** -0.5
        seen = scores.softmax(-1).mean(1)[:, 1:, 1:]
        total = seen if total is None else total.add_(seen)
    flow = total / (len(states) - 1)
    for _ in range(BALANCES):
        flow = flow / flow.sum(1, keepdim=True)
        flow = flow / flow.sum(2, keepdim=True)
    flow = (flow + flow.mT) / 2
    return torch.bmm(flow, flow)
