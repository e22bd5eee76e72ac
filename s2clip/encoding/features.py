"""A batch of windows to patch features: the levels, the last block's recombination, the affinity.

Formulas: the docstring of `s2clip.methods`. Every window is computed on its own: nothing is averaged over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.encoding.flow import attention_flow
from s2clip.encoding.rotation import rotated_attention
from s2clip.errors import reject
from s2clip.stopwatch import Stopwatch

if TYPE_CHECKING:
    from s2clip.methods.method import Method


def patch_features(
    images: Tensor, method: Method, clip, vfm=None, watch: Stopwatch | None = None, flow: list[Tensor] | None = None
) -> Tensor:
    """Patch features before the vision head, by the method's fields alone; an extension may call it.

    images [B,3,H,W] RGB in [0,1], of which CLIP sees whole patches → F [B,D,h,w] in CLIP's width D. The grid h x w is
    the VFM's where one takes part, CLIP's (H/patch x W/patch) otherwise. `clip` is a `CLIPBackbone`, `vfm` a
    `VisionFeatures`, needed where `method.uses_vfm`; `ValueError` where it is missing. flow: is given what
    `s2clip.encoding.flow` makes of CLIP's attention, [B,N,N].
    """
    if method.uses_vfm and vfm is None:
        reject("vfm", f"a vision foundation model for method {method.name}", None)
    watch = watch or Stopwatch(images.device)
    with watch("clip"):
        states, grid = clip.hidden_states(whole_patches(images, clip.patch_size))
    if flow is not None:
        with watch("purification"):
            flow.append(attention_flow(clip, states))
    levels = maps = scores = weights = proxy = None
    if method.uses_levels:
        with watch("levels"):
            levels = torch.stack([states[level] for level in method.resolve_levels(len(states))])  # [S,B,1+N,D]
            maps = levels[:, :, 1:].unflatten(2, grid)
            scores = level_scores(maps, method.tau)
            weights = scores.softmax(1)
    with watch("recombination"):
        features = recombine(clip, states[-1], method, grid)
    if levels is not None and method.mu > 0:
        with watch("levels"):
            patches = hierarchical_tokens(maps, scores, method).flatten(1, 2)
            cls = (weights.T[..., None] * levels[:, :, 0]).sum(0)
            hierarchy = torch.cat([cls[:, None], patches], 1).to(states[-1].dtype)
        with watch("recombination"):
            features = features + method.mu * recombine(clip, hierarchy, method, grid)
    features = features.unflatten(1, grid)
    if method.uses_vfm:
        with watch("vfm"):
            proxy = vfm.features(vfm_view(images, method, vfm))
    if method.vfm_weight is not None:
        with watch("affinity"):
            features = aggregate(features, proxy, maps, weights, method)
    return features.permute(0, 3, 1, 2)


def level_scores(maps: Tensor, tau: float) -> Tensor:
    """-H/τ [B,S] of S maps [S,B,h,w,D], H their spatial entropy. ω is the softmax of it: ordered maps weigh more."""
    entropy = ops.spatial_entropy(maps.flatten(0, 1).permute(0, 3, 1, 2))
    return entropy.unflatten(0, maps.shape[:2]).T / -tau


def hierarchical_tokens(maps: Tensor, scores: Tensor, method: Method) -> Tensor:
    """M = Σ ω_l T_l, S maps [S,B,h,w,D] from shallow to deep and their scores [B,S] → [B,h,w,D].

    Progressive: T_l is level l smoothed by the affinity of the levels up to it, their weights renormalised. Else X_l.
    """
    if method.progressive:
        return ops.progressive_affinity(maps, maps, scores, beta=method.beta, gamma=method.gamma)
    return (scores.softmax(1).T[..., None, None, None] * maps).sum(0)


def recombine(clip, tokens: Tensor, method: Method, grid: tuple[int, int]) -> Tensor:
    """R(X): the last block on tokens [B,1+N,D], CLS first, with the method's attention → patches [B,N,D]."""
    if not method.cls_token:
        tokens = tokens[:, 1:]
    query, key, value = clip.project_qkv(tokens)
    if method.terms:
        bias = None
        if method.gaussian_sigma is not None:
            bias = gaussian_bias(grid, method.gaussian_sigma, cls_token=method.cls_token, device=tokens.device)
        if method.key_rotation is not None:
            options = {"cls_token": method.cls_token, "bias": bias}
            value = rotated_attention(query, key, value, method.key_rotation, **options)
        else:
            value = ops.recombined_attention(query, key, value, terms=method.terms, weights=method.weights, bias=bias)
    output = clip.project_attention(value)
    if method.residual:
        output = tokens + output
    if method.feed_forward:
        output = output + clip.feed_forward(output)
    return output[:, 1:] if method.cls_token else output


def gaussian_bias(
    grid: tuple[int, int], sigma: float, *, cls_token: bool, device: torch.device | str = "cpu"
) -> Tensor:
    """exp(-d²/2σ²) of the distance d, in patches, of each two cells of the grid; zero in CLS's row and column."""
    falls = []
    for length in grid:
        place = torch.arange(length, device=device, dtype=torch.float32)
        falls.append(torch.exp(-((place[:, None] - place[None]) ** 2) / (2 * sigma**2)))
    bias = torch.kron(*falls)
    return F.pad(bias, (1, 0, 1, 0)) if cls_token else bias


def aggregate(
    value: Tensor, proxy: Tensor | None, maps: Tensor | None, weights: Tensor | None, method: Method
) -> Tensor:
    """Affinity λ·VFM + (1-λ)·Σ ω_l·level_l applied to the value [B,h,w,D] → [B,H,W,D], on the VFM's grid if any.

    proxy [B,H,W,C] or None; maps [S,B,h,w,D] and weights [B,S] of the levels or None. The levels are resampled to the
    VFM's grid (bilinear) before their vectors are normalised.
    """
    share = method.vfm_weight
    if proxy is None:
        return _affinity(maps.unbind(0), weights, value, method)
    if share == 1:
        return _affinity([proxy], torch.ones_like(proxy[:, 0, 0, :1], dtype=torch.float32), value, method)
    size = tuple(proxy.shape[1:3])
    levels = maps if maps.shape[2:4] == size else _resample(maps, size)
    weights = torch.cat([torch.full_like(weights[:, :1], share), weights * (1 - share)], 1)
    return _affinity([proxy, *levels.unbind(0)], weights, value, method)


def _affinity(maps: Sequence[Tensor], weights: Tensor, value: Tensor, method: Method) -> Tensor:
    maps = [features.to(value.dtype) for features in maps]
    return ops.affinity_attention(maps, value, weights=weights, beta=method.beta, gamma=method.gamma)


def whole_patches(images: Tensor, patch: int) -> Tensor:
    """[B,3,H,W] without what is beyond the last whole patch: what a convolution of that stride leaves out."""
    height, width = images.shape[-2:]
    return images[..., : height // patch * patch, : width // patch * patch]


def vfm_view(images: Tensor, method: Method, vfm) -> Tensor:
    """The windows as the VFM is shown them: enlarged, and of whole patches where `Method.pad_multiple` says so."""
    images = enlarge(images, method.vfm_scale)
    return images if method.pad_multiple is None else whole_patches(images, vfm.patch_size)


def enlarge(images: Tensor, scale: float) -> Tensor:
    """[B,3,H,W] with sides `scale` times as long, rounded, bilinear."""
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _resample(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """[S,B,h,w,D] to [S,B,*size,D]: all levels in one call, so that they lie evenly in one memory."""
    flat = levels.flatten(0, 1).permute(0, 3, 1, 2)
    resized = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).unflatten(0, levels.shape[:2])
