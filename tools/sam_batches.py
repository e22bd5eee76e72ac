"""Pictures with prompts and the masks they should give, for training the tiny SAM (train_sam.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from coarse_prompts import best_point, coarse_probabilities, components, mask_prompt, tight_box
from scene_pool import crop, scene_pool
from torch import Tensor

from s2clip.backbones.sam import input_size
from s2clip.scenes import CLASSES, FIRST_TRAINING_SEED

AREAS = ((96, 128),) * 8 + ((128, 128), (128, 96))
SEGMENTS = 16  # ids of a picture, 0 for what is left after the 15 largest


@dataclass(frozen=True)
class Prompted:
    """One picture's prompts, in pixels of SAM's frame."""

    boxes: Tensor  # [R,4]
    points: Tensor  # [R,2]
    masks: Tensor  # [R,1,m,m]
    targets: Tensor  # [R,h,w] 0..1, on the logits' grid, without the frame's padding
    weights: Tensor  # [R,h,w], larger within a pixel of a target's border


@dataclass(frozen=True)
class Sample:
    images: Tensor  # [B,3,S,S] normalised
    prompts: list[Prompted]
    segments: Tensor  # [B,H',W'] int64, the components of the true labels inside the frame


def segment_under(region: np.ndarray, index: int, parts: list) -> np.ndarray:
    """The true mask that a region of class `index` stands for: its class's components that it covers well; else the
    segment it nearly is; else nothing. parts: (class, mask, mask at half size, its area)."""
    area, covered, target = region.sum(), 0, None
    best, best_iou = None, 0.0
    for part_class, full, half, half_area in parts:
        shared = (half & region).sum()
        if not shared:
            continue
        if part_class == index and (shared > 0.3 * half_area or shared > 0.3 * area):
            target = full if target is None else target | full
            covered += shared
        iou = shared / (area + half_area - shared)
        if iou > best_iou:
            best, best_iou = full, iou
    if target is not None and covered > 0.2 * area:
        return target
    return best if best_iou > 0.45 else np.zeros_like(parts[0][1])


class Scenes:
    """Training scenes, with simulated coarse maps or with maps of real methods (tools/coarse_maps.py)."""

    def __init__(
        self, count: int, frame: int, mask_side: int, maps: Path | None, cache: Path | None, generator
    ) -> None:
        self.images, self.labels = scene_pool(FIRST_TRAINING_SEED, count, cache=cache)
        self.frame, self.mask_side, self.generator = frame, mask_side, generator
        self.maps = None
        if maps:
            stored = np.load(maps)  # of the first scenes
            self.maps = torch.from_numpy(stored["scores"]), stored["labels"].astype(np.int64)
        self.order, self.next = generator.permutation(count), 0

    def sample(self, batch: int, rows: int, mean: Tensor, std: Tensor) -> Sample:
        rng = self.generator
        h, w = AREAS[rng.integers(len(AREAS))]
        real = self.maps is not None and (h, w) == (96, 128) and rng.random() < 0.45
        whole = real or ((h, w) == (96, 128) and rng.random() < 0.6)
        if real:
            chosen = rng.integers(len(self.maps[0]), size=batch)
        else:
            chosen = self.order[(self.next + np.arange(batch)) % len(self.order)]
            self.next += batch
        flipped = torch.from_numpy(rng.random(batch) < 0.5)
        images, truth = self._cut(chosen, flipped, (h, w), whole)
        if rng.random() < 0.5:
            images = (images * (0.85 + 0.3 * torch.rand(batch, 3, 1, 1))).clamp(0, 255)
        half = (h // 2, w // 2)
        if real:
            probability = self.maps[0][chosen].float() / 255
            coarse = torch.from_numpy(self.maps[1][chosen])
            probability[flipped], coarse[flipped] = probability[flipped].flip(-1), coarse[flipped].flip(-1)
        else:
            probability = coarse_probabilities(
                truth,
                len(CLASSES),
                cell=int(rng.choice([4, 6, 8, 8, 12, 16])),
                sharpness=rng.uniform(4.0, 10),
                noise=rng.uniform(0, 1.6),
                drift=rng.uniform(0, 2.0),
                missing=0.08,
            )
            probability = F.interpolate(probability, size=half, mode="bilinear", align_corners=False)
            coarse = probability.argmax(1)
        inner = input_size((h, w), self.frame)
        if inner != (h, w):
            images = F.interpolate(images, size=inner, mode="bilinear", antialias=True)
        inside = F.pad(torch.ones(inner), (0, self.frame - inner[1], 0, self.frame - inner[0]))
        images = (F.pad(images, (0, self.frame - inner[1], 0, self.frame - inner[0])) - mean) / std * inside
        threshold = 0.1 if rng.random() < 0.6 else rng.uniform(0.02, 0.3)
        prompts, segments = [], []
        for own_truth, own_coarse, own_probability in zip(truth, coarse, probability, strict=True):
            found = sorted(components(own_truth.numpy(), 1), key=lambda one: -one[1].sum())
            ids = np.zeros((h, w), np.float32)
            for number, (_, mask) in enumerate(found[: SEGMENTS - 1]):
                ids[mask] = number + 1
            segments.append(torch.from_numpy(ids))
            drawn = self._draw(own_coarse.numpy(), own_probability.numpy(), found, rows)
            prompts.append(self._prompted(drawn, own_probability, threshold, inner))
        segments = F.interpolate(torch.stack(segments)[:, None], size=inner, mode="nearest-exact")[:, 0].long()
        return Sample(images, prompts, segments)

    def _cut(self, chosen, flipped: Tensor, size: tuple[int, int], whole: bool) -> tuple[Tensor, Tensor]:
        images, labels = self.images[chosen].float(), self.labels[chosen]
        if whole:
            images[flipped], labels[flipped] = images[flipped].flip(-1), labels[flipped].flip(-1)
            return images, labels.long()
        rng, (h, w), (height, width) = self.generator, size, images.shape[-2:]
        zoom = torch.from_numpy(np.where(rng.random(len(chosen)) < 0.4, 1.0, 0.6 + 0.4 * rng.random(len(chosen))))
        zoom = min(height / h, width / w) * zoom.float()
        half = torch.stack([zoom * w / width, zoom * h / height], 1)
        centre = (2 * torch.rand(len(chosen), 2) - 1) * (1 - half)
        half[:, 0] *= torch.where(flipped, -1.0, 1.0)
        truth = crop(labels[:, None].float(), centre, half, size, mode="nearest")[:, 0].long()
        return crop(images, centre, half, size), truth

    def _draw(self, coarse: np.ndarray, probability: np.ndarray, found: list, rows: int) -> list:
        """`rows` of (class, box, point, target): up to three quarters the regions of the coarse map as the refinement
        finds them, then all of a class at once, exact boxes and shaken ones of true components."""
        rng, (h, w) = self.generator, found[0][1].shape
        half = (h // 2, w // 2)
        parts = [(c, m, m[::2, ::2][: half[0], : half[1]]) for c, m in found if m.sum() >= 12]
        parts = [(c, m, small, small.sum()) for c, m, small in parts]
        scale = np.array([w / half[1], h / half[0]] * 2, np.float32)
        drawn = []
        for index, mask in components(coarse, int(rng.choice([6, 10, 16]))):
            box, point = tight_box(mask) * scale, best_point(mask, probability[index]) * scale[:2]
            drawn.append((index, box, point, segment_under(mask, index, parts)))
        rng.shuffle(drawn)
        drawn = drawn[: int(0.75 * rows)]
        large = [part for part in parts if part[1].sum() >= 30] or parts
        while len(drawn) < rows:
            kind = rng.random()
            if kind < 0.12:
                index = int(rng.choice(np.unique(coarse)))
                mask = coarse == index
                target = np.zeros((h, w), bool)
                for part_class, full, small, area in parts:
                    if part_class == index and (small & mask).sum() > 0.3 * area:
                        target |= full
                if target.any():
                    box, point = tight_box(mask) * scale, best_point(mask, probability[index]) * scale[:2]
                    drawn.append((index, box, point, target))
                continue
            index, mask, _, _ = large[rng.integers(len(large))]
            box = tight_box(mask)
            if kind > 0.72:
                sides = np.tile(box[2:] - box[:2], 2)
                box = box + rng.normal(0, 0.05, 4) * sides + rng.uniform(-1, 1, 4)
            rows_, columns = np.nonzero(mask)
            place = rng.integers(len(rows_))
            box = np.clip(box, 0, [w - 1, h - 1, w - 1, h - 1]).astype(np.float32)
            drawn.append((index, box, np.array([columns[place], rows_[place]], np.float32), mask))
        return drawn

    def _prompted(self, drawn: list, probability: Tensor, threshold: float, inner: tuple[int, int]) -> Prompted:
        classes, boxes, points, targets = zip(*drawn, strict=True)
        target = torch.from_numpy(np.stack(targets)).float()
        size = tuple(target.shape[1:])
        logits = tuple(-(-side * self.mask_side // self.frame) for side in inner)
        if logits != size:
            target = F.interpolate(target[:, None], size=logits, mode="bilinear", antialias=True)[:, 0]
        border = F.max_pool2d(target[:, None], 3, 1, 1) + F.max_pool2d(-target[:, None], 3, 1, 1)
        weights = 1 + 3 * border[:, 0]
        scale = self.frame / max(size)
        return Prompted(
            torch.from_numpy(np.stack(boxes)) * scale,
            torch.from_numpy(np.stack(points)) * scale,
            mask_prompt(probability[list(classes)], self.mask_side, threshold),
            target,
            1.3 * weights / weights.mean((1, 2), keepdim=True),
        )
