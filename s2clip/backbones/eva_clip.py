"""EVA02-CLIP: open_clip's `CustomTextCLIP` around timm's `Eva`, opened up as `s2clip.backbones.clip_tower` opens CLIP.

    q, k turned by their place on the grid (RoPE);  MHA(y) = W_o LN(softmax(q kᵀ/√d) v) + b_o;  FFN a SwiGLU

`project_qkv` gives q and k as the block compares them, turned: every term of a method sees who is near. The turns span
the same angle on any grid, and are computed for it; the learned table is resampled besides.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingCat, apply_rot_embed_cat
from torch import Tensor, nn

from s2clip.backbones.clip_tower import CLIPBackbone
from s2clip.backbones.positions import PosEmbedInterp, resample_positions
from s2clip.backbones.precision import at_least_float32, normalise

_latest = threading.local()
"""The turns [N,2d] of the windows that this thread embedded last: tokens do not say which grid they are of."""


class EvaClip(CLIPBackbone):
    """A frozen EVA02-CLIP; as `CLIPBackbone`, but that a block is asked about the grid that was embedded last."""

    def _describe_tower(self) -> None:
        trunk = self.model.visual.trunk
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        self.native_size: int = trunk.patch_embed.img_size[0]
        self.native_grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.blocks: nn.ModuleList = trunk.blocks
        self.layers = len(self.blocks)
        self.width: int = trunk.embed_dim
        self.heads: int = self.blocks[0].attn.num_heads
        self.embed_dim: int = trunk.head.out_features
        self.rope = _for_any_grid(trunk.rope)

    @property
    def _stem(self) -> Tensor:
        return self.model.visual.trunk.patch_embed.proj.weight

    @property
    def _words(self) -> nn.Module:
        return self.model.text

    @property
    def _end_rule(self) -> tuple[str, int]:
        return self.model.text.pool_type, self.model.text.eos_id

    def embed(
        self, images: Tensor, *, pos_embed_interp: PosEmbedInterp | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        self._check_size(images)
        trunk = self.model.visual.trunk
        patches = trunk.patch_embed.proj(normalise(images, self.mean, self.std).to(self.dtype))
        grid = (patches.shape[2], patches.shape[3])
        table = at_least_float32(trunk.pos_embed[0])
        positions = resample_positions(table[1:], self.native_grid, grid, pos_embed_interp or self.pos_embed_interp)
        patches = patches.flatten(2).transpose(1, 2) + positions
        class_token = (trunk.cls_token[0] + table[:1]).to(patches.dtype).expand(len(images), 1, -1)
        _latest.turns = self.rope.get_embed(shape=grid)
        return trunk.norm_pre(torch.cat([class_token, patches], dim=1).to(self.dtype)), grid

    def _run_blocks(self, x: Tensor) -> list[Tensor]:
        return self._run_turned(x, _latest.turns)

    def _run_turned(self, x: Tensor, turns: Tensor) -> list[Tensor]:
        states = [x]
        for block in self.blocks[:-1]:
            states.append(block(states[-1], rope=turns))
        return states

    def compile_blocks(self, **options: Any) -> None:
        self._run_turned = torch.compile(self._run_turned, **options)

    def block(self, x: Tensor, index: int) -> Tensor:
        return self.blocks[index](x, rope=_latest.turns)

    def first_norm(self, x: Tensor, index: int = -1) -> Tensor:
        return self.blocks[index].norm1(x)

    def project_qkv(self, x: Tensor, index: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """As `CLIPBackbone.project_qkv`: CLS, the N patches of the grid that was embedded last, then others, which are
        not turned; or the patches alone."""
        attention, normed = self.blocks[index].attn, self.first_norm(x, index)
        query, key = (self._heads(projection(normed)) for projection in (attention.q_proj, attention.k_proj))
        value = self._heads(attention.v_proj(normed))
        return self._turn(query), self._turn(key), value

    def project_value(self, x: Tensor, index: int = -1) -> Tensor:
        return self._heads(self.blocks[index].attn.v_proj(self.first_norm(x, index)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _turn(self, vectors: Tensor) -> Tensor:
        turns, tokens = _latest.turns, vectors.shape[2]
        if tokens < len(turns):
            raise RuntimeError(f"{self.name}: {tokens} tokens of a grid of {len(turns)} patches")
        first = 0 if tokens == len(turns) else 1
        before, patches, after = vectors.split([first, len(turns), tokens - len(turns) - first], dim=2)
        return torch.cat([before, apply_rot_embed_cat(patches, turns).to(vectors.dtype), after], dim=2)

    def project_attention(self, heads_out: Tensor, index: int = -1) -> Tensor:
        block = self.blocks[index]
        joined = heads_out.transpose(1, 2).flatten(2).to(self.dtype)
        output = block.attn.proj(block.attn.norm(joined))
        return output if block.gamma_1 is None else block.gamma_1 * output

    def feed_forward(self, x: Tensor, index: int = -1) -> Tensor:
        block = self.blocks[index]
        output = block.mlp(block.norm2(x))
        return output if block.gamma_2 is None else block.gamma_2 * output

    def head(self, x: Tensor) -> Tensor:
        trunk = self.model.visual.trunk
        return F.linear(trunk.norm(x.to(self.dtype)), trunk.head.weight, trunk.head.bias)


def _for_any_grid(rope: RotaryEmbeddingCat) -> RotaryEmbeddingCat:
    """The same turns, without those of one grid kept."""
    return RotaryEmbeddingCat(
        dim=rope.dim,
        temperature=rope.temperature,
        in_pixels=rope.in_pixels,
        ref_feat_shape=rope.ref_feat_shape,
        grid_offset=rope.grid_offset,
        grid_indexing=rope.grid_indexing,
        rotate_half=rope.rotate_half,
    )
