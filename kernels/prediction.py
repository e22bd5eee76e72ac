"""Predicted time of a launch from its machine code: a model, not a measurement.

Instructions of a loop count as often as its source says for the launch's arguments (`source_loops`), others once per
warp. A kernel takes as long as the busiest unit of the busiest SM, or as L2 or memory takes for its bytes, whatever is
longest: other units, latencies and conflicts are taken to hide behind it. Memory moves inputs and outputs once, and
what goes from launch to launch only where L2 cannot hold it: stores write back (PTX ISA, cache operators, st.wb).
Barriers stall a block for BARRIER cycles, which other blocks of the SM fill. Every launch costs LAUNCH seconds, as a
node of a captured graph does.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import triton.language as tl

from s2clip.kernels.machine_code import Code, Line, Loop, loops
from s2clip.kernels.source_loops import Place, places, stands_in, trips
from s2clip.kernels.units import UNITS, Gpu, cost, unit_of

LAUNCH = 2e-6
ISSUE = 0.9  # instructions per clock of a scheduler: dependencies and register banks take the rest
BARRIER = 30
# Loops and branches that the arguments' values do not settle, by file and head: trips, or the share of the time that a
# branch is taken. Of data: a quarter of a map's tiles see a mask, as Cityscapes' 60 regions do; regions have long runs,
# so that a union or a look-up takes one step, and half of the blocks of pixels see a second label.
Trips = float | Callable[[dict[str, Any]], float]
ASSUMED: dict[tuple[str, str], Trips] = {
    ("spatial_entropy.py", "range(0, programs, EVERY)"): lambda given: (
        -(-_channels(given) // (given["BLOCK_C"] * given["EVERY"]))
    ),
    ("affinity_kernels.py", "range(0, channels, BLOCK_C)"): lambda given: -(-_channels(given) // given["BLOCK_C"]),
    ("mix_kernels.py", "range(0, inner, BLOCK_K)"): lambda given: -(-_inner(given) // given["BLOCK_K"]),
    ("mix_kernels.py", "tl.range(0, taps_y, num_stages=1)"): lambda given: given["taps_y"],
    ("classify_pixels.py", "index < latest"): 0.0,  # words are in the order of their classes
    ("classify_pixels.py", "tl.min(finite.to(tl.int32)) == 0"): 0.0,  # logits are finite, and not far apart
    ("statistics_kernels.py", "uniform"): 0.5,
    ("statistics_kernels.py", "uniform == 0"): 0.5,
    ("statistics_kernels.py", "(one < NONE) & (rounds < ROUNDS)"): 2.0,
    ("statistics_kernels.py", "tl.max(beyond - image, axis=0) > 0"): 1.0,
    ("statistics_kernels.py", "one < NONE"): 0.2,  # of the other half
    ("labelling_kernels.py", "tl.max(active.to(tl.int32)) > 0"): 1.0,
    ("labelling_kernels.py", "range(0, most, NODES)"): 1.0,
    ("merge_kernels.py", "range(first, last, REGIONS)"): lambda given: -(-_regions(given) // given["REGIONS"]),
    ("merge_kernels.py", "range(top // STRIP, bottom // STRIP + 1)"): 2.0,
    ("merge_kernels.py", "range(first_strip, tl.minimum(first_strip + STRIPS, strips))"): lambda given: given["STRIPS"],
    ("merge_kernels.py", "LINES > 0 and current % 2 == 0"): 0.0,  # no logit is NaN or infinite
    ("merge_kernels.py", "current < 2147483647"): lambda given: 0.25 * min(_regions(given), given["REGIONS"]),
    ("merge_kernels.py", "tl.load(class_of + following // 2, mask=more, other=-1) != index"): 0.4,
}
# Branches that some programs take whole, and the share of the programs: each kind is spread over the SMs by itself.
KINDS: dict[tuple[str, str], Callable[[dict[str, Any]], float]] = {
    ("recombined_kernel.py", "(tokens - start_m > FEW) | (FEW == 0)"): lambda given: 1 - _short(given),
    ("recombined_kernel.py", "tokens - start_m <= FEW"): lambda given: _short(given),
    ("affinity_kernels.py", "live"): lambda given: _squares(given) / (_squares(given) + _squares(given) % 2),
    ("affinity_kernels.py", "SYMMETRIC and i_tile // RATIO != j_tile"): lambda given: 1 - 2 / (_squares(given) + 1),
}
# Kernels whose loads hit L1 but for the first time: of them L2 gives every element once.
L1 = ("_classify_pixels_kernel", "_class_scores_kernel", "merge_masks_kernel")
# Loads that hit L1 but for the first time, by file and text of the line, and the share that L2 gives: a program that
# folds reads every position of a map twice as fine for 4 of 16 taps, and tables of a few hundred numbers.
OF_L1: dict[tuple[str, str], float] = {
    ("mix_kernels.py", "tl.load(place + tap_x)"): 0.25,
    ("mix_kernels.py", "place += width"): 0.25,  # where some versions of Triton say that they stand
    ("mix_kernels.py", "tl.load(weight_"): 0.0,
    ("mix_kernels.py", "tl.load(first_"): 0.0,
}


# What a program has to end before its other work can begin: no unit's time hides behind the other's.
FIRST = (("mix_kernels.py", "row_sum = _folded_row(\n"),)
# Accesses of one lane, of lanes that have one address, or of the few lanes where a run starts, by file and text of the
# line: they touch a sector of 32 bytes, not 128.
ONE_SECTOR = (
    ("spatial_entropy.py", "tl.load(fact"),
    ("spatial_entropy.py", "tl.store(fact"),
    ("statistics_kernels.py", "_record(state, one,"),
    ("statistics_kernels.py", "count + image"),
    ("statistics_kernels.py", "end + image"),
    ("labelling_kernels.py", "parent +"),
    ("labelling_kernels.py", "start +"),
    ("labelling_kernels.py", "found +"),
    ("labelling_kernels.py", "of_group +"),
)
SECTOR = 32


class Iteration(NamedTuple):
    """One iteration of a machine loop, as issued by one warp."""

    place: str
    trips: float
    instructions: int
    units: dict[str, int]  # by UNITS; issue counts all
    accesses: dict[str, int]  # loads, stores and atomics of global memory by opcode and width


class Prediction(NamedTuple):
    kernel: str
    seconds: float  # without LAUNCH
    bound: str  # the unit, "L2" or "memory"
    blocks: int
    cycles: dict[str, float]  # of the busiest SM, by what is busy
    loops: list[Iteration]


def _short(given: dict[str, Any]) -> float:
    """The share of tiles with few rows."""
    return 1 / -(-given["tokens"] // given["BLOCK_M"]) if given["FEW"] else 0.0


def _squares(given: dict[str, Any]) -> int:
    """Along a side of a symmetric P: an odd number leaves some programs idle, those of the diagonal have no mirror."""
    return -(-given["positions"] // (given["BLOCK"] * given["RATIO"]))


def _inner(given: dict[str, Any]) -> int:
    """Positions that values have: of their own grid where rows of P are folded."""
    return given["inner"] if "inner" in given else given["coarse_height"] * given["coarse_width"]


def _regions(given: dict[str, Any]) -> int:
    return given["mask_logits"].shape[0]


def _channels(given: dict[str, Any]) -> int:
    """In units of 16 bytes where the kernel is told that its rows are WIDE, of 8 where they are tokens."""
    if given.get("WIDE"):
        return given["channels"] * (16 // given["feature"].element_size())
    return given["channels"] * (8 // given["features"].element_size() if given.get("TOKENS") else 1)


def _source_trips(place: Place, arguments: dict[str, Any]) -> float:
    given = ASSUMED.get((place.file, place.head))
    if given is not None:
        return float(given(arguments) if callable(given) else given)
    if place.kind == "while":
        raise KeyError(f"{place.file}:{place.line}: the data decide on `while {place.head}`: ASSUMED has no entry")
    return float(trips(place.head, arguments))


def _share(lines_places: Iterable[Place]) -> float:
    """How often the branches that an instruction stands in are taken."""
    return math.prod(float(ASSUMED.get((place.file, place.head), 1.0)) for place in lines_places if place.kind == "if")


@functools.cache
def _kinds(lines: tuple[Line, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((place.file, place.head) for place in places(lines) if (place.file, place.head) in KINDS)


def _kind(lines: tuple[Line, ...], arguments: dict[str, Any]) -> float:
    """The share of a launch's programs that run an instruction."""
    return math.prod(KINDS[kind](arguments) for kind in _kinds(lines))


def _paths(code: Code, found: Sequence[Loop]) -> list[tuple[Place, ...]]:
    """Per machine loop the path of source loops that most of its own instructions stand in, innermost loops first.

    The set-up of an inner loop carries that loop's lines and stands in the outer one: an outer loop is none of its own.
    """
    paths: dict[int, tuple[Place, ...]] = {}
    for number in sorted(range(len(found)), key=lambda number: len(found[number].body)):
        taken = {paths[inner] for inner in paths if found[inner].header in found[number].body}
        votes: Counter = Counter()
        for index in found[number].own:
            votes[tuple(place for place in places(code.instructions[index].lines) if place.kind != "if")] += 1
        candidates = [path for path in votes if path and path not in taken]
        if not candidates:
            raise ValueError("a loop without source lines: was it compiled without them?")
        paths[number] = max(candidates, key=lambda path: (votes[path], len(path)))
    return [paths[number] for number in range(len(found))]


def named_values(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Values of the names in a kernel's loop heads: its arguments, and constants of its module."""
    constants = {key: each.value for key, each in kernel.fn.__globals__.items() if isinstance(each, tl.constexpr)}
    return constants | arguments


def _unrolled(code: Code, loop: Loop, rest: Loop) -> int:
    """How many iterations of its source one iteration of a loop is, by what no compiler adds: products, accesses."""
    many, one = (Counter(unit_of(code.instructions[index]) for index in each.own) for each in (loop, rest))
    ratios = [many[unit] / one[unit] for unit in ("tensor", "global", "special", "issue") if many[unit] and one[unit]]
    return max(1, 2 ** round(math.log2(ratios[0])))


def executions(code: Code, arguments: dict[str, Any]) -> tuple[list[float], list[tuple[Loop, float, str]]]:
    """(how often a warp runs each instruction, the loops with their trips)."""
    found = loops(code)
    paths = _paths(code, found)
    # A loop that ptxas unrolled has a second one for the rest: same place, same parent.
    twins: dict[tuple[object, ...], list[int]] = {}
    for number, (loop, path) in enumerate(zip(found, paths, strict=True)):
        alone = number if path[-1].kind == "while" else None
        twins.setdefault((loop.parent, path, alone), []).append(number)
    count = [0.0] * len(found)
    for numbers in twins.values():
        numbers.sort(key=lambda number: len(found[number].own))
        left = _source_trips(paths[numbers[0]][-1], arguments)
        for number in reversed(numbers):
            folds = 1 if number == numbers[0] else _unrolled(code, found[number], found[numbers[0]])
            count[number] = left // folds if folds > 1 else left
            left -= count[number] * folds
    total = list(count)
    for number, loop in enumerate(found):
        parent = loop.parent
        while parent is not None:
            total[number] *= count[parent]
            parent = found[parent].parent
    times = [1.0] * len(code.instructions)
    for number, loop in enumerate(found):
        for index in loop.own:
            times[index] = total[number]
    weighted = [many * _share(places(each.lines)) for many, each in zip(times, code.instructions, strict=True)]
    named = [(loop, total[n], f"{paths[n][-1].file}:{paths[n][-1].line}") for n, loop in enumerate(found)]
    return weighted, named


def iteration(code: Code, loop: Loop, many: float, place: str) -> Iteration:
    units: Counter = Counter(dict.fromkeys(UNITS, 0))
    accesses: Counter = Counter()
    for index in loop.own:
        instruction = code.instructions[index]
        unit = unit_of(instruction)
        units["issue"] += 1
        if unit != "issue":
            units[unit] += 1
        if unit == "global":
            parts = instruction.opcode.split(".")
            accesses[".".join([parts[0], *[part for part in parts[1:] if part in ("128", "64", "U16", "U8")]])] += 1
    return Iteration(place, many, len(loop.own), dict(units), dict(accesses))


def _ahead(code: Code, found: Sequence[tuple[Loop, float, str]]) -> set[int]:
    """Copies before a pipelined loop, which its last iterations make up for: as many there have their predicate off."""
    bodies: dict[str, set[int]] = {}
    for loop, _, place in found:
        bodies.setdefault(place, set()).update(loop.body)
    ahead = set()
    for index, instruction in enumerate(code.instructions):
        if instruction.opcode.startswith("LDGSTS"):
            around = [f"{place.file}:{place.line}" for place in places(instruction.lines) if place.kind == "for"]
            if around and index not in bodies.get(around[-1], {index}):
                ahead.add(index)
    return ahead


class Resources(NamedTuple):
    num_warps: int
    resident: int  # blocks that fit one SM


def predict(
    name: str, code: Code, arguments: dict[str, Any], grid: Sequence[int], resources: Resources, gpu: Gpu, memory: float
) -> Prediction:
    """memory: bytes that this launch moves to or from memory."""
    times, found = executions(code, arguments)
    ahead = _ahead(code, found)
    blocks = math.prod(grid)
    busy: tuple[Counter, Counter] = (Counter(), Counter())  # of what comes first, and of the rest
    asked = [0.0, 0.0]
    stalls = 0.0
    for index, (many, instruction) in enumerate(zip(times, code.instructions, strict=True)):
        each = cost(instruction, gpu)
        share, part = _kind(instruction.lines, arguments), int(not stands_in(instruction.lines, FIRST))
        most = math.ceil(round(share * blocks, 6) / gpu.multiprocessors)
        for what, cycles in each.busy.items():
            busy[part][what] += many * most * cycles
        moved = min(SECTOR, each.bytes) if stands_in(instruction.lines, ONE_SECTOR) else each.bytes
        moved *= math.prod(given for text, given in OF_L1.items() if stands_in(instruction.lines, (text,)))
        asked[part] += 0.0 if index in ahead else many * share * moved
        stalls += many * math.ceil(most / resources.resident) * BARRIER * instruction.opcode.startswith("BAR")
    clock = gpu.ghz * 1e9
    most = math.ceil(blocks / gpu.multiprocessors)
    quarters = resources.num_warps / 4  # of an SM have a warp of each block
    quarters = quarters if quarters.is_integer() else math.ceil(most * quarters) / most
    cycles: Counter = Counter()
    seconds, bound = 0.0, "memory"
    for part in (0, 1):
        busy[part]["issue"] /= ISSUE
        own = {what: quarters * each for what, each in busy[part].items()}
        cycles.update(own)
        bytes_of_l2 = 0.0 if name in L1 else asked[part] * resources.num_warps * blocks
        bounds = {what: each / clock for what, each in own.items()} | {"L2": bytes_of_l2 / gpu.l2}
        if part:
            bounds |= {"L2": max(bytes_of_l2, memory) / gpu.l2, "memory": memory / gpu.memory}
        bound = max(bounds, key=lambda what: bounds[what])
        seconds += bounds[bound]
    rows = [iteration(code, loop, many, place) for loop, many, place in found]
    return Prediction(name, seconds + stalls / clock, bound, blocks, dict(cycles) | {"barrier": stalls}, rows)
