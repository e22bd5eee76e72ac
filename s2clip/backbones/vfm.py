"""Vision foundation models as one function: images [B,3,H,W] -> patch features [B,h,w,C].

Which there are: `s2clip/data/models.yaml`. DINO, DINOv2 and C-RADIO are timm VisionTransformers: patch embedding,
positions resampled to the grid, blocks, final norm, and the prefix (class and register tokens) dropped. Patch and
position embedding are done here, not by timm's `_pos_embed`, which resamples in timm's way only. DINOv3 and PE-Spatial
turn queries and keys: `s2clip.backbones.rotary_features`. SAM is its image encoder with the neck,
`s2clip.backbones.sam`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from s2clip.backbones import weights as weight_files
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.positions import PosEmbedInterp, check_pos_embed_interp, resample_positions
from s2clip.backbones.precision import at_least_float32, freeze, normalise, resolve_device, resolve_dtype
from s2clip.backbones.rotary_features import RotaryFeatures, build_rotary
from s2clip.backbones.sam import ALIASES as SAM_ALIASES
from s2clip.backbones.sam import SamFeatures, load_sam
from s2clip.backbones.vision_features import VisionFeatures, fitted, pixel_statistics
from s2clip.backbones.weights import Fingerprint
from s2clip.names import match_name
from s2clip.shelter import sheltered

ARCHITECTURES = {name: row.architecture for name, row in MODELS["vision"].items()}
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
        own = model.reg_token is not None and not pos_embed_interp.startswith("radio")
        self.pos_embed_interp = "timm" if own else pos_embed_interp
        self.patch_size = model.patch_embed.patch_size[0]
        self.native_grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
        self.width = model.embed_dim
        mean, std = pixel_statistics(name, model)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        x, grid = self._embed(fitted(images, self.patch_size))
        return self._patches(self._run_blocks(x), grid)

    def last_projections(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, grid = self._embed(fitted(images, self.patch_size))
        for block in self.model.blocks[:-1]:
            x = block(x)
        last = self.model.blocks[-1]
        return tuple(self._patches(part, grid) for part in last.attn.qkv(last.norm1(x)).chunk(3, -1))

    def _patches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens[:, self.model.num_prefix_tokens :].unflatten(1, grid)

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

        table = at_least_float32(model.pos_embed[0])
        prefix = [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
        prefix = at_least_float32(torch.cat(prefix))
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
        row = None
    else:
        row = MODELS["vision"][name]
        build, adapt = FAMILIES[row.family]
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "adapt": adapt}
        model, fingerprint = weight_files.load(name, lambda: build(row.architecture), weights, **options)
    model = freeze(model, device, dtype)
    if row is not None and row.family == "rotary":
        return RotaryFeatures(model, name=name, fingerprint=fingerprint).to(device)
    if row is not None and row.positions is not None:
        pos_embed_interp = row.positions
    return ViTFeatures(model, name=name, pos_embed_interp=pos_embed_interp, fingerprint=fingerprint).to(device)


def _adapt_dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's DINOv2 names to timm's: no mask token; register models hold the class position inside the class token."""
    tensors = {key: tensor for key, tensor in tensors.items() if key != "mask_token"}
    if "register_tokens" in tensors:
        tensors["reg_token"] = tensors.pop("register_tokens")
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    return tensors


def _adapt_radio(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """NVIDIA's C-RADIO names to timm's; its input statistics, summary rows and adaptor heads are left out.

    Patches are embedded by a matrix there, by a convolution here; the first summary token is CLS, the others registers.
    """
    prefix, adapted = "radio_model.model.", {}
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        if name == "patch_generator.embedder.weight":
            side = round((tensor.shape[1] / 3) ** 0.5)
            adapted["patch_embed.proj.weight"] = tensor.unflatten(1, (3, side, side))
            adapted["patch_embed.proj.bias"] = torch.zeros_like(tensor[:, 0])
        elif name == "patch_generator.pos_embed":
            adapted["pos_embed"] = tensor
        elif name == "patch_generator.cls_token.token":
            adapted["cls_token"], adapted["reg_token"] = tensor[None, :1], tensor[None, 1:]
        elif name.startswith("blocks.") and key.startswith(prefix):
            adapted[name.replace(".grandma", ".gamma")] = tensor
        elif not key.startswith("radio_model."):
            adapted[key] = tensor  # not NVIDIA's layout: the comparison of names will say so
    return adapted


def _build_vit(architecture: str) -> VisionTransformer:
    return timm.create_model(architecture, pretrained=False, num_classes=0)


def _build_radio(architecture: str) -> VisionTransformer:
    """With the published position table of 128×128, not timm's of 32×32."""
    return timm.create_model(architecture, pretrained=False, num_classes=0, img_size=2048)


FAMILIES = {"vit": (_build_vit, _adapt_dinov2), "rotary": (build_rotary, dict), "radio": (_build_radio, _adapt_radio)}
"""Family in the table → (architecture's name → model, published tensors → the model's)."""
