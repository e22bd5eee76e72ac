"""Inner loops and predicted times of every kernel at the pipeline's shapes: `python -m s2clip.kernels.inspect --loops`.

    python -m s2clip.kernels.inspect --loops [--op NAME]... [--arch N]... [--json]

Per workload and GPU: microseconds of the whole op as a captured graph, its floor, the share of it; per launch: blocks,
registers, occupancy, what bounds it, and its loops with the instructions of one iteration of one warp by unit.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s2clip.kernels import inspect
from s2clip.kernels.machine_code import Code, disassemble, parse
from s2clip.kernels.prediction import LAUNCH, Prediction, Resources, named_values, predict
from s2clip.kernels.recording import Launch, Run, recorded
from s2clip.kernels.units import GPUS, UNITS, Gpu
from s2clip.kernels.workloads import Workload, read, workloads

HEADING = (
    "A model, not a measurement: instructions of the machine code at each GPU's published rates, latencies taken to\n"
    "be hidden, 2 us per launch. It ranks changes to a loop; it promises no time."
)


class Launched(NamedTuple):
    registers: int
    occupancy: float
    problem: str  # the compile gate's limits that it breaks; empty when none
    prediction: Prediction


class Row(NamedTuple):
    """One workload on one GPU."""

    op: str
    workload: str
    gpu: str
    arch: int
    microseconds: float
    floor: float  # microseconds
    share: float
    launches: int  # torch's own among them
    kernels: list[Launched]


@functools.cache
def _compiled(launch: Launch, kernel: Any, arch: int) -> tuple[Code, int, int, str]:
    """(machine code, registers, blocks that fit an SM, the limits that it breaks)."""
    case = inspect.case_of(launch, kernel, "")
    compiled = inspect.compile_case(case, arch)
    cubin = compiled.asm["cubin"]
    registers, spills = inspect.resource_usage(cubin)
    shared = compiled.metadata.shared
    share = inspect.occupancy(arch, registers, shared, case.num_warps)
    resident = round(share * inspect.ARCHITECTURES[arch].warps_per_sm) // case.num_warps
    return parse(disassemble(cubin)), registers, resident, inspect.problem(arch, shared, spills)


def _of_launch(run: Run, gpu: Gpu, memory: float) -> Launched:
    code, registers, resident, problem = _compiled(run.launch, run.kernel, gpu.arch)
    warps = dict(run.launch.options)["num_warps"]
    arguments = named_values(run.kernel, run.arguments)
    prediction = predict(run.launch.kernel, code, arguments, run.grid, Resources(warps, resident), gpu, memory)
    occupancy = resident * warps / inspect.ARCHITECTURES[gpu.arch].warps_per_sm
    return Launched(registers, occupancy, problem, prediction)


class _Allocated(TorchDispatchMode):
    """What torch allocates meanwhile: an op writes it before it reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        given = set(map(_storage, _tensors((arguments, keywords))))
        self.tensors += [tensor for tensor in _tensors(output) if _storage(tensor) not in given]
        return output


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def predicted(workload: Workload, gpu: Gpu) -> Row:
    with recorded(gpu.arch):
        workload.call()  # tables that an op keeps from call to call are made once
    with recorded(gpu.arch) as launches, _Allocated() as allocated:
        output = workload.call()
    outputs = set(map(_storage, _tensors(output)))
    between_launches = set(map(_storage, allocated.tensors)) - outputs
    last = {_storage(each): number for number, run in enumerate(launches.runs) for each in _tensors(run.arguments)}
    seen: set[int] = set()
    written = 0.0
    kernels = []
    for number, run in enumerate(launches.runs):
        memory = -max(0.0, written - gpu.l2_size)
        # An output that several launches write goes to memory once, with the last of them: L2 writes back.
        seen -= {each for each in outputs if last.get(each) == number}
        seen |= {each for each in outputs if last.get(each, number) != number}
        for name, tensor in run.arguments.items():
            if isinstance(tensor, torch.Tensor) and _storage(tensor) not in seen:
                seen.add(_storage(tensor))
                size = tensor.numel() * tensor.element_size() * read(run.launch.kernel, name, tensor)
                if _storage(tensor) in between_launches:
                    written += size
                else:
                    memory += size
        memory += max(0.0, written - gpu.l2_size)
        kernels.append(_of_launch(run, gpu, memory))
    count = len(kernels) + workload.torch_launches
    seconds = count * LAUNCH + sum(each.prediction.seconds for each in kernels)
    floor = workload.floor(gpu)
    head = (workload.operator, workload.name, gpu.name, gpu.arch)
    return Row(*head, seconds * 1e6, floor * 1e6, floor / seconds, count, kernels)


def rows(names: Iterable[str] | None = None, archs: Iterable[int] | None = None) -> list[Row]:
    """Predictions of the given operators (default: all) on the GPUs of the given architectures (default: all)."""
    chosen = [each for each in workloads() if names is None or set(each.operators) & set(names)]
    gpus = [gpu for gpu in GPUS if archs is None or gpu.arch in archs]
    return [predicted(workload, gpu) for workload in chosen for gpu in gpus]


def json_of(row: Row) -> dict[str, Any]:
    kernels = [
        {"registers": each.registers, "occupancy": each.occupancy, "problem": each.problem}
        | each.prediction._asdict()
        | {"loops": [loop._asdict() for loop in each.prediction.loops]}
        for each in row.kernels
    ]
    return row._asdict() | {"kernels": kernels}


def summary(found: list[Row]) -> str:
    """A line per workload and GPU."""
    lines = [f"{'op, workload':<44} {'GPU':<9} {'us':>7} {'floor':>7} {'share':>6}  launches"]
    for row in found:
        name = f"{row.op} {row.workload}"
        figures = f"{row.microseconds:>7.1f} {row.floor:>7.1f} {row.share:>6.0%}  {row.launches:>8}"
        lines.append(f"{name:<44} {row.gpu:<9} {figures}")
    return "\n".join(lines)


def table(found: list[Row]) -> str:
    """Rows with their launches and loops."""
    lines = []
    for row in found:
        lines.append(f"{row.op} {row.workload}, {row.gpu}: {row.microseconds:.1f} us, {row.share:.0%} of the floor")
        for each in row.kernels:
            kernel = each.prediction
            figures = f"{each.registers} registers, occupancy {each.occupancy:.0%}, {kernel.blocks} blocks"
            lines.append(f"  {kernel.kernel}: {kernel.seconds * 1e6:.1f} us by {kernel.bound}, {figures}")
            for loop in kernel.loops:
                units = ", ".join(f"{unit} {loop.units[unit]}" for unit in UNITS[:-1] if loop.units[unit])
                accesses = " ".join(f"{name} {count}" for name, count in loop.accesses.items())
                lines.append(
                    f"    {loop.place}: {loop.trips:g} x {loop.instructions} instructions: {units}; {accesses}"
                )
    return "\n".join(lines)


def report(names: Iterable[str] | None, archs: Iterable[int] | None, *, as_json: bool, details: bool) -> str:
    found = rows(names, archs)
    if as_json:
        return json.dumps({"model": HEADING, "rows": [json_of(row) for row in found]}, indent=1) + "\n"
    parts = [HEADING, summary(found), *([table(found)] if details else [])]
    return "\n\n".join(parts) + "\n"
