"""What every vision foundation model is to the rest: images [B,3,H,W] -> patch features [B,h,w,C]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from s2clip.backbones.model_table import MODELS
from s2clip.backbones.precision import at_least_float32, check_images
from s2clip.backbones.weights import Fingerprint
from s2clip.errors import reject


class VisionFeatures(nn.Module):
    """A frozen vision model that gives one feature per patch.

    name: as in `VFM_NAMES`.  patch_size: pixels per patch side.  width: C, feature size.
    weights_sha256: of the file that was loaded, "random" for random weights.
    """

    name: str
    patch_size: int
    width: int

    def __init__(self, model: nn.Module, name: str, fingerprint: Fingerprint | None) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self._fingerprint = fingerprint or Fingerprint(model)

    def compile_blocks(self, **options: Any) -> None:
        """Have torch.compile, with these options, fuse what lies between the matrix products; compiled when first run.

        A second batch size is compiled once more, for any.
        """
        raise NotImplementedError

    @property
    def weights_sha256(self) -> str:
        return self._fingerprint.sha256

    @property
    def dtype(self) -> torch.dtype:
        return self._projection.dtype

    @property
    def device(self) -> torch.device:
        return self._projection.device

    @property
    def _projection(self) -> Tensor:
        return self.model.patch_embed.proj.weight

    def features(self, images: Tensor) -> Tensor:
        """Patch features after the last norm: images [B,3,H,W] in [0,1] -> [B,h,w,C], rows top to bottom."""
        raise NotImplementedError

    def last_projections(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the last block, heads joined, each [B,h,w,C]. ValueError for a model that is no plain ViT."""
        reject("vfm", "a DINO or DINOv2 for its last block's queries and keys", repr(self.name))


def pixel_statistics(name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixels in [0,1]: of the table of models, else those the model was built with, else ImageNet's."""
    row = MODELS["vision"].get(name)
    if row is not None:
        return row.mean, row.std
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("mean", IMAGENET_DEFAULT_MEAN), config.get("std", IMAGENET_DEFAULT_STD)


def fitted(images: Tensor, patch: int) -> Tensor:
    """images [B,3,H,W], enlarged (bilinear) until both sides are multiples of the patch."""
    check_images(images)
    size = [-(-side // patch) * patch for side in images.shape[-2:]]
    if size != list(images.shape[-2:]):
        images = F.interpolate(at_least_float32(images), size=size, mode="bilinear", align_corners=False)
    return images
