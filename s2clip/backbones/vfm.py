"""Vision foundation models as one function: images [B,3,H,W] -> patch features [B,h,w,C].

DINO and DINOv2 are timm VisionTransformers: patch embedding, positions resampled to the grid, blocks, final norm, and
the prefix (class and register tokens) dropped. Patch and position embedding are done here, not by timm's `_pos_embed`,
which resamples in timm's way only. SAM is its image encoder with the neck, `s2clip.backbones.sam`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from s2clip.backbones import weights as weight_files
from s2clip.backbones.positions import PosEmbedInterp, check_pos_embed_interp, resample_positions
from s2clip.backbones.precision import check_images, freeze, normalise, resolve_device, resolve_dtype
from s2clip.backbones.sam import ALIASES as SAM_ALIASES
from s2clip.backbones.sam import SamFeatures, load_sam
from s2clip.backbones.vision_features import VisionFeatures
from s2clip.backbones.weights import Fingerprint
from s2clip.names import match_name
from s2clip.shelter import sheltered

ARCHITECTURES = {
    "dino-s16": "vit_small_patch16_224.dino",
    "dino-s8": "vit_small_patch8_224.dino",
    "dino-b16": "vit_base_patch16_224.dino",
    "dino-b8": "vit_base_patch8_224.dino",
    "dinov2-s14": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-b14": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-s14-reg4": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2-b14-reg4": "vit_base_patch14_reg4_dinov2.lvd142m",
}
SAM_ENCODERS = ("sam-tiny", "sam-vit-b")
VFM_NAMES = ("tiny-dino", *ARCHITECTURES, *SAM_ENCODERS)


class ViTFeatures(VisionFeatures):
    """A timm VisionTransformer: h = ⌈H/p⌉, w = ⌈W/p⌉.

    A picture whose sides are no multiples of p is first enlarged to the next ones (bilinear), so that the grid covers
    all of it evenly; timm and the papers' code would drop the last rows and columns.
    """

    def __init__(
        self,
        model: VisionTransformer,
        *,
        name: str,
        pos_embed_interp: PosEmbedInterp = "meta",
        fingerprint: Fingerprint | None = None,
    ) -> None:
        super().__init__(model, name, fingerprint)
        check_pos_embed_interp(pos_embed_interp)
        if model.pos_embed is None or model.cls_token is None:
            raise ValueError(f"model: expected a VisionTransformer with class token and learned positions for {name}")
        # Meta trained its register models with timm's resampling.
        self.pos_embed_interp = "timm" if model.reg_token is not None else pos_embed_interp
        self.patch_size = model.patch_embed.patch_size[0]
        self.native_grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
        self.width = model.embed_dim
        config = getattr(model, "pretrained_cfg", None) or {}
        self.register_buffer("mean", torch.tensor(config.get("mean", IMAGENET_DEFAULT_MEAN)), persistent=False)
        self.register_buffer("std", torch.tensor(config.get("std", IMAGENET_DEFAULT_STD)), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        x, grid = self._embed(self._fitted(images))
        return self._patches(self._run_blocks(x), grid)

    def last_projections(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, grid = self._embed(self._fitted(images))
        for block in self.model.blocks[:-1]:
            x = block(x)
        last = self.model.blocks[-1]
        return tuple(self._patches(part, grid) for part in last.attn.qkv(last.norm1(x)).chunk(3, -1))

    def _patches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, self.model.num_prefix_tokens :].unflatten(1, grid)

    def _fitted(self, images: Tensor) -> Tensor:
        """Enlarged until both sides are multiples of the patch."""
        check_images(images)
        size = [-(-side // self.patch_size) * self.patch_size for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
        return images

    def _run_blocks(self, x: Tensor) -> Tensor:
        for block in self.model.blocks:
            x = block(x)
        return self.model.norm(x)

    def compile_blocks(self, **options: Any) -> None:
        self._run_blocks = torch.compile(self._run_blocks, **options)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        model = self.model
        patch_embed = model.patch_embed
        dtype = patch_embed.proj.weight.dtype
        patches = patch_embed.proj(normalise(images, self.mean, self.std).to(dtype))
        grid = (patches.shape[2], patches.shape[3])
        patches = patch_embed.norm(patches.flatten(2).transpose(1, 2))

        table = model.pos_embed[0].float()
        prefix = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
        prefix = torch.cat(prefix).float()
        if not model.no_embed_class:
            rows = len(prefix)
            prefix, table = prefix + table[:rows], table[rows:]
        positions = resample_positions(table, self.native_grid, grid, self.pos_embed_interp)
        x = torch.cat([prefix.expand(len(images), -1, -1), patches + positions], dim=1)  # summed in fp32
        return model.norm_pre(x.to(dtype)), grid


@sheltered()
def load_vfm(
    name: str,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    pos_embed_interp: PosEmbedInterp = "meta",
) -> VisionFeatures:
    """A frozen vision foundation model by name, one of `VFM_NAMES`.

    weights: "pretrained"; "random" (the same ones in every call; output without meaning); or a checkpoint file.
    device, dtype: default CUDA with fp16, or the CPU with fp32.  cache_dir, local_files_only: see `checkpoints`.
    Raises ValueError for unknown names, WeightsError for missing or wrong weights.
    """
    check_pos_embed_interp(pos_embed_interp)
    name = match_name("vfm", name, VFM_NAMES, SAM_ALIASES)
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    if name in SAM_ENCODERS:
        sam = load_sam(
            name,
            weights=weights,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return SamFeatures(sam, name=name)
    if name == "tiny-dino":
        from s2clip.backbones import tiny_dino

        model, fingerprint = weight_files.load_tiny(name, "dino", weights, tiny_dino.load_dino_model)
    else:
        model, fingerprint = weight_files.load(
            name,
            lambda: timm.create_model(ARCHITECTURES[name], pretrained=False, num_classes=0),
            weights,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            adapt=_adapt_dinov2,
        )
    model = freeze(model, device, dtype)
    return ViTFeatures(model, name=name, pos_embed_interp=pos_embed_interp, fingerprint=fingerprint).to(device)


def _adapt_dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's DINOv2 names to timm's: no mask token; register models hold the class position inside the class token."""
    tensors = {key: tensor for key, tensor in tensors.items() if key != "mask_token"}
    if "register_tokens" in tensors:
        tensors["reg_token"] = tensors.pop("register_tokens")
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    return tensors
