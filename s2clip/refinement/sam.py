"""`refine="sam"`: all regions of all classes of several pictures at once. Algorithm 4 of the source on our ops."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.backbones.sam import AnySam, Embedding, fitted_size, frame_of, mask_side
from s2clip.decision.scores import ScoreMaps, half_size
from s2clip.pictures.windows import nearest
from s2clip.refinement.decoder import decode
from s2clip.refinement.prompts import Prompts, Regions, find_regions, make_prompts, published_scores
from s2clip.refinement.settings import Refinement
from s2clip.results.refined import Refined
from s2clip.stopwatch import Stopwatch

NEVER = -1e4
"""A logit that is no mask anywhere, for regions that failed; finite, because it is interpolated."""


def refine(
    sam: AnySam,
    embeddings: Sequence[Embedding],
    labels: Sequence[Tensor],
    scores: Sequence[ScoreMaps],
    settings: Refinement,
    watch: Stopwatch,
) -> list[Refined]:
    """Coarse maps [H,W] (any integers; those outside of 0..K−1 are no class) with their scores → refined maps.

    l'(x) = first argmax_c Q_c(x), Q_c = 1[X_c > 0]·P_c·σ(X_c), X_c = max of the logits of c's accepted regions; l(x)
    where all Q are 0, and (unless faithful) inside regions that failed: there the coarse score is never below a Q,
    because P_c·σ ≤ max_c P_c.
    """
    found, prompts = [], []
    frame, side, fit = frame_of(sam), mask_side(sam), functools.partial(fitted_size, sam)
    for image, coarse in enumerate(labels):
        with watch("components"):
            size = (coarse.shape[0], coarse.shape[1])
            source = published_scores(scores[image], size) if settings.faithful else scores[image]
            found.append((find_regions(coarse, source, settings), source))
        with watch("prompts"):
            seen = size if settings.faithful else embeddings[image].made_from or size
            prompts.append(make_prompts(*found[-1], seen, frame, side, settings, image_index=image, fit=fit))
    with watch("decoder"):
        together = _together(prompts)
        prompts.clear()  # as large as the masks
        features = torch.cat([embedding.features for embedding in embeddings])
        logits, predicted_iou = decode(sam, features, together, faithful=settings.faithful)
        del together, features
        accepted = (predicted_iou > settings.sam_iou_threshold) & logits.flatten(1).sum(1).isfinite()
        logits = torch.where(accepted[:, None, None], logits, NEVER)
    refined = []
    with watch("merge"):
        lengths = [len(regions) for regions, _ in found]
        split = (column.split(lengths) for column in (logits, predicted_iou, accepted))
        for (regions, source), embedding, coarse, own_logits, own_iou, own_accepted in zip(
            found, embeddings, labels, *split, strict=True
        ):
            through = embedding.made_from if settings.faithful else None
            merged, score = merge(coarse, regions, source, own_logits, embedding.input_size, frame, through)
            if not settings.faithful:
                stays = in_failed(regions, own_accepted, coarse.shape)
                merged, score = torch.where(stays, coarse, merged), score.masked_fill(stays, 0)
            refined.append(Refined(merged.long(), score, regions.components, own_iou, own_accepted))
    return refined


def _together(prompts: Sequence[Prompts]) -> Prompts:
    """Prompts of several pictures as one."""
    offset, shifted = 0, []
    for one in prompts:
        shifted.append(one.mask_index + offset)
        offset += 0 if one.masks is None else len(one.masks)

    def joined(name: str) -> Tensor | None:
        columns = [getattr(one, name) for one in prompts]
        return None if columns[0] is None else torch.cat(columns)

    return Prompts(joined("boxes"), joined("points"), joined("masks"), torch.cat(shifted), joined("image_index"))


def merge(
    coarse: Tensor,
    regions: Regions,
    scores: ScoreMaps,
    logits: Tensor,
    input_size: tuple[int, int],
    frame: int,
    through: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`ops.merge_masks` of all logits [R,m,m] over a few classes at a time: (labels [H,W], score [H,W]).

    A later group wins where its Q is larger, so that the first class wins ties as it would in one call.
    through: a size that masks are resized to before they are resized to the picture's.
    """
    size, counts = (coarse.shape[0], coarse.shape[1]), regions.counts
    if through is not None and through != size:
        logits = largest_at_size(logits, counts, input_size, frame, through, size)
        counts, input_size, frame = (1,) * len(counts), size, max(size)
    best = torch.zeros(coarse.shape, device=coarse.device)
    merged = coarse.to(torch.int32, copy=True)  # in place from here: a map of 2048x1024 is 8 MB
    first = 0
    for group, planes in scores.fine(regions.classes):
        position = {index: row for row, index in enumerate(group)}
        rows = [
            position[index]
            for index, count in zip(regions.classes, counts, strict=True)
            if index in position
            for _ in range(count)
        ]
        rows = torch.tensor(rows, dtype=torch.int64).to(coarse.device, non_blocking=True)
        labels, score = ops.merge_masks(
            logits[first : first + len(rows)],
            rows,
            torch.zeros_like(rows),
            planes[None],
            coarse[None],
            input_size=input_size,
            padded_size=frame,
        )
        first += len(rows)
        del planes  # 16 MB that what follows can use
        labels, quality = labels[0], score[0].to(best.dtype)
        if list(group) != list(range(len(group))):
            names = torch.tensor(group, dtype=torch.int32).to(coarse.device, non_blocking=True)
            labels = names.index_select(0, labels.clamp_(0, len(group) - 1).flatten()).view(coarse.shape)
        better = quality > best
        torch.where(better, labels, merged, out=merged)
        torch.where(better, quality, best, out=best)  # not the maximum: NaN never wins
        del labels, score, quality, better  # 18 MB that the making of the next planes can use
    return merged, best


def largest_at_size(
    logits: Tensor,
    counts: Sequence[int],
    input_size: tuple[int, int],
    frame: int,
    through: tuple[int, int],
    size: tuple[int, int],
) -> Tensor:
    """[R,m,m], `counts` of each class → [n,S,S], S = max(H,W): X_c = max of a class's logits at (H,W), right and below
    `NEVER`. Resized to the frame, cut to `input_size`, resized `through` a size and to (H,W): what Trident's predictor,
    which was given a resized picture, and its refinement do one after the other."""
    largest = logits.new_full((len(counts), max(size), max(size)), NEVER)
    for own, some in zip(largest, logits.split(list(counts)), strict=True):
        for one in some:  # a class of many regions would hold as many full maps
            padded = F.interpolate(one[None, None], (frame, frame), mode="bilinear", align_corners=False)
            valid = padded[..., : input_size[0], : input_size[1]]
            resized = F.interpolate(valid, through, mode="bilinear", align_corners=False)
            resized = F.interpolate(resized, size, mode="bilinear", align_corners=False)[0, 0]
            torch.maximum(own[: size[0], : size[1]], resized, out=own[: size[0], : size[1]])
    return largest


def in_failed(regions: Regions, accepted: Tensor, size: Sequence[int]) -> Tensor:
    """bool [H,W]: inside a region that SAM was asked about in vain (nearest from half resolution)."""
    failed = torch.zeros(len(regions) + 1, dtype=torch.bool, device=accepted.device)
    failed[regions.components.label.long()] = ~accepted
    assert regions.labels.shape == half_size(size)
    return nearest(failed[regions.labels.long()], tuple(size))
