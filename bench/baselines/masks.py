"""`merge_masks` as peers and careful users run it."""

import torch
import torch.nn.functional as F

from baselines.tools import compiled


def _full_size(mask_logits, size, input_size, padded_size):
    padded = F.interpolate(mask_logits.float(), (padded_size, padded_size), mode="bilinear", align_corners=False)
    valid = padded[..., : input_size[0], : input_size[1]]
    return F.interpolate(valid, size, mode="bilinear", align_corners=False)


def published(mask_logits, class_index, scores, labels, *, input_size, padded_size):
    """Trident: per class the masks at full size, their union and largest sigmoid; a map per class; argmax."""
    size = tuple(labels.shape[1:])
    resized = F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)[0]
    quality = torch.zeros_like(resized)
    for index in range(len(resized)):
        chosen = class_index == index
        if chosen.any():
            logits = _full_size(mask_logits[chosen, None], size, input_size, padded_size)[:, 0]
            covered = (logits > 0).sum(0).bool()
            quality[index] = covered * resized[index] * logits.sigmoid().amax(0)
    best, label = quality.max(0)
    return torch.where(quality.sum(0) == 0, labels[0], label)[None], best[None]


@compiled
def _merge_step(evidence, logits, size, input_size, padded_size):
    return torch.maximum(evidence, _full_size(logits[None, None], size, input_size, padded_size)[0, 0])


def compiled_loop(mask_logits, class_index, scores, labels, *, input_size, padded_size):
    """One region at a time with a running maximum per class, and a running argmax over the classes."""
    size = tuple(labels.shape[1:])
    label, best = labels[0].clone(), torch.zeros(size, device=labels.device)
    indices = class_index.tolist()
    for index in sorted(set(indices)):
        evidence = torch.full(size, float("-inf"), device=labels.device)
        for region in (r for r, own in enumerate(indices) if own == index):
            evidence = _merge_step(evidence, mask_logits[region], size, input_size, padded_size)
        score = F.interpolate(scores[:, index : index + 1].float(), size, mode="bilinear", align_corners=False)[0, 0]
        quality = torch.where(evidence > 0, evidence.sigmoid() * score, 0)
        label = torch.where(quality > best, index, label)
        best = torch.maximum(best, quality)
    return label[None], best[None]
