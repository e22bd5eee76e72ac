"""Machine code of a kernel: instructions of an `nvdisasm -c -gi` listing, and its loops by control flow.

A loop is what its back edges close: an edge of the flow graph whose target dominates its source. Loops with one header
are one loop. Every instruction keeps the source lines that it came from, through all calls that were inlined.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

Line = tuple[str, int]  # file name without folders, line
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P[T\d]+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);")
LABEL = re.compile(r"^\s*(\.L_x?_?\d+|\$?[\w.$]+):\s*$")
SOURCE = re.compile(r'//## File "([^"]*)", line (\d+)( inlined at)?')
TARGET = re.compile(r"`\((\.?[\w.$]+)\)")


class Instruction(NamedTuple):
    predicate: str  # "@P0", "@!UP1" or ""
    opcode: str  # with its modifiers: "LDG.E.128"
    operands: str
    lines: tuple[Line, ...]  # the innermost inlined function first, the kernel last; empty where unknown


class Code(NamedTuple):
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # label → index of the instruction that follows


class Loop(NamedTuple):
    """Indices of instructions; `own` are those in no loop inside this one."""

    header: int
    body: frozenset[int]
    own: frozenset[int]
    parent: int | None  # index in the list of loops


def disassemble(cubin: bytes) -> str:
    """The listing of the nvdisasm that Triton ships."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", "-gi", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def parse(listing: str) -> Code:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    lines: tuple[Line, ...] = ()
    pending: list[Line] = []  # a chain of inlined calls spans several remarks, the outermost last
    for text in listing.splitlines():
        source = SOURCE.search(text)
        if source:
            pending.append((Path(source[1]).name, int(source[2])))
            if not source[3]:
                lines, pending = tuple(pending), []
            continue
        label = LABEL.match(text)
        if label:
            labels[label[1]] = len(instructions)
            continue
        found = INSTRUCTION.search(text)
        if found:
            instructions.append(Instruction(found[1] or "", found[2], found[3].strip(), lines))
    return Code(tuple(instructions), labels)


def successors(code: Code, index: int) -> Iterator[int]:
    """Where control may go after one instruction."""
    instruction = code.instructions[index]
    kind = instruction.opcode.split(".")[0]
    certain = instruction.predicate in ("", "@PT", "@UPT")
    if kind in ("BRA", "JMP"):
        target = TARGET.search(instruction.operands)
        if target and target[1] in code.labels:
            yield code.labels[target[1]]
        # "BRA P0, `(.L)`" and "BRA.U UP0, .." carry their condition among the operands.
        certain = certain and not re.search(r"\bU?P\d", instruction.operands) and ".DIV" not in instruction.opcode
        if certain:
            return
    elif kind in ("EXIT", "RET", "BRX", "JMX") and certain:
        return
    if index + 1 < len(code.instructions):
        yield index + 1


class _Block(NamedTuple):
    first: int
    stop: int
    following: tuple[int, ...]  # blocks


def _blocks(code: Code) -> list[_Block]:
    count = len(code.instructions)
    jumps = {index: tuple(successors(code, index)) for index in range(count)}
    leaders = {0}
    for index, following in jumps.items():
        if following != (index + 1,):
            leaders.update(following)
            leaders.add(index + 1)
    starts = sorted(leader for leader in leaders if leader < count)
    number = {start: block for block, start in enumerate(starts)}
    bounds = zip(starts, [*starts[1:], count], strict=True)
    return [_Block(first, stop, tuple(number[after] for after in jumps[stop - 1])) for first, stop in bounds]


def _dominators(blocks: Sequence[_Block]) -> dict[int, set[int]]:
    """Reachable block → the blocks on every way to it, itself included."""
    order, before, stack = [], {0: set()}, [0]
    while stack:
        block = stack.pop()
        order.append(block)
        for after in blocks[block].following:
            if after not in before:
                before[after] = set()
                stack.append(after)
            before[after].add(block)
    everything = set(order)
    dominators = {block: set(everything) for block in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            common = set.intersection(*(dominators[earlier] for earlier in before[block])) | {block}
            if common != dominators[block]:
                dominators[block] = common
                changed = True
    return dominators


def loops(code: Code) -> list[Loop]:
    """All loops that control can reach, in the order of their headers; an outer one before those inside it."""
    if not code.instructions:
        return []
    blocks = _blocks(code)
    dominators = _dominators(blocks)
    before: dict[int, set[int]] = {block: set() for block in dominators}
    for block in dominators:
        for after in blocks[block].following:
            before[after].add(block)
    bodies: dict[int, set[int]] = {}
    for block, above in dominators.items():
        for header in set(blocks[block].following) & above:
            body = bodies.setdefault(header, {header})
            stack = [block]
            while stack:
                inside = stack.pop()
                if inside not in body:
                    body.add(inside)
                    stack.extend(before[inside])
    ordered = sorted(bodies.items(), key=lambda item: (blocks[item[0]].first, -len(item[1])))
    found = []
    for header, body in ordered:
        nested = [other for first, other in ordered if first != header and first in body]
        own = body.difference(*nested)
        around = [index for index, (first, other) in enumerate(ordered) if first != header and header in other]
        parent = min(around, key=lambda index: len(ordered[index][1]), default=None)
        spread = [
            frozenset(index for block in part for index in range(blocks[block].first, blocks[block].stop))
            for part in (body, own)
        ]
        found.append(Loop(blocks[header].first, *spread, parent))
    return found
