"""GEM (Bousselham et al. 2024, arXiv:2312.00878): self-self attention along a second path (`two_paths`).

Per head, for each a among q, k, v of Y = LN1(X_{l-1}), with â its rows made unit vectors:

    τ   = (mean over tokens of ‖Y_i‖)/√d, one for each picture
    a   ← softmax(τ â âᵀ) â, `iterations` times;      A_a = softmax(τ â âᵀ)
    S_l = S_{l-1} + W_o·(A_q v + A_k v + A_v v)/3,    the last 6 blocks (the published argument "depth 7" means six)

The picture is made square, bicubic with antialias, whatever its ratio, and positions are resampled alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.encoding.hooks import WindowFeatures
from s2clip.published.extension import OWN_LAST_BLOCK, Extension
from s2clip.published.two_paths import resolve_depth, second_path
from s2clip.values import is_whole

if TYPE_CHECKING:
    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Gem(Extension):
    """`Method.short_side` is the side of the square; None keeps the picture as it is."""

    kind: str = field(default="gem", init=False)

    depth: int | None = None
    """Blocks with a second path, 1..L; None: the published 6, at most the model's."""
    iterations: int = 1
    """[ss_attn_iter] >= 0: how often q, k and v are replaced by their own self-attention."""
    square: bool = True
    """Resize to a square, as published; False: keep the ratio."""

    requires: ClassVar[Mapping[str, Any]] = OWN_LAST_BLOCK

    def __post_init__(self) -> None:
        depth, iterations = self.depth, self.iterations
        self._require(depth is None or (is_whole(depth) and depth >= 1), "depth", "None or at least 1")
        self._require(is_whole(iterations) and iterations >= 0, "iterations", "a whole number >= 0")
        self._require(isinstance(self.square, bool), "square", "True or False")

    def prepare(self, picture: Tensor, method: Method, multiple: int) -> Tensor:
        if not self.square or method.short_side is None:
            return super().prepare(picture, method, multiple)
        side = max(round(method.short_side / multiple), 1) * multiple
        image = picture[None].float() / 255
        return F.interpolate(image, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        clip = models.clip
        with watch("clip"):
            states, grid = clip.hidden_states(batch.images, pos_embed_interp="timm")

        def attend(tokens: Tensor, index: int) -> Tensor:
            return clip.project_attention(self_self_attention(clip, tokens, index, self.iterations), index)

        with watch("recombination"):
            path = second_path(states, resolve_depth(self.depth, clip.layers), attend)
        return WindowFeatures(path[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2))


def self_self_attention(clip: CLIPBackbone, tokens: Tensor, index: int, iterations: int) -> Tensor:
    """(A_q v + A_k v + A_v v)/3 of block `index` (from 0) on tokens [B,T,D] → [B,heads,T,d].

    q, k and v stand one after the other in the batch, and √τ is part of the vectors: one softmax per call then does.
    """
    query, key, value = clip.project_qkv(tokens, index)
    norms = _precise(clip.first_norm(tokens, index)).norm(dim=-1).mean(1)
    root = (norms / math.sqrt(value.shape[-1])).sqrt().repeat(3)[:, None, None, None]
    vectors = torch.cat([query, key, value])
    for _ in range(iterations):
        unit = _unit(vectors)
        vectors = _attention((root * unit).to(value.dtype), unit.to(value.dtype))
    mixed = _attention((root * _unit(vectors)).to(value.dtype), value.repeat(3, 1, 1, 1))
    return mixed.unflatten(0, (3, -1)).mean(0)


def _precise(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(_precise(vectors), dim=-1)


def _attention(vectors: Tensor, value: Tensor) -> Tensor:
    return ops.recombined_attention(vectors, vectors, value, terms=("qq",), scale=1.0)
