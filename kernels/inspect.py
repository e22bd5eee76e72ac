"""The compile gate: every kernel, in every shipped configuration, compiled ahead of time for every architecture.

    python -m s2clip.kernels.inspect [--op NAME]... [--arch N]... [--json] [--jobs N] [--triton VERSION...]

With --triton the gate runs once per named version, each in a folder of its own that pip fills (--target), beside the
torch that is installed.

No GPU is needed: Triton compiles for a named target, and the figures come from what it wrote. One row per kernel,
configuration and architecture:

    registers   per thread, at most 255                 shared      bytes a block asks for
    spills      bytes of stack per thread               occupancy   resident warps over the most an SM can hold

Triton has no local arrays, so a stack frame is spilled registers and nothing else. The exit status is 1 when a row
spills or asks for more shared memory than its architecture grants (101,376 bytes; 232,448 on sm_90), or when a
configuration does not compile.

Which configurations there are is recorded from calls of the launchers themselves (`calls`, `recording`).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

PATHS = [path for path in (os.environ.get("PYTHONPATH"),) if path]


class Architecture(NamedTuple):
    """What one SM offers (CUDA C++ programming guide, technical specifications per compute capability)."""

    shared_per_block: int
    shared_per_sm: int
    warps_per_sm: int
    blocks_per_sm: int


# sm_80 would grant 166,912 bytes to a block; one limit for all but sm_90 keeps a single table of tiles.
ARCHITECTURES = {
    80: Architecture(101_376, 164 << 10, 64, 32),
    86: Architecture(101_376, 100 << 10, 48, 16),
    89: Architecture(101_376, 100 << 10, 48, 24),
    90: Architecture(232_448, 228 << 10, 64, 32),
    120: Architecture(101_376, 100 << 10, 48, 24),
}


class Case(NamedTuple):
    """One shipped configuration of one kernel, as `launch` would compile it.

    signature: types of the run-time arguments by name ("*fp16", "i32", "i64", "fp32"), constants: values of the
    constexpr ones; together they name every argument of the kernel. `aligned` names run-time arguments known to be
    divisible by 16: pointers always are in `launch`'s usual case, and Triton specialises on it.
    """

    kernel: Any
    name: str
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] = ()
    enable_fp_fusion: bool = True


class Row(NamedTuple):
    """What one case became on one architecture; `problem` is empty when every limit holds."""

    op: str
    kernel: str
    config: str
    arch: int
    registers: int
    shared: int
    spills: int
    occupancy: float
    problem: str


def operators() -> list[str]:
    """Names of the kernel modules of the package."""
    from s2clip.kernels.calls import OPERATORS

    return list(OPERATORS)


@functools.cache
def cases(operator: str, arch: int) -> tuple[Case, ...]:
    """Every configuration that `operator` ships for `arch`, under the name of the first call that chose it."""
    from s2clip.kernels.calls import calls
    from s2clip.kernels.recording import recorded

    found: dict = {}
    names: set[tuple[str, str]] = set()
    for name, call in calls(operator):
        with recorded(arch) as launches:
            call()
        for launch, kernel in launches.items():
            if launch not in found:
                unique = name
                while (launch.kernel, unique) in names:
                    unique += "'"
                names.add((launch.kernel, unique))
                found[launch] = case_of(launch, kernel, unique)
    return tuple(found.values())


def case_of(launch: Any, kernel: Any, name: str) -> Case:
    options = {name: value for name, value in launch.options if name in ("num_warps", "num_stages", "enable_fp_fusion")}
    aligned = tuple(argument for argument, kind in launch.specialised if kind == "D")
    return Case(kernel, name, dict(launch.signature), dict(launch.constants), aligned=aligned, **options)


def compile_case(case: Case, arch: int) -> Any:
    """The compiled kernel (`.asm`, `.metadata`); needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arguments = case.kernel.arg_names
    given = set(case.signature) | set(case.constants)
    if given != set(arguments):
        raise ValueError(f"{case.name}: expected the arguments {arguments}, differs in {given ^ set(arguments)}")
    source = ASTSource(
        case.kernel,
        {name: case.signature.get(name, "constexpr") for name in arguments},
        dict(case.constants),
        {(arguments.index(name),): [["tt.divisibility", 16]] for name in case.aligned},
    )
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "enable_fp_fusion": case.enable_fp_fusion,
    }
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def occupancy(arch: int, registers: int, shared: int, num_warps: int) -> float:
    """Resident warps over the most that one SM of `arch` holds.

    Registers are granted per warp in steps of 256 out of 16,384 in each quarter of the SM; each block pays 1 KiB of
    shared memory to the system.
    """
    limits = ARCHITECTURES[arch]
    per_warp = max(256, math.ceil(registers * 32 / 256) * 256)
    blocks = min(
        4 * (16_384 // per_warp) // num_warps,
        limits.shared_per_sm // (shared + 1024),
        limits.warps_per_sm // num_warps,
        limits.blocks_per_sm,
    )
    return blocks * num_warps / limits.warps_per_sm


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) per thread of the one kernel in a cubin, by the cuobjdump that Triton ships."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no resource usage: {usage!r}")
    return int(found[1]), int(found[2])


def measure(operator: str, arch: int, index: int) -> Row:
    """Compiles one case and reads its figures."""
    case = cases(operator, arch)[index]
    head = (operator, case.kernel.__name__, case.name, arch)
    try:
        compiled = compile_case(case, arch)
    except Exception as error:
        return Row(*head, 0, 0, 0, 0.0, f"does not compile: {type(error).__name__}: {error}")
    registers, spills = resource_usage(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    resident = occupancy(arch, registers, shared, case.num_warps)
    return Row(*head, registers, shared, spills, resident, problem(arch, shared, spills))


def problem(arch: int, shared: int, spills: int) -> str:
    """The limits that these figures break, in words; empty when none."""
    limit = ARCHITECTURES[arch].shared_per_block
    broken = []
    if shared > limit:
        broken.append(f"{shared} bytes of shared memory, at most {limit}")
    if spills:
        broken.append(f"{spills} bytes spilled, none allowed")
    return "; ".join(broken)


def inspect(
    names: Iterable[str] | None = None,
    archs: Iterable[int] | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """The table of the given operators (default: all) on the given architectures (default: all)."""
    names = operators() if names is None else list(names)
    archs = list(ARCHITECTURES) if archs is None else list(archs)
    work = [(name, arch, index) for name in names for arch in archs for index in range(len(cases(name, arch)))]
    rows: list[Row] = []
    # A fresh interpreter per worker: LLVM holds threads, which a fork would not carry over.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, *zip(*work, strict=True), chunksize=1) if work else ():
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(work))
    return rows


def folder_of(version: str) -> Path:
    """Where Triton `version` ("3.6", "3.8.0") is installed for the gate; by pip at the first call."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "s2clip" / "triton" / version
    if not (folder / "triton").is_dir():
        wanted = f"triton=={version}" if version.count(".") > 1 else f"triton=={version}.*"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wanted]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"--triton: expected a version that pip can install, received {version}")
    return folder


def under_versions(versions: Iterable[str], arguments: list[str]) -> int:
    """The gate under each version of Triton, in processes of their own; 1 if any of them fails."""
    failed = 0
    for version in versions:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder_of(version)), *PATHS]))
        sys.stdout.write(f"== Triton {version}\n")
        sys.stdout.flush()
        command = [sys.executable, "-m", "s2clip.kernels.inspect", *arguments]
        failed |= subprocess.run(command, env=environment, check=False).returncode
    return int(failed > 0)


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    width = max([len(f"{row.kernel} {row.config}") for row in rows], default=0)
    lines = [f"{'kernel, configuration':<{width}}  arch  regs   shared  spills  occupancy"]
    for row in rows:
        name = f"{row.kernel} {row.config}"
        figures = f"{row.registers:>4}  {row.shared:>7}  {row.spills:>6}  {row.occupancy:>8.0%}"
        lines.append(f"{name:<{width}}  {row.arch:>4}  {figures}  {row.problem}".rstrip())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m s2clip.kernels.inspect", description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=operators(), help="only this operator (may be repeated)")
    parser.add_argument("--arch", action="append", type=int, choices=list(ARCHITECTURES), help="only this architecture")
    parser.add_argument("--json", action="store_true", help="rows as JSON, one list")
    parser.add_argument("--quiet", action="store_true", help="only the configurations over a limit, and the sum")
    parser.add_argument("--triton", nargs="+", default=[], metavar="VERSION", help="3.6 3.9: under each of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--loops", action="store_true", help="inner loops and predicted times at the pipeline's shapes")
    parser.add_argument("--details", action="store_true", help="with --loops: every launch and loop")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")
    if chosen.triton:
        given = [f"--{name}={one}" for name in ("op", "arch") for one in getattr(chosen, name) or ()]
        given += [f"--{name}" for name in ("json", "quiet") if getattr(chosen, name)]
        return under_versions(chosen.triton, [*given, f"--jobs={chosen.jobs}"])

    if chosen.loops:
        loops = importlib.import_module("s2clip.kernels.loops")
        sys.stdout.write(loops.report(chosen.op, chosen.arch, as_json=chosen.json, details=chosen.details))
        return 0

    def progress(done: int, total: int) -> None:
        sys.stderr.write(f"\r{done}/{total} compiled" + ("\n" if done == total else ""))

    rows = inspect(chosen.op, chosen.arch, chosen.jobs, progress if sys.stderr.isatty() else None)
    failed = sum(bool(row.problem) for row in rows)
    if chosen.json:
        text = json.dumps([row._asdict() for row in rows], indent=1)
    else:
        shown = [row for row in rows if row.problem or not chosen.quiet]
        text = f"{table(shown)}\n\n" if shown else ""
        text += f"Triton {importlib.import_module('triton').__version__}: "
        text += f"{len(rows)} configurations, {failed} over a limit"
    sys.stdout.write(text + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
