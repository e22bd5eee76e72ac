"""Ways to look at one picture: a layer, a recombination, another backbone, a method. Each is a feature map.

"4"            X_4, CLIP's tokens after block 4 (the class token left out)
"qq", "kk@3"   W_o·softmax(q qᵀ/√d)·v of CLIP's last block, or of block 3: any two of q, k, v; no residual, no FFN
"dino-b8"      a vision foundation model's patch features
"s2clip"       a method's features in the space where they meet the text, unit length
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.analysis.layers import check_layers, layer_tokens, prepare, vfm_features
from s2clip.analysis.patches import check_patch, patch_at
from s2clip.backbones.vfm import VFM_NAMES
from s2clip.errors import reject
from s2clip.methods.method import TERMS
from s2clip.published.catalogue import METHODS
from s2clip.shelter import sheltered


class View(NamedTuple):
    """What to look at; `block` from 1, None where there is none."""

    name: str
    kind: str
    """layer, term, vfm or method"""
    block: int | None = None


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A view of one picture, which its grid covers whole."""

    name: str
    features: Tensor
    """[h,w,C] float32"""
    queries: Tensor | None = None
    keys: Tensor | None = None
    """[heads,1+h·w,d] of a term "xy": x and y, the class token first"""

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.features.shape[:2])

    def affinity(self, patch: tuple[int, int]) -> np.ndarray:
        """Cosine of a patch (row, column) with all patches, [h,w] in -1..1; `ValueError` outside of the grid."""
        row, column = check_patch(patch, self.grid)
        unit = F.normalize(self.features, dim=-1)
        return (unit @ unit[row, column]).cpu().numpy()

    def attention(self, patch: tuple[int, int]) -> np.ndarray:
        """What the patch attends to, mean over heads of softmax(x yᵀ/√d), [h,w]; what is left to 1 is the class token.

        `ValueError` outside of the grid, or for a view that is no term.
        """
        row, column = check_patch(patch, self.grid)
        if self.queries is None:
            reject("view", "a term, two of q, k, v: attention is theirs", self.name)
        query = self.queries[:, 1 + row * self.grid[1] + column, None]
        scores = query @ self.keys.transpose(1, 2) / self.keys.shape[-1] ** 0.5
        return scores.float().softmax(-1).mean((0, 1))[1:].unflatten(0, self.grid).cpu().numpy()


def parse_view(name: str, clip) -> View:
    """The view that a name stands for. `ValueError` listing what there is, with the range of the blocks."""
    text = name.strip()
    term, at, block = text.partition("@")
    if text.isdecimal():
        return View(text, "layer", check_layers(clip, [int(text)])[0])
    if term in TERMS and (block.isdecimal() or not at):
        return View(text, "term", check_layers(clip, [int(block)])[0] if at else clip.layers)
    if text in VFM_NAMES:
        return View(text, "vfm")
    if text in METHODS:
        return View(text, "method")
    terms = f"two of q, k, v (qk, kk@{clip.layers // 2})"
    expected = f"a block 1..{clip.layers}, {terms}, one of {', '.join(VFM_NAMES)}, or a method: {', '.join(METHODS)}"
    reject("view", expected, repr(name))


@sheltered()
def feature_maps(
    pixels: Tensor,
    views: Sequence[View],
    clip,
    vfms: Mapping[str, torch.nn.Module] | None = None,
    segmenters: Mapping[str, object] | None = None,
    *,
    short_side: int | None = None,
) -> list[FeatureMap]:
    """The views of one picture uint8 [3,H,W].

    Layers, terms and backbones see the whole picture at `short_side` (None: 336, tiny: 64; 0: its own size); methods
    see it through their own windows. vfms, segmenters: the models of the views of that kind, by name.
    """
    images = prepare(pixels, clip, short_side)
    states, grid = layer_tokens(clip, images) if any(view.block for view in views) else ([], None)
    maps = []
    for view in views:
        if view.kind == "layer":
            maps.append(FeatureMap(f"CLIP {view.name}", states[view.block][0, 1:].unflatten(0, grid).float()))
        elif view.kind == "term":
            maps.append(_of_term(view, states[view.block - 1], grid, clip))
        elif view.kind == "vfm":
            maps.append(FeatureMap(view.name, vfm_features(vfms[view.name], images, clip)[0].float()))
        else:
            maps.append(FeatureMap(view.name, method_features(pixels, segmenters[view.name])))
    return maps


def _of_term(view: View, tokens: Tensor, grid: tuple[int, int], clip) -> FeatureMap:
    index = view.block - 1
    parts = dict(zip("qkv", clip.project_qkv(tokens, index), strict=True))
    term = view.name[:2]
    attended = ops.recombined_attention(parts["q"], parts["k"], parts["v"], terms=(term,))
    features = clip.project_attention(attended, index)[0, 1:].unflatten(0, grid).float()
    return FeatureMap(f"CLIP {view.name}", features, parts[term[0]][0].float(), parts[term[1]][0].float())


def method_features(pixels: Tensor, segmenter) -> Tensor:
    """[h,w,C] unit features of the whole picture. A method that merges pixels has its windows spliced here.

    `ValueError` for a method that has no such map.
    """
    encoded = segmenter.encode(pixels)
    if len(encoded.features) > 1 and segmenter.method.extension is None:
        encoded = segmenter.with_method(segmenter.method, merge="splice").encode(pixels)
    if encoded.features.ndim != 4 or len(encoded.features) > 1:
        reject("view", "a method with one feature map of the picture", segmenter.method.name)
    return encoded.features[0].permute(1, 2, 0).float()


def pixel_of(
    size: tuple[int, int], *, patch: tuple[int, int] | None, at: tuple[float, float] | None, grid: tuple[int, int]
) -> tuple[float, float]:
    """(x, y) in pixels of a picture of `size` (H, W): `at` itself, or the middle of a patch of CLIP's grid.

    `ValueError` with the valid range where it is outside.
    """
    if at is not None:
        patch_at(*at, size, grid)
        return at
    row, column = check_patch(patch, grid)
    return (column + 0.5) * size[1] / grid[1], (row + 0.5) * size[0] / grid[0]
