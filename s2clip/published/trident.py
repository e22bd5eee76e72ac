"""Trident (Shi et al. 2024, arXiv:2411.09219): windows spliced on DINO's grid, then SAM's attention over the picture.

    per window   U = W_o·v + b_o, v the values of LN1(X_{L-1});  F_w = A_w·resize(U), A_w the softmax of DINO's
                 affinity, cut at β times its mean over all windows of the picture
    picture      F = mean of the F_w on the patch grid;  G = A·resize(F), A SAM's correlation (`sam_correlation`)
    then         LN_post(G)·P, cosines, softmax, threshold: the shared path

CLS takes no part in the last block. Rows of A_w sum to 1 and resizing is linear, so W_o and b_o can come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.encoding.features import recombine
from s2clip.encoding.hooks import PictureFeatures, WindowFeatures
from s2clip.pictures.windows import resize
from s2clip.published.extension import Extension
from s2clip.published.sam_correlation import correlate
from s2clip.values import is_real

if TYPE_CHECKING:
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Trident(Extension):
    """Both stages of Trident; its refinement is `refine="trident"`, or "sam" for the same at once."""

    kind: str = field(default="trident", init=False)

    cosine_factor: float = 1.2
    """[φ, cos_fac] >= 0: SAM's pairs count above this times a cell's mean cosine; 0 on VOC20, 3 on Cityscapes."""
    neg_threshold_floor: float | None = None
    """In place of a threshold below 0; None leaves it. The published flag `refine_neg_cos` reads the other way round:
    False, on ADE20K and Cityscapes, is 0.6 here."""
    halves: bool = False
    """SAM sees the left and the right half of the picture, each at its full frame, as on Cityscapes."""

    needs_vfm: ClassVar[bool] = True
    needs_sam: ClassVar[bool] = True
    whole_picture: ClassVar[bool] = True
    requires: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"merge": "splice", "vfm_weight": 1.0, "vfm_scale": 1.0, "levels": ()}
    )
    default_vfm: ClassVar[str] = "dino-b16"

    def __post_init__(self) -> None:
        factor, floor = self.cosine_factor, self.neg_threshold_floor
        self._require(is_real(factor) and factor >= 0, "cosine_factor", "a finite number >= 0")
        self._require(floor is None or (is_real(floor) and 0 <= floor <= 1), "neg_threshold_floor", "None or 0 to 1")
        self._require(isinstance(self.halves, bool), "halves", "True or False")

    def prepare(self, picture: Tensor, method: Method, multiple: int) -> Tensor:
        """Resized as every picture, and again to multiples of the patch: 448x597 → 464x608."""
        resized = super().prepare(picture, method, 1)
        size = aligned_size(*resized.shape[1:], multiple, method.crop or 0)
        if size == tuple(resized.shape[1:]):
            return resized
        return F.interpolate(resized[None], size, mode="bilinear", align_corners=False)[0]

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        """F_w of all windows of one picture."""
        values, proxies = [], []
        for images in batch.images.split(batch.max_batch):
            with watch("clip"):
                states, grid = models.clip.hidden_states(images)
            with watch("recombination"):
                values.append(recombine(models.clip, states[-1], method, grid).unflatten(1, grid))
            with watch("vfm"):
                proxies.append(models.vfm.features(images).to(values[-1].dtype))
        settings = {"beta": method.beta, "gamma": method.gamma}
        with watch("affinity"):
            mean = torch.cat([mean_similarity(proxy) for proxy in proxies]).mean()
            maps = [
                ops.affinity_attention(proxy, value, mean=mean.expand(len(value)), **settings)
                for proxy, value in zip(proxies, values, strict=True)
            ]
        return WindowFeatures(torch.cat(maps).permute(0, 3, 1, 2))

    def picture_features(
        self, maps: Tensor, picture: Tensor, models: Models, method: Method, watch: Stopwatch
    ) -> PictureFeatures:
        """G of the spliced F, on SAM's grid."""
        from s2clip.backbones.sam import Embedding
        from s2clip.backbones.sam_attention import encode_with_attention

        patch, parts = models.clip.patch_size, 2 if self.halves else 1
        size = (_ceil(picture.shape[1], patch), _ceil(picture.shape[2], patch * parts))
        image = resize(picture.to(models.sam.device), size, rounded=method.round_pixels)
        columns = -(-maps.shape[2] // parts)  # of an odd number of columns both halves get the middle one
        cell = models.sam.image_encoder.patch_embed.proj.kernel_size[0]
        mixed = []
        for index, half in enumerate(image.chunk(parts, 2)):
            with watch("sam_encoder"):
                features, attention, inner = encode_with_attention(models.sam, half)
            with watch("correlation"):
                valid = valid_grid(inner, cell)
                start = index * (maps.shape[2] - columns)
                own = maps[:, :, start : start + columns]
                factors = {"cosine_factor": self.cosine_factor, "neg_threshold_floor": self.neg_threshold_floor}
                mixed.append(correlate(attention, valid, own, **factors))
        embedding = None if self.halves else Embedding(features, inner, size)
        return PictureFeatures(torch.cat(mixed, 2), embedding)


def aligned_size(height: int, width: int, patch: int, crop: int) -> tuple[int, int]:
    """Sides as they are where both are multiples of the patch; else the long one up to the next, the short one along.

    Both are rounded up to a multiple after that, and to at least `crop`.
    """
    if height % patch == 0 and width % patch == 0:
        return height, width
    long = max(height, width)
    sides = (-(-side * _ceil(long, patch) // (long * patch)) * patch for side in (height, width))
    return tuple(max(side, crop) for side in sides)


def valid_grid(inner: tuple[int, int], cell: int) -> tuple[int, int]:
    """Rows and columns of SAM's cells that lie inside a picture of H'xW' frame pixels: 768x1024 → 48x64."""
    return max(inner[0] // cell, 1), max(inner[1] // cell, 1)


def mean_similarity(features: Tensor) -> Tensor:
    """mean_ij f̂_i·f̂_j = ‖mean_i f̂_i‖² of maps [n,h,w,C] → [n], in at least fp32."""
    unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    return unit.flatten(1, 2).mean(1).square().sum(1)


def _ceil(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
