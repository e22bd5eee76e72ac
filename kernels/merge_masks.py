"""Label map after SAM: masks resized twice, best class per pixel, old label where no mask is, in one pass.

x_r = bilinear(cut(bilinear(mask_r, P x P), V), H x W); X_c = max x_r over the regions r of class c in the image;
Q_c = 1[X_c > 0] sigmoid(X_c) bilinear(score_c, H x W); label = first argmax_c Q_c, the old one where all are 0.

R regions, M x M mask logits, P the padded square (1024), V its valid corner, B images, K classes, H x W pixels.

A bilinear resize is separable, and so are two of them: per axis a pixel sees at most 3 logits where P >= 2M, 4 in
general, and their weights are worked out once per pixel, not per region. Where the masks grow, the pixels of a lane,
one below the other, lie among LINES rows of logits (8 pixels among 4 where H is at least V, else 2 among 8): each is
resized across once, and a pixel is the sum of LINES of them. sigmoid rises, so one is enough per class, at X_c. Two
launches: `survey` orders the regions by image and class, and notes in which columns of each strip of rows a mask has a
logit above 0 (or one that is not finite); `merge_masks` compares 64 regions at a time with its tile and visits those
that it sees, since weights are not negative and x_r <= 0 changes nothing.

Never written: [R,P,P], [R,H,W], [K,H,W]; at R = 60, 1024 x 2048 pixels and P = 1024 that is 252 MB, 503 MB and (K = 19)
159 MB in fp32. Written: 8 bytes per pixel and 8 bytes per strip of a mask.

fp16, bf16, fp32 in any mixture; arithmetic in fp32. One program owns its pixels, and a maximum does not depend on
order: no atomics, bitwise the same each run. Source of the step: Trident (arXiv:2411.09219).
"""

from typing import NamedTuple

import torch
import triton

from s2clip.kernels.merge_kernels import merge_masks_kernel, survey_kernel
from s2clip.kernels.tiles import architecture, launcher

STRIP = 8  # rows of a mask per note of live columns


class Configuration(NamedTuple):
    """Tile of pixels, regions compared with it at a time; of the survey: strips, columns at a time, and warps."""

    block_y: int
    block_x: int
    alone_y: int  # rows of a tile whose pixels share nothing
    regions: int
    strips: int
    survey_block: int
    survey_warps: int


def configuration(arch: int) -> Configuration:
    """A pixel's column per lane of one warp: no step of the search for the next region crosses warps."""
    if arch == 0:
        return Configuration(block_y=32, block_x=64, alone_y=32, regions=64, strips=32, survey_block=64, survey_warps=1)
    return Configuration(block_y=8, block_x=32, alone_y=2, regions=64, strips=8, survey_block=128, survey_warps=4)


def lines(block_y: int, height: int, valid: int, side: int, padded: int) -> tuple[int, int]:
    """(rows of a tile, rows of logits that its pixels see at most): block_y and 4, a quarter and 8; 0 logits for more.

    Half a tile and 8 spills 16 to 24 bytes under Triton 3.6.
    """
    for rows, most in ((block_y, 4), (block_y // 4, 8)) if 2 * side <= padded else ():
        on_padded = (rows - 1) * valid // height + 2  # from the first pixel's upper neighbour to the last one's lower
        if int(on_padded * side / padded + 0.01) + 3 <= most:
            return rows, most
    return 0, 0


@launcher
def launch(
    mask_logits: torch.Tensor,
    class_index: torch.Tensor,
    image_index: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    input_size: tuple[int, int],
    padded_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.merge_masks`."""
    regions, side = mask_logits.shape[:2]
    batch, classes, rows, columns = scores.shape
    height, width = labels.shape[1:]
    device = labels.device
    merged = torch.empty(labels.shape, dtype=torch.int32, device=device)
    quality = torch.empty(labels.shape, dtype=torch.float32, device=device)
    if regions == 0 or labels.numel() == 0:
        return merged.copy_(labels), quality.zero_()
    chosen = configuration(architecture(device))
    mask_logits, class_index, image_index = (each.contiguous() for each in (mask_logits, class_index, image_index))
    strips = triton.cdiv(side, STRIP)
    if rows * scores.stride(2) + columns * scores.stride(3) >= 1 << 31:
        scores = scores.contiguous()
    order, class_of = torch.empty((2, regions), dtype=torch.int32, device=device)
    image_start = torch.empty(batch + 1, dtype=torch.int32, device=device)
    live = torch.empty((regions, strips, 2), dtype=torch.int32, device=device)
    surveyed = (order, class_of, image_start, live)
    survey_kernel[(regions + batch + 1, triton.cdiv(strips, chosen.strips))](
        mask_logits,
        class_index,
        image_index,
        *surveyed,
        regions,
        side,
        strips,
        batch,
        classes,
        STRIP=STRIP,
        STRIPS=chosen.strips,
        BLOCK=chosen.survey_block,
        num_warps=chosen.survey_warps,
        num_stages=1,
        enable_fp_fusion=False,
    )
    block_y, own_lines = lines(chosen.block_y, height, input_size[0], side, padded_size)
    block_y = block_y or chosen.alone_y
    merge_masks_kernel[(triton.cdiv(height, block_y) * triton.cdiv(width, chosen.block_x) * batch,)](
        mask_logits,
        scores,
        labels.contiguous(),
        *surveyed,
        merged,
        quality,
        side,
        strips,
        padded_size,
        *input_size,
        height,
        width,
        rows,
        columns,
        *scores.stride(),
        STRIP=STRIP,
        LINES=own_lines,
        REGIONS=chosen.regions,
        BLOCK_Y=block_y,
        BLOCK_X=chosen.block_x,
        num_warps=1,
        num_stages=1,
        enable_fp_fusion=False,  # a tile's outermost taps must be those of its pixels; sums are fma as written
    )
    return merged, quality
