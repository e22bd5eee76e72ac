"""CLIPSurgery (Li et al. 2023, arXiv:2304.05653).

    architecture surgery   S_l = S_{l-1} + W_o·softmax(v vᵀ/√d) v,   v of LN1(X_{l-1}), the last 6 blocks (`two_paths`)
    feature surgery        S_it = w_t c_it − (1/T) Σ_t' w_t' c_it',  c the cosines, w = softmax_t(2 c_0t) over its mean
                           one prompt: ẑ_i·(t − t_∅), t_∅ the ensemble of the empty string

The first alone segments, which is what the authors advise (CLIP_Surgery issues 8 and 25); the second is for heat maps,
`heat_maps`. The published code takes square pictures only and overwrites the stored position table with a bilinearly
resized one, which drifts with every change of size. Here any grid is resampled from the table as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.backbones.precision import at_least_float32
from s2clip.encoding.hooks import WindowFeatures
from s2clip.errors import reject
from s2clip.published.extension import OWN_LAST_BLOCK, Extension
from s2clip.published.two_paths import resolve_depth, second_path
from s2clip.shelter import sheltered
from s2clip.values import is_whole

if TYPE_CHECKING:
    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class ClipSurgery(Extension):
    """Architecture surgery; `Method.terms` and `weights` are its attention's, published as ("vv",)."""

    kind: str = field(default="clipsurgery", init=False)

    depth: int | None = None
    """Blocks with a second path, 1..L; None: the published 6, at most the model's."""

    requires: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {name: value for name, value in OWN_LAST_BLOCK.items() if name not in ("terms", "weights")}
    )

    def __post_init__(self) -> None:
        self._require(self.depth is None or (is_whole(self.depth) and self.depth >= 1), "depth", "None or at least 1")

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        with watch("clip"):
            states, grid = models.clip.hidden_states(batch.images, pos_embed_interp="bilinear")
        with watch("recombination"):
            path = surgery_path(states, models.clip, self.depth, terms=method.terms, weights=method.weights)
        return WindowFeatures(path[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2))


def surgery_path(
    states: list[Tensor],
    clip: CLIPBackbone,
    depth: int | None = None,
    *,
    terms: tuple[str, ...] = ("vv",),
    weights: tuple[float, ...] | None = None,
) -> Tensor:
    """S_L [B,1+N,D] of X_0..X_{L-1}."""

    def attend(tokens: Tensor, index: int) -> Tensor:
        mixed = ops.recombined_attention(*clip.project_qkv(tokens, index), terms=terms, weights=weights)
        return clip.project_attention(mixed, index)

    return second_path(states, resolve_depth(depth, clip.layers), attend)


def surgery_tokens(images: Tensor, clip: CLIPBackbone, depth: int | None = None) -> tuple[Tensor, tuple[int, int]]:
    """images [B,3,H,W] in [0,1] → (unit vectors ẑ [B,1+N,C] fp32, grid): CLS of the trained path, patches of S_L."""
    states, grid = clip.hidden_states(images, pos_embed_interp="bilinear")
    trained = clip.block(states[-1], clip.layers - 1)
    tokens = torch.cat([trained[:, :1], surgery_path(states, clip, depth)[:, 1:]], 1)
    return F.normalize(at_least_float32(clip.head(tokens)), dim=-1), grid


def feature_surgery(tokens: Tensor, text: Tensor, *, empty: Tensor | None = None) -> Tensor:
    """What speaks for each prompt and not for all of them: unit tokens [B,1+N,C], CLS first → [B,N,T].

    text: unit rows [T,C]. empty: t_∅ [C], needed for a single prompt and used for no more.
    Raises `ValueError` for one prompt without `empty`: with itself as the average it would leave nothing.
    """
    text = text.to(tokens.dtype)
    if len(text) == 1:
        if empty is None:
            reject("empty", "the text vector of the empty string, for a single prompt", None)
        return tokens[:, 1:] @ (text - empty.to(tokens.dtype)).T
    cosines = tokens @ text.T
    weights = (2 * cosines[:, :1]).softmax(-1)
    weighted = cosines[:, 1:] * (weights / weights.mean(-1, keepdim=True))
    return weighted - weighted.mean(-1, keepdim=True)


@sheltered()
def heat_maps(
    images: Tensor, clip: CLIPBackbone, text: Tensor, *, empty: Tensor | None = None, depth: int | None = None
) -> Tensor:
    """Explanation maps of both surgeries: images [B,3,H,W] in [0,1] → [B,T,H,W] in [0,1].

    H and W are multiples of CLIP's patch. Each map runs from 0 at its least to 1 at its most fitting patch, and is
    upsampled (bilinear); one that is the same everywhere is 0. text, empty: as `feature_surgery`, from
    `s2clip.words.text.TextEncoder(clip)(words, "imagenet85")`.
    """
    tokens, grid = surgery_tokens(images, clip, depth)
    scores = feature_surgery(tokens, text, empty=empty)
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    maps = ((scores - low) / (high - low).clamp(min=torch.finfo(scores.dtype).tiny)).mT.unflatten(2, grid)
    return F.interpolate(maps, tuple(images.shape[-2:]), mode="bilinear", align_corners=False)
