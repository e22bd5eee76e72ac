"""RADSeg (Alama et al. 2025, arXiv:2511.19704; RADSeg-OVSS/RADSeg): C-RADIO speaks, CLIP's tower is not needed.

Per window, in the last block, per head and over all tokens, with ŷ = y/‖y‖ and q, k, v of LN1(X_{L−1}):

    o = W_o·softmax(qkᵀ/√d) v + b_o,   A' = softmax over {j : cos_ij ≥ 0} of s·cos_ij,  cos = ô ôᵀ per head
    X = X_{L−1} + W_o·A'v + b_o,  then X + FFN(LN2 X)

Both affinities are `ops.affinity_attention`: that one with β = 0, and over the spliced map G of all windows

    G' = softmax over {j : S_ij ≥ mean S} of s_g (S − mean S) · G,  S = Ĝ Ĝᵀ,  β = 1

The language head maps G' to the joint space; P = softmax(α cos) is taken on the grid and then enlarged, and words whose
largest probability stays below `prompt_denoising` are dropped. Made for C-RADIO (`--model RADIO-B-16`); with a CLIP the
same formulas run on its tower.
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
from s2clip.decision.decided import Decision
from s2clip.decision.pixels import cosine_maps
from s2clip.decision.scores import DenseScores, largest, merge_words
from s2clip.encoding.hooks import PictureFeatures, WindowFeatures
from s2clip.pictures import windows
from s2clip.published.extension import OWN_LAST_BLOCK, Extension
from s2clip.values import is_real

if TYPE_CHECKING:
    from s2clip.encoding.encoded import Encoded
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class RadSeg(Extension):
    """RADSeg with its published settings."""

    kind: str = field(default="radseg", init=False)

    recursion: float = 10.0
    """[scra_scaling, s] > 0: sharpness of the last block's second attention."""
    aggregation: float = 10.0
    """[scga_scaling, s_g] > 0: sharpness of the affinity over the whole picture."""
    prompt_denoising: float = 0.5
    """0..1: a class whose probability is below this everywhere is dropped; where all are, the best one stays."""

    any_prefix: ClassVar[bool] = True
    requires: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {**OWN_LAST_BLOCK, "merge": "splice", "area_threshold": None, "pamr_iterations": 0, "propagation": None}
    )

    def __post_init__(self) -> None:
        for name in ("recursion", "aggregation"):
            value = getattr(self, name)
            self._require(is_real(value) and value > 0, name, "a number > 0")
        share = self.prompt_denoising
        self._require(is_real(share) and 0 <= share <= 1, "prompt_denoising", "a number in 0..1")

    def prepare(self, picture: Tensor, method: Method, multiple: int) -> Tensor:
        """The longer side to the next multiple of the stride, the other one in proportion to one too: no less than a
        window, so that windows never need padding."""
        size = windows.resized_size(*picture.shape[1:], method.short_side, method.long_side, 1)
        return windows.resize(picture, whole_strides(size, method), antialias=method.antialias)

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        clip = models.clip
        with watch("clip"):
            states, grid = clip.hidden_states(batch.images)
        with watch("recombination"):
            tokens = states[-1] + clip.scaled(self.recursive_attention(clip, states[-1]))
            tokens = tokens + clip.feed_forward(tokens)
        return WindowFeatures(tokens[:, clip.prefix_tokens :].mT.unflatten(2, grid))

    def recursive_attention(self, clip, tokens: Tensor) -> Tensor:
        """[B,T,D] → [B,T,D], all tokens with all."""
        query, key, value = clip.project_qkv(tokens)
        seen = clip.project_attention(F.scaled_dot_product_attention(query, key, value))
        alike = seen.unflatten(2, (value.shape[1], -1)).transpose(1, 2).flatten(0, 1)[:, :, None]
        values = value.flatten(0, 1)[:, :, None]
        again = ops.affinity_attention(alike, values.to(alike.dtype), beta=0.0, gamma=self.recursion)
        return clip.project_attention(again[:, :, 0].unflatten(0, value.shape[:2]))

    def picture_features(
        self, maps: Tensor, picture: Tensor, models: Models, method: Method, watch: Stopwatch
    ) -> PictureFeatures:
        with watch("affinity"):
            rows = maps.permute(1, 2, 0)[None]
            rows = ops.affinity_attention(rows, rows, beta=1.0, gamma=self.aggregation)
        return PictureFeatures(rows[0].permute(2, 0, 1).contiguous())

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
        words = (cosine_maps(encoded, text)[0] * method.logit_scale).softmax(0)
        planes = merge_words(words, class_index)
        kept = self._kept(planes, encoded.size)
        planes = planes.masked_fill(~kept[:, None, None], 0)
        scores = DenseScores(planes)
        labels, confidence = largest(scores, encoded.size)
        labels = labels.masked_fill(~confidence.isfinite(), -1)
        if method.threshold and background is not None:
            labels = labels.masked_fill(confidence < method.threshold, background)
        return Decision(labels, confidence, scores if with_scores else None)

    def _kept(self, planes: Tensor, size: tuple[int, int]) -> Tensor:
        """[K] bool: which classes are somewhere as probable as `prompt_denoising`; all where none is."""
        scores = DenseScores(planes)
        groups = scores.chunks(range(len(planes)), scores.largest(size))
        peak = torch.cat([scores.planes(group, size).flatten(1).amax(1) for group in groups])
        kept = ~(peak < self.prompt_denoising)  # a NaN is kept, to be said
        return kept | ~kept.any()


def whole_strides(size: tuple[int, int], method: Method) -> tuple[int, int]:
    """(H,W) as the windows want it: RADSeg's rule; as it is where the whole picture is one window."""
    if method.crop is None:
        return size
    stride, crop = method.stride, method.crop
    if size[0] % stride == 0 and size[1] % stride == 0:
        return size
    longer = -(-max(size) // stride) * stride
    height, width = (-(-int(side * longer / max(size)) // stride) * stride for side in size)
    return max(height, crop), max(width, crop)
