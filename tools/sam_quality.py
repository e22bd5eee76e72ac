"""What the tiny SAM is worth on held-out scenes: `python tools/sam_quality.py`.

`box_iou`: mean IoU of masks from the tight boxes of true components. `coarse` and `refined`: mIoU of simulated coarse
maps (8-pixel cells, noise) before and after the refinement stage as published: a box, best point and mask prompt per
region, regions with predicted IoU up to 0.8 dropped, merged by Q_c = [mask]·P_c·max sigmoid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from coarse_prompts import coarse_probabilities, components, mask_prompt, region_prompts, tight_box
from scene_pool import scene_pool
from segment_anything.modeling import Sam
from torch import Tensor

from s2clip.backbones.sam import encode_images
from s2clip.backbones.tiny_sam import load_sam_model
from s2clip.scenes import CLASSES

Embedding = tuple[Tensor, tuple[int, int]]
HELD_OUT_SEED, SCENES, MINIMAL_AREA, IOU_THRESHOLD = 600_000, 64, 40, 0.8


def _masks(
    sam: Sam, embedding: Embedding, valid: tuple[int, int], boxes, points=None, masks=None
) -> tuple[Tensor, Tensor]:
    """Boxes and points in pixels of the picture -> logits [R,h,w] at its size, predicted IoU [R]."""
    features, inner = embedding
    size = sam.image_encoder.img_size
    scale = size / max(valid)
    labelled = None if points is None else (points * scale, torch.ones(len(points), 1))
    sparse, dense = sam.prompt_encoder(labelled, boxes * scale, masks)
    logits, iou = sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False)
    full = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)[..., : inner[0], : inner[1]]
    return F.interpolate(full, size=valid, mode="bilinear", align_corners=False)[:, 0], iou[:, 0]


def _refine(sam: Sam, embedding: Embedding, probability: Tensor) -> tuple[Tensor, int, int]:
    """Probabilities [K,h,w] -> refined labels [h,w], regions kept, regions."""
    coarse = probability.argmax(0)
    h, w = coarse.shape
    prompts = region_prompts(coarse.numpy(), probability.numpy(), MINIMAL_AREA)
    if not prompts:
        return coarse, 0, 0
    classes = torch.tensor([prompt.class_index for prompt in prompts])
    boxes = torch.from_numpy(np.stack([prompt.box for prompt in prompts]))
    points = torch.from_numpy(np.stack([prompt.point for prompt in prompts]))[:, None]
    dense = mask_prompt(probability[classes], sam.prompt_encoder.mask_input_size[0], 0.1)
    logits, iou = _masks(sam, embedding, (h, w), boxes, points, dense)
    quality = torch.zeros_like(probability)
    for index in classes.unique():
        kept = logits[(classes == index) & (iou > IOU_THRESHOLD)]
        if len(kept):
            best = kept.max(0).values
            quality[index] = (best > 0) * best.sigmoid() * probability[index]
    refined = torch.where(quality.max(0).values > 0, quality.argmax(0), coarse)
    return refined, int((iou > IOU_THRESHOLD).sum()), len(prompts)


def _mean_iou(confusion: np.ndarray) -> float:
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float((hit / np.maximum(union, 1))[union > 0].mean())


@torch.no_grad()
def sam_quality(sam: Sam) -> dict[str, float]:
    """All figures of a Sam, in percent; the random state is left as it was."""
    images, labels = scene_pool(HELD_OUT_SEED, SCENES, workers=1)
    k = len(CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probability = coarse_probabilities(labels.long(), k, cell=8, sharpness=5.0, noise=1.2, drift=1.5)
    before, after = np.zeros((k, k)), np.zeros((k, k))
    ious, predicted, kept, regions = [], [], 0, 0
    for image, label, p in zip(images, labels.long(), probability, strict=True):
        embedding = encode_images(sam, image[None].float() / 255)
        truth = [mask for _, mask in components(label.numpy(), MINIMAL_AREA)]
        boxes = torch.from_numpy(np.stack([tight_box(mask) for mask in truth]))
        logits, iou = _masks(sam, embedding, tuple(label.shape), boxes)
        for row, mask in zip(logits > 0, torch.from_numpy(np.stack(truth)), strict=True):
            ious.append(((row & mask).sum() / (row | mask).sum()).item())
        predicted += iou.tolist()
        refined, accepted, found = _refine(sam, embedding, p)
        kept, regions = kept + accepted, regions + found
        for confusion, estimate in ((before, p.argmax(0)), (after, refined)):
            confusion += np.bincount((label * k + estimate).flatten().numpy(), minlength=k * k).reshape(k, k)
    error = np.abs(np.array(predicted) - np.array(ious)).mean()
    return {
        "box_iou": round(100 * float(np.mean(ious)), 2),
        "predicted_iou_error": round(100 * float(error), 2),
        "coarse": round(100 * _mean_iou(before), 2),
        "refined": round(100 * _mean_iou(after), 2),
        "regions_kept": round(100 * kept / max(1, regions), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, help="file to measure instead of the embedded one")
    options = parser.parse_args()
    print("sam   ", sam_quality(load_sam_model(path=options.weights)))
    print("random", sam_quality(load_sam_model(random=True, path=options.weights)))


if __name__ == "__main__":
    main()
