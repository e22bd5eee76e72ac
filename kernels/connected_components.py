"""Connected components of a class map by run-based union-find: class_map [B,H,W] to labels [B,H,W] and count [B].

Two pixels are connected when they touch (4 or 8 neighbours) and hold the same class. A batch is one strip of N = B·H·W
pixels, cut into blocks. A horizontal run of one class, within its row and its block, is a node; its id is the first
pixel of its block plus its number among the block's runs, so ids grow in raster order. Five launches, no host read:

    runs      pixel → node by a prefix sum of run starts; every node its own parent
    merge     one union per touching pair of runs: the larger root takes the smaller node as parent, by atomic minimum
    flatten   node → root, pointers doubled on the way; roots are counted and ranked within their block
    scan      block → number of roots before it
    relabel   pixel → 1 + number of roots before its root in its image

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


def strip_kernel(function):
    """A kernel compiled once per dtype: no size, stride or alignment is compiled in, only the UPPER-CASE arguments.

    It would not pay either: accesses with a ragged end are not vectorised, so one pixel per lane is what coalesces.
    """
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize=[name for name in arguments if name.islower()])(function)


class Configuration(NamedTuple):
    """Pixels per program (counts per step of scan), and warps where a program has more than one."""

    block: int  # of runs, flatten and relabel; nodes are numbered within it
    merge: int
    scan: int
    warps: int  # of runs and relabel
    scan_warps: int


def configuration(arch: int) -> Configuration:
    """One choice for all GPUs; arch 0 is the interpreter, which pays per operation and not per lane: large blocks.

    merge and flatten loop until no lane is active. On one warp that test is one vote; on four warps it would be a
    barrier and a round through shared memory in every step. A block of 512 pixels adds one union per 512 pixels of a
    run that crosses into it (0.2 %) and leaves scan one step of 4096 counts per 2 megapixels.
    """
    if arch == 0:
        return Configuration(block=4096, merge=4096, scan=1024, warps=1, scan_warps=1)
    return Configuration(block=512, merge=128, scan=4096, warps=4, scan_warps=8)


@triton.jit
def _union(parent, left, right, active):
    """Joins the trees of nodes left and right [LANES] where active; of two roots the smaller one stays."""
    while tl.max(active.to(tl.int32), axis=0) > 0:
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


@strip_kernel
def _runs_kernel(
    class_map,
    labels,
    parent,
    wrong,
    ignore_index: tl.int64,
    pixels: tl.int32,
    image_pixels: tl.int32,
    width: tl.int32,
    IGNORE: tl.constexpr,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.arange(0, BLOCK)
    first = tl.program_id(0) * BLOCK
    pixel = first + offset
    inside = pixel < pixels

    class_id = tl.load(class_map + pixel, mask=inside, other=0)
    left = tl.load(class_map + pixel - 1, mask=inside & (offset > 0), other=0)
    kept = _kept(class_id, inside, ignore_index, IGNORE)
    start = kept & ((offset == 0) | (pixel % width == 0) | (class_id != left))
    node = first + tl.cumsum(start.to(tl.int32), axis=0) - 1

    tl.store(labels + pixel, tl.where(kept, node, -1), mask=inside)
    tl.store(parent + node, node, mask=start)
    if SIGNED:
        negative = kept & (class_id < 0)
        if tl.max(negative.to(tl.int32), axis=0) > 0:
            tl.atomic_max(wrong + pixel // image_pixels, negative.to(tl.int32), mask=negative, sem="relaxed")


@strip_kernel
def _merge_kernel(
    class_map,
    labels,
    parent,
    ignore_index: tl.int64,
    pixels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    CONNECTIVITY: tl.constexpr,
    IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    pixel = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = pixel < pixels
    column = pixel % width
    class_id = tl.load(class_map + pixel, mask=inside, other=0)
    kept = _kept(class_id, inside, ignore_index, IGNORE)
    has_left = kept & (column > 0)
    has_above = kept & (pixel // width % height > 0)
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
    link = left & (pixel % BLOCK == 0)
    _union(parent, node, tl.load(labels + pixel - 1, mask=link, other=0), link)


@strip_kernel
def _flatten_kernel(
    labels, parent, block_roots, first_rank, pixels: tl.int32, image_pixels: tl.int32, BLOCK: tl.constexpr
):
    """A root's parent becomes ~rank, its rank in the block; first_rank [B]: roots of the block before the image."""
    block = tl.program_id(0)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    node = tl.load(labels + pixel, mask=inside, other=-1)
    before = tl.load(labels + pixel - 1, mask=inside & (pixel > 0), other=-1)
    start = (node >= 0) & (node != before)

    root = tl.load(parent + node, mask=start, other=-1, cache_modifier=".cg")
    is_root = start & (root == node)
    active = start & (root != node)
    while tl.max(active.to(tl.int32), axis=0) > 0:
        above = tl.load(parent + root, mask=active, other=-1, cache_modifier=".cg")
        active = active & (above >= 0) & (above != root)
        root = tl.where(active, above, root)
        tl.store(parent + node, root, mask=active)  # others on their way through this node skip what it has skipped

    counted = is_root.to(tl.int32)
    rank = tl.cumsum(counted, axis=0) - counted
    tl.store(parent + node, tl.where(is_root, -1 - rank, root), mask=start)
    tl.store(first_rank + pixel // image_pixels, rank, mask=inside & (pixel % image_pixels == 0))
    tl.store(block_roots + block, tl.sum(counted, axis=0))


@strip_kernel
def _scan_kernel(block_roots, blocks: tl.int32, BLOCK: tl.constexpr):
    """block_roots [blocks + 1] to the sums of what precedes each entry, in place; one program."""
    total = tl.program_id(0)
    first = tl.program_id(0)
    while first <= blocks:
        block = first + tl.arange(0, BLOCK)
        roots = tl.load(block_roots + block, mask=block < blocks, other=0)
        tl.store(block_roots + block, total + tl.cumsum(roots, axis=0) - roots, mask=block <= blocks)
        total += tl.sum(roots, axis=0)
        first += BLOCK


@triton.jit
def _roots_before(block_roots, first_rank, image, image_pixels, mask, BLOCK: tl.constexpr):
    rank = tl.load(first_rank + image, mask=mask, other=0)
    return rank + tl.load(block_roots + image * image_pixels // BLOCK, mask=mask, other=0)


@strip_kernel
def _relabel_kernel(
    labels,
    parent,
    block_roots,
    first_rank,
    wrong,
    count,
    pixels: tl.int32,
    image_pixels: tl.int32,
    images: tl.int32,
    blocks: tl.int32,
    SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    image = pixel // image_pixels
    refused = image < 0
    if SIGNED:
        refused = tl.load(wrong + image, mask=inside, other=0) > 0
    before = _roots_before(block_roots, first_rank, image, image_pixels, inside, BLOCK)
    start = inside & (pixel % image_pixels == 0)
    if tl.max(start.to(tl.int32), axis=0) > 0:
        last = image == images - 1
        after = _roots_before(block_roots, first_rank, image + 1, image_pixels, start & (last == 0), BLOCK)
        after = tl.where(last, tl.load(block_roots + blocks), after)
        tl.store(count + image, tl.where(refused, -1, after - before), mask=start)

    node = tl.load(labels + pixel, mask=inside, other=-1)
    kept = (node >= 0) & (refused == 0)
    link = tl.load(parent + node, mask=kept, other=-1)
    root = tl.where(link < 0, node, link)
    rank = tl.where(link < 0, link, tl.load(parent + root, mask=kept & (link >= 0), other=-1))
    label = tl.load(block_roots + root // BLOCK, mask=kept, other=0) - rank - before
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
    for part in strips(labels):
        _label(class_map[part], labels[part], count[part], connectivity, ignore_index)
    return labels, count


def _label(class_map, labels, count, connectivity: int, ignore_index: int | None) -> None:
    images, height, width = class_map.shape
    pixels, image_pixels = labels.numel(), height * width
    limits = torch.iinfo(class_map.dtype)
    ignore = ignore_index is not None and limits.min <= ignore_index <= limits.max
    ignore_index = ignore_index if ignore else 0
    signed = limits.min < 0

    tiles = configuration(architecture(labels.device))
    blocks = triton.cdiv(pixels, tiles.block)
    parent = torch.empty(pixels, dtype=torch.int32, device=labels.device)
    block_roots = torch.empty(blocks + 1, dtype=torch.int32, device=labels.device)
    first_rank = torch.empty(images, dtype=torch.int32, device=labels.device)
    wrong = torch.zeros(images, dtype=torch.int32, device=labels.device) if signed else count

    one_warp, warps, scan_warps = (launch_options(number) for number in (1, tiles.warps, tiles.scan_warps))
    _runs_kernel[(blocks,)](
        *(class_map, labels, parent, wrong, ignore_index, pixels, image_pixels, width),
        **{"IGNORE": ignore, "SIGNED": signed, "BLOCK": tiles.block},
        **warps,
    )
    _merge_kernel[(triton.cdiv(pixels, tiles.merge),)](
        *(class_map, labels, parent, ignore_index, pixels, height, width),
        **{"CONNECTIVITY": connectivity, "IGNORE": ignore, "BLOCK": tiles.block, "LANES": tiles.merge},
        **one_warp,
    )
    _flatten_kernel[(blocks,)](
        labels, parent, block_roots, first_rank, pixels, image_pixels, BLOCK=tiles.block, **one_warp
    )
    _scan_kernel[(1,)](block_roots, blocks, BLOCK=tiles.scan, **scan_warps)
    _relabel_kernel[(blocks,)](
        *(labels, parent, block_roots, first_rank, wrong, count, pixels, image_pixels, images, blocks),
        **{"SIGNED": signed, "BLOCK": tiles.block},
        **warps,
    )


def launch_options(num_warps: int) -> dict:
    return {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": False}


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, bool as uint8."""
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor).contiguous()


def strips(maps: torch.Tensor) -> Iterator[slice]:
    """The images of each launch, so that pixel ids fit int32: maps [B,H,W], H·W at most IDS."""
    pixels = maps.shape[1] * maps.shape[2]
    if pixels > IDS:
        raise ValueError(f"class_map: expected at most {IDS} pixels per image, received {pixels}")
    images = IDS // max(pixels, 1)
    return (slice(first, first + images) for first in range(0, maps.shape[0], images))
