"""Connected components of a class map by run-based union-find: class_map [B,H,W] to labels [B,H,W] and count [B].

Two pixels are connected when they touch (4 or 8 neighbours) and hold the same class. A batch is one strip of B·H rows,
each cut into blocks. A horizontal run of one class within its block is a node; its id is the block's number times its
width plus the run's number in it, so ids grow in raster order. Five launches, no host read:

    runs      pixel → node by a prefix sum of run starts; every node its own parent
    merge     one union per touching pair of runs: the larger root takes the smaller node as parent, by atomic minimum
    flatten   node → root, pointers doubled on the way; roots are counted and ranked within their block
    scan      block → number of roots before it
    relabel   pixel → 1 + number of roots before its root in its image

No step divides a pixel by the width, and flatten visits nodes, not pixels: a tenth or less where regions are large.

All classes go in one pass: C binary labellings, the usual way, write C one-hot maps (150 classes at 512×683: 50 MiB)
and launch C times. Here the label map (4 bytes a pixel) and one parent per run are written, nothing else. The root is
the component's first run, hence the labels are those of cc3d and of OpenCV's SAUF.

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
import triton.language as tl

from s2clip.kernels.tiles import architecture, launcher

IDS = 2**31 - 2**16  # pixels in one launch: ids are int32, and the last block must not pass 2³¹
WRONG = tl.constexpr(1 << 16)  # above the runs of a block


def strip_kernel(function):
    """A kernel compiled once per dtype: no size, stride or alignment is compiled in, only the UPPER-CASE arguments.

    It would not pay either: accesses with a ragged end are not vectorised, so one pixel per lane is what coalesces.
    """
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize=[name for name in arguments if name.islower()])(function)


class Configuration(NamedTuple):
    """Rows and columns of pixels of a program, blocks and nodes of each of flatten's, counts of each step of scan."""

    rows: int  # of runs, merge and relabel
    block: int  # columns of runs and relabel; nodes are numbered within it, row by row
    merge: int  # columns of merge
    blocks: int  # of flatten
    nodes: int  # of each, at a time
    scan: int
    warps: int  # of runs and relabel
    scan_warps: int


def configuration(arch: int) -> Configuration:
    """One choice for all GPUs; arch 0 is the interpreter, which pays per operation and not per lane: large tiles.

    Within a row nothing is divided by the width. merge and flatten loop until no lane is active: on one warp that test
    is one vote, on four it would be a barrier and a round through shared memory in every step. A block of 512 pixels
    adds one union per 512 pixels of a run that crosses into it (0.2 %); 4096 counts are 2 megapixels.
    """
    if arch == 0:
        return Configuration(64, 64, 64, 64, 64, scan=1024, warps=1, scan_warps=1)
    return Configuration(1, 512, 128, 4, 32, scan=4096, warps=4, scan_warps=8)


@triton.jit
def _union(parent, left, right, active):
    """Joins the trees of nodes left and right [LANES] where active; of two roots the smaller one stays."""
    while tl.max(active.to(tl.int32)) > 0:
        left_parent = tl.load(parent + left, mask=active, other=0, cache_modifier=".cg")
        right_parent = tl.load(parent + right, mask=active, other=0, cache_modifier=".cg")
        active = active & (left_parent != right_parent)
        higher = tl.where(left_parent > right_parent, left, right)
        high = tl.maximum(left_parent, right_parent)
        low = tl.minimum(left_parent, right_parent)
        root = active & (high == higher)
        # Not a root any more when another lane was faster: what it has been linked to is then still to be joined.
        previous = tl.atomic_min(parent + higher, low, mask=root, sem="relaxed")
        left = tl.where(root, previous, high)
        right = low
        active = active & (left != higher)


@triton.jit
def _kept(class_id, inside, ignore_index, IGNORE: tl.constexpr):
    kept = inside
    if IGNORE:
        kept = inside & (class_id != ignore_index.to(class_id.dtype))
    return kept


@triton.jit
def _tile(rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(rows [ROWS,1] of the strip, columns [1,COLUMNS], their block [ROWS,1]) of this program."""
    blocks_of_row = tl.cdiv(width, COLUMNS)
    program = tl.program_id(0)
    row = program // blocks_of_row * ROWS + tl.arange(0, ROWS)[:, None]
    number = program % blocks_of_row
    return row, number * COLUMNS + tl.arange(0, COLUMNS)[None, :], row * blocks_of_row + number


@strip_kernel
def _runs_kernel(
    class_map,
    labels,
    parent,
    found,
    ignore_index: tl.int64,
    rows: tl.int32,
    width: tl.int32,
    IGNORE: tl.constexpr,
    SIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """found [blocks]: runs of a block, and WRONG where a class id is negative."""
    row, column, block = _tile(rows, width, ROWS, BLOCK)
    inside = (row < rows) & (column < width)
    first = (tl.arange(0, BLOCK) == 0)[None, :]
    pixel = row * width + column
    class_id = tl.load(class_map + pixel, mask=inside, other=0)
    left = tl.load(class_map + pixel - 1, mask=inside & (first == 0), other=0)
    kept = _kept(class_id, inside, ignore_index, IGNORE)
    start = kept & (first | (class_id != left))
    number = tl.cumsum(start.to(tl.int32), axis=1)
    node = block * BLOCK + number - 1
    tl.store(labels + pixel, tl.where(kept, node, -1), mask=inside)
    tl.store(parent + node, node, mask=start)
    facts = tl.max(number, axis=1)
    if SIGNED:
        negative = kept & (class_id < 0)
        facts += tl.max(negative.to(tl.int32), axis=1) * WRONG
    tl.store(found + block, facts[:, None], mask=row < rows)


@strip_kernel
def _merge_kernel(
    class_map,
    labels,
    parent,
    ignore_index: tl.int64,
    rows: tl.int32,
    height: tl.int32,
    width: tl.int32,
    CONNECTIVITY: tl.constexpr,
    IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    row, column, _ = _tile(rows, width, ROWS, LANES)
    inside = (row < rows) & (column < width)
    pixel = row * width + column
    class_id = tl.load(class_map + pixel, mask=inside, other=0)
    kept = _kept(class_id, inside, ignore_index, IGNORE)
    has_left = kept & (column > 0)
    has_above = kept & (row % height > 0)
    above_pixel = class_map + pixel - width
    left = has_left & (tl.load(class_map + pixel - 1, mask=has_left, other=0) == class_id)
    above = has_above & (tl.load(above_pixel, mask=has_above, other=0) == class_id)
    mask = has_above & has_left
    above_left = mask & (tl.load(above_pixel - 1, mask=mask, other=0) == class_id)

    # The first pixel that two runs share makes their union; a corner makes one only where no edge has.
    node = tl.load(labels + pixel, mask=kept, other=0)
    touch = above & ((left & above_left) == 0)
    neighbour = pixel - width
    if CONNECTIVITY == 8:
        corner = above_left & (above == 0) & (left == 0)
        touch = touch | corner
        neighbour = tl.where(corner, neighbour - 1, neighbour)
    _union(parent, node, tl.load(labels + neighbour, mask=touch, other=0), touch)
    if CONNECTIVITY == 8:
        has_right = kept & (column < width - 1)
        right = has_right & (tl.load(class_map + pixel + 1, mask=has_right, other=0) == class_id)
        mask = has_above & has_right & (above == 0) & (right == 0)
        corner = mask & (tl.load(above_pixel + 1, mask=mask, other=0) == class_id)
        _union(parent, node, tl.load(labels + pixel - width + 1, mask=corner, other=0), corner)
    link = left & (column % BLOCK == 0)
    _union(parent, node, tl.load(labels + pixel - 1, mask=link, other=0), link)


@strip_kernel
def _flatten_kernel(
    parent, found, block_roots, blocks: tl.int32, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, NODES: tl.constexpr
):
    """A root's parent becomes ~rank, its rank in the block; block_roots: a block's roots, and 2^32 where WRONG."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    facts = tl.load(found + block, mask=block < blocks, other=0)
    runs = facts & (WRONG - 1)
    most = tl.max(runs)
    roots = runs * 0
    for first in range(0, most, NODES):
        number = first + tl.arange(0, NODES)[None, :]
        live = number < runs
        node = block * BLOCK + number
        root = tl.load(parent + node, mask=live, other=-1, cache_modifier=".cg")
        is_root = live & (root == node)
        active = live & (root != node)
        while tl.max(active.to(tl.int32)) > 0:
            above = tl.load(parent + root, mask=active, other=-1, cache_modifier=".cg")
            active = active & (above >= 0) & (above != root)
            root = tl.where(active, above, root)
            tl.store(parent + node, root, mask=active)  # others on their way through this node skip what it has skipped
        counted = is_root.to(tl.int32)
        rank = roots + tl.cumsum(counted, axis=1) - counted
        tl.store(parent + node, tl.where(is_root, -1 - rank, root), mask=live)
        roots += tl.sum(counted, axis=1)[:, None]
    tl.store(block_roots + block, roots + ((facts // WRONG).to(tl.int64) << 32), mask=block < blocks)


@strip_kernel
def _scan_kernel(block_roots, blocks: tl.int32, BLOCK: tl.constexpr):
    """block_roots [blocks + 1] to the sums of what precedes each entry, in place; one program."""
    total = tl.program_id(0).to(tl.int64)
    first = tl.program_id(0)
    while first < blocks:
        block = first + tl.arange(0, BLOCK)
        roots = tl.load(block_roots + block, mask=block < blocks, other=0)
        tl.store(block_roots + block, total + tl.cumsum(roots, axis=0) - roots, mask=block < blocks)
        total += tl.sum(roots, axis=0)
        first += BLOCK
    tl.store(block_roots + blocks, total)


@strip_kernel
def _relabel_kernel(
    labels,
    parent,
    block_roots,
    count,
    rows: tl.int32,
    height: tl.int32,
    width: tl.int32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, column, _ = _tile(rows, width, ROWS, BLOCK)
    inside = (row < rows) & (column < width)
    pixel = row * width + column
    image = row // height
    blocks_of_image = height * tl.cdiv(width, BLOCK)
    before = tl.load(block_roots + image * blocks_of_image, mask=row < rows, other=0)
    own = tl.load(block_roots + (image + 1) * blocks_of_image, mask=row < rows, other=0) - before
    refused = own >> 32 > 0  # a class id below 0
    head = (row < rows) & (row % height == 0) & (tl.program_id(0) % tl.cdiv(width, BLOCK) == 0)
    tl.store(count + image, tl.where(refused, -1, own.to(tl.int32)), mask=head)

    node = tl.load(labels + pixel, mask=inside, other=-1)
    kept = (node >= 0) & (refused == 0)
    link = tl.load(parent + node, mask=kept, other=-1)
    root = tl.where(link < 0, node, link)
    rank = tl.where(link < 0, link, tl.load(parent + root, mask=kept & (link >= 0), other=-1))
    label = (tl.load(block_roots + root // BLOCK, mask=kept, other=0) - before).to(tl.int32) - rank
    tl.store(labels + pixel, tl.where(kept, label, 0), mask=inside)


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
    programs = triton.cdiv(rows, tiles.rows)
    blocks_of_row = triton.cdiv(width, tiles.block)
    blocks = rows * blocks_of_row
    parent, found = torch.empty(blocks * (tiles.block + 1), dtype=torch.int32, device=labels.device).tensor_split(
        [blocks * tiles.block]
    )
    block_roots = torch.empty(blocks + 1, dtype=torch.int64, device=labels.device)

    one_warp, warps, scan_warps = (launch_options(number) for number in (1, tiles.warps, tiles.scan_warps))
    _runs_kernel[(programs * blocks_of_row,)](
        *(class_map, labels, parent, found, ignore_index, rows, width),
        **{"IGNORE": ignore, "SIGNED": limits.min < 0, "ROWS": tiles.rows, "BLOCK": tiles.block},
        **warps,
    )
    _merge_kernel[(programs * triton.cdiv(width, tiles.merge),)](
        *(class_map, labels, parent, ignore_index, rows, height, width),
        **{"CONNECTIVITY": connectivity, "IGNORE": ignore, "BLOCK": tiles.block},
        **{"ROWS": tiles.rows, "LANES": tiles.merge},
        **one_warp,
    )
    _flatten_kernel[(triton.cdiv(blocks, tiles.blocks),)](
        *(parent, found, block_roots, blocks),
        **{"BLOCK": tiles.block, "BLOCKS": tiles.blocks, "NODES": tiles.nodes},
        **one_warp,
    )
    _scan_kernel[(1,)](block_roots, blocks, BLOCK=tiles.scan, **scan_warps)
    _relabel_kernel[(programs * blocks_of_row,)](
        *(labels, parent, block_roots, count, rows, height, width), ROWS=tiles.rows, BLOCK=tiles.block, **warps
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
