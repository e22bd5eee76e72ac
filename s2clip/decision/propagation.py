"""PEARL's propagation (Pei et al. 2026, arXiv:2603.21528): cosines flow to alike neighbours, held where they are sure.

The cosines Z of all words and the picture I are pooled to cells of about 1/80 of its sides. Per cell, p = softmax(Z),

    (diag ρ + τL) F = ρ Z,   ρ = max(0.05, max p)² (1 + g(p, p)),   g(p, p') = Σ_c p_c (S p')_c in 0..1

L is the Laplacian of the grid's edges, w = min(1, exp(−κ |ΔI|/mean |ΔI|) (1 + g(p, p'))), and S the softmax over words
of their cosines/τ_S, with 10 added to the diagonal, rows normalised. The published code's S p is diag(S) p.

Upsampling to the picture and pooling are linear, so both are one matrix per axis; nothing is held at the picture's
size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.backbones.precision import at_least_float32
from s2clip.encoding.encoded import Encoded
from s2clip.methods.stages import Propagation
from s2clip.pictures.windows import resize

SMALL = 1e-6
LEAST = 1e-12
GREY = (0.299, 0.587, 0.114)


def propagate(
    cosines: Tensor, encoded: Encoded, text: Tensor, stage: Propagation, std: Tensor, *, rounded: bool = False
) -> Tensor:
    """Cosines [Q,r,c] as `pooled` gives them, text [Q,C] unit rows → F [Q,r,c].

    std: of the pixels of CLIP's pictures, by channel: grey is that of normalised pixels, as published.
    rounded: `Method.round_pixels`.
    """
    size = encoded.size
    image = resize(encoded.picture.to(cosines.device, non_blocking=True), encoded.canvas, rounded=rounded)
    weights = torch.tensor(GREY, device=image.device) / std.to(image.device).flatten()
    grey = (image * weights[:, None, None]).sum(0, keepdim=True)
    return solve(cosines, pooled(grey, size, stage.grid)[0], text, stage)


def pooled(maps: Tensor, size: tuple[int, int], grid: int) -> Tensor:
    """[n,h,w] → [n,r,c]: enlarged to `size` (bilinear), then the mean of equal cells, round(H/grid) by round(W/grid)
    pixels; what is left over at the far sides is not looked at."""
    rows, columns = (_pooling(old, new, grid, maps) for old, new in zip(maps.shape[-2:], size, strict=True))
    return rows @ at_least_float32(maps) @ columns.T


def _pooling(old: int, new: int, grid: int, like: Tensor) -> Tensor:
    """[cells, old]: what each value of a line of `old` has in the cells of that line at `new`."""
    side = max(1, round(new / grid))
    enlarged = torch.eye(old, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))[None]
    if old != new:
        enlarged = F.interpolate(enlarged, new, mode="linear", align_corners=False)
    cells = new // side
    return enlarged[0, :, : cells * side].unflatten(1, (cells, side)).mean(2).T


def solve(cosines: Tensor, grey: Tensor, text: Tensor, stage: Propagation) -> Tensor:
    """F of cosines Z [Q,r,c] and the grey picture [r,c] on the same cells."""
    likeness = words_alike(text, stage)
    probability = cosines.softmax(0)
    supported = _supported(probability, likeness, stage.between_words)
    agreement = (probability * supported).sum(0).clamp_(0, 1)
    trust = probability.amax(0).clamp_min(0.05).square() * (1 + agreement)
    edges = []
    for axis in (0, 1):
        length = grey.shape[axis] - 1
        first, second = slice(0, length), slice(1, length + 1)
        here, there = ((slice(None),) * axis + (part,) for part in (first, second))
        step = (grey[there] - grey[here]).abs()
        apart = torch.exp(-stage.edge * step / (step.mean() + SMALL)) if step.numel() else step
        gain = (probability[:, *there] * supported[:, *here]).sum(0).clamp_(0, 1)
        edges.append((apart * (1 + gain)).clamp_(0, 1) * stage.strength)
    flat = cosines.flatten(1)
    found = conjugate_gradients(_operator(trust, *edges), trust.flatten() * flat, flat, stage.iterations)
    return found.view_as(cosines)


def words_alike(text: Tensor, stage: Propagation) -> Tensor:
    """S [Q,Q] of unit rows [Q,C]."""
    text = F.normalize(at_least_float32(text), dim=-1)
    likeness = (text @ text.T / stage.text_temperature).softmax(1)
    if stage.text_diagonal > 0:
        likeness = likeness + stage.text_diagonal * torch.eye(len(text), device=text.device)
        likeness = likeness / (likeness.sum(1, keepdim=True) + SMALL)
    return likeness


def _supported(probability: Tensor, likeness: Tensor, between_words: bool) -> Tensor:
    if between_words:
        return (likeness @ probability.flatten(1)).view_as(probability)
    return likeness.diagonal()[:, None, None] * probability


def _operator(trust: Tensor, vertical: Tensor, horizontal: Tensor) -> Callable[[Tensor], Tensor]:
    """X [Q,r·c] → (diag ρ + L) X, with the edges' weights [r−1,c] and [r,c−1].

    On whole maps in a row, where a neighbour is c or 1 further: rows end with an edge of weight 0.
    """
    diagonal, columns = trust.clone(), trust.shape[1]
    diagonal[1:] += vertical
    diagonal[:-1] += vertical
    diagonal[:, 1:] += horizontal
    diagonal[:, :-1] += horizontal
    diagonal, down = diagonal.flatten(), vertical.flatten()
    right = F.pad(horizontal, (0, 1)).flatten()[:-1]

    def apply(x: Tensor) -> Tensor:
        result = diagonal * x
        for edge, step in ((down, columns), (right, 1)):
            if edge.numel():
                result[:, step:].addcmul_(edge, x[:, :-step], value=-1)
                result[:, :-step].addcmul_(edge, x[:, step:], value=-1)
        return result

    return apply


def conjugate_gradients(apply: Callable[[Tensor], Tensor], target: Tensor, start: Tensor, iterations: int) -> Tensor:
    """`iterations` steps from `start` towards X with apply(X) = target; one step length for all words, as published."""
    x = start.clone()
    residual = target - apply(x)
    direction = residual.clone()
    length = _dot(residual, residual)
    for _ in range(iterations):
        applied = apply(direction)
        step = length / (_dot(direction, applied) + LEAST)
        _add(x, direction, step)
        _add(residual, applied, -step)
        shorter = _dot(residual, residual)
        direction.mul_(shorter / (length + LEAST)).add_(residual)
        length = shorter
    return x


def _add(to: Tensor, what: Tensor, factor: Tensor) -> None:
    """to += factor·what, without waiting for a GPU."""
    if to.device.type == "cpu":
        to.add_(what, alpha=float(factor))
    else:
        to.addcmul_(what, factor)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.flatten(), second.flatten())
