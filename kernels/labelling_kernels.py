"""Device code of `label_components`; what it computes and why so: connected_components.py."""

import triton
import triton.language as tl

WRONG = tl.constexpr(1 << 16)  # above the runs of a block
IGNORED = tl.constexpr(-(2**31))  # parent of a run of the ignored class
CELLS = tl.constexpr(4)  # sums per block that runs sets to zero: at least as many as there are


def strip_kernel(function):
    """A kernel compiled once per dtype: no size, stride or alignment is compiled in, only the UPPER-CASE arguments.

    It would not pay either: accesses with a ragged end are not vectorised, so one pixel per lane is what coalesces.
    """
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize=[name for name in arguments if name.islower()])(function)


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


@triton.jit
def _running_count(flags, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Inclusive sums of flags [ROWS,BLOCK] along each row, and the rows' totals [ROWS].

    Four counts of at most 128 share a word, so that one scan over lanes serves four pixels of each.
    """
    LANES: tl.constexpr = 32 if BLOCK >= 128 else BLOCK // 4
    shift = (tl.arange(0, 4) * 8)[None, None, :, None]
    flags = tl.reshape(flags.to(tl.int32), [ROWS, BLOCK // (4 * LANES), 4, LANES])
    packed = tl.sum(flags << shift, axis=2)
    upwards = tl.sum(packed, axis=2) * 0x01010101  # byte k: the sum of bytes 0..k
    packed = tl.cumsum(packed, axis=2) + (upwards << 8)[:, :, None]
    of_word = (upwards >> 24) & 255
    before = tl.cumsum(of_word, axis=1) - of_word
    counts = ((packed[:, :, None, :] >> shift) & 255) + before[:, :, None, None]
    return tl.reshape(counts, [ROWS, BLOCK]), tl.sum(of_word, axis=1)


@strip_kernel
def runs_kernel(
    class_map,
    number,
    parent,
    start,
    found,
    sums,
    ignore_index: tl.int64,
    rows: tl.int32,
    width: tl.int32,
    cells: tl.int32,
    IGNORE: tl.constexpr,
    SIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """found [blocks]: runs of a block, and WRONG where a class id is negative; start: column of a run in its block."""
    row, column, block = _tile(rows, width, ROWS, BLOCK)
    inside = (row < rows) & (column < width)
    lane = tl.arange(0, BLOCK)[None, :]
    pixel = row * width + column
    class_id = tl.load(class_map + pixel, mask=inside, other=0)
    left = tl.load(class_map + pixel - 1, mask=inside & (lane > 0), other=0)
    begins = inside & ((lane == 0) | (class_id != left))
    count, facts = _running_count(begins, ROWS, BLOCK)
    own = count - 1
    node = block * BLOCK + own
    kept = _kept(class_id, inside, ignore_index, IGNORE)
    tl.store(number + pixel, own.to(tl.int16), mask=inside)
    tl.store(parent + node, tl.where(kept, node, IGNORED), mask=begins)
    tl.store(start + node, (lane + block * 0).to(tl.int16), mask=begins)
    if SIGNED:
        negative = kept & (class_id < 0)
        facts += tl.max(negative.to(tl.int32), axis=1) * WRONG
    tl.store(found + block, facts[:, None], mask=row < rows)
    cell = block * CELLS + tl.arange(0, CELLS)[None, :]
    tl.store(sums + cell, cell * 0, mask=cell < cells)


@strip_kernel
def merge_runs_kernel(
    class_map,
    number,
    parent,
    start,
    found,
    ignore_index: tl.int64,
    rows: tl.int32,
    height: tl.int32,
    width: tl.int32,
    CONNECTIVITY: tl.constexpr,
    IGNORE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NODES: tl.constexpr,
):
    """Lanes are runs of a block of a row, then runs of the block above; each looks at the other row."""
    blocks_of_row = tl.cdiv(width, BLOCK)
    row = tl.program_id(0) // blocks_of_row * ROWS + tl.arange(0, ROWS)[:, None]
    block_column = tl.program_id(0) % blocks_of_row
    lane = tl.arange(0, 2 * NODES)[None, :]
    from_above = lane >= NODES
    own_row = tl.where(from_above, row - 1, row)
    other_row = tl.where(from_above, row, row - 1)
    own_block = own_row * blocks_of_row + block_column
    other_block = other_row * blocks_of_row + block_column
    both_rows = (row < rows) & (row % height > 0) & (lane >= 0)
    runs = tl.load(found + own_block, mask=both_rows, other=0) & (WRONG - 1)
    most = tl.maximum(tl.max(runs), 1)
    for first in range(0, most, NODES):
        run = first + lane % NODES
        live = run < runs
        column = block_column * BLOCK + tl.load(start + own_block * BLOCK + run, mask=live, other=0)
        # The first lane from above, whose run and the one below it begin together, joins a row to its block before.
        link = from_above & (run == 0) & (column > 0) & (row < rows)
        has_left = link
        if CONNECTIVITY == 8:
            has_left = link | (live & (column > 0))
        pixel = other_row * width + column
        own_class = tl.load(class_map + own_row * width + column, mask=live, other=0)
        other_class = tl.load(class_map + pixel, mask=live | link, other=0)
        left_class = tl.load(class_map + pixel - 1, mask=has_left, other=0)
        link = link & (other_class == left_class)
        same = live & (own_class == other_class)
        back = link
        if CONNECTIVITY == 8:
            back = link | (has_left & live & (same == 0) & (own_class == left_class))
        touch = same | back
        if IGNORE:
            touch = touch & (tl.where(link, other_class, own_class) != ignore_index.to(own_class.dtype))
        own = tl.where(link, other_block * BLOCK, own_block * BLOCK + run)
        before = back & (run == 0)  # across the block's edge
        other = tl.where(before, other_block - 1, other_block) * BLOCK
        other += tl.load(number + pixel - back.to(tl.int32), mask=touch, other=0)
        _union(parent, own, other, touch)


@strip_kernel
def flatten_kernel(
    parent,
    found,
    sums,
    blocks: tl.int32,
    programs: tl.int32,
    groups: tl.int32,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    NODES: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A root's parent becomes ~rank, its rank in the block; found: runs, and from WRONG on the program's roots before.

    blocks, programs and groups are those of an image; sums [images,programs + groups + 2]: roots before each program
    in its group, roots before each group and in all, and whether a class id is negative.
    """
    image = tl.program_id(0) // programs
    program = tl.program_id(0) % programs
    of_image = program * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    block = image * blocks + of_image
    facts = tl.load(found + block, mask=of_image < blocks, other=0)
    runs = facts & (WRONG - 1)
    most = tl.max(runs)
    roots = runs * 0
    for first in range(0, most, NODES):
        number = first + tl.arange(0, NODES)[None, :]
        live = number < runs
        node = block * BLOCK + number
        root = tl.load(parent + node, mask=live, other=-1, cache_modifier=".cg")
        is_root = live & (root == node)
        active = live & (root != node) & (root >= 0)
        while tl.max(active.to(tl.int32)) > 0:
            above = tl.load(parent + root, mask=active, other=-1, cache_modifier=".cg")
            active = active & (above >= 0) & (above != root)
            root = tl.where(active, above, root)
            tl.store(parent + node, root, mask=active)  # others on their way through this node skip what it has skipped
        counted = is_root.to(tl.int32)
        rank = roots + tl.cumsum(counted, axis=1) - counted
        tl.store(parent + node, tl.where(is_root, -1 - rank, root), mask=live)
        roots += tl.sum(counted, axis=1)[:, None]
    before = tl.cumsum(roots, axis=0) - roots
    tl.store(found + block, runs + before * WRONG, mask=of_image < blocks)

    total = tl.sum(tl.sum(roots, axis=1), axis=0)
    own = sums + image * (programs + groups + 2)
    lane = tl.arange(0, GROUP)
    if total > 0:
        member = program // GROUP * GROUP + lane
        tl.atomic_add(own + member, total, mask=(member > program) & (member < programs), sem="relaxed")
        for first in range(0, groups + 1, GROUP):
            group = first + lane
            later = (group > program // GROUP) & (group <= groups)
            tl.atomic_add(own + programs + group, total, mask=later, sem="relaxed")
    wrong = tl.max(facts // WRONG)
    tl.atomic_max(own + programs + groups + 1, wrong, mask=wrong > 0, sem="relaxed")


@strip_kernel
def relabel_kernel(
    labels,
    number,
    parent,
    found,
    sums,
    count,
    rows: tl.int32,
    height: tl.int32,
    width: tl.int32,
    programs: tl.int32,
    groups: tl.int32,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    NODES: tl.constexpr,
    GROUP: tl.constexpr,
):
    row, column, block = _tile(rows, width, ROWS, BLOCK)
    image = row // height
    first_block = image * (height * tl.cdiv(width, BLOCK))
    own = sums + image * (programs + groups + 2)
    of_group = own + programs
    refused = tl.load(of_group + groups + 1, mask=row < rows, other=0) > 0  # a class id below 0
    # One comparison of a sum: Triton 3.9's interpreter takes no mask of a tensor & a scalar.
    head = (row < rows) & (row % height + tl.program_id(0) % tl.cdiv(width, BLOCK) == 0)
    everything = tl.load(of_group + groups, mask=head, other=0)
    tl.store(count + image, tl.where(refused, -1, everything), mask=head)

    inside = (row < rows) & (column < width)
    pixel = row * width + column
    run = tl.load(number + pixel, mask=inside, other=0).to(tl.int32)
    runs = tl.load(found + block, mask=row < rows, other=0) & (WRONG - 1)
    most = tl.max(runs)
    label = run * 0
    for first in range(0, most, NODES):
        node = first + tl.arange(0, NODES)[None, :]
        live = (node < runs) & (refused == 0)
        node += block * BLOCK
        link = tl.load(parent + node, mask=live, other=IGNORED)
        kept = link != IGNORED
        root = tl.where(link < 0, node, link)
        rank = tl.load(parent + root, mask=kept, other=-1)
        root_block = root // BLOCK
        program = (root_block - first_block) // BLOCKS
        before = tl.load(found + root_block, mask=kept, other=0) // WRONG
        before += tl.load(own + program, mask=kept, other=0) + tl.load(of_group + program // GROUP, mask=kept, other=0)
        of_run = tl.where(kept, before - rank, 0)
        place = run - first
        chosen = (place >= 0) & (place < NODES)
        label = tl.where(chosen, tl.gather(of_run, tl.where(chosen, place, 0), 1), label)
    tl.store(labels + pixel, label, mask=inside)
