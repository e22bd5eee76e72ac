"""`refine="trident"`: Algorithm 2, class by class on the host: one-hot mask, scikit-image, one decoder call.

The baseline: the truth that `sam` is held to, and what it is faster than. Written for likeness, not for speed.
Source: Algorithm 2 of the paper, and the refinement of Trident (arXiv:2411.09219), whose code it equals if `faithful`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor
from torchvision.ops import masks_to_boxes

from s2clip.backbones.sam import Embedding, input_size
from s2clip.decision.scores import ScoreMaps, half_size
from s2clip.errors import MissingExtraError, reject
from s2clip.ops import Components
from s2clip.pictures.windows import nearest
from s2clip.refinement.prompts import published_scores
from s2clip.refinement.settings import Refinement
from s2clip.results.refined import Refined
from s2clip.stopwatch import Stopwatch


def check_extra() -> None:
    """MissingExtraError where scikit-image is not installed."""
    try:
        import skimage.measure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "refine: 'trident' labels regions with scikit-image: pip install 's2clip[trident]', or refine='sam'"
        ) from error


def split_regions(masks: Tensor, scores: Tensor, settings: Refinement) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Algorithm 2: one-hot masks [C,h,w] and class scores [C,h,w] → per class regions [r,h,w], boxes [r,4], scores
    [r], points [r,2]."""
    from skimage.measure import label

    found = []
    for index, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        regions, means, points = [], [], []
        skipped = not settings.split_last and index == len(masks) - 1
        if not skipped and score.max() >= settings.coarse_threshold:
            numbered = label(mask.numpy(), connectivity=2) if settings.use_components else mask.numpy().astype(np.int64)
            for number in range(1, numbered.max() + 1):
                region = torch.from_numpy(numbered == number)
                if region.sum() < max(settings.minimal_area, 1):
                    continue
                means.append(score[region].mean())
                y, x = divmod(int(torch.where(region, score, float("-inf")).argmax()), mask.shape[1])
                points.append((x, y))
                regions.append(region)
        stacked = torch.stack(regions) if regions else torch.zeros(0, *mask.shape, dtype=torch.bool)
        boxes = masks_to_boxes(stacked) if regions else torch.zeros(0, 4)
        means = torch.stack(means) if means else torch.zeros(0)
        found.append((stacked, boxes, means, torch.tensor(points, dtype=torch.float32).view(-1, 2)))
    return found


def refine(
    sam: Sam,
    embeddings: Sequence[Embedding],
    labels: Sequence[Tensor],
    scores: Sequence[ScoreMaps],
    settings: Refinement,
    watch: Stopwatch,
) -> list[Refined]:
    """As `sam.refine`, one picture and one class after the other."""
    pictures = zip(embeddings, labels, scores, strict=True)
    return [_refine_one(sam, embedding, coarse, maps, settings, watch) for embedding, coarse, maps in pictures]


def _refine_one(
    sam: Sam, embedding: Embedding, coarse: Tensor, maps: ScoreMaps, settings: Refinement, watch: Stopwatch
) -> Refined:
    device = coarse.device
    size = (coarse.shape[0], coarse.shape[1])
    half = half_size(size)
    frame, side = sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0]
    with watch("components"):
        if settings.faithful:
            maps = published_scores(maps, size)
        small = maps.whole(half)
        if not small.isfinite().all():
            reject("scores", "finite class scores", "NaN or infinity")
        small_labels = nearest(coarse, half).long()
        if settings.coarse_threshold > 0:
            small_labels = torch.where(small.amax(0) < settings.coarse_threshold, -1, small_labels)
        one_hot = small_labels[None] == torch.arange(maps.classes, device=device)[:, None, None]
        found = split_regions(one_hot.cpu(), small.cpu().float(), settings)

    with watch("merge"):
        full = F.interpolate(maps.whole(maps.fine_size)[None].float(), size, mode="bilinear", align_corners=False)[0]
        quality = torch.zeros_like(full)
    failed = torch.zeros(half, dtype=torch.bool)
    rows: list[tuple[Tensor, ...]] = []
    for index, (regions, boxes, means, points) in enumerate(found):
        if not len(regions):
            continue
        with watch("prompts"):
            seen = size if settings.faithful else embedding.made_from or size
            height, width = input_size(half if settings.faithful else seen, frame)
            factor = torch.tensor([width / half[1], height / half[0]])
            inner = input_size(seen, side)
            hint = F.interpolate(small[None, index : index + 1].float(), inner, mode="bilinear", align_corners=False)
            hint = torch.where(hint > settings.coarse_threshold, hint * settings.mask_scale, 0)
            hint = F.pad(hint, (0, side - inner[1], 0, side - inner[0]))
            point = ((points * factor)[:, None].to(device), torch.ones(len(points), 1, device=device))
        with watch("decoder"):
            sparse, dense = sam.prompt_encoder(
                point if settings.use_point else None,
                (boxes * factor.repeat(2)).to(device) if settings.use_box else None,
                None if not settings.use_mask else hint[0] if settings.faithful else hint,
            )
            if len(sparse) != len(regions):  # a mask prompt alone: SAM takes the batch from it, which is one
                sparse = sparse.expand(len(regions), -1, -1)
            logits, iou = sam.mask_decoder(
                embedding.features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=False
            )
        with watch("merge"):
            accepted = iou[:, 0] > settings.sam_iou_threshold
            failed |= regions[~accepted.cpu()].any(0)
            if accepted.any():
                padded = F.interpolate(logits[accepted], (frame, frame), mode="bilinear", align_corners=False)
                valid = padded[..., : embedding.input_size[0], : embedding.input_size[1]]
                if settings.faithful and embedding.made_from:
                    valid = F.interpolate(valid, embedding.made_from, mode="bilinear", align_corners=False)
                upsampled = F.interpolate(valid, size, mode="bilinear", align_corners=False)[:, 0]
                union = (upsampled > 0).any(0)
                quality[index] = union * full[index] * upsampled.sigmoid().amax(0)
            classes = torch.full((len(regions),), index)
            areas = regions.sum((1, 2))
            rows.append((classes, areas, boxes, means, points, iou[:, 0].cpu(), accepted.cpu()))
    with watch("merge"):
        score, refined = quality.max(0)
        refined = torch.where(score > 0, refined, coarse.long())
        if not settings.faithful:
            coarse_score = full.amax(0)
            back = nearest(failed.to(device), size) & (coarse_score >= score)
            refined, score = torch.where(back, coarse.long(), refined), score.masked_fill(back, 0)
    return _refined(refined, score, rows, device)


def _refined(labels: Tensor, score: Tensor, rows: list[tuple[Tensor, ...]], device: torch.device) -> Refined:
    empty = (torch.zeros(0), torch.zeros(0), torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 2), torch.zeros(0))
    columns = zip(*rows, strict=True) if rows else ((one,) for one in (*empty, torch.zeros(0, dtype=torch.bool)))
    classes, areas, boxes, means, points, iou, accepted = (torch.cat(list(column)).to(device) for column in columns)
    integers = (column.int() for column in (classes, areas, boxes, points))
    index, area, box, point = integers
    components = Components(torch.zeros_like(index), index, torch.arange(1, len(index) + 1), area, box, means, point)
    return Refined(labels, score, components, iou, accepted)
