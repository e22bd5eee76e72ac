"""Time of one call: on the device through CUDA graphs, with a cold or a warm L2 cache, and as a caller sees it.

A kernel of VOC's size takes a few microseconds, its launch several times that. So n calls are captured in one CUDA
graph and the replay is timed by events: the device's time. "Cold" calls go through copies of the inputs that together
exceed twice the L2 cache, and every copy has an output of its own; "warm" calls repeat one input. What waits for the
host cannot be captured: it is timed call by call, host included, and so is everything on a CPU.
"""

import time
from collections.abc import Callable, Iterator
from itertools import cycle

import machine
import torch
from torch import Tensor

CALLS = 20
"""In a warm graph: enough that the replay's own start, some microseconds, is lost."""
MOST_COPIES = 256

Arguments = tuple[tuple, dict]
Timer = Callable[[], float]
"""Runs once and returns milliseconds per call."""


def call(run: Callable, arguments: Arguments):
    return run(*arguments[0], **arguments[1])


def copies(arguments: Arguments, moved: float) -> list[Arguments]:
    """The inputs as often as it takes to exceed twice the L2 cache, if each call moves `moved` bytes."""
    if not torch.cuda.is_available():
        return [arguments]
    wanted = 2 * torch.cuda.get_device_properties(machine.device()).L2_cache_size
    count = min(max(2, int(wanted / max(moved, 1)) + 1), MOST_COPIES)
    return [arguments] + [_copy(arguments) for _ in range(count - 1)]


def _copy(arguments: Arguments) -> Arguments:
    inputs, keywords = arguments
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in inputs), keywords


def on_device(run: Callable, sets: list[Arguments]) -> Timer:
    """One graph of a call per set; raises RuntimeError where the calls cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(run, sets[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph, outputs = torch.cuda.CUDAGraph(), []
    repeated = all(arguments is sets[0] for arguments in sets)
    with torch.cuda.graph(graph):
        for arguments in sets:
            output = call(run, arguments)
            if not repeated:
                outputs.append(output)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timer() -> float:
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / len(sets)

    return timer


def from_outside(run: Callable, sets: list[Arguments]) -> Timer:
    """Wall clock of one call and of waiting for its end."""
    rotation: Iterator[Arguments] = cycle(sets)

    def timer() -> float:
        arguments = next(rotation)
        machine.finish()
        begin = time.perf_counter()
        call(run, arguments)
        machine.finish()
        return (time.perf_counter() - begin) * 1e3

    return timer


def peak_mib(run: Callable, *arguments) -> float | None:
    """Memory a call takes beyond what was there, its output included; None where nobody counts it."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(*arguments)
    machine.finish()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
