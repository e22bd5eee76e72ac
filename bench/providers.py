"""Who computes each op, and how two results are compared."""

from collections.abc import Callable
from typing import NamedTuple

import machine
import torch
from baselines import affinity, attention, classify, components, entropy, masks

from s2clip import ops


class Provider(NamedTuple):
    """One way to compute an op. `kind` is the column it belongs to: s2clip, published or careful."""

    kind: str
    run: Callable
    needs: str = ""
    """A module that has to be installed."""
    cuda_only: bool = False
    """GPU libraries, and compiled code, which on a CPU would take minutes to compile."""
    on_host: bool = False
    """Waits for the device in between, so that no CUDA graph can hold it."""

    def obstacle(self) -> str:
        """Why it cannot run here; empty where it can."""
        if self.needs and not machine.installed(self.needs):
            return f"{self.needs} is not installed"
        return "needs a GPU" if self.cuda_only and not torch.cuda.is_available() else ""


def _components(class_map, scores):
    labels, count = ops.label_components(class_map)
    return ops.measure_components(labels, class_map, scores, count=count)


def _classify(logits, size, *, scale, class_index, sizes):
    """The registered op, which is told the number of classes: `ops.classify_pixels` would read it from the indices."""
    return torch.ops.s2clip.classify_pixels(logits, list(size), scale, class_index, len(sizes), 0.0, 0)


def _merge(mask_logits, class_index, scores, labels, **keywords):
    image_index = torch.zeros_like(class_index)
    return ops.merge_masks(mask_logits, class_index, image_index, scores, labels, **keywords)


OURS = "s2clip"
PROVIDERS: dict[str, dict[str, Provider]] = {
    "recombined_attention": {
        OURS: Provider("s2clip", ops.recombined_attention),
        "softmax-bmm": Provider("published", attention.published),
        "sdpa-per-term": Provider("published", attention.one_call_per_term),
        "sdpa-stacked": Provider("careful", attention.head_stacked),
    },
    "affinity_attention": {
        OURS: Provider("s2clip", ops.affinity_attention),
        "proxyclip": Provider("published", affinity.published),
        "compiled": Provider("careful", affinity.compiled_products, cuda_only=True),
        "autotuned": Provider("careful", affinity.autotuned_products, cuda_only=True),
    },
    "components": {
        OURS: Provider("s2clip", _components, on_host=True),
        "trident": Provider("published", components.published, "skimage", on_host=True),
        "cc3d": Provider("careful", components.by_cc3d, "cc3d", on_host=True),
        "colorcc": Provider("careful", components.by_colorcc, "colorcc", cuda_only=True, on_host=True),
        "cucim": Provider("careful", components.by_cucim, "cucim", cuda_only=True, on_host=True),
    },
    "classify_pixels": {
        OURS: Provider("s2clip", _classify),
        "eager": Provider("published", classify.published),
        "compiled": Provider("careful", classify.compiled_chain, cuda_only=True),
    },
    "merge_masks": {
        OURS: Provider("s2clip", _merge),
        "trident": Provider("published", masks.published, on_host=True),
        "compiled-loop": Provider("careful", masks.compiled_loop, cuda_only=True, on_host=True),
    },
    "spatial_entropy": {
        OURS: Provider("s2clip", ops.spatial_entropy),
        "eager": Provider("published", entropy.published, on_host=True),
        "compiled": Provider("careful", entropy.compiled_batch, cuda_only=True),
    },
}


def published(op: str) -> Callable:
    """The published formulation: the truth that all others are held to."""
    return next(provider.run for provider in PROVIDERS[op].values() if provider.kind == "published")


def truth(op: str, arguments):
    """The published formulation in fp32, picture by picture where the op takes a batch: less memory, same numbers."""
    inputs, keywords = arguments
    inputs = [
        value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in inputs
    ]
    if not op.endswith("attention"):
        return published(op)(*inputs, **keywords)
    pictures = zip(*(value.split(1) for value in inputs), strict=True)
    return torch.cat([published(op)(*picture, **keywords) for picture in pictures])


def disagreement(op: str, arguments, actual, expected) -> str:
    """Why two providers' outputs are not the same result; empty when they are."""
    if op == "components":
        scores = arguments[0][1]
        return "" if _rows(actual, scores) == _rows(expected, scores) else "other components"
    if op in ("classify_pixels", "merge_masks"):
        share = (actual[0] != expected[0]).float().mean().item()
        if not share <= 2e-3:
            return f"{share:.2%} of the labels differ"
        actual, expected = actual[1], expected[1]
    difference = ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
    return "" if difference < 2e-2 else f"relative difference {difference:.1e}"  # bf16 rounds at 4e-3


def _rows(output, scores):
    """Components as sorted integer rows: image, class, area, box, raster index of the point."""
    if not isinstance(output, ops.Components):
        return output
    x, y = output.point.unbind(1)
    columns = (output.image_index, output.class_index, output.area, *output.box.unbind(1), y * scores.shape[-1] + x)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))
