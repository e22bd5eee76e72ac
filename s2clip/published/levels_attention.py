"""CLIP's early features through its last block, pooled by the attention of all blocks (CLIPer, arXiv:2411.13836).

    N_i = LN1_i(X_{i-1}) for i < L,  N_L = X_{L-1}          the input of block i, as the block sees it
    v_i = values of LN1_L(N_i) in the last block            early features are normalised twice
    A   = Σ_{i<L} softmax(q_i k_iᵀ/√d) per head, CLS included
    f_i = W_o(Ã_i v_i),  Ã_i of A after i balancing steps

A step divides columns by their sums, then rows by theirs (Sinkhorn). Ã is A made symmetric, less each column's mean,
cut at 0, rows divided by their sums. CLIPer balances in place, so the i-th feature sees i steps and the last one L;
that is kept. Maps of all blocks are added up as they come: H·T² numbers in all (H heads, T tokens), and as many again
for a few heads at a time while they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.backbones.precision import at_least_float32
from s2clip.errors import reject
from s2clip.pictures.windows import cut_windows, window_boxes

if TYPE_CHECKING:
    from s2clip.backbones.clip import CLIPBackbone

GROUP = 1 << 24
"""Numbers of the maps of the heads that are worked on at once: 64 MiB in fp32, a few times over."""
OWN_TOKEN = 1e-30
"""Added to a map's diagonal: nothing beside an attention, and all there is in a row that was cut to zeros."""


def level_features(clip: CLIPBackbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """images [n,3,H,W] in [0,1], sides multiples of the patch → (f [n,L,D,h,w], attention [n,N,N]), N = h·w patches.

    Positions are resampled bilinearly, as published. The attention is Ã_L without CLS, mean over the heads, rows not
    divided again; it and the maps are at least fp32.
    """
    x, grid = clip.embed(images, pos_embed_interp="bilinear")
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(len(x), clip.heads, x.shape[1], x.shape[1], dtype=dtype, device=x.device)
    values = []
    for index in range(clip.layers - 1):
        values.append(clip.project_value(clip.first_norm(x, index)))
        x = x + clip.project_attention(_attend(*clip.project_qkv(x, index), total), index)
        x = x + clip.feed_forward(x, index)
    values.append(clip.project_value(x))

    mixed = [torch.empty_like(value) for value in values]
    patches = x.shape[1] - 1
    attention = torch.zeros(len(x), patches, patches, dtype=dtype, device=x.device)
    for image, part in _groups(total):
        balanced = total[image, part]
        for value, output in zip(values, mixed, strict=True):
            balance_(balanced)
            sharp = sharpen(balanced)
            output[image, part] = (sharp @ value[image, part].to(dtype)).to(output.dtype)
        attention[image] += sharp[:, 1:, 1:].sum(0)
    features = torch.stack([clip.project_attention(output)[:, 1:] for output in mixed], 1)
    return features.mT.unflatten(3, grid), attention / clip.heads


def crop_features(clip: CLIPBackbone, image: Tensor, crop: int, stride: int, max_batch: int) -> Tensor:
    """Features of overlapping windows as one picture's: image [3,H,W] → [L,C,N], at least fp32, not normalised.

    U·B, U the unit features of the windows averaged on the patch grid, B their attention averaged over the windows that
    hold both patches, rows divided by their sums. Logits are linear in the features: as many products as there are
    words are not made here. Raises ValueError where crop or stride is no multiple of the patch.
    """
    patch = clip.patch_size
    for name, value in (("sliding_crop", crop), ("sliding_stride", stride)):
        if value % patch:
            reject(name, f"a multiple of {patch}, the patch of {clip.name}", value)
    boxes = window_boxes(image.shape[1], image.shape[2], crop, stride)
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    cells = torch.arange(rows * columns, device=image.device).view(rows, columns)
    kind = {"dtype": torch.promote_types(clip.dtype, torch.float32), "device": image.device}
    total = torch.zeros(clip.layers, clip.embed_dim, rows * columns, **kind)
    pairs = torch.zeros(rows * columns, rows * columns, **kind)
    hits, pair_hits = torch.zeros_like(pairs[0]), torch.zeros_like(pairs)
    for start in range(0, len(boxes), max_batch):
        part = boxes[start : start + max_batch]
        features, attention = level_features(clip, cut_windows(image, part, patch, clip.mean.flatten()))
        unit = F.normalize(at_least_float32(clip.head(features.movedim(2, -1))), dim=-1).movedim(-1, 2).flatten(3)
        for box, own, own_attention in zip(part, unit, attention, strict=True):
            top, left, bottom, right = (side // patch for side in box)
            inside = cells[top:bottom, left:right].flatten()
            total[..., inside] += own
            hits[inside] += 1
            pairs[inside[:, None], inside] += own_attention.to(pairs.dtype)
            pair_hits[inside[:, None], inside] += 1
    pairs /= pair_hits.clamp_min(1)
    pairs.diagonal().add_(OWN_TOKEN)
    return (total / hits) @ (pairs / pairs.sum(1, keepdim=True))


def balance_(maps: Tensor) -> None:
    """One Sinkhorn step in place: maps [...,T,T], columns divided by their sums, then rows by theirs."""
    maps /= maps.sum(-2, keepdim=True)
    maps /= maps.sum(-1, keepdim=True)


def sharpen(maps: Tensor) -> Tensor:
    """Ã of maps [...,T,T]."""
    symmetric = (maps + maps.mT) / 2
    symmetric -= symmetric.mean(-2, keepdim=True)
    symmetric.clamp_(min=0).diagonal(dim1=-2, dim2=-1).add_(OWN_TOKEN)
    return symmetric / symmetric.sum(-1, keepdim=True)


def _attend(query: Tensor, key: Tensor, value: Tensor, total: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v, each [n,heads,T,d]; the maps are added to `total` [n,heads,T,T]."""
    output = torch.empty_like(value)
    for image, part in _groups(total):
        scores = query[image, part].to(total.dtype) @ key[image, part].to(total.dtype).mT
        maps = scores.mul_(query.shape[-1] ** -0.5).softmax(-1)
        total[image, part] += maps
        output[image, part] = maps.to(value.dtype) @ value[image, part]
    return output


def _groups(total: Tensor) -> Iterator[tuple[int, slice]]:
    """(image, some of its heads) whose maps hold at most `GROUP` numbers."""
    images, heads, tokens, _ = total.shape
    step = max(1, GROUP // tokens**2)
    for image in range(images):
        for start in range(0, heads, step):
            yield image, slice(start, start + step)
