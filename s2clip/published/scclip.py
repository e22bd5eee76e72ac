"""SC-CLIP (Bai et al. 2024, arXiv:2411.15869): CLIP calibrated by itself, no other model.

With X_l the patches after block l, c_l its CLS token, a(W) = W/(row sums + 1e-6), [W]_s = W where it is at least s and
0 elsewhere, and p, r, l the blocks of the settings (B/16: 9, 4, 4..10; L/14: 17, 7, 9..19):

    O = anomalous patches of X_{L-1}; each is replaced by the mean of those of its 8 neighbours that are not in O,
        in X_{L-1} → U, and, with the same O, in X_p → V;  the other patches stay
    S = V̂ V̂ᵀ,  U ← a([S]_s) U,  S' = X̂_r X̂_rᵀ
    B(x) = ½ W_o [softmax(3(S − mean S), entries < 0 removed) + softmax(k kᵀ/√d)] v,   k, v of LN1(x), no CLS
    z = LN_post( a([S']_s) [ B(U) + ρ c_{L-1} + B(Σ_l X_l) + ρ Σ_l c_l ] ) P

The last line holds both of the paper's passes, which are linear in what a([S']_s) is applied to. A window is calibrated
on its own. The published code takes the mean of S over the whole batch and orders heads wrongly in batches, neither of
which shows in the batches of one that it was run with; and it finds an anomaly's place by the number of rows where it
means columns, right for the square windows it was run with. Here windows of any shape and number are as meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.encoding.hooks import WindowFeatures
from s2clip.errors import reject
from s2clip.published.extension import OWN_LAST_BLOCK, Extension
from s2clip.values import is_real, is_whole

if TYPE_CHECKING:
    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch

ANOMALIES = ("lof", "l2norm", "none")


class Blocks(NamedTuple):
    """Block numbers from 1, all below L. The published code counts outputs from 0: one less."""

    repaired: int
    """[pre_adjust_idx] p, whose similarities aggregate the features and join the last block's attention."""
    late: int
    """[post_adjust_idx] r, whose similarities aggregate at the end."""
    first: int
    """[multi_start_idx] the first of those that are summed."""
    last: int
    """[multi_end_idx] the last of them."""


PUBLISHED_BLOCKS = {12: Blocks(9, 4, 4, 10), 24: Blocks(17, 7, 9, 19)}


@dataclass(frozen=True, kw_only=True)
class ScClip(Extension):
    """SC-CLIP; `Method.terms` and `weights` are those of the attention beside the similarities in B, ("kk",)."""

    kind: str = field(default="scclip", init=False)

    blocks: tuple[int, int, int, int] | None = None
    """`Blocks`; None: the published ones of 12 and 24 blocks, those of 12 in proportion for other models."""
    residual_cls: float | None = None
    """[ρ, res_cls] weight of the CLS tokens; None: 0.3, or 0.1 from 24 blocks on, as published."""
    similarity_threshold: float = 0.4
    """[s, sim_threshold] similarities below count as 0 in the aggregations."""
    sharpness: float = 3.0
    """> 0: factor of S − mean S in B."""
    anomalies: str = "lof"
    """"lof", the neighbourhood score of the current code; "l2norm", largest norms, of its first commit; or "none"."""
    neighbors: int = 30
    """[lof_neighbors] >= 1, at most all other patches."""
    contamination: float = 0.05
    """[lof_contamination] 0..1: share of patches that are anomalous."""

    requires: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {name: value for name, value in OWN_LAST_BLOCK.items() if name not in ("terms", "weights")}
    )

    def __post_init__(self) -> None:
        if isinstance(self.blocks, list):
            object.__setattr__(self, "blocks", tuple(self.blocks))
        blocks, rho, share = self.blocks, self.residual_cls, self.contamination
        known = (
            isinstance(blocks, tuple) and len(blocks) == 4 and all(is_whole(block) and block >= 1 for block in blocks)
        )
        self._require(
            blocks is None or (known and blocks[2] <= blocks[3]), "blocks", "None or four block numbers, first <= last"
        )
        self._require(rho is None or is_real(rho), "residual_cls", "None or a number")
        self._require(is_real(self.similarity_threshold), "similarity_threshold", "a number")
        self._require(is_real(self.sharpness) and self.sharpness > 0, "sharpness", "a number > 0")
        self._require(self.anomalies in ANOMALIES, "anomalies", f"one of {', '.join(ANOMALIES)}")
        self._require(is_whole(self.neighbors) and self.neighbors >= 1, "neighbors", "a whole number >= 1")
        self._require(is_real(share) and 0 <= share <= 1, "contamination", "a number in 0..1")

    def resolve_blocks(self, layers: int) -> Blocks:
        """The blocks of a model with this many; `ValueError` if one is not below the last."""
        if self.blocks is not None:
            if max(self.blocks) >= layers:
                reject("extension.blocks", f"blocks 1..{layers - 1} of a model with {layers}", self.blocks)
            return Blocks(*self.blocks)
        if layers in PUBLISHED_BLOCKS:
            return PUBLISHED_BLOCKS[layers]
        scaled = (1 + (block - 1) * (layers - 2) / 10 for block in PUBLISHED_BLOCKS[12])
        return Blocks(*(max(math.floor(block + 0.5), 1) for block in scaled))

    def resolve_residual_cls(self, layers: int) -> float:
        """ρ for a model with this many blocks."""
        return self.residual_cls if self.residual_cls is not None else (0.1 if layers >= 24 else 0.3)

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        clip = models.clip
        blocks, rho = self.resolve_blocks(clip.layers), self.resolve_residual_cls(clip.layers)
        with watch("clip"):
            states, grid = clip.hidden_states(batch.images)
        with watch("repair"):
            value, similar = self._repaired(states, blocks, grid)
        with watch("recombination"):
            levels = sum(states[block] for block in range(blocks.first, blocks.last + 1))
            maps = similar.unflatten(1, grid)
            mixed = sum(self._special_block(patches, maps, clip, method) for patches in (value, levels[:, 1:]))
            mixed = mixed + rho * (states[-1][:, :1] + levels[:, :1])
        with watch("affinity"):
            mixed = aggregate(states[blocks.late][:, 1:], mixed, self.similarity_threshold)
        return WindowFeatures(mixed.unflatten(1, grid).permute(0, 3, 1, 2))

    def _repaired(self, states: list[Tensor], blocks: Blocks, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """U after its aggregation, and V: both [B,N,D]."""
        value, similar = states[-1][:, 1:], states[blocks.repaired][:, 1:]
        if self.anomalies != "none":
            if self.anomalies == "lof":
                strange = strange_neighbourhoods(value, self.neighbors, self.contamination)
            else:
                strange = largest_norms(value, self.contamination)
            value, similar = (repair(patches, strange, grid) for patches in (value, similar))
        return aggregate(similar, value, self.similarity_threshold), similar

    def _special_block(self, patches: Tensor, similar: Tensor, clip: CLIPBackbone, method: Method) -> Tensor:
        """B of patches [B,N,D], with the similarities of the maps [B,h,w,D] → [B,N,D].

        The affinity is one for all heads and has rows of sum 1, so W_o comes before it.
        """
        query, key, value = clip.project_qkv(patches)
        projected = clip.project_attention(value).unflatten(1, similar.shape[1:3])
        maps = similar.to(projected.dtype)
        by_similarity = ops.affinity_attention(maps, projected, beta=1.0, gamma=self.sharpness).flatten(1, 2)
        by_terms = ops.recombined_attention(query, key, value, terms=method.terms, weights=method.weights)
        return (by_similarity + clip.project_attention(by_terms)) / 2


def strange_neighbourhoods(patches: Tensor, neighbors: int, contamination: float) -> Tensor:
    """[B,N,D] → bool [B,N]: above the (1 − contamination) quantile of d_k(i)·mean of 1/d_k(o) over the k nearest o.

    d_k is the squared distance to the k-th nearest. That is what the published code computes and calls LOF; the local
    outlier factor takes unsquared distances, and the neighbour's own d_k into its reachability.
    """
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    patches = patches - patches.mean(1, keepdim=True)  # distances are the same, and cancel less
    squares = patches.square().sum(-1)
    distance = (squares[:, :, None] + squares[:, None] - 2 * patches @ patches.mT).clamp(min=0)
    distance.diagonal(dim1=1, dim2=2).fill_(math.inf)
    near, places = distance.topk(min(neighbors, patches.shape[1] - 1), largest=False)
    if near.shape[2] == 0:
        return near.new_zeros(near.shape[:2], dtype=torch.bool)
    kth = near[:, :, -1].clamp(min=1e-30)  # of equal patches
    inverse = (1 / kth)[:, None].expand(-1, patches.shape[1], -1)
    score = kth * inverse.gather(2, places).mean(2)
    return score > score.quantile(1 - contamination, dim=1, keepdim=True)


def largest_norms(patches: Tensor, contamination: float) -> Tensor:
    """[B,N,D] → bool [B,N]: the ⌈contamination·N⌉ patches of largest L2 norm, 10 of 196."""
    strange = torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
    count = math.ceil(contamination * patches.shape[1] - 1e-9)
    return strange.scatter_(1, patches.float().norm(dim=-1).topk(count).indices, True)


def repair(patches: Tensor, strange: Tensor, grid: tuple[int, int]) -> Tensor:
    """Strange patches take the mean of their 8 neighbours that are not strange, if there is one: [B,N,D] alike."""
    sound = (~strange).to(patches.dtype)[:, None].unflatten(2, grid)
    maps = patches.mT.unflatten(2, grid)
    total = F.avg_pool2d(maps * sound, 3, stride=1, padding=1, divisor_override=1)
    count = F.avg_pool2d(sound, 3, stride=1, padding=1, divisor_override=1)
    mean = (total / count.clamp(min=1)).flatten(2).mT
    replaced = strange & (count.flatten(1) > 0)
    return torch.where(replaced[:, :, None], mean, patches)


def aggregate(features: Tensor, value: Tensor, threshold: float) -> Tensor:
    """a([F̂ F̂ᵀ]_s) value: features [B,N,C], value [B,N,D] → [B,N,D]. Window by window: one [N,N] at a time."""
    output = torch.empty_like(value)
    for index, (own, patches) in enumerate(zip(features, value, strict=True)):
        unit = F.normalize(own.to(torch.promote_types(own.dtype, torch.float32)), dim=-1)
        similarity = unit @ unit.mT
        similarity = similarity.masked_fill(similarity < threshold, 0)
        weights = similarity / (similarity.sum(1, keepdim=True) + 1e-6)
        output[index] = weights @ patches.to(weights.dtype)
    return output
