"""What is measured: ops at the shapes the pipeline runs, their providers, and how two providers' outputs are compared.

A case's flops and bytes are compulsory: each input read once, each output written once, no intermediate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import baselines
import torch

from s2clip import ops
from s2clip.testing import integers, normal, probabilities

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One op at one shape."""

    op: str
    shape: str
    make: Callable[[torch.device, torch.dtype], Arguments]
    flops: float
    elements: float
    """Elements of the inputs and outputs that are in the case's dtype; the rest is counted in `more_bytes`."""
    more_bytes: float = 0.0
    reduced: bool = False
    """Small enough for a CPU."""

    def bytes(self, dtype: torch.dtype) -> float:
        return self.elements * dtype.itemsize + self.more_bytes


def attention_case(name, batch, heads, tokens, width, terms, *, reduced=False) -> Case:
    def make(device, dtype):
        query, key, value = (
            normal(batch, heads, tokens, width, seed=seed, dtype=dtype, device=device) for seed in range(3)
        )
        return (query, key, value), {"terms": terms}

    size = batch * heads * tokens * width
    return Case("recombined_attention", name, make, 4 * len(terms) * size * tokens, 4 * size, reduced=reduced)


def affinity_case(name, batch, grid, value_grid, channels, *, reduced=False) -> Case:
    def make(device, dtype):
        # A shared direction raises the mean cosine to about 0.3, as DINO's tokens have it.
        shared = normal(batch, 1, 1, channels, seed=2)
        features = (normal(batch, *grid, channels) + 0.65 * shared).to(device, dtype)
        return (features, normal(batch, *value_grid, channels, seed=1, dtype=dtype, device=device)), {}

    positions, values = grid[0] * grid[1], value_grid[0] * value_grid[1]
    flops = batch * (positions**2 * channels + 2 * positions * min(values, positions) * channels)
    elements = batch * channels * (2 * positions + values)
    return Case("affinity_attention", name, make, flops, elements, reduced=reduced)


def blobs(size, classes, *, batch=1, seed=0):
    """A label map of smooth regions, as an argmax of upsampled noise."""
    coarse = normal(batch, classes, 8, 12, seed=seed)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").argmax(1)


def components_case(name, size, classes, batch=1, *, reduced=False) -> Case:
    def make(device, dtype):
        return (blobs(size, classes, batch=batch).to(device), probabilities(batch, classes, *size).to(device)), {}

    pixels = batch * size[0] * size[1]
    return Case("components", name, make, 0.0, 0.0, pixels * (8 + 4 + 4), reduced=reduced)


def classify_case(name, classes, words, grid, size, *, reduced=False) -> Case:
    def make(device, dtype):
        class_index = [min(word, classes - 1) for word in range(words)]
        logits = 0.05 * normal(1, words, *grid)
        return (logits.to(device, dtype), size), {"scale": 40.0, "class_index": class_index}

    pixels = size[0] * size[1]
    elements = words * grid[0] * grid[1]
    return Case("classify_pixels", name, make, 12.0 * words * pixels, elements, 8.0 * pixels, reduced=reduced)


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
    elements = regions * low * low
    more = pixels * (classes + 8 + 8)  # scores at a quarter of the pixels in fp32, labels in and out, score
    return Case("merge_masks", name, make, 0.0, elements, more, reduced=reduced)


def entropy_case(name, batch, channels, grid, *, reduced=False) -> Case:
    def make(device, dtype):
        return (normal(batch, *grid, channels, dtype=dtype, device=device).permute(0, 3, 1, 2),), {}

    size = batch * channels * grid[0] * grid[1]
    return Case("spatial_entropy", name, make, 0.0, size, reduced=reduced)


def _components(class_map, scores):
    labels, count = ops.label_components(class_map)
    return ops.measure_components(labels, class_map, scores, count=count)


def _merge(mask_logits, class_index, scores, labels, **keywords):
    image_index = torch.zeros_like(class_index)
    return ops.merge_masks(mask_logits, class_index, image_index, scores, labels, **keywords)


PROVIDERS: dict[str, dict[str, Callable]] = {
    "recombined_attention": {
        "s2clip": ops.recombined_attention,
        "published": baselines.recombined_attention_published,
        "careful": baselines.recombined_attention_careful,
    },
    "affinity_attention": {
        "s2clip": ops.affinity_attention,
        "published": baselines.affinity_attention_published,
        "careful": baselines.affinity_attention_careful,
    },
    "components": {
        "s2clip": _components,
        "published": baselines.components_published,
        "careful": baselines.components_careful,
    },
    "classify_pixels": {
        "s2clip": ops.classify_pixels,
        "published": baselines.classify_pixels_published,
        "careful": baselines.classify_pixels_careful,
    },
    "merge_masks": {
        "s2clip": _merge,
        "published": baselines.merge_masks_published,
        "careful": baselines.merge_masks_careful,
    },
    "spatial_entropy": {
        "s2clip": ops.spatial_entropy,
        "published": baselines.spatial_entropy_published,
        "careful": baselines.spatial_entropy_careful,
    },
}

TWO, THREE = ("qq", "kk"), ("qq", "kk", "vv")
CASES = (
    attention_case("B2 H12 N197 D64 T3", 2, 12, 197, 64, THREE, reduced=True),
    attention_case("B2 H12 N442 D64 T2", 2, 12, 442, 64, TWO),
    attention_case("B2 H12 N442 D64 T3", 2, 12, 442, 64, THREE, reduced=True),
    attention_case("B32 H12 N442 D64 T3", 32, 12, 442, 64, THREE),
    attention_case("B2 H16 N577 D80 T2", 2, 16, 577, 80, TWO),
    attention_case("B1 H12 N4097 D64 T3", 1, 12, 4097, 64, THREE),
    affinity_case("B2 21x21 C768", 2, (21, 21), (21, 21), 768, reduced=True),
    affinity_case("B2 42x42 from 21x21 C768", 2, (42, 42), (21, 21), 768),
    affinity_case("B32 42x42 from 21x21 C768", 32, (42, 42), (21, 21), 768),
    affinity_case("B1 64x64 C768", 1, (64, 64), (64, 64), 768),
    affinity_case("B1 16x16 from 8x8 C128", 1, (16, 16), (8, 8), 384, reduced=True),
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
    entropy_case("B2 C768 21x21", 2, 768, (21, 21), reduced=True),
    entropy_case("B14 C768 42x42", 14, 768, (42, 42)),
)


def _rows(output, scores):
    """Components as sorted integer rows: image, class, area, box, raster index of the point."""
    if not isinstance(output, ops.Components):
        return output
    x, y = output.point.unbind(1)
    columns = (output.image_index, output.class_index, output.area, *output.box.unbind(1), y * scores.shape[-1] + x)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def disagreement(case: Case, arguments: Arguments, actual, expected) -> str:
    """Why two providers' outputs are not the same result; empty when they are."""
    if case.op == "components":
        scores = arguments[0][1]
        return "" if _rows(actual, scores) == _rows(expected, scores) else "other components"
    if case.op in ("classify_pixels", "merge_masks"):
        share = (actual[0] != expected[0]).float().mean().item()
        if share > 2e-3:
            return f"{share:.2%} of the labels differ"
        actual, expected = actual[1], expected[1]
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    # bf16 rounds at 4e-3, and an affinity's threshold may flip for single pairs.
    return "" if difference < 2e-2 else f"relative difference {difference.item():.1e}"
