"""Ops on connected components of label maps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s2clip.ops import checks
from s2clip.ops.registry import Op

Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of `Components` as the op returns them."""


class Components(NamedTuple):
    """R components, sorted by image and label. All int32 but score."""

    image_index: Tensor  # [R] 0..B−1
    class_index: Tensor  # [R] 0..C−1
    label: Tensor  # [R] 1..count of its image
    area: Tensor  # [R] pixels
    box: Tensor  # [R,4] x0, y0, x1, y1: inclusive pixel indices
    score: Tensor  # [R] mean own-class score, at least fp32
    point: Tensor  # [R,2] x, y of the largest own-class score


def label_components(
    class_map: Tensor, *, connectivity: int = 8, ignore_index: int | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """labels and count: two pixels are connected when they touch and hold the same class; one pass for all classes.

    class_map: [B,H,W] or [H,W], any integer dtype, class ids not negative (but for ignore_index).
    connectivity: 4 (edges touch) or 8 (corners too).
    ignore_index: pixels of this class get label 0 and connect nothing; default none.
    Returns labels int32 of the shape of class_map: 0 where ignored, 1..count per image in raster order of each
    component's first pixel, as cc3d and OpenCV's SAUF number them; count int32 [B] ([1] for [H,W]), on the device.
    Raises ValueError for other shapes, dtypes, connectivities, and on the CPU for negative class ids. On the GPU, where
    raising would need a host read, an image with a negative class id gets labels 0 and count −1, and
    `measure_components` raises.

    Source: run-based union-find, He, Chao, Suzuki, IEEE TIP 17(5), 2008, with the smallest raster index as root.
    """
    batched = _batched("class_map", class_map, checks.INTEGERS, "[B,H,W]")
    checks.choice("connectivity", connectivity, (4, 8))
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        checks.fail("ignore_index", "an integer or None", repr(ignore_index))
    labels, count = _label_components(backend, batched, batched, connectivity, ignore_index)
    return labels.view(class_map.shape), count


def _label(
    run: Callable[..., tuple[Tensor, Tensor]], class_map: Tensor, connectivity: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    labels, count = run(class_map, connectivity, ignore_index)
    if count.device.type == "cpu" and bool((count < 0).any()):
        checks.fail("class_map", f"class ids of at least 0 (or ignore_index, {ignore_index})", int(class_map.min()))
    return labels, count


_label_components: Op[tuple[Tensor, Tensor]] = Op(
    "label_components",
    "(Tensor class_map, int connectivity, int? ignore_index) -> (Tensor, Tensor)",
    fake=lambda class_map, connectivity, ignore_index: (
        class_map.new_empty(class_map.shape, dtype=torch.int32),
        class_map.new_empty(class_map.shape[:1], dtype=torch.int32),
    ),
    body=_label,
    launcher="connected_components:launch_label",
)


def measure_components(
    labels: Tensor,
    class_map: Tensor,
    scores: Tensor,
    *,
    count: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> Components:
    """Class, area, box, mean score and best point of every component; R = Σ_b count_b rows.

    labels: [B,H,W] or [H,W], from `label_components`; class_map: the map it was given.
    scores: [B,C,H,W] or [C,H,W] at the same size, any float dtype, from −65,504 to 65,504: sums are in fixed point.
    count: [B], what `label_components` returned; default the largest label of each image. R is known to the host after
        one read of the device; with a CPU tensor or a list nothing is read and all values are trusted (labels beyond
        the count are then skipped).
    Returns Components. score is the mean of the component's own class score, point the (x, y) of the largest one, first
    in raster order on ties. With an own score that is not finite, or out of range, score is NaN; point is still that of
    the largest finite one.
    Raises ValueError for other shapes, dtypes, devices, labels beyond the count, class ids not in 0..C−1 under a label.
    """
    maps = _batched("labels", labels, checks.INTEGERS, "[B,H,W]")
    classes = _batched("class_map", class_map, checks.INTEGERS, "[B,H,W]")
    values = _batched("scores", scores, checks.FLOATS, "[B,C,H,W]")
    checks.like("class_map", classes, "labels", maps, dtype=False)
    checks.like("scores", values, "labels", maps, dtype=False)
    checks.shape("class_map", classes, maps.shape, "the shape of labels [B,H,W]")
    batch, height, width = maps.shape
    checks.shape("scores", values, (batch, values.shape[1], height, width), "[B,C,H,W] at the size of labels")
    if count is not None:
        count = checks.indices("count", count, batch, "B")
        if count.device.type != "cpu":
            checks.like("count", count, "labels", maps, dtype=False)
    return Components(*_measure_components(backend, values, maps, classes, values, count))


def _measure(
    run: Callable[..., Columns], labels: Tensor, class_map: Tensor, scores: Tensor, count: Tensor | None
) -> Columns:
    """Learns the number of rows, and whether the values are sound, in one read of the device."""
    if count is not None and count.device.type == "cpu" and labels.device.type != "cpu":
        if count.numel() and int(count.min()) < 0:
            checks.fail("count", "numbers of components", count.tolist())
        rows = int(count.sum())
        return run(labels, class_map, scores, count.to(labels.device, torch.int32, non_blocking=True), rows)
    batch, classes = scores.shape[:2]
    pixels, own = (
        each.flatten(1) if each.dtype == torch.int32 else each.flatten(1).long() for each in (labels, class_map)
    )
    if pixels.numel():
        largest, (lowest, highest) = pixels.amax(1).long().clamp(min=0), own.where(pixels > 0, 0).aminmax()
        negative = pixels.amin() < 0
    else:
        largest = lowest = highest = negative = torch.zeros(batch, dtype=torch.int64, device=labels.device)
    count = largest.to(torch.int32) if count is None else count.to(torch.int32)
    unknown = (lowest < 0) | (highest >= classes)
    facts = [count.sum(), (count < 0).any(), (largest > count).any(), negative.any(), unknown.any()]
    rows, no_count, beyond, negative, unknown = torch.stack([fact.long() for fact in facts]).tolist()
    if no_count:
        checks.fail("count", "numbers of components (−1 marks an image with negative class ids)", count.tolist())
    if beyond:
        checks.fail("labels", f"labels up to the count, {count.tolist()}", largest.tolist())
    if negative:
        checks.fail("labels", "labels of at least 0", int(pixels.min()))
    if unknown:
        received = f"{int(own.min())} to {int(own.max())}"
        checks.fail("class_map", f"class ids 0..{classes - 1} under every label, for C = {classes}", received)
    return run(labels, class_map, scores, count, rows)


def _measure_fake(labels: Tensor, class_map: Tensor, scores: Tensor, count: Tensor | None) -> Columns:
    rows = torch.library.get_ctx().new_dynamic_size()
    image, own_class, label, area = (labels.new_empty((rows,), dtype=torch.int32) for _ in range(4))
    score = scores.new_empty((rows,), dtype=torch.promote_types(scores.dtype, torch.float32))
    box, point = (labels.new_empty((rows, width), dtype=torch.int32) for width in (4, 2))
    return image, own_class, label, area, box, score, point


_measure_components: Op[Columns] = Op(
    "measure_components",
    "(Tensor labels, Tensor class_map, Tensor scores, Tensor? count)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_measure_fake,
    body=_measure,
    launcher="component_statistics:launch_measure",
)


def _batched(argument: str, value: Tensor, dtypes: Sequence[torch.dtype], shape: str) -> Tensor:
    """The tensor with a batch axis, which may be missing."""
    if isinstance(value, Tensor) and value.ndim == shape.count(","):
        value = value[None]
    return checks.tensor(argument, value, shape, dtypes)
