"""Coarse class maps as an open-vocabulary model gives them, made from true labels, and SAM prompts for their regions.

The tiny SAM is trained, and measured, on the prompts that the refinement stage will give it: a region of a blocky,
noisy class map as box and best point, the class's probability times 0.005 as mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

EIGHT = np.ones((3, 3), bool)  # connectivity
MASK_PROMPT_SCALE = 0.005


@dataclass(frozen=True)
class Prompt:
    """One region of a class map [h,w] and what SAM should make of it."""

    class_index: int
    box: np.ndarray  # x0, y0, x1, y1: inclusive pixel indices
    point: np.ndarray  # x, y
    target: np.ndarray | None  # bool [h,w]; None if nothing true lies under the region


def coarse_probabilities(
    labels: Tensor, classes: int, cell: int, sharpness: float, noise: float, drift: float, missing: float = 0.0
) -> Tensor:
    """Labels [B,h,w] -> probabilities [B,K,h,w] of a map computed on cells of `cell` pixels.

    A cell's logits are sharpness x (its share of each class) plus noise per cell (`noise`) and over wide areas
    (`drift`); a class of a scene is overlooked with probability `missing`. Logits are interpolated, then softmax, as
    the pipeline does.
    """
    b, h, w = labels.shape
    onehot = F.one_hot(labels, classes).permute(0, 3, 1, 2).float()
    grid = (max(1, h // cell), max(1, w // cell))
    share = F.adaptive_avg_pool2d(onehot, grid)
    wide = F.interpolate(torch.randn(b, classes, 4, 4), size=grid, mode="bicubic", align_corners=False)
    overlooked = (torch.rand(b, classes, 1, 1) < missing).float()
    logits = sharpness * share * (1 - 0.7 * overlooked) + noise * torch.randn_like(share) + drift * wide
    return F.interpolate(logits, size=(h, w), mode="bilinear", align_corners=False).softmax(1)


def components(labels: np.ndarray, minimal_area: int) -> list[tuple[int, np.ndarray]]:
    """(class, bool [h,w]) of every 8-connected component of at least `minimal_area` pixels."""
    found = []
    for index in np.unique(labels):
        numbered, _ = ndimage.label(labels == index, EIGHT)
        areas = np.bincount(numbered.ravel())
        found += [(int(index), numbered == n) for n in range(1, len(areas)) if areas[n] >= minimal_area]
    return found


def tight_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def best_point(mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    y, x = divmod(int(np.where(mask, probability, -1.0).argmax()), mask.shape[1])
    return np.array([x, y], np.float32)


def true_mask(region: np.ndarray, index: int, truth: np.ndarray, parts: list[tuple[int, np.ndarray]]):
    """The true mask a region stands for: parts of its class that it covers well; None if there is none.

    The class is the region's own if that holds 30 % of it, else the most frequent one inside it: SAM knows no classes,
    it should find the thing that is there.
    """
    counts = np.bincount(truth[region], minlength=index + 1)
    if counts[index] < 0.3 * region.sum():
        index = int(counts.argmax())
    target = np.zeros_like(region)
    area = region.sum()
    for part_class, part in parts:
        if part_class == index:
            shared = (part & region).sum()
            if shared > 0.3 * part.sum() or shared > 0.4 * area:
                target |= part
    union = (target | region).sum()
    return target if (target & region).sum() > 0.15 * union else None


def mask_prompt(probability: Tensor, size: int, threshold: float | Tensor) -> Tensor:
    """Probability [R,h,w] -> SAM's mask input [R,1,size,size]: long side to `size`, zeros right and bottom."""
    h, w = probability.shape[-2:]
    scale = size / max(h, w)
    inner = (max(1, round(h * scale)), max(1, round(w * scale)))
    small = F.interpolate(probability[:, None], size=inner, mode="bilinear", align_corners=False)
    small = torch.where(small > threshold, MASK_PROMPT_SCALE * small, torch.zeros(()))
    return F.pad(small, (0, size - inner[1], 0, size - inner[0]))


def region_prompts(coarse: np.ndarray, probability: np.ndarray, minimal_area: int) -> list[Prompt]:
    """Prompts for every component of a coarse map [h,w] with probabilities [K,h,w], as the refinement makes them."""
    return [
        Prompt(index, tight_box(mask), best_point(mask, probability[index]), None)
        for index, mask in components(coarse, minimal_area)
    ]


def training_prompts(
    truth: np.ndarray, probability: np.ndarray, count: int, generator: np.random.Generator, minimal_area: int = 40
) -> list[Prompt]:
    """`count` prompts for a scene [h,w], with targets.

    55 % are components of the coarse map, 30 % true components with a shaken box, 15 % all of a coarse class at once.
    """
    h, w = truth.shape
    parts = components(truth, 1)
    coarse = probability.argmax(0)
    clean = [(index, mask) for index, mask in parts if mask.sum() >= minimal_area]
    rough = components(coarse, minimal_area)
    whole = [(int(i), coarse == i) for i in np.unique(coarse) if (coarse == i).sum() >= minimal_area]
    prompts: list[Prompt] = []
    for _ in range(4 * count):
        kind = generator.choice(3, p=(0.55, 0.3, 0.15))
        candidates = (rough, clean, whole)[kind]
        if not candidates:
            continue
        index, mask = candidates[generator.integers(len(candidates))]
        target = mask if kind == 1 else true_mask(mask, index, truth, parts)
        if target is None:
            continue
        box = tight_box(mask)
        if kind == 1:
            sides = np.tile(box[2:] - box[:2], 2)
            box = box + generator.normal(0, 0.07, 4) * sides
        box = box + generator.uniform(-1, 1, 4)
        if kind == 1 and generator.random() < 0.5:
            rows, columns = np.nonzero(mask)
            chosen = generator.integers(len(rows))
            point = np.array([columns[chosen], rows[chosen]], np.float32)
        else:
            inside = mask if (mask & target).sum() == 0 else mask & target
            point = best_point(inside, probability[index])
        box = np.clip(box, 0, [w - 1, h - 1, w - 1, h - 1])
        prompts.append(Prompt(index, box.astype(np.float32), point, target))
        if len(prompts) == count:
            break
    return prompts
