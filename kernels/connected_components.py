"""Connected components of a class map by run-based union-find: class_map [B,H,W] to labels [B,H,W] and count [B].

Two pixels are connected when they touch (4 or 8 neighbours) and hold the same class. A batch is one strip of B·H rows,
each cut into blocks. A horizontal run of one class within its block is a node; its id is the block's number times its
width plus the run's number in it, so ids grow in raster order. Four launches, no host read:

    runs      pixel → number of its run by a prefix sum of run starts; every node its own parent
    merge     one union per touching pair of runs: the larger root takes the smaller node as parent, by atomic minimum
    flatten   node → root, pointers doubled on the way; roots are ranked within their block and counted, each program
              adding its count to the sums of the programs after it: to 64 of its group, and to one per later group
    relabel   run → 1 + number of roots before its root in its image, then pixel → label of its run

No step divides a pixel by the width; merge, flatten and the look-ups of relabel visit nodes, not pixels: a tenth or
less where regions are large. Two runs of neighbouring rows that touch first do so where one of them begins: each looks
there, at the pixel of the other row and the one before it, of which at most one is of its class.

All classes go in one pass: C binary labellings, the usual way, write C one-hot maps (150 classes at 512×683: 50 MiB)
and launch C times. Here the label map (4 bytes a pixel), a number of 2 bytes a pixel and three figures per run are
written, nothing else. The root is the component's first run, hence the labels are those of cc3d and of OpenCV's SAUF.

Concurrency. A parent is only ever replaced by a smaller node, and a union that replaces a link goes on to join what the
link pointed to; so whatever a parent has held at any time ends up in the same component. A stale read costs a step,
never the result: relaxed atomics suffice, and the value they return is the truth. Reads pass by the L1 cache (.cg),
where a stale parent could stay as long as the kernel runs. Every step of a loop lowers a node, so all loops end, and no
lane waits for another. In flatten a parent has one writer, and readers may see a link, a shorter link, or the mark of a
root. The partition, and with it every output bit, does not depend on the order of events; kernel boundaries order the
rest.

Sources: runs and equivalences, He, Chao, Suzuki, IEEE TIP 17(5), 2008; union by atomic minimum, Komura, Comput. Phys.
Commun. 194, 2015, and Playne, Hawick, IEEE TPDS 29(6), 2018; comparing parents before roots, Rem in Dijkstra, A
Discipline of Programming, 1976; pointers doubled while others read, Jaiganesh, Burtscher, HPDC 2018.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from s2clip.kernels.labelling_kernels import flatten_kernel, merge_runs_kernel, relabel_kernel, runs_kernel
from s2clip.kernels.tiles import architecture, launcher

IDS = 2**31 - 2**16  # pixels in one launch: ids are int32, and the last block must not pass 2³¹


class Configuration(NamedTuple):
    """Rows and columns of pixels of a program, runs at a time; blocks of a program of flatten, and its group."""

    rows: int  # of runs, merge and relabel
    block: int  # columns: nodes are numbered within it, row by row
    nodes: int  # runs at a time
    blocks: int  # of a program of flatten
    group: int  # programs of flatten


def configuration(arch: int) -> Configuration:
    """One choice for all GPUs; arch 0 is the interpreter, which pays per operation and not per lane: large tiles.

    Within a row nothing is divided by the width. All on one warp: merge and flatten loop until no lane is active, which
    is one vote; on four it would be a barrier and a round through shared memory in every step. A block of 512 pixels
    adds one union per 512 pixels of a run that crosses into it (0.2 %); 16 pixels a lane share what a program costs.
    """
    return Configuration(64, 64, 64, 64, 2) if arch == 0 else Configuration(1, 512, 32, 4, 64)


@launcher
def launch_label(
    class_map: torch.Tensor, connectivity: int, ignore_index: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.label_components`. A class map that is not contiguous is copied."""
    labels = torch.empty(class_map.shape, dtype=torch.int32, device=class_map.device)
    count = torch.empty(class_map.shape[0], dtype=torch.int32, device=class_map.device)
    if labels.numel() == 0:
        return labels, count.zero_()
    class_map = dense(class_map)
    for part in strips(labels, configuration(architecture(labels.device)).block):
        _label(class_map[part], labels[part], count[part], connectivity, ignore_index)
    return labels, count


def _label(class_map, labels, count, connectivity: int, ignore_index: int | None) -> None:
    images, height, width = class_map.shape
    rows = images * height
    limits = torch.iinfo(class_map.dtype)
    ignore = ignore_index is not None and limits.min <= ignore_index <= limits.max
    ignore_index = ignore_index if ignore else 0

    tiles = configuration(architecture(labels.device))
    blocks_of_row = triton.cdiv(width, tiles.block)
    grid = (triton.cdiv(rows, tiles.rows) * blocks_of_row,)
    blocks = height * blocks_of_row  # of an image
    programs = triton.cdiv(blocks, tiles.blocks)
    groups = triton.cdiv(programs, tiles.group)
    nodes = images * blocks * tiles.block
    cells = images * (programs + groups + 2)  # at most CELLS per block
    parent, found, sums = torch.empty(
        nodes + images * blocks + cells, dtype=torch.int32, device=labels.device
    ).tensor_split([nodes, nodes + images * blocks])
    start, number = torch.empty(nodes + rows * width, dtype=torch.int16, device=labels.device).tensor_split([nodes])

    of_rows = {"ROWS": tiles.rows, "BLOCK": tiles.block}
    of_runs = {"BLOCK": tiles.block, "NODES": tiles.nodes}
    of_sums = of_runs | {"BLOCKS": tiles.blocks, "GROUP": tiles.group}
    one_warp = launch_options(1)
    runs_kernel[grid](
        *(class_map, number, parent, start, found, sums, ignore_index, rows, width, cells),
        **of_rows | {"IGNORE": ignore, "SIGNED": limits.min < 0} | one_warp,
    )
    merge_runs_kernel[grid](
        *(class_map, number, parent, start, found, ignore_index, rows, height, width),
        **of_rows | of_runs | {"CONNECTIVITY": connectivity, "IGNORE": ignore} | one_warp,
    )
    flatten_kernel[(images * programs,)](parent, found, sums, blocks, programs, groups, **of_sums | one_warp)
    relabel_kernel[grid](
        *(labels, number, parent, found, sums, count, rows, height, width, programs, groups),
        **of_rows | of_sums | one_warp,
    )


def launch_options(num_warps: int) -> dict:
    return {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, bool as uint8."""
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor).contiguous()


def strips(maps: torch.Tensor, block: int = 1) -> Iterator[slice]:
    """The images of each launch, so that ids fit int32: maps [B,H,W], H·W at most IDS with W in whole blocks."""
    pixels = maps.shape[1] * -(-maps.shape[2] // block) * block
    if pixels > IDS:
        given = f"{pixels} in rows of {pixels // maps.shape[1]}"  # whole blocks
        raise ValueError(f"class_map: expected at most {IDS} pixels per image, received {given}")
    images = IDS // max(pixels, 1)
    return (slice(first, first + images) for first in range(0, maps.shape[0], images))
