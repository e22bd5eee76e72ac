"""What happens inside each stage of the pipeline: operators, launches, bytes, arithmetic.

Stages are those of `s2clip.stopwatch.Stopwatch`, which the pipeline opens around its parts; here they are also made
visible to torch's profiler ("stage clip") and, on CUDA, to nsys and ncu as NVTX ranges.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from cases import LANES_PER_CLASSIFIED, LANES_PER_MERGED
from machine import Ceilings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from s2clip.stopwatch import Stopwatch

PREFIX = "stage "
ELSEWHERE = "elsewhere"
"""Whatever happens outside of all stages."""

_open = threading.local()


def current() -> str:
    """The innermost stage that is open in this thread."""
    names = getattr(_open, "names", None)
    return names[-1] if names else ELSEWHERE


@contextmanager
def marked(*, nvtx: bool = False) -> Iterator[None]:
    """While open, every stage of every stopwatch is a range of the profiler, and an NVTX range if asked for."""
    original = Stopwatch.__call__

    @contextmanager
    def call(self, stage: str) -> Iterator[None]:
        names = _open.__dict__.setdefault("names", [])
        names.append(stage)
        if nvtx:
            torch.cuda.nvtx.range_push(stage)
        try:
            with torch.profiler.record_function(PREFIX + stage), original(self, stage):
                yield
        finally:
            names.pop()
            if nvtx:
                torch.cuda.nvtx.range_pop()

    Stopwatch.__call__ = call
    try:
        yield
    finally:
        Stopwatch.__call__ = original


@dataclass
class Load:
    """What the operators of a stage add up to."""

    operators: int = 0
    """Without views, which move nothing."""
    bytes: float = 0.0
    """Inputs and outputs of every operator: what goes through memory if no cache holds it from one to the next."""
    half_flops: float = 0.0
    single_flops: float = 0.0

    @property
    def flops(self) -> float:
        return self.half_flops + self.single_flops

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds at the ceilings: arithmetic or memory, whichever takes longer."""
        arithmetic = self.half_flops / ceilings.tensor + self.single_flops / ceilings.single
        return max(arithmetic, self.bytes / ceilings.memory)


class Count(TorchDispatchMode):
    """Counts, per stage, what the operators move and compute: `loads`. Needs `marked`; slow, so nothing is timed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: dict[str, Load] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if not _moves_nothing(func):
            self._add(packet, args, kwargs, output)
        return output

    def _add(self, packet, args, kwargs, output) -> None:
        load = self.loads.setdefault(current(), Load())
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, Tensor)]
        load.operators += 1
        load.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=output)
        else:
            flops = own_flops(str(packet), args, output)
        half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors)
        if half:
            load.half_flops += flops
        else:
            load.single_flops += flops


def _moves_nothing(func) -> bool:
    """Views, memory that is only reserved, and the marks of the stages themselves."""
    if func._schema.name.startswith(("aten::empty", "profiler::")):
        return True
    returned = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def own_flops(name: str, args: tuple[Any, ...], output: Any) -> float:
    """Arithmetic of our own ops, as the floors of `cases` count it; 0 for others."""
    if name == "s2clip.recombined_attention":
        batch, heads, tokens, width = args[0].shape
        return 4.0 * len(args[3]) * batch * heads * tokens**2 * width
    if name == "s2clip.affinity_attention":
        features, value = args[0], args[1]
        batch, rows, columns = features[0].shape[:3]
        cells, values = rows * columns, value.shape[1] * value.shape[2]
        channels = sum(one.shape[3] for one in features)
        return float(batch * (cells**2 * channels + 2 * cells * min(cells, values) * value.shape[3]))
    if name == "s2clip.classify_pixels":
        return 2.0 * LANES_PER_CLASSIFIED * args[0].shape[1] * output[0].numel()
    if name == "s2clip.merge_masks":
        return 2.0 * LANES_PER_MERGED * len(args[0]) * output[0].numel()
    return 0.0


def stage_of(event) -> str:
    """The stage a profiler event belongs to: the innermost range around it."""
    while event is not None:
        if event.name.startswith(PREFIX):
            return event.name.removeprefix(PREFIX)
        event = event.cpu_parent
    return ELSEWHERE


def launches(events) -> Counter:
    """Kernels and copies that each stage started on the device."""
    counts: Counter = Counter()
    for event in events:
        if number := len(_kernels(event)):
            counts[stage_of(event)] += number
    return counts


def _kernels(event) -> list:
    """What an operator started on the device; a stage's own range, which the profiler shows there too, is no kernel."""
    return [kernel for kernel in event.kernels if not kernel.name.startswith(PREFIX)]


def costliest(events, stage: str, count: int = 3) -> list[tuple[str, float]]:
    """Operators of a stage with the most time of their own, device time where there is any: (name, milliseconds)."""
    totals: Counter = Counter()
    on_device = any(_kernels(event) for event in events)
    for event in events:
        if event.name.startswith(PREFIX) or stage_of(event) != stage:
            continue
        device = sum(kernel.duration for kernel in _kernels(event))
        totals[event.name.removeprefix("aten::")] += device if on_device else event.self_cpu_time_total
    return [(name, microseconds / 1e3) for name, microseconds in totals.most_common(count)]
