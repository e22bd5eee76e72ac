"""The attention of SAM's last encoder block, beside the embedding, from one pass of the encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from s2clip.backbones.sam import preprocess


class LastAttention(NamedTuple):
    """P = softmax(scale·Q Kᵀ + b), half made: all rows of it would be 805 MB in ViT-B.

    b_ij = rows[i, y_j] + columns[i, x_j] for a key in row y_j and column x_j of the frame: SAM's decomposed relative
    positions. Zeros where a model has none.
    """

    query: Tensor  # [heads,N,d], N = g·g cells of the frame, padding included
    key: Tensor  # [heads,N,d]
    value: Tensor  # [heads,N,d]
    rows: Tensor  # [heads,N,g]
    columns: Tensor  # [heads,N,g]
    scale: float

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows.shape[-1], self.columns.shape[-1]

    def probability(self, cells: Tensor, dtype: torch.dtype) -> Tensor:
        """P of these queries [n] over all keys: [heads,n,g,g], each [g,g] of sum 1."""
        query = self.query[:, cells].to(dtype) * self.scale
        scores = (query @ self.key.to(dtype).mT).unflatten(2, self.grid)
        scores += self.rows[:, cells].to(dtype)[..., :, None]
        scores += self.columns[:, cells].to(dtype)[..., None, :]
        return scores.flatten(2).softmax(2).unflatten(2, self.grid)


def encode_with_attention(sam: Sam, image: Tensor) -> tuple[Tensor, LastAttention, tuple[int, int]]:
    """image [3,H,W] in [0,1] → (embedding [1,C,g,g] fp32 and (H',W'), both as `encode_images`; the last attention).

    Raises ValueError for an encoder whose last block sees windows only; those of the released models see everything.
    """
    encoder = sam.image_encoder
    last = encoder.blocks[-1]
    if last.window_size > 0:
        raise ValueError(f"sam: expected global attention in the last block, received windows of {last.window_size}")
    frames, size = preprocess(sam, image[None])
    x = encoder.patch_embed(frames.to(encoder.patch_embed.proj.weight.dtype))
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks[:-1]:
        x = block(x)
    attention = _project(last.attn, last.norm1(x)[0])
    embedding = encoder.neck(last(x).permute(0, 3, 1, 2)).float()
    return embedding, attention, size


def value_features(sam: Sam, images: Tensor) -> Tensor:
    """v̂ of the last block's heads side by side: images [B,3,H,W] in [0,1] → [B,h,w,heads·d], at least fp32.

    Each head's vectors have length 1, so that cosines of these features are the mean over heads of v̂^a_i · v̂^a_j, which
    Trident's correlation is cut by. The h×w cells lie inside the picture, as there.
    """
    maps = []
    for image in images:
        _, attention, inner = encode_with_attention(sam, image)
        cell = sam.image_encoder.patch_embed.proj.kernel_size[0]
        value = attention.value.to(torch.promote_types(attention.value.dtype, torch.float32))
        unit = F.normalize(value, dim=-1).transpose(0, 1).flatten(1).unflatten(0, attention.grid)
        maps.append(unit[: max(inner[0] // cell, 1), : max(inner[1] // cell, 1)])
    return torch.stack(maps)


def _project(attention: torch.nn.Module, tokens: Tensor) -> LastAttention:
    """tokens [g,g,D] after the norm. A query meets the position tables unscaled, as in SAM."""
    height, width, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(height * width, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(1, 2, 0, 3).unbind(0)
    rows, columns = (query.new_zeros(*query.shape[:2], side) for side in (height, width))
    if attention.use_rel_pos:
        folded = query.unflatten(1, (height, width))
        rows = torch.einsum("hyxd,ykd->hyxk", folded, _offsets(attention.rel_pos_h, height)).flatten(1, 2)
        columns = torch.einsum("hyxd,xkd->hyxk", folded, _offsets(attention.rel_pos_w, width)).flatten(1, 2)
    return LastAttention(query, key, value, rows, columns, attention.scale)


def _offsets(table: Tensor, side: int) -> Tensor:
    """table [2·side−1,d], one vector per offset −(side−1)..side−1 → [side,side,d], entry (i, k) that of i − k."""
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place[None] + side - 1]
