"""SAM's automatic masks: a point on each place of a grid, masks that SAM is sure of, none twice.

The generator of segment_anything by its published rules, on our decoder: every place may have three masks (whole, part,
part of a part), of which those stay whose predicted IoU exceeds `iou_threshold` and whose stability, the ratio of the
areas above +`offset` and above −`offset`, reaches `stability_threshold`; of masks whose boxes overlap the best stays.
Masks are kept as SAM's low-resolution logits, 256 KB each, until they are painted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from s2clip.backbones.sam import AnySam, encode_images, frame_of, share_embeddings
from s2clip.backbones.sam2 import NAMES as SAM2_NAMES
from s2clip.errors import reject
from s2clip.refinement.decoder import THREE_MASKS, decode_masks
from s2clip.refinement.prompts import Prompts
from s2clip.shelter import sheltered
from s2clip.values import is_real, is_whole

POINTS = 64
"""Prompts whose masks are sifted together: 48 MB of logits in the released models."""
PIXELS = 1 << 24
"""Pixels of masks at the picture's size at a time: 64 MB in fp32."""


@dataclass(frozen=True, kw_only=True)
class AutomaticMasks:
    """Settings of the generator; the defaults are segment_anything's."""

    points_per_side: int = 32
    """>= 1: the grid's places in a row and in a column."""
    iou_threshold: float = 0.88
    """Masks count if SAM predicts an IoU above this."""
    stability_threshold: float = 0.95
    """0..1: and if moving the logits' threshold by `offset` either way leaves this share of them."""
    offset: float = 1.0
    """[stability_score_offset] >= 0, logits."""
    box_overlap: float = 0.7
    """[box_nms_thresh] 0..1: of two masks whose boxes overlap more (IoU), the one of lower predicted IoU goes."""
    large_on_top: bool = False
    """Paint large masks last, so that they hide small ones: what CorrCLIP publishes (B-27 of the ledger)."""

    def __post_init__(self) -> None:
        rules = {
            "points_per_side": (lambda value: is_whole(value) and value >= 1, "a whole number >= 1"),
            "iou_threshold": (is_real, "a number"),
            "stability_threshold": (lambda value: is_real(value) and 0 <= value <= 1, "a number in 0..1"),
            "offset": (lambda value: is_real(value) and value >= 0, "a number >= 0"),
            "box_overlap": (lambda value: is_real(value) and 0 <= value <= 1, "a number in 0..1"),
            "large_on_top": (lambda value: isinstance(value, bool), "True or False"),
        }
        for field in fields(self):
            allowed, expected = rules[field.name]
            if not allowed(value := getattr(self, field.name)):
                reject(f"AutomaticMasks.{field.name}", expected, repr(value))


# Shortly trained, and less sure of a point than of a box. CorrCLIP with these masks makes 84 mIoU on scenes 300 to 319,
# with thresholds of 0.5 75 and of 0.3 67, because a wrong mask costs all of its pixels.
RECIPES = {"sam-tiny": AutomaticMasks(points_per_side=12, iou_threshold=0.6, stability_threshold=0.6)}
RECIPES |= dict.fromkeys(SAM2_NAMES, AutomaticMasks(iou_threshold=0.8))  # the default of SAM 2's own generator


def resolve_automatic(sam: str, options: AutomaticMasks | Mapping[str, Any] | None) -> AutomaticMasks:
    """The settings as given, or the SAM's recipe with some fields replaced. `ValueError` for unknown fields."""
    if isinstance(options, AutomaticMasks):
        return options
    valid = [field.name for field in fields(AutomaticMasks)]
    for name in options or ():
        if name not in valid:
            reject("region_options", f"the fields {', '.join(valid)}", repr(name))
    return replace(RECIPES.get(sam, AutomaticMasks()), **(options or {}))


class Masks(NamedTuple):
    """R masks of one picture, by falling predicted IoU."""

    logits: Tensor  # [R,m,m]
    predicted_iou: Tensor  # [R]
    stability: Tensor  # [R]
    boxes: Tensor  # [R,4] x0, y0, x1, y1, inclusive pixel indices
    area: Tensor  # [R] int64 pixels


@sheltered()
def generate_masks(sam: AnySam, picture: Tensor, settings: AutomaticMasks) -> tuple[Masks, tuple[int, int]]:
    """uint8 [3,H,W] → (its masks, (H',W') of the picture in SAM's frame)."""
    size = (picture.shape[1], picture.shape[2])
    features, input_size = encode_images(sam, picture.to(sam.device)[None].float() / 255)
    points = _grid(settings.points_per_side, input_size).to(sam.device)
    found = []
    for some in points.split(POINTS):
        index = torch.zeros(len(some), dtype=torch.int64, device=sam.device)
        logits, predicted_iou = decode_masks(sam, features, Prompts(None, some, None, index, index), THREE_MASKS)
        sure = predicted_iou > settings.iou_threshold
        found.append(_stable(logits[sure], predicted_iou[sure], input_size, size, sam, settings))
    masks = Masks(*(torch.cat(column) for column in zip(*found, strict=True)))
    kept = nms(masks.boxes.float(), masks.predicted_iou, settings.box_overlap)
    return Masks(*(column[kept] for column in masks)), input_size


def paint(masks: Masks, sam: AnySam, input_size: tuple[int, int], size: tuple[int, int], large_on_top: bool) -> Tensor:
    """Ids int64 [H,W]: 1..R by the order of painting, 0 where no mask is. Large masks first unless `large_on_top`."""
    ids = torch.zeros(size, dtype=torch.int64, device=masks.logits.device)
    order = masks.area.argsort(descending=not large_on_top, stable=True)
    number = 0
    for part in at_full_size(masks.logits[order], input_size, size, sam):
        for mask in part > 0:
            number += 1
            ids.masked_fill_(mask, number)
    return ids


def at_full_size(logits: Tensor, input_size: tuple[int, int], size: tuple[int, int], sam: AnySam) -> Iterator[Tensor]:
    """[R,m,m] → parts [r,H,W] of what they are at the picture's size, in order."""
    frame = frame_of(sam)
    for part in logits.split(max(1, PIXELS // max(frame**2, size[0] * size[1]))):
        padded = F.interpolate(part[:, None], (frame, frame), mode="bilinear", align_corners=False)
        yield F.interpolate(
            padded[..., : input_size[0], : input_size[1]], size, mode="bilinear", align_corners=False
        ).squeeze(1)


def _grid(side: int, input_size: tuple[int, int]) -> Tensor:
    """[side²,2] x, y in the frame: middles of side² equal parts of the picture, row by row."""
    place = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(place * input_size[0], place * input_size[1], indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _stable(
    logits: Tensor,
    predicted_iou: Tensor,
    input_size: tuple[int, int],
    size: tuple[int, int],
    sam: AnySam,
    settings: AutomaticMasks,
) -> Masks:
    """Those of R masks that are stable and not empty, with their boxes and areas."""
    stability, area = logits.new_empty(len(logits)), torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    boxes = logits.new_zeros(len(logits), 4)
    start = 0
    for part in at_full_size(logits, input_size, size, sam):
        own = slice(start, start := start + len(part))
        inner, outer = ((part > bound).sum((1, 2)) for bound in (settings.offset, -settings.offset))
        stability[own], area[own] = inner / outer, (part > 0).sum((1, 2))
        some = area[own] > 0
        boxes[own][some] = masks_to_boxes(part[some] > 0)
    kept = (stability >= settings.stability_threshold) & (area > 0)
    return Masks(logits[kept], predicted_iou[kept], stability[kept], boxes[kept], area[kept])


class SamRegions:
    """Region ids of pictures by SAM's automatic masks: a `RegionSource`."""

    def __init__(self, sam: AnySam, settings: AutomaticMasks, name: str = "") -> None:
        """sam: from `load_sam`; it remembers the last pictures, for whoever asks for their embeddings again."""
        self.sam, self.settings, self.name = sam, settings, name
        if getattr(sam, "seen", None) is None:
            share_embeddings(sam)

    def __call__(self, pixels: Tensor, source: str | None = None) -> Tensor:
        """uint8 [3,H,W] → ids int64 [H,W] on the CPU, 0 where SAM has no mask."""
        masks, input_size = generate_masks(self.sam, pixels, self.settings)
        size = (pixels.shape[1], pixels.shape[2])
        with sheltered():
            return paint(masks, self.sam, input_size, size, self.settings.large_on_top).cpu()

    @property
    def described(self) -> dict[str, Any]:
        """For run.json: which SAM, of which weights, with which settings."""
        return {"sam": self.name, "sha256": self.sam.fingerprint.sha256, **asdict(self.settings)}
