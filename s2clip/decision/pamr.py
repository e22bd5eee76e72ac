"""Pixel-adaptive mask refinement (Araslanov and Roth 2020, arXiv:2005.08104), as NACLIP applies it to cosine maps.

With I the picture and n a pixel's 8 neighbours at offsets {-δ, 0, δ}² for each dilation δ (P in all; borders repeat):

    σ_c(x)  = unbiased deviation of I_c over the neighbours and, once per dilation, the pixel itself
    A(x, n) = softmax_n mean_c −|I_c(x) − I_c(n)| / (1e-8 + 0.1 σ_c(x))
    M(x)   ← Σ_n A(x, n) M(n),   T times, all pixels at once

A does not change with the picture's contrast or brightness, so it is taken as it is, not normalised for a model.

Memory, fp32: A takes 4·P·H·W bytes (P = 16: 12 MB at 500x375, 134 MB at 2048x1024), the result 4·Q·H·W, and the work
three times as many words at once as 8 MiB hold, at least one. The published code holds 4·Q·P·H·W (1.8 GB for 150 words
at 500x375) and leaves the refinement out where that fails; here it is never left out.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 21
"""Elements of the maps that are worked on at a time, 8 MiB in fp32."""


def neighbour_weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """A [P,H,W] of a picture [C,H,W], float; each pixel's sum to 1."""
    count = 9 * len(dilations)
    mean = sum(_neighbours(image, dilations, centre=True)) / count
    squares = torch.zeros_like(image)
    for neighbour in _neighbours(image, dilations, centre=True):
        squares += (neighbour - mean).square()
    spread = 1e-8 + 0.1 * (squares / (count - 1)).sqrt()
    likeness = torch.empty(8 * len(dilations), *image.shape[1:], dtype=image.dtype, device=image.device)
    for plane, neighbour in zip(likeness, _neighbours(image, dilations), strict=True):
        plane.copy_(((neighbour - image).abs() / spread).mean(0).neg_())
    return likeness.softmax(0)


def refine_maps(
    maps: Tensor, size: tuple[int, int], image: Tensor, *, iterations: int, dilations: Sequence[int]
) -> Tensor:
    """Maps [Q,h,w] → [Q,H,W]: resized (bilinear) to `size` = (H,W) and refined along the edges of the image [C,H,W]."""
    weights = neighbour_weights(image, dilations)
    refined = maps.new_empty(len(maps), *size)
    step = max(1, CHUNK // (size[0] * size[1]))
    for start in range(0, len(maps), step):
        words = slice(start, start + step)
        current = F.interpolate(maps[None, words], size, mode="bilinear", align_corners=False)[0]
        for _ in range(iterations):
            total = torch.zeros_like(current)
            for plane, neighbour in zip(weights, _neighbours(current, dilations), strict=True):
                total.addcmul_(plane, neighbour)
            current = total
        refined[words] = current
    return refined


def _neighbours(maps: Tensor, dilations: Sequence[int], *, centre: bool = False) -> Iterator[Tensor]:
    """Views [C,H,W] of the padded maps, one per offset."""
    height, width = maps.shape[1:]
    reach = max(dilations)
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    for dilation in dilations:
        for row in (-dilation, 0, dilation):
            for column in (-dilation, 0, dilation):
                if centre or row or column:
                    top, left = reach + row, reach + column
                    yield padded[:, top : top + height, left : left + width]
