"""FreeCP's purification (Chen et al., ICCV 2025; chenqi1126/FreeCP): classes that are not there, and those taken twice.

Per window, with P = softmax(cos · CLIP's own scale) over the words on CLIP's grid, P̂ = (P − min P)/(max P − min P) over
all of them, and T of `s2clip.encoding.flow`:

    R_c = T (P̂_c in the boxes around what is above 0.4 max P̂_c, else 0), then scaled to 0..1
    redundant: Σ P R/(ΣP + ΣR) of a word is at most `redundancy`: its map is 0
    ambiguous: words whose maps share at least `ambiguity` (Σ min/Σ max) make a group; for each box of their mean the
               crop, enlarged to half of CLIP's size, is asked which one it is; those that no crop names are 0

The windows' maps, enlarged, are averaged; a background class is what no word claims, 1 − max R. The published code asks
crops with descriptions by a language model; here they are asked with the words' own vectors. Where every class is
dropped, the order of before decides (a millionth of P).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.backbones.precision import at_least_float32
from s2clip.decision.decided import Decision
from s2clip.decision.scores import DenseScores, largest, merge_words
from s2clip.encoding.encoded import Encoded
from s2clip.methods.stages import Purification
from s2clip.pictures.windows import Box, WindowMean, cut_windows, window_boxes

if TYPE_CHECKING:
    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.methods.method import Method

EPSILON = 1e-8
REST = 1e-6
"""Share of the maps of before that is left in, to order what was dropped."""
LEVELS = 255
"""Maps are rounded to bytes before boxes are drawn around them, as published."""


class _Windows(NamedTuple):
    """Where the windows of a picture lie."""

    boxes: Sequence[Box]
    padded: tuple[int, int]
    inner: Box
    grid: tuple[int, int]


def decide(
    encoded: Encoded,
    cosines: Sequence[Tensor],
    text: Tensor,
    class_index: tuple[int, ...],
    background: int | None,
    method: Method,
    clip: CLIPBackbone,
    canvas: Tensor,
    *,
    with_scores: bool,
) -> Decision:
    """cosines: [Q,h,w] of each window on any grid; text [Q,C]; canvas: the picture as it was cut, [3,H,W] in [0,1]."""
    stage, flows = method.purification, encoded.extra["flow"]
    assert stage is not None, "who calls has looked"
    windows = _windows(encoded, method, clip.patch_size)
    judged = torch.tensor([index != background for index in class_index])
    found = [
        purify(_on_grid(own, windows.grid), flow, stage, clip.logit_scale, judged)
        for own, flow in zip(cosines, flows, strict=True)
    ]
    _settle(found, windows, text, clip, canvas, stage)
    mean = WindowMean(windows.boxes, encoded.canvas)
    for one in found:
        maps = one.refined + REST * one.probability
        if background is not None:
            maps = maps * judged.to(maps.device)[:, None, None]
        whole = F.interpolate(maps[None], windows.padded, mode="bilinear", align_corners=False)
        inner = windows.inner
        mean.add(whole[:, :, inner.top : inner.bottom, inner.left : inner.right])
    planes = merge_words(mean.result(), class_index)
    if background is not None:
        planes[background] = 1 - planes.amax(0)
    scores = DenseScores(planes)
    labels, confidence = largest(scores, encoded.size)
    labels = labels.masked_fill(~confidence.isfinite(), -1)
    if method.threshold and background is not None:
        labels = labels.masked_fill(confidence < method.threshold, background)
    return Decision(labels, confidence, scores if with_scores else None)


class Purified:
    """A window's words after the first step: `kept` holds the numbers of those that are there."""

    def __init__(self, probability: Tensor, refined: Tensor, kept: list[int]) -> None:
        self.probability, self.refined, self.kept = probability, refined, kept


def purify(cosines: Tensor, flow: Tensor, stage: Purification, scale: float, judged: Tensor) -> Purified:
    """cosines [Q,h,w], flow [N,N], judged [Q] bool → maps with the redundant words at zero."""
    probability = (at_least_float32(cosines) * scale).softmax(0)
    low, high = probability.amin(), probability.amax()
    relative = (probability - low) / (high - low).clamp_min(EPSILON)  # one word alone has 1 everywhere
    masked = relative * boxes_around(relative, stage.box_threshold)
    refined = (masked.flatten(1) @ flow.T).view_as(relative)
    least, most = (bound(refined.flatten(1), 1)[:, None, None] for bound in (torch.amin, torch.amax))
    refined = (refined - least) / (most - least + EPSILON)
    shared = (probability * refined).sum((1, 2))
    shared = shared / (probability.sum((1, 2)) + refined.sum((1, 2)) + EPSILON)
    there = (shared > stage.redundancy) & judged.to(shared.device)
    refined = torch.where(there[:, None, None], refined, 0)
    return Purified(probability, refined, there.nonzero().flatten().tolist())


def boxes_around(maps: Tensor, threshold: float) -> Tensor:
    """[n,h,w] in 0..1 → bool [n,h,w]: in the box of a connected piece of what is above `threshold` of the maximum."""
    inside = torch.zeros_like(maps, dtype=torch.bool)
    for index, boxes in enumerate(piece_boxes(maps, threshold)):
        for left, top, right, bottom in boxes:
            inside[index, top:bottom, left:right] = True
    return inside


def piece_boxes(maps: Tensor, threshold: float) -> list[list[tuple[int, int, int, int]]]:
    """(left, top, right, bottom) of each map's pieces; right and bottom exclusive, and at most the last column and row:
    as published, a box that ends at the border misses them."""
    height, width = maps.shape[1:]
    bytes_ = (maps * LEVELS).to(torch.uint8)
    bound = (threshold * bytes_.flatten(1).amax(1)).floor()[:, None, None]
    above = (bytes_ > bound).to(torch.int32)
    labels, counts = ops.label_components(above, connectivity=8, ignore_index=0)
    return [
        _boxes(one, number, width, height) for one, number in zip(labels.cpu().numpy(), counts.tolist(), strict=True)
    ]


def _boxes(labels: np.ndarray, count: int, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Of the pieces 1..count of one map."""
    if not count:
        return []
    rows, columns = labels.nonzero()
    order = labels[rows, columns].argsort(kind="stable")
    starts = np.searchsorted(labels[rows, columns][order], np.arange(1, count + 1))
    least = [np.minimum.reduceat(place[order], starts) for place in (columns, rows)]
    most = [np.maximum.reduceat(place[order], starts) + 1 for place in (columns, rows)]
    ends = (np.minimum(end, limit - 1) for end, limit in zip(most, (width, height), strict=True))
    corners = zip(*least, *ends, strict=True)
    return [(int(left), int(top), int(right), int(bottom)) for left, top, right, bottom in corners]


def _settle(
    found: Sequence[Purified],
    windows: _Windows,
    text: Tensor,
    clip: CLIPBackbone,
    canvas: Tensor,
    stage: Purification,
) -> None:
    """Tell the ambiguous words of all windows apart, their crops in one batch."""
    questions: list[tuple[int, list[int], list[int]]] = []  # window, words of a group, numbers of its crops
    crops: list[Tensor] = []
    side, patch = max(clip.native_size // 2 // clip.patch_size, 1) * clip.patch_size, clip.patch_size
    for index, one in enumerate(found):
        for group in groups_alike(one.refined[one.kept], stage.ambiguity):
            words = [one.kept[member] for member in group]
            boxes = piece_boxes(one.refined[words].mean(0)[None], stage.box_threshold)[0]
            if len(words) == 1 or any(left == right or top == bottom for left, top, right, bottom in boxes):
                continue  # as published: without a crop all of them stay
            window = cut_windows(canvas, [windows.boxes[index]], _multiple(windows), clip.mean.flatten())
            numbers = []
            for left, top, right, bottom in boxes:
                part = window[..., top * patch : bottom * patch, left * patch : right * patch]
                numbers.append(len(crops))
                crops.append(F.interpolate(part, (side, side), mode="bilinear", align_corners=False)[0])
            if numbers:
                questions.append((index, words, numbers))
    if not questions:
        return
    answers = picture_vectors(clip, torch.stack(crops)) @ text.T
    for index, words, numbers in questions:
        best = answers[numbers][:, words].argmax(1).tolist()
        named = {words[choice] for choice in best}
        for word in set(words) - named:
            found[index].refined[word] = 0


def groups_alike(maps: Tensor, bound: float) -> list[list[int]]:
    """Numbers of maps [n,h,w] that hang together by Σ min/Σ max >= bound."""
    count, flat = len(maps), maps.flatten(1)
    alike = torch.zeros(count, count, dtype=torch.bool)
    for index, one in enumerate(flat):  # one row at a time: 171 words would be 171² maps
        shared = torch.minimum(one, flat).sum(1) / torch.maximum(one, flat).sum(1)
        alike[index] = (shared >= bound).cpu()
    groups, seen = [], set()
    for start in range(count):
        if start in seen:
            continue
        group, todo = [], [start]
        while todo:
            member = todo.pop()
            if member not in seen:
                seen.add(member)
                group.append(member)
                todo += alike[member].nonzero().flatten().tolist()
        groups.append(sorted(group))
    return groups


def picture_vectors(clip: CLIPBackbone, images: Tensor) -> Tensor:
    """CLIP's own unit vectors [n,C] of pictures [n,3,s,s]: CLS after all blocks."""
    states, _ = clip.hidden_states(images)
    whole = clip.block(states[-1], clip.layers - 1)[:, 0]
    return F.normalize(at_least_float32(clip.head(whole)), dim=-1)


def _windows(encoded: Encoded, method: Method, patch: int) -> _Windows:
    if not encoded.spliced:
        grid = (encoded.padded[0] // patch, encoded.padded[1] // patch)
        return _Windows(encoded.boxes, encoded.padded, encoded.inner, grid)
    boxes = window_boxes(*encoded.canvas, method.crop, method.stride)
    height, width = boxes[0].size
    return _Windows(boxes, (height, width), Box(0, 0, height, width), (height // patch, width // patch))


def _multiple(windows: _Windows) -> int:
    """What `cut_windows` pads to, from how it was padded: 1 where it was not."""
    size = windows.boxes[0].size
    if size == windows.padded:
        return 1
    return next(
        number
        for number in range(2, max(windows.padded) + 1)
        if tuple(side + -side % number for side in size) == windows.padded
    )


def window_cosines(encoded: Encoded, text: Tensor, method: Method, patch: int) -> list[Tensor]:
    """[Q,h,w] of each window: its own where windows were kept, its part of the whole map where they were spliced."""
    if not encoded.spliced:
        return [(text @ one.to(text.device).flatten(1)).unflatten(1, one.shape[1:]) for one in encoded.features]
    features = encoded.features[0]
    whole = (text @ features.flatten(1)).unflatten(1, features.shape[1:])
    finer = whole.shape[1] * patch // encoded.canvas[0]
    cells = (Box(*(side // patch * finer for side in box)) for box in _windows(encoded, method, patch).boxes)
    return [whole[:, box.top : box.bottom, box.left : box.right] for box in cells]


def _on_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    return maps if tuple(maps.shape[1:]) == grid else F.adaptive_avg_pool2d(maps, grid)
