"""CorrCLIP (Zhang et al. 2025, arXiv:2411.10086), version 1: regions of the picture say which patches belong together.

Per window, with the regions' ids on the VFM's grid, X_l CLIP's tokens after block l of L, and ŷ = y/‖y‖:

    g  = q + k of the VFM's last block;   S = ĝ ĝᵀ;   regions whose mean ĝ are alike become one (`merged_regions`)
    A  = softmax(τ S) over pairs of one region, and over pairs with S_ij > mean S where one patch is in no region
    M  = A·resize(V(X_{L−1})),   N = A·resize(V(mean of n X_l)),   V = W_o·v + b_o of the last block
    T  = a region's own token: CLS's start, which in every block sees CLS and the region's patches, after all L blocks
    z  = (LN_post(M) + w_s LN_post(N) + w_t LN_post(T of the patch's region)) P

and when every pixel has its label, every region takes the one that most of its pixels have.

Region 0 is what no mask covers: no region, so it is neither merged nor given one label, but it has a token. The
published code takes the smallest id of a window for it, even where a mask has that id (`faithful`). A patch has the id
of its first pixel. What pads a window is a region of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.backbones.precision import at_least_float32
from s2clip.encoding.features import vfm_view, whole_patches
from s2clip.encoding.hooks import WindowFeatures
from s2clip.errors import reject
from s2clip.pictures.windows import nearest
from s2clip.published.extension import OWN_LAST_BLOCK, Extension
from s2clip.values import is_real, is_whole

if TYPE_CHECKING:
    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.decision.decided import Decision
    from s2clip.encoding.encoded import Encoded
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch

PUBLISHED_DEPTHS = {12: 5, 24: 12, 32: 28}
UNSEGMENTED = 0


@dataclass(frozen=True, kw_only=True)
class CorrClip(Extension):
    """CorrCLIP version 1; `Segmenter(regions=...)` gives the masks."""

    kind: str = field(default="corrclip", init=False)

    sharpness: float = 4.0
    """[τ] > 0: factor of the similarities before the softmax."""
    merge_distance: float = 0.2
    """[eps] >= 0: regions are one if their cosine is at most this below the window's largest, or through others."""
    spatial_depth: int | None = None
    """[n] >= 1: how many blocks up to L−2 the spatial branch averages; None: the published 5 of 12, 12 of 24 and 28 of
    32 blocks, those of 12 in proportion for other models."""
    spatial_weight: float = 1.0
    """[w_s] of the spatial branch."""
    semantic_weight: float = 0.5
    """[w_t] of the regions' tokens."""
    correct_map: bool = True
    """Every region gets the label that most of its pixels have."""
    faithful: bool = False
    """The published code: the smallest id of a window, and of the picture, is what no mask covers (B-28 of the ledger),
    and a patch gets the token of the region of the CLIP patch around it, where ours is of its own."""

    needs_vfm: ClassVar[bool] = True
    needs_regions: ClassVar[bool] = True
    requires: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "merge": "pixel",
            **{name: value for name, value in OWN_LAST_BLOCK.items() if name not in ("vfm_scale", "pad_multiple")},
        }
    )

    def __post_init__(self) -> None:
        depth = self.spatial_depth
        self._require(is_real(self.sharpness) and self.sharpness > 0, "sharpness", "a number > 0")
        self._require(is_real(self.merge_distance) and self.merge_distance >= 0, "merge_distance", "a number >= 0")
        self._require(depth is None or (is_whole(depth) and depth >= 1), "spatial_depth", "None or a whole number >= 1")
        for name in ("spatial_weight", "semantic_weight"):
            self._require(is_real(getattr(self, name)), name, "a number")
        for name in ("correct_map", "faithful"):
            self._require(isinstance(getattr(self, name), bool), name, "True or False")

    def resolve_spatial_depth(self, layers: int) -> int:
        """n of a model with this many blocks; `ValueError` where it has fewer before its last two."""
        if self.spatial_depth is None:
            return PUBLISHED_DEPTHS.get(layers, max(1, int((layers - 2) / 2 + 0.5)))
        if self.spatial_depth > layers - 2:
            reject("extension.spatial_depth", f"at most {layers - 2} of {layers} blocks", self.spatial_depth)
        return self.spatial_depth

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        clip = models.clip
        with watch("vfm"):
            query, key, _ = models.vfm.last_projections(vfm_view(batch.images, method, models.vfm))
            size = (query.shape[1], query.shape[2])
            unit = F.normalize(at_least_float32((query + key).flatten(1, 2)), dim=-1)
        with watch("regions"):
            regions = window_regions(nearest(batch.regions, size), faithful=self.faithful)
            regions = merged_regions(regions, unit, self.merge_distance)
        with watch("clip"):
            depth = self.resolve_spatial_depth(clip.layers)
            states, tokens, grid = run_with_regions(clip, batch.images, regions, size)
            spatial = sum(states[clip.layers - 1 - depth : clip.layers - 1]) / depth
        with watch("correlation"):
            both = [
                at_least_float32(clip.project_attention(clip.project_value(state))[:, 1:].mT.unflatten(2, grid))
                for state in (states[-1], spatial)
            ]
            value = F.interpolate(torch.cat(both, 1), size, mode="bilinear", align_corners=False).flatten(2).mT
            main, spatial = correlate(unit, regions, value, self.sharpness).chunk(2, -1)
        with watch("head"):
            own = clip_regions(regions.ids, size, grid) if self.faithful else regions.ids
            semantic = clip.head(tokens).gather(1, own[:, :, None].expand(-1, -1, clip.embed_dim))
            joint = clip.head(main) + self.spatial_weight * clip.head(spatial) + self.semantic_weight * semantic
        return WindowFeatures(joint.mT.unflatten(2, size), joint=True)

    def decide(
        self,
        encoded: Encoded,
        text: Tensor,
        class_index: tuple[int, ...],
        background: int | None,
        models: Models,
        method: Method,
        *,
        with_scores: bool,
    ) -> Decision:
        """The shared decision, its labels corrected; confidence and scores are those of before."""
        settings = (encoded, text, class_index, background, models, method)
        decision = super().decide(*settings, with_scores=with_scores)
        if not self.correct_map:
            return decision
        ids = encoded.regions.to(decision.labels.device)
        apart = ids.amin() if self.faithful else UNSEGMENTED
        return decision._replace(labels=majority_labels(decision.labels, ids, ids != apart))


class WindowRegions(NamedTuple):
    """Regions of n windows on one grid of M cells, numbered 0..R−1 in each window; some numbers may be nobody's."""

    ids: Tensor
    """[n,M] int64."""
    unsegmented: Tensor
    """[n,R] bool: the number that stands for what no mask covers."""
    exists: Tensor
    """[n,R] bool."""

    @property
    def one_hot(self) -> Tensor:
        """[n,R,M] bool."""
        return self.ids[:, None] == torch.arange(self.exists.shape[1], device=self.ids.device)[:, None]


def window_regions(ids: Tensor, *, faithful: bool) -> WindowRegions:
    """[n,h,w] ids, 0 where no mask is and -1 in the padding → consecutive numbers per window, ascending."""
    ids = ids.flatten(1)
    ids = torch.where(ids < 0, ids.amax().clamp(min=0) + 1, ids)
    windows, span = len(ids), ids.amax() + 1
    keys, inverse = (ids + span * torch.arange(windows, device=ids.device)[:, None]).unique(return_inverse=True)
    count = (keys // span).bincount(minlength=windows)
    first = count.cumsum(0) - count
    number = torch.arange(int(count.max()), device=ids.device)
    exists = number < count[:, None]
    original = (keys % span)[(first[:, None] + number).clamp(max=len(keys) - 1)]
    unsegmented = (number == 0) & exists if faithful else (original == UNSEGMENTED) & exists
    return WindowRegions(inverse - first[:, None], unsegmented, exists)


def merged_regions(regions: WindowRegions, unit: Tensor, distance: float) -> WindowRegions:
    """Regions that are alike get the smallest number of theirs, in windows of more than two; unit [n,M,C].

    With c_ab the cosine of mean vectors, a and b are neighbours where max c − c_ab <= distance, and one region if a
    chain of neighbours leads from one to the other: what DBSCAN with `min_samples=1` finds.
    """
    vectors = F.normalize(regions.one_hot.to(unit.dtype) @ unit, dim=-1)
    cosine = vectors @ vectors.mT
    segmented = regions.exists & ~regions.unsegmented
    pair = segmented[:, :, None] & segmented[:, None]
    largest = cosine.masked_fill(~pair, -1).amax((1, 2), keepdim=True)
    linked = pair & (largest - cosine <= distance) & (regions.exists.sum(1) > 2)[:, None, None]
    linked |= torch.eye(linked.shape[1], dtype=torch.bool, device=linked.device)
    for _ in range(linked.shape[1].bit_length()):  # chains twice as long each time
        linked = linked.to(unit.dtype) @ linked.to(unit.dtype) > 0
    smallest = linked.to(torch.uint8).argmax(2)
    return regions._replace(ids=smallest.gather(1, regions.ids))


def run_with_regions(
    clip: CLIPBackbone, images: Tensor, regions: WindowRegions, size: tuple[int, int]
) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
    """(X_0..X_{L−1}, the regions' tokens [n,R,D] after all blocks, CLIP's grid).

    A region's token attends to CLS and the region's patches, and nothing attends to it: the states are CLIP's.
    """
    tokens, grid = clip.embed(whole_patches(images, clip.patch_size))
    count, numbers = tokens.shape[1], regions.exists.shape[1]
    on_grid = regions._replace(ids=nearest(regions.ids.unflatten(1, size), grid).flatten(1))
    seen = F.pad(on_grid.one_hot, (1, 0), value=True)[:, None]
    states, tokens = [], torch.cat([tokens, tokens[:, :1].expand(-1, numbers, -1)], 1)
    for index in range(clip.layers):
        states.append(tokens[:, :count])
        query, key, value = clip.project_qkv(tokens, index)
        key, value = key[:, :, :count], value[:, :, :count]
        own = F.scaled_dot_product_attention(query[:, :, count:], key, value, attn_mask=seen)
        usual = F.scaled_dot_product_attention(query[:, :, :count], key, value)
        tokens = tokens + clip.project_attention(torch.cat([usual, own], 2), index)
        tokens = tokens + clip.feed_forward(tokens, index)
    return states, tokens[:, count:], grid


def clip_regions(ids: Tensor, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Ids [n,M] on the VFM's grid `size`, read on CLIP's and enlarged again, both by nearest."""
    return nearest(nearest(ids.unflatten(1, size), grid), size).flatten(1)


def correlate(unit: Tensor, regions: WindowRegions, value: Tensor, sharpness: float) -> Tensor:
    """A·value: unit [n,M,C], value [n,M,D] → [n,M,D]. Window by window: one [M,M] at a time. The diagonal stays."""
    output = torch.empty_like(value)
    unsegmented = regions.unsegmented.gather(1, regions.ids)
    for index, (own, ids, bare) in enumerate(zip(unit, regions.ids, unsegmented, strict=True)):
        similarity = own @ own.T
        alike = similarity > similarity.mean()
        allowed = torch.where(bare[:, None] | bare, alike, ids[:, None] == ids)
        allowed.fill_diagonal_(True)
        output[index] = similarity.mul_(sharpness).masked_fill_(~allowed, float("-inf")).softmax(-1) @ value[index]
    return output


def majority_labels(labels: Tensor, ids: Tensor, wanted: Tensor) -> Tensor:
    """Labels [H,W] → the most frequent one of each id, the smallest of equally frequent ones, where wanted [H,W].

    A label below 0, a pixel that could not be computed, is kept and has no vote.
    """
    if not labels.numel():
        return labels
    _, number = ids.unique(return_inverse=True)
    valid = labels >= 0
    classes = int(labels.amax().clamp(min=0)) + 1
    votes = (number * classes + labels)[valid].bincount(minlength=(int(number.amax()) + 1) * classes)
    chosen = votes.view(-1, classes).argmax(1)[number]
    return torch.where(wanted & valid, chosen, labels)
