"""What an instruction costs on which unit of which GPU: the rates behind `inspect --loops`.

Cycles are those that one warp keeps a unit of its quarter of an SM busy. Sources: CUDA C++ programming guide, table of
arithmetic instruction throughput (results per clock and SM); data sheets for clocks, tensor cores and memory. Rates of
tensor cores are those with fp32 sums, which GeForce halves.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from s2clip.kernels.machine_code import Instruction

UNITS = ("tensor", "fp32", "integer", "special", "shared", "global", "barrier", "issue")


class Gpu(NamedTuple):
    name: str
    arch: int
    multiprocessors: int
    ghz: float
    tensor: int  # multiply-adds of halves per clock and SM
    fp32: int  # lanes per SM
    l2: float  # bytes per second
    l2_size: int
    memory: float  # bytes per second


GPUS = (
    Gpu("RTX 4090", 89, 128, 2.52, 256, 128, 5.0e12, 72 << 20, 1.008e12),
    Gpu("A100", 80, 108, 1.41, 1024, 64, 4.5e12, 40 << 20, 1.555e12),
    Gpu("H100", 90, 132, 1.755, 2048, 128, 5.5e12, 50 << 20, 3.35e12),
)

FMA = {"FFMA", "FADD", "FMUL", "HADD2", "HFMA2", "HMUL2", "FADD32I", "FMUL32I"}
MULTIPLY = {"IMAD", "IMUL", "IDP"}
SPECIAL = {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV", "DFMA", "DADD", "DMUL", "DSETP"}
SHARED = {"LDS", "STS", "LDSM", "STSM", "ATOMS", "SHFL", "REDUX", "CREDUX"}
GLOBAL = {"LDG", "STG", "LDGSTS", "ATOM", "ATOMG", "RED", "REDG", "LD", "ST", "UTMALDG", "UTMASTG", "LDL", "STL"}
BARRIER = {"BAR", "WARPSYNC", "MEMBAR", "SYNCS", "WARPGROUP", "DEPBAR", "LDGDEPBAR"}
CONTROL = {"BRA", "EXIT", "RET", "CALL", "BSSY", "BSYNC", "BREAK", "NOP", "YIELD", "NANOSLEEP", "JMP", "ERRBAR", "CCTL"}
SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)")
NARROW_SHAPE = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "16832": 16 * 8 * 32, "884": 8 * 8 * 4}
WIDTH = re.compile(r"\.(128|64|U16|S16|U8|S8)\b")


def unit_of(instruction: Instruction) -> str:
    """The column that an instruction is counted in."""
    name = instruction.opcode.split(".")[0]
    if name in ("HMMA", "IMMA", "DMMA", "HGMMA", "QGMMA", "IGMMA"):
        return "tensor"
    for unit, names in (("fp32", FMA), ("special", SPECIAL), ("shared", SHARED), ("global", GLOBAL)):
        if name in names:
            return unit
    if name in BARRIER:
        return "barrier"
    if name in CONTROL or (name.startswith("U") and name not in GLOBAL) or name in ("S2R", "S2UR", "R2UR"):
        return "issue"
    return "integer"


def multiply_adds(instruction: Instruction) -> int:
    """Of one warp's share of a tensor core instruction."""
    wide = SHAPE.search(instruction.opcode)
    if wide:  # four warps of a group issue it together
        return int(wide[1]) * int(wide[2]) * int(wide[3]) // 4
    found = [count for shape, count in NARROW_SHAPE.items() if f".{shape}" in instruction.opcode]
    if not found:
        raise ValueError(f"unknown shape of a tensor core instruction: {instruction.opcode}")
    return found[0]


def lane_bytes(instruction: Instruction) -> int:
    """Bytes that one lane moves; of a matrix load, a quarter of what its rows hold per lane."""
    if "LDSM" in instruction.opcode or "STSM" in instruction.opcode:
        count = re.search(r"\.(4|2)\b", instruction.opcode)
        return 4 * int(count[1] if count else 1)
    width = WIDTH.search(instruction.opcode)
    kind = width[1] if width else ""
    return {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}.get(kind, 4)


class Cost(NamedTuple):
    """Cycles of a quarter by what is busy, and bytes that one warp asks of L2."""

    busy: Counter
    bytes: float


def cost(instruction: Instruction, gpu: Gpu) -> Cost:
    """Every instruction takes a slot of issue; its unit is busy for longer where it has fewer than 32 lanes."""
    busy = Counter(issue=1.0)
    unit = unit_of(instruction)
    name = instruction.opcode.split(".")[0]
    asked = 0.0
    if unit == "tensor":
        busy["tensor"] = 4.0 * multiply_adds(instruction) / gpu.tensor
    elif unit == "fp32":
        busy["fma"] = 128 / gpu.fp32
    elif unit == "special":
        busy["special"] = 8.0  # 16 lanes per SM
    elif unit == "integer" and name in MULTIPLY:  # one half of the FMA lanes where there are 128
        busy["fma"] = 128 / gpu.fp32
        busy["multiply"] = 2.0
    elif unit == "integer":
        busy["alu"] = 2.0  # 64 lanes per SM, up to sm_90
    elif unit in ("shared", "global"):  # 128 bytes per clock and SM
        width = 4 if name in ("SHFL", "REDUX", "CREDUX") else lane_bytes(instruction)
        busy["load/store"] = 4.0 * max(1.0, width / 4)
        if unit == "global":
            asked = 32.0 * width
    return Cost(busy, asked)
