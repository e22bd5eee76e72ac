"""Statistics of labelled components: class, area, box, mean own-class score and best point, R rows.

For component r with pixels P_r and class c_r, from labels and class_map [B,H,W] and scores [B,C,H,W]:

    area |P_r|    box min x, min y, max x, max y    score 1/|P_r| Σ_p scores[c_r, p]    point argmax_p scores[c_r, p]

Two launches after a memset. Every block of pixels reduces its labels one by one, the smallest first, or its only one as
a whole, and adds each to the 64-byte record of its component; few labels meet in a block, so that even a region of the
whole image sends one atomic per block and column to its record, not one per pixel. The second launch turns records into
rows. Nothing of size [C,H,W] or [R,H,W] is written; only the own class of each pixel is read: 4 bytes of scores a
pixel, where masks per region would take R·H·W.

All results are integers until the last step, so they are bitwise the same in every order of the atomics. A score is
rounded to a multiple of 2^−s, s = 47 − bit length of H·W, at most 32 (29 for 375×500, 25 for 1024×2048): any H·W scores
up to 2^16 fit 63 bits. A component with a score that is not finite, or beyond ±65,504, or whose class is not in
0..C−1, has score NaN. The point is the maximum of (ordered float, −pixel) in 63 bits: the first in raster order of
equals.
Atomics are relaxed and their results unused (RED instructions); the kernel boundary orders them before the reader.
"""

from typing import NamedTuple

import torch
import triton

from s2clip.kernels.connected_components import dense, launch_options, strips
from s2clip.kernels.statistics_kernels import AREA, COLUMNS, LEFT, RIGHT, SUM, measure_kernel, report_kernel
from s2clip.kernels.tiles import architecture, launcher


class Configuration(NamedTuple):
    """Rows and columns of a program of measure, labels that it reduces one by one, records per program of report."""

    lines: int
    columns: int
    rounds: int
    report: int


def configuration(arch: int) -> Configuration:
    """One choice for all GPUs; arch 0 is the interpreter, which pays per operation and not per lane: large tiles.

    Within one row of pixels nothing is divided, and the row itself needs no minimum and maximum.
    """
    return Configuration(64, 64, 4, 1024) if arch == 0 else Configuration(1, 256, 4, 32)


@launcher
def launch_measure(
    labels: torch.Tensor, class_map: torch.Tensor, scores: torch.Tensor, count: torch.Tensor, rows: int
) -> tuple[torch.Tensor, ...]:
    """As `reference.measure_components`. Scores are read in place; maps are copied if not contiguous."""
    batch, height, width = labels.shape
    integers = {"dtype": torch.int32, "device": labels.device}
    image_index, class_index, label, area = (torch.empty(rows, **integers) for _ in range(4))
    box, point = torch.empty((rows, 4), **integers), torch.empty((rows, 2), **integers)
    score = torch.empty(rows, dtype=torch.float32, device=labels.device)
    if rows > 0:
        count = count.to(torch.int32).contiguous()
        state, end = _measured(labels, count, rows, class_map, scores)
        tiles = configuration(architecture(labels.device))
        report_kernel[(triton.cdiv(rows, tiles.report),)](
            *(state, count, end, image_index, class_index, label, area, box, score, point),
            *(rows, batch, height, width, 2.0 ** -_fixed_point(height * width)),
            LANES=tiles.report,
            **launch_options(1),
        )
    return image_index, class_index, label, area, box, score, point


@launcher
def launch_moments(labels: torch.Tensor, count: torch.Tensor, rows: int) -> tuple[torch.Tensor, ...]:
    """(area, box, total) int64 [rows], [rows,4], [rows,2] of labels 0..count[b] − 1 of each image, rows = Σ count.

    total holds Σ x and Σ y. A label without pixels has area 0 and box (W, H, −1, −1).
    """
    height, width = labels.shape[1:]
    state, _ = _measured(labels, count.to(torch.int32).contiguous(), rows)
    far = torch.tensor([width, height], device=state.device)
    box = torch.cat([far - state[:, LEFT.value : RIGHT.value], state[:, RIGHT.value :] - 1], 1)
    return state[:, AREA.value], box, state[:, SUM.value : AREA.value]


def _measured(labels, count, rows: int, class_map=None, scores=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The records [rows,COLUMNS], and the row at which each image ends."""
    end = count if len(count) == 1 else count.cumsum(0, dtype=torch.int32)
    state = torch.zeros((rows, COLUMNS.value), dtype=torch.int64, device=labels.device)
    labels = dense(labels)
    class_map = labels if class_map is None else dense(class_map)
    scored = scores is not None
    scores = scores if scored else labels[:, None]
    height, width = labels.shape[1:]
    tiles = configuration(architecture(labels.device))
    for part in strips(labels) if labels.numel() and rows else ():
        lines = labels[part].shape[0] * height
        measure_kernel[(triton.cdiv(lines, tiles.lines) * triton.cdiv(width, tiles.columns),)](
            *(labels[part], class_map[part], scores[part], count[part], end[part], state),
            *(lines, scores.shape[1], height, width, *scores.stride(), 2.0 ** _fixed_point(height * width)),
            SCORED=scored,
            ROUNDS=tiles.rounds if scored else min(tiles.rounds, 2),  # of four Triton 3.6 spills 16 bytes on sm_90
            LINES=tiles.lines,
            PIXELS=tiles.columns,
            **launch_options(1),
        )
    return state, end


def _fixed_point(image_pixels: int) -> int:
    """Bits after the point, so that H·W pixels of magnitude 2¹⁶ fit 63 bits: 29 for 375×500, 25 for 1024×2048."""
    return min(32, 47 - image_pixels.bit_length())
