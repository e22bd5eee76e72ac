"""Regions by EoMT (Kerssies et al. 2025, arXiv:2503.19108): a plain ViT that names masks in one pass, by transformers.

The picture is scaled to fit a square of 640, zeros right and below. Each of 200 queries has a mask and a class; those
whose class is surer than `score_threshold` are kept, a pixel is of the query with the largest score · σ(mask), and of
none where that mask is below ½ there. Only the masks are taken: what they are called is for the words to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2clip.backbones import weights as weight_files
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.precision import freeze, normalise, resolve_device, resolve_dtype
from s2clip.backbones.sam import input_size
from s2clip.errors import MissingExtraError, reject
from s2clip.shelter import sheltered
from s2clip.values import is_real

LABELS = 133
"""Things and stuff of COCO's panoptic set; their names are not used."""
NAMES = tuple(name for name, row in MODELS["masks"].items() if row.family == "eomt")
TRAINING = "criterion.empty_weight"
"""A buffer of the training's loss, which a file has or not."""


@dataclass(frozen=True, kw_only=True)
class EomtMasks:
    """Settings; the defaults are those of its panoptic post-processing in transformers."""

    score_threshold: float = 0.8
    """0..1: probability of a query's class."""
    mask_threshold: float = 0.5
    """0..1: σ of a mask, inside of it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (is_real(value) and 0 <= value <= 1):
                reject(f"EomtMasks.{field.name}", "a number in 0..1", repr(value))


def build_eomt(name: str) -> nn.Module:
    """The architecture of a row; `MissingExtraError` without transformers."""
    try:
        from transformers import EomtConfig, EomtForUniversalSegmentation
    except ImportError as error:
        raise MissingExtraError(f"{name}: needs transformers: pip install 's2clip[eomt]'") from error
    row = MODELS["masks"][name]
    return EomtForUniversalSegmentation(EomtConfig(image_size=row.native, patch_size=row.patch, num_labels=LABELS))


class EomtRegions:
    """Region ids of pictures: a `RegionSource`."""

    def __init__(self, model: nn.Module, settings: EomtMasks, *, name: str, fingerprint: Any) -> None:
        self.model, self.settings, self.name, self._fingerprint = model, settings, name, fingerprint
        row = MODELS["masks"][name]
        self.mean, self.std = torch.tensor(row.mean), torch.tensor(row.std)

    @torch.no_grad()
    @sheltered()
    def __call__(self, pixels: Tensor, source: str | None = None) -> Tensor:
        """uint8 [3,H,W] → ids int64 [H,W] on the CPU, 1 and up by the order of the queries, 0 where no mask is."""
        size, frame = (pixels.shape[1], pixels.shape[2]), self.model.config.image_size
        weight = self.model.embeddings.patch_embeddings.projection.weight
        inner = input_size(size, frame)
        image = pixels.to(weight.device)[None].float() / 255
        image = F.interpolate(image, inner, mode="bilinear", align_corners=False, antialias=True)
        image = normalise(image, self.mean.to(image), self.std.to(image))
        image = F.pad(image, (0, frame - inner[1], 0, frame - inner[0]))
        answer = self.model(pixel_values=image.to(weight.dtype))
        masks = F.interpolate(answer.masks_queries_logits.float(), (frame, frame), mode="bilinear", align_corners=False)
        masks = F.interpolate(masks[..., : inner[0], : inner[1]], size, mode="bilinear", align_corners=False)[0]
        return paint(masks, answer.class_queries_logits[0].float(), self.settings).cpu()

    @property
    def described(self) -> dict[str, Any]:
        """For run.json: which model, of which weights, with which settings."""
        return {"masks": self.name, "sha256": self._fingerprint.sha256, **asdict(self.settings)}


def paint(masks: Tensor, classes: Tensor, settings: EomtMasks) -> Tensor:
    """Mask logits [Q,H,W] and class logits [Q,K+1], the last one for none → ids int64 [H,W]."""
    score, chosen = classes.softmax(-1).max(-1)
    kept = (chosen < classes.shape[1] - 1) & (score > settings.score_threshold)
    ids = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device)
    if not kept.any():
        return ids
    inside = masks[kept].sigmoid()
    best = (score[kept][:, None, None] * inside).argmax(0)
    sure = inside.gather(0, best[None])[0] >= settings.mask_threshold
    return torch.where(sure, best + 1, ids)


def load_eomt(
    name: str,
    options: EomtMasks | Mapping[str, Any] | None = None,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> EomtRegions:
    """A source of regions by name, one of `NAMES`; options as the other loaders'. Raises as they do."""
    settings = options if isinstance(options, EomtMasks) else _settings(options)
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)

    def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {TRAINING: torch.ones(LABELS + 1), **tensors}

    where = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    model, fingerprint = weight_files.load(name, lambda: build_eomt(name), weights, adapt=adapt, **where)
    return EomtRegions(freeze(model, device, dtype), settings, name=name, fingerprint=fingerprint)


def _settings(options: Mapping[str, Any] | None) -> EomtMasks:
    valid = [field.name for field in fields(EomtMasks)]
    for name in options or ():
        if name not in valid:
            reject("region_options", f"the fields {', '.join(valid)}", repr(name))
    return replace(EomtMasks(), **(options or {}))
