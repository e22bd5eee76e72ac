"""What the affinity launchers choose and keep: tiles by architecture, and the resize of values as tables."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 4  # along a row, or a multiple of it: those of a map up to twice as fine


class Mix(NamedTuple):
    """Tiles of the result: a program has `rows` rows and `chunks` tiles of `block_d` channels."""

    rows: int
    block_d: int
    block_k: int
    warps: int
    stages: int
    chunks: int = 1


class Configuration(NamedTuple):
    """Tile sizes of one architecture, dtype and size bucket."""

    block: int  # rows of a tile of P
    ratio: int  # how many times as many columns
    block_c: int
    warps: int
    stages: int
    mix: Mix
    folded: Mix  # where the value grid is coarser: chunks are the most

    @property
    def columns(self) -> int:
        return self.block * self.ratio


def configuration(arch: int, positions: int, dtype: torch.dtype, *, progressive: bool = False) -> Configuration:
    """Tiles by architecture (80, 86, 89, 90, 120; 0 is the interpreter), positions N and dtype.

    Progressive keeps a second tile in registers across the levels: twice the warps, so that none spills.
    """
    if arch == 0:
        return Configuration(64, 2, 64, 1, 1, Mix(64, 64, 64, 1, 1), Mix(64, 32, 64, 1, 1, 2))
    if dtype == torch.float32:
        warps = 8 if progressive else 4
        return Configuration(64, 1, 32, warps, 2, Mix(64, 64, 32, 8, 2), Mix(32, 64, 32, 8, 2, 2))
    folded = Mix(32, 256, 16, 8, 3, 3)  # all of 768 channels share what a program folds
    if progressive:
        return Configuration(64, 1, 64, 8, 3, Mix(64, 128, 64, 8, 3), folded)
    if arch == 90:  # tensor cores outrun L2: a tile of P reads half as much per entry at 128, the result at 128 x 256
        # P at 128 x 256 would take 3.0 us less at 1764 positions, and spills 120 bytes under Triton 3.9.
        return Configuration(128, 1, 64, 8, 3, Mix(128, 256, 64, 8, 3), Mix(64, 256, 32, 16, 3, 3))
    if positions <= 2048:
        # 128 x 128 leaves 105 tiles for two windows of 1764 positions, 64 x 64 leaves 812 for 128 multiprocessors.
        return Configuration(64, 1, 64, 4, 3, Mix(64, 128, 64, 4, 3), folded)
    return Configuration(128, 1, 64, 8, 3, Mix(128, 128, 64, 8, 3), folded)


def chunks_of(channels: int, mix: Mix) -> tuple[int, int]:
    """(programs along the channels, chunks of each): as few programs as fold the least, as few chunks as cover all."""
    needed = -(-channels // mix.block_d)
    parts = -(-needed // mix.chunks)
    return parts, -(-needed // parts)


class Tables(NamedTuple):
    """The bilinear resize of both axes, read from the coarse side."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]  # first and weights of rows, first and weights of columns
    taps: tuple[int, int]
    coarse: tuple[int, int]
    width: int


@functools.lru_cache(maxsize=64)
def fold_tables(fine: tuple[int, int], coarse: tuple[int, int], device: torch.device) -> Tables | None:
    """None where rows are too short for their taps."""
    first_y, weight_y = fold_table(coarse[0], fine[0])
    first_x, weight_x = fold_table(coarse[1], fine[1], TAPS)
    if len(weight_x) % TAPS:
        return None
    tensors = (table.to(device, non_blocking=True) for table in (first_y, weight_y, first_x, weight_x))
    return Tables(tuple(tensors), (len(weight_y), len(weight_x)), coarse, fine[1])


def fold_table(coarse: int, fine: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """(first [coarse], weights [taps,coarse]): cell m is in the fine value at first[m] + t with weights[t, m].

    The taps are as many as `multiple` divides, if there are so many fine values.
    """
    resize = F.interpolate(torch.eye(coarse)[None], size=fine, mode="linear", align_corners=False)[0]  # [coarse, fine]
    used = resize > 0
    place = torch.arange(fine)
    first = place.expand_as(used).masked_fill(~used, fine).amin(1)
    last = place.expand_as(used).masked_fill(~used, -1).amax(1)
    taps = max(1, int((last - first).max()) + 1)
    padded = -(-taps // multiple) * multiple
    taps = padded if padded <= fine else taps
    first = first.clamp(max=fine - taps)  # the last cells, and cells that no value uses, read on from further left
    return first.int(), resize.gather(1, first[:, None] + torch.arange(taps)).T.contiguous()
