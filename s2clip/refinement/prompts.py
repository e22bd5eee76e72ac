"""Coarse map → regions → SAM's prompts, at half resolution and without a host round trip but one.

Algorithm 4 of the source around Algorithm 3, with one labelling of the whole class map in place of one per class.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.backbones.sam import input_size
from s2clip.decision.scores import DenseScores, ScoreMaps, half_size
from s2clip.errors import reject
from s2clip.ops import Components
from s2clip.pictures.windows import nearest
from s2clip.refinement.settings import Refinement

Fit = Callable[[tuple[int, int], int], tuple[int, int]]
"""A picture's (H,W) and the side of a square → what the picture takes of it."""


class Regions(NamedTuple):
    """The R regions of one picture that become prompts, by class and then in raster order of their first pixels."""

    components: Components  # at half resolution; label is the value in `labels`
    labels: Tensor  # [h,w] int32, 1..R in raster order, 0 outside
    classes: tuple[int, ...]  # n classes with regions, ascending
    counts: tuple[int, ...]  # regions of each, sum R

    def __len__(self) -> int:
        return sum(self.counts)


class Prompts(NamedTuple):
    """R prompts in pixels of SAM's frame; what is not used is None."""

    boxes: Tensor | None  # [R,4] fp32 x0, y0, x1, y1
    points: Tensor | None  # [R,2] fp32 x, y
    masks: Tensor | None  # [n,m,m] fp32, one for all regions of a class
    mask_index: Tensor  # [R] int64 0..n−1
    image_index: Tensor  # [R] int64, which embedding

    def __len__(self) -> int:
        return len(self.mask_index)


def half_resolution(labels: Tensor, scores: ScoreMaps, settings: Refinement) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """labels [H,W] → (class map int32 [h,w] with K where void, own score [h,w], peak [K], sound []).

    Void: labels outside of 0..K−1, max_c P_c under the coarse threshold, and the last class unless it is to be split.
    sound is False where a score is not finite.
    """
    unknown = scores.classes
    class_map = nearest(labels, half_size(labels.shape)).to(torch.int32)
    best, own, peak = scores.summary(class_map)
    void = (class_map < 0) | (class_map >= (unknown if settings.split_last else unknown - 1))
    if settings.coarse_threshold > 0:
        void |= best < settings.coarse_threshold
    return class_map.masked_fill(void, unknown), own, peak, best.isfinite().all()


def find_regions(labels: Tensor, scores: ScoreMaps, settings: Refinement) -> Regions:
    """The regions of a coarse map [H,W] that become prompts: Algorithm 3.

    Connected (8) at half resolution, of a class whose best score reaches the coarse threshold, of the minimal area or
    more. Small ones go before anything is measured: which labels stay is decided on the device, and then the host reads
    how many regions each class has, once.
    Raises ValueError for scores that are not finite.
    """
    unknown = scores.classes
    class_map, own, peak, sound = half_resolution(labels, scores, settings)
    if settings.use_components:
        numbered, _ = ops.label_components(class_map, ignore_index=unknown)
    else:
        numbered = torch.where(class_map == unknown, 0, class_map + 1)
    numbered, counts = drop_regions(numbered, class_map, peak >= settings.coarse_threshold, settings.minimal_area)

    *per_class, sound = torch.cat([counts, sound.long()[None]]).tolist()
    if not sound:
        reject("scores", "finite class scores", "NaN or infinity")
    classes = tuple(index for index, count in enumerate(per_class) if count)
    # A pixel's own score is all that is asked for: one plane serves every class.
    found = ops.measure_components(
        numbered[None], torch.zeros_like(numbered)[None], own[None, None], count=[sum(per_class)]
    )
    x, y = found.point.long().unbind(1)
    found = found._replace(class_index=class_map[y, x])
    order = found.class_index.argsort(stable=True)
    components = Components(*(column[order] for column in found))
    return Regions(components, numbered, classes, tuple(per_class[index] for index in classes))


def drop_regions(labels: Tensor, class_map: Tensor, allowed: Tensor, minimal_area: int) -> tuple[Tensor, Tensor]:
    """Regions of a class that is not allowed [K], or of a smaller area, become 0, the others 1..R in the same order.

    labels, class_map [h,w], the same class (0..K−1, K outside) under each label. Returns labels int32 [h,w] and the
    number of regions per class, int64 [K], on the device.
    """
    classes = len(allowed)
    # A device is not asked: there are at most as many labels as pixels (or classes).
    slots = 1 + (int(labels.max()) if labels.device.type == "cpu" else max(labels.numel(), classes))
    pixels = labels.flatten().long()
    area = torch.zeros(slots, dtype=torch.int32, device=pixels.device)
    area.scatter_add_(0, pixels, torch.ones_like(area[:1]).expand_as(pixels))
    class_of = torch.full((slots,), classes, dtype=torch.int64, device=pixels.device)
    class_of.scatter_(0, pixels, class_map.flatten().long())
    kept = (area >= max(minimal_area, 1)) & torch.cat([allowed, torch.zeros_like(allowed[:1])])[class_of]
    kept[0] = False
    counts = torch.zeros(classes + 1, dtype=torch.int64, device=pixels.device).scatter_add_(0, class_of, kept.long())
    renumbered = torch.where(kept, kept.cumsum(0, dtype=torch.int32), 0)
    return renumbered[pixels].view(labels.shape), counts[:classes]


def make_prompts(
    regions: Regions,
    scores: ScoreMaps,
    size: tuple[int, int],
    frame: int,
    mask_side: int,
    settings: Refinement,
    image_index: int = 0,
    fit: Fit = input_size,
) -> Prompts:
    """Regions of a picture that SAM saw at `size` → prompts in its frame of `frame` pixels, masks of `mask_side`."""
    device = scores.device
    half = tuple(regions.labels.shape)
    height, width = fit(half if settings.faithful else size, frame)
    factor = torch.tensor([width / half[1], height / half[0]]).to(device, non_blocking=True)
    classes = torch.tensor(regions.counts, dtype=torch.int64).to(device, non_blocking=True)
    return Prompts(
        boxes=regions.components.box * factor.repeat(2) if settings.use_box else None,
        points=regions.components.point * factor if settings.use_point else None,
        masks=mask_prompts(scores, regions.classes, half, size, mask_side, settings, fit)
        if settings.use_mask
        else None,
        mask_index=torch.arange(len(classes), device=device).repeat_interleave(classes, output_size=len(regions)),
        image_index=torch.full((len(regions),), image_index, dtype=torch.int64, device=device),
    )


def mask_prompts(
    scores: ScoreMaps,
    classes: Sequence[int],
    half: tuple[int, int],
    size: tuple[int, int],
    side: int,
    settings: Refinement,
    fit: Fit = input_size,
) -> Tensor:
    """[n,side,side]: τ_m·P_c where P_c > τ_c, else 0; fitted as the picture (bilinear), zeros right and below."""
    height, width = fit(size, side)
    prompts = torch.zeros(len(classes), side, side, device=scores.device)
    start = 0
    for group in scores.chunks(classes, scores.largest(half)):
        planes = scores.planes(group, half)[None].float()
        small = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0]
        hint = torch.where(small > settings.coarse_threshold, small * settings.mask_scale, 0)
        prompts[start : start + len(group), :height, :width] = hint
        start += len(group)
    return prompts


def published_scores(scores: ScoreMaps, size: tuple[int, int]) -> DenseScores:
    """All classes at full size, as Algorithms 2 and 4 are given them."""
    return DenseScores(scores.planes(range(scores.classes), size))
