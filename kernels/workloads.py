"""The ops at the pipeline's shapes, with their floors: what `inspect --loops` predicts a share of.

A floor is the longest of tensor cores, fp32 issue and memory, at the ceilings of `units`, each input read and each
output written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from s2clip.kernels import (
    affinity_attention,
    classify_pixels,
    component_statistics,
    connected_components,
    merge_masks,
    recombined_attention,
    spatial_entropy,
)
from s2clip.kernels.calls import HALF, LONG, meta
from s2clip.kernels.units import Gpu

LIVE = 0.25  # of the tiles of a map that a mask reaches, as of Cityscapes' 60 regions
H100_TENSOR = 788e12  # measured on random data, below the data sheet's 989


class Workload(NamedTuple):
    """`work`: floating point operations of products, lane instructions of fp32, compulsory bytes; None for no floor."""

    operator: str
    name: str
    call: Callable[[], object]
    flops: float = 0.0
    lanes: float = 0.0
    bytes: float = 0.0
    torch_launches: int = 0  # memsets and sums between the kernels
    modules: tuple[str, ...] = ()

    @property
    def operators(self) -> tuple[str, ...]:
        """Names that `inspect --op` knows it by."""
        return self.modules or (self.operator,)

    def floor(self, gpu: Gpu) -> float:
        tensor = 2e9 * gpu.tensor * gpu.multiprocessors * gpu.ghz
        tensor = min(tensor, H100_TENSOR) if gpu.arch == 90 else tensor
        fp32 = 1e9 * gpu.fp32 * gpu.multiprocessors * gpu.ghz
        return max(self.flops / tensor, self.lanes / fp32, self.bytes / gpu.memory)


def _attention(terms: int, batch: int, tokens: int) -> Workload:
    heads, head_dim = 12, 64
    query, key, value = meta(batch, tokens, 3, heads, head_dim, dtype=HALF).permute(2, 0, 3, 1, 4)
    given = (query, key, value, ("qq", "kk", "vv")[:terms], (1.0,) * terms, 0.125, None)
    return Workload(
        "recombined_attention",
        f"T{terms} B{batch} N{tokens}",
        lambda: recombined_attention.launch(*given),
        flops=4.0 * terms * tokens**2 * head_dim * heads * batch,
        bytes=8.0 * batch * heads * tokens * head_dim,
    )


def _affinity(batch: int, side: int, coarse: int) -> Workload:
    features, value = meta(batch, side, side, 768, dtype=HALF), meta(batch, coarse, coarse, 768, dtype=HALF)
    given = ([features], value, meta(batch, 1), 1.2, 3.0, None)
    positions, inner = side**2, coarse**2
    return Workload(
        "affinity_attention",
        f"B{batch} N{positions} from {inner}",
        lambda: affinity_attention.launch(*given),
        flops=768.0 * batch * positions * (positions + 2 * inner),
        bytes=2.0 * batch * 768 * (2 * positions + inner),
        torch_launches=1,
    )


def _levels() -> Workload:
    levels = meta(7, 2, 442, 768, dtype=HALF)[:, :, 1:].unflatten(2, (21, 21))
    return Workload(
        "affinity_attention",
        "7 levels, B2 N441",
        lambda: affinity_attention.launch_progressive(levels, levels, meta(2, 7), 1.2, 3.0),
        flops=768.0 * 2 * 7 * 441 * 3 * 441,
        bytes=2.0 * 2 * 768 * 8 * 441,
        torch_launches=2,
    )


def _classify(name: str, words: int, grid: tuple[int, int], size: tuple[int, int]) -> Workload:
    given = (meta(1, words, *grid, dtype=HALF), size, 40.0, meta(words, dtype=LONG), words, 0.0, 0)
    pixels = size[0] * size[1]
    return Workload(
        "classify_pixels",
        f"{name}, Q{words}",
        lambda: classify_pixels.launch(*given),
        lanes=16.0 * words * pixels,  # seven for the resize, and the softmax, the maximum and the check
        bytes=8.0 * pixels + 2.0 * words * grid[0] * grid[1],
    )


def _merge(name: str, regions: int, size: tuple[int, int]) -> Workload:
    coarse = (size[0] // 2, size[1] // 2)
    labels = meta(1, *size, dtype=LONG)
    given = (
        *(meta(regions, 256, 256, dtype=HALF), meta(regions, dtype=LONG), meta(regions, dtype=LONG)),
        *(meta(1, 19, *coarse), labels, (512, 1024), 1024),
    )
    pixels = size[0] * size[1]
    return Workload(
        "merge_masks",
        f"{name}, R{regions}",
        lambda: merge_masks.launch(*given),
        lanes=30.0 * LIVE * regions * pixels,  # nine taps, their weights, maximum
        bytes=16.0 * pixels + regions * 131_072.0 + LIVE * 19 * pixels,
    )


def _entropy() -> Workload:
    tokens = meta(14, 1765, 768, dtype=HALF)[:, 1:].unflatten(1, (42, 42)).permute(0, 3, 1, 2)
    return Workload(
        "spatial_entropy",
        "B14 C768 N1764",
        lambda: spatial_entropy.launch(tokens),
        bytes=2.0 * 14 * 768 * 1764,
    )


def _components(height: int, width: int) -> Workload:
    class_map = meta(1, height, width, dtype=torch.int32)
    scores = meta(1, 19, height, width, dtype=HALF)

    def call() -> object:
        labels, count = connected_components.launch_label(class_map, 8, None)
        return labels, component_statistics.launch_measure(labels, class_map, scores, count, 200)

    return Workload(
        "components",
        f"label and measure {height}x{width}",
        call,
        bytes=10.0 * height * width,
        torch_launches=1,
        modules=("connected_components", "component_statistics"),
    )


# The part of a tensor that a launch reads: of every pixel its own class, of a map's scores the live tiles' classes.
READ = {
    ("measure_kernel", "scores"): lambda scores: 1 / scores.shape[1],
    ("merge_masks_kernel", "scores"): lambda _: LIVE,
}


def read(kernel: str, argument: str, tensor: torch.Tensor) -> float:
    return READ.get((kernel, argument), lambda _: 1.0)(tensor)


def workloads() -> list[Workload]:
    return [
        *(_attention(terms, batch, tokens) for terms in (2, 3) for batch, tokens in ((2, 442), (32, 442), (1, 4097))),
        _affinity(2, 42, 21),
        _affinity(2, 42, 42),
        _levels(),
        _classify("VOC", 46, (21, 28), (375, 500)),
        _classify("ADE20K", 150, (42, 56), (512, 683)),
        _merge("VOC", 10, (375, 500)),
        _merge("Cityscapes", 60, (1024, 2048)),
        _entropy(),
        _components(187, 250),
        _components(1024, 2048),
    ]
