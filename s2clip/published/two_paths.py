"""What CLIPSurgery and GEM share: a second path S beside the trained one, through the last blocks.

    S_{L-n} = X_{L-n};   S_l = S_{l-1} + attention of block l on LN1(X_{l-1});   features LN_post(S_L)·P

The trained path X is left alone, and the second one has no FFN. CLS takes part in the attention.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from s2clip.errors import reject

PUBLISHED_DEPTH = 6


def resolve_depth(depth: int | None, layers: int) -> int:
    """n of a model with this many blocks. None: the published 6, at most half of the blocks (12 and 24: 6; 6: 3).

    In a model of six blocks a second path through all of them would start from the embedding, which means nothing yet.
    """
    if depth is None:
        return min(PUBLISHED_DEPTH, max(layers // 2, 1))
    if depth > layers:
        reject("extension.depth", f"at most the model's {layers} blocks", depth)
    return depth


def second_path(states: list[Tensor], depth: int, attend: Callable[[Tensor, int], Tensor]) -> Tensor:
    """S_L [B,1+N,D] of X_0..X_{L-1}; attend(X_{l-1}, l-1) gives the attention's output in block l, projected."""
    first = len(states) - depth
    path = states[first]
    for index in range(first, len(states)):
        path = path + attend(states[index], index)
    return path
