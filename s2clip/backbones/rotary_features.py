"""DINOv3 and PE-Spatial: timm's `Eva`, whose attention turns queries and keys by their place on the grid (RoPE).

The turns are computed for any grid, no table is resampled for them; PE-Spatial has a learned table besides, resampled
as timm does. CLS and registers come first, are not turned, and are dropped by the model's own count.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.eva import Eva
from torch import Tensor

from s2clip.backbones.positions import resample_positions
from s2clip.backbones.precision import at_least_float32, normalise
from s2clip.backbones.vision_features import VisionFeatures, fitted, pixel_statistics
from s2clip.backbones.weights import Fingerprint


class RotaryFeatures(VisionFeatures):
    """A timm `Eva`: h = ⌈H/p⌉, w = ⌈W/p⌉; other sides are first enlarged as for `s2clip.backbones.vfm.ViTFeatures`."""

    def __init__(self, model: Eva, *, name: str, fingerprint: Fingerprint | None = None) -> None:
        super().__init__(model, name, fingerprint)
        self.patch_size = model.patch_embed.patch_size[0]
        self.native_grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
        self.width = model.embed_dim
        mean, std = pixel_statistics(name, model)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        x, rope, grid = self._embed(fitted(images, self.patch_size))
        return self._patches(self._run_blocks(x, rope), grid)

    def last_projections(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Before they are turned: where a patch lies is no part of what it looks like."""
        x, rope, grid = self._embed(fitted(images, self.patch_size))
        for block in self.model.blocks[:-1]:
            x = block(x, rope=rope)
        last = self.model.blocks[-1]
        return tuple(self._patches(part, grid) for part in last.attn.qkv(last.norm1(x)).chunk(3, -1))

    def _patches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, self.model.num_prefix_tokens :].unflatten(1, grid)

    def _run_blocks(self, x: Tensor, rope: Tensor) -> Tensor:
        for block in self.model.blocks:
            x = block(x, rope=rope)
        return self.model.norm(x)

    def compile_blocks(self, **options: Any) -> None:
        self._run_blocks = torch.compile(self._run_blocks, **options)

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """X_0 [B,P+N,C], the turns of each patch, and the grid."""
        model = self.model
        projection = model.patch_embed.proj
        patches = projection(normalise(images, self.mean, self.std).to(projection.weight.dtype))
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        prefix = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
        prefix = at_least_float32(torch.cat(prefix))
        if model.pos_embed is not None:
            table, count = at_least_float32(model.pos_embed[0]), len(prefix)
            prefix = prefix + table[:count]
            patches = patches + resample_positions(table[count:], self.native_grid, grid, "timm")
        x = torch.cat([prefix.expand(len(images), -1, -1), at_least_float32(patches)], 1)  # not summed in half
        return model.norm_pre(x.to(projection.weight.dtype)), model.rope.get_embed(shape=grid), grid


def build_rotary(architecture: str) -> Eva:
    """timm's architecture, with the turns computed for any grid."""
    return timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True)
