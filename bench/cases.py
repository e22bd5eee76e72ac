"""What is measured: ops at the shapes the pipeline runs, with the work that each cannot avoid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from machine import Work

from s2clip.testing import integers, normal, probabilities

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Instructions per value, counted in the kernels' inner loops: interpolation, exponential, running sums and best.
LANES_PER_CLASSIFIED = 16
LANES_PER_MERGED = 30


@dataclass(frozen=True)
class Case:
    """One op at one shape."""

    op: str
    shape: str
    make: Callable[[torch.device, torch.dtype], Arguments]
    elements: float
    """Elements of the inputs and outputs that are in the case's dtype; the rest is counted in `more_bytes`."""
    more_bytes: float = 0.0
    tensor_flops: float = 0.0
    lane_operations: float = 0.0
    exponentials: float = 0.0
    reduced: bool = False
    """Small enough for a CPU."""

    def work(self, dtype: torch.dtype) -> Work:
        moved = self.elements * dtype.itemsize + self.more_bytes
        return Work(self.tensor_flops, self.lane_operations, self.exponentials, moved)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Half precisions on CUDA, fp32 on a CPU; components hold integers and fp32 scores: once is enough."""
        if self.op == "components" or not torch.cuda.is_available():
            return (torch.float32,)
        return (torch.float16, torch.bfloat16)


def attention_case(name, batch, heads, tokens, width, terms, *, reduced=False) -> Case:
    def make(device, dtype):
        query, key, value = (
            normal(batch, heads, tokens, width, seed=seed, dtype=dtype, device=device) for seed in range(3)
        )
        return (query, key, value), {"terms": terms}

    size, scores = batch * heads * tokens * width, len(terms) * batch * heads * tokens**2
    return Case(
        "recombined_attention",
        name,
        make,
        elements=4 * size,
        tensor_flops=4 * scores * width,
        exponentials=scores,
        reduced=reduced,
    )


def affinity_case(name, batch, grid, value_grid, channels, *, reduced=False) -> Case:
    def make(device, dtype):
        # Six regions of one direction each, and one shared by all, as DINO's tokens have it: cosines of 0.87 inside a
        # region and 0.2 outside, and a threshold near 0.37 that no rounding reaches.
        member = blobs(grid, 6, batch=batch)
        directions = torch.linalg.qr(normal(channels, 7)).Q.T
        noise = (0.2 / channels) ** 0.5 * normal(batch, *grid, channels)
        features = directions[member] + 0.3**0.5 * directions[6] + noise
        value = normal(batch, *value_grid, channels, seed=1, dtype=dtype, device=device)
        return (features.to(device, dtype), value), {}

    positions, values = grid[0] * grid[1], value_grid[0] * value_grid[1]
    return Case(
        "affinity_attention",
        name,
        make,
        elements=batch * channels * (2 * positions + values),
        # Half of a symmetric product; the values' resize is folded into the affinity where that makes it smaller.
        tensor_flops=batch * (positions**2 * channels + 2 * positions * min(values, positions) * channels),
        exponentials=batch * positions**2 / 2,
        reduced=reduced,
    )


def blobs(size, classes, *, batch=1, seed=0):
    """A label map of smooth regions, as an argmax of upsampled noise."""
    coarse = normal(batch, classes, 8, 12, seed=seed)
    return F.interpolate(coarse, size, mode="bilinear").argmax(1)


def components_case(name, size, classes, batch=1, *, reduced=False) -> Case:
    def make(device, dtype):
        return (blobs(size, classes, batch=batch).to(device), probabilities(batch, classes, *size).to(device)), {}

    pixels = batch * size[0] * size[1]
    return Case("components", name, make, elements=0, more_bytes=pixels * (8 + 4 + 4), reduced=reduced)


def classify_case(name, classes, words, grid, size, *, reduced=False) -> Case:
    def make(device, dtype):
        sizes = (*[1] * (classes - 1), words - classes + 1)
        class_index = torch.arange(classes).repeat_interleave(torch.tensor(sizes)).to(device)
        logits = 0.05 * normal(1, words, *grid)
        return (logits.to(device, dtype), size), {"scale": 40.0, "class_index": class_index, "sizes": sizes}

    pixels = size[0] * size[1]
    return Case(
        "classify_pixels",
        name,
        make,
        elements=words * grid[0] * grid[1],
        more_bytes=8.0 * pixels,
        lane_operations=LANES_PER_CLASSIFIED * words * pixels,
        exponentials=words * pixels,
        reduced=reduced,
    )


def merge_case(name, regions, classes, size, *, low=256, reduced=False) -> Case:
    def make(device, dtype):
        centres = torch.rand(regions, 2, generator=torch.Generator().manual_seed(0))
        grid = torch.stack(torch.meshgrid(torch.arange(low), torch.arange(low), indexing="ij"), -1) / low
        logits = 8 - 60 * (grid[None] - centres[:, None, None]).norm(dim=-1)
        scale = 1024 / max(size)
        class_index = integers(classes, regions).to(device)
        scores = probabilities(1, classes, size[0] // 2, size[1] // 2).to(device)
        labels = blobs(size, classes).to(device)
        input_size = tuple(int(side * scale + 0.5) for side in size)
        return (logits.to(device, dtype), class_index, scores, labels), {
            "input_size": input_size,
            "padded_size": 1024,
        }

    pixels = size[0] * size[1]
    return Case(
        "merge_masks",
        name,
        make,
        elements=regions * low * low,
        more_bytes=pixels * (classes + 8 + 8),  # scores at a quarter of the pixels in fp32, labels in and out, score
        lane_operations=LANES_PER_MERGED * regions * pixels,
        reduced=reduced,
    )


def entropy_case(name, batch, channels, grid, *, reduced=False) -> Case:
    def make(device, dtype):
        return (normal(batch, *grid, channels, dtype=dtype, device=device).permute(0, 3, 1, 2),), {}

    size = batch * channels * grid[0] * grid[1]
    return Case("spatial_entropy", name, make, elements=size, exponentials=2 * size, reduced=reduced)


TWO, THREE = ("qq", "kk"), ("qq", "kk", "vv")
CASES = (
    attention_case("B2 H12 N197 D64 T3", 2, 12, 197, 64, THREE, reduced=True),
    attention_case("B2 H12 N442 D64 T2", 2, 12, 442, 64, TWO),
    attention_case("B2 H12 N442 D64 T3", 2, 12, 442, 64, THREE, reduced=True),
    attention_case("B32 H12 N442 D64 T3", 32, 12, 442, 64, THREE),
    attention_case("B2 H16 N577 D80 T2", 2, 16, 577, 80, TWO),
    attention_case("B1 H12 N4097 D64 T2", 1, 12, 4097, 64, TWO),
    attention_case("B1 H12 N4097 D64 T3", 1, 12, 4097, 64, THREE),
    affinity_case("B1 16x16 from 8x8 C384", 1, (16, 16), (8, 8), 384, reduced=True),
    affinity_case("B2 21x21 C768", 2, (21, 21), (21, 21), 768, reduced=True),
    affinity_case("B2 42x42 from 21x21 C768", 2, (42, 42), (21, 21), 768),
    affinity_case("B32 42x42 from 21x21 C768", 32, (42, 42), (21, 21), 768),
    affinity_case("B1 64x64 C768", 1, (64, 64), (64, 64), 768),
    affinity_case("B1 64x64 from 32x32 C768", 1, (64, 64), (32, 32), 768),
    components_case("VOC half 187x250 C21", (187, 250), 21, reduced=True),
    components_case("ADE 512x683 C150", (512, 683), 150),
    components_case("Cityscapes 1024x2048 C19", (1024, 2048), 19),
    components_case("32 x VOC 375x500 C21", (375, 500), 21, 32),
    classify_case("VOC 375x500 Q46 K21", 21, 46, (21, 28), (375, 500), reduced=True),
    classify_case("ADE 512x683 Q150 K150", 150, 150, (42, 56), (512, 683)),
    classify_case("Cityscapes 1024x2048 Q19 K19", 19, 19, (42, 84), (1024, 2048)),
    merge_case("VOC 375x500 R10 K21", 10, 21, (375, 500), reduced=True),
    merge_case("ADE 512x683 R40 K150", 40, 150, (512, 683)),
    merge_case("Cityscapes 1024x2048 R60 K19", 60, 19, (1024, 2048)),
    entropy_case("B1 C768 21x21", 1, 768, (21, 21), reduced=True),
    entropy_case("B14 C768 42x42", 14, 768, (42, 42)),
    entropy_case("B4 C768 64x64", 4, 768, (64, 64)),
)


def here() -> list[Case]:
    """The cases for this machine: all on CUDA, the reduced ones on a CPU."""
    return [case for case in CASES if case.reduced or torch.cuda.is_available()]
