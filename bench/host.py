"""Host time of every op call beside bare Triton launches of the same kernels: `python bench/host.py`.

    op, launches and arguments   bare us   call us   ratio

A call is checks, dispatch, allocations and launches; bare are `kernel[grid](..)` of the same kernels with the same
arguments, one after another. Both run here with the driver's call left out, on CPU tensors for which the launchers
choose an RTX 4090's tiles: what is compared is Python. Microseconds are the least of 25 rounds of this thread's time;
they are of this machine, the ratio is what carries over.
"""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from s2clip import ops
from s2clip.kernels import (
    affinity_attention,
    classify_pixels,
    component_statistics,
    connected_components,
    merge_masks,
    recombined_attention,
    spatial_entropy,
)
from s2clip.ops import attention, checks, components, entropy, pixels

ARCH = 89
ROUNDS, CALLS = 25, 20
MODULES = (
    *(affinity_attention, classify_pixels, component_statistics, connected_components, merge_masks),
    *(recombined_attention, spatial_entropy),
)
OPS = (
    *(attention._recombined_attention, attention._affinity_attention, attention._progressive_affinity),
    *(components._label_components, components._measure_components),
    *(pixels._classify_pixels, pixels._class_scores, pixels._merge_masks, entropy._spatial_entropy),
)
Launches = list[Callable[[], object]]


class Row(NamedTuple):
    op: str
    arguments: tuple[int, ...]  # of each launch, constants included
    bare: float  # microseconds
    call: float

    @property
    def ratio(self) -> float:
        return self.call / self.bare


class _Compiled:
    """Stands for a compiled kernel: launches nothing."""

    name, packed_metadata, function = "", (), 0

    def launch_metadata(self, *given):
        return None

    def run(self, *given):
        return None


class _Driver:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", ARCH, 32)


def _keep(kernel, key, signature, device, *given):
    return kernel.device_caches[device][0].setdefault(key, _Compiled())


class _Noted:
    """A kernel whose launches are kept, to be repeated."""

    def __init__(self, kernel, launches: list):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*given, **named):
            self.launches.append((self.kernel, grid, given, named))

        return launch


def calls() -> dict[str, Callable[[], object]]:
    """By name. Small sizes: a GPU's allocator keeps its memory, that of a CPU asks the system for each large tensor."""
    half, long = torch.float16, torch.int64
    query, key, value = torch.zeros(3, 1, 2, 20, 64, dtype=half).unbind(0)
    fine, coarse = torch.zeros(2, 8, 8, 64, dtype=half), torch.zeros(2, 4, 4, 64, dtype=half)
    weights = {maps: torch.full((2, maps), 1 / maps) for maps in (1, 8)}
    levels, maps = torch.zeros(7, 2, 4, 4, 64, dtype=half), [coarse.clone() for _ in range(8)]
    level_scores = torch.zeros(2, 7)
    class_map, scores = torch.ones(1, 16, 20, dtype=torch.int32), torch.zeros(1, 1, 16, 20)
    logits, words = torch.zeros(1, 46, 4, 5), torch.arange(46)
    masks, index = torch.zeros(10, 16, 16), torch.zeros(10, dtype=long)
    probability, labels = torch.zeros(1, 21, 16, 20), torch.zeros(1, 32, 40, dtype=long)
    return {
        "recombined_attention": lambda: ops.recombined_attention(query, key, value),
        "affinity_attention": lambda: ops.affinity_attention(coarse, coarse, weights=weights[1]),
        "affinity_attention, coarser values": lambda: ops.affinity_attention(fine, coarse, weights=weights[1]),
        "affinity_attention, 8 maps apart": lambda: ops.affinity_attention(maps, coarse, weights=weights[8]),
        "progressive_affinity, 7 levels": lambda: ops.progressive_affinity(levels, levels, level_scores),
        "label_components": lambda: ops.label_components(class_map, ignore_index=21),
        "measure_components": lambda: ops.measure_components(class_map, class_map, scores, count=[1]),
        "classify_pixels": lambda: pixels._classify_pixels("auto", logits, logits, (32, 40), 40.0, words, 46, 0.0, 0),
        "merge_masks": lambda: ops.merge_masks(masks, index, index, probability, labels, input_size=(768, 1024)),
        "spatial_entropy": lambda: ops.spatial_entropy(coarse.permute(0, 3, 1, 2)),
    }


def _launches_of(call: Callable[[], object]) -> list:
    launches: list = []
    kernels = [
        (module, name, kernel)
        for module in MODULES
        for name, kernel in vars(module).items()
        if name.endswith("_kernel") and isinstance(kernel, JITFunction)
    ]
    for module, name, kernel in kernels:
        setattr(module, name, _Noted(kernel, launches))
    try:
        call()
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
    return launches


def _microseconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS * 1e6


def _row(name: str, call: Callable[[], object]) -> Row:
    launches = _launches_of(call)

    def bare() -> None:
        for kernel, grid, given, named in launches:
            kernel[grid](*given, **named)

    for _ in range(3):
        call(), bare()
    times = [(_microseconds(bare), _microseconds(call)) for _ in range(ROUNDS)]
    options = ("num_warps", "num_stages", "enable_fp_fusion")
    arguments = tuple(len(given) + len(named) - len(options) for _, _, given, named in launches)
    return Row(name, arguments, *map(min, zip(*times, strict=True)))


def rows() -> list[Row]:
    """In a process of its own: Triton's driver is replaced for good."""
    driver.set_active(_Driver())
    with mock.patch.object(JITFunction, "_do_compile", _keep), torch.inference_mode():
        for module in MODULES:
            module.architecture = lambda device: ARCH
        for op in OPS:
            op._by_kind["cpu"] = op.by_triton
        # Values are read of CPU tensors alone.
        for op in (attention._affinity_attention, components._label_components, pixels._merge_masks):
            op.body = lambda run, *given: run(*given)
        components._measure_components.body = lambda run, *given: run(*given, int(given[3].sum()))
        checks.finite = lambda *given: None
        return [_row(name, call) for name, call in calls().items()]


def table(found: list[Row]) -> str:
    lines = [f"{'op':<36} {'arguments of its launches':<26} {'bare us':>8} {'call us':>8} {'ratio':>6}"]
    for name, arguments, bare, call in found:
        launched = " + ".join(map(str, arguments))
        lines += [f"{name:<36} {launched:<26} {bare:>8.1f} {call:>8.1f} {call / bare:>6.2f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(rows()) + "\n")
