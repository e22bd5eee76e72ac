"""Every tensor argument of every op in every memory order, through the op and through its launcher: no bit changes.

Orders are those of a view that callers have: transposed, sliced, strided, at an offset, and expanded with a stride of 0
(one mean for all windows, one image index for all regions). What lies around the values is poison.
"""

import pytest
import torch

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
from s2clip.testing import expanded, integers, layouts, normal, probabilities

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

CLASS_MAP = integers(3, 2, 6, 7, seed=3)
LABELS, COUNT = ops.label_components(CLASS_MAP)
WORDS = torch.tensor([0, 1, 1, 2, 0])

# op: (its tensor arguments by name, the public op, its launcher), both functions of the tensors in that order
OPS = {
    "recombined_attention": (
        {name: normal(2, 2, 9, 16, seed=seed) for seed, name in enumerate(("query", "key", "value"))}
        | {"bias": normal(9, 9, seed=4)},
        lambda q, k, v, bias: ops.recombined_attention(q, k, v, terms=("qk", "vv"), bias=bias, backend="triton"),
        lambda q, k, v, bias: recombined_attention.launch(q, k, v, ("qk",), (1.0,), 0.25, bias),
    ),
    "affinity_attention": (
        {
            "features[0]": normal(2, 4, 6, 16),
            "features[1]": normal(2, 4, 6, 8, seed=1),
            "value": normal(2, 2, 3, 8, seed=2),
            "weights": torch.tensor([[0.25, 0.75], [0.5, 0.5]]),
            "mean": torch.tensor([0.01, 0.03]),
        },
        lambda f, g, value, w, mean: ops.affinity_attention([f, g], value, weights=w, mean=mean, backend="triton"),
        lambda f, g, value, w, mean: affinity_attention.launch([f, g], value, w, 1.2, 3.0, mean),
    ),
    "progressive_affinity": (
        {
            "features": normal(2, 2, 2, 3, 16),
            "values": normal(2, 2, 2, 3, 8, seed=1),
            "scores": torch.tensor([[0.25, 0.75], [0.5, 0.5]]),
        },
        lambda *given: ops.progressive_affinity(*given, backend="triton"),
        lambda *given: affinity_attention.launch_progressive(*given, 1.2, 3.0),
    ),
    "label_components": (
        {"class_map": CLASS_MAP},
        lambda class_map: ops.label_components(class_map, ignore_index=1, backend="triton"),
        lambda class_map: connected_components.launch_label(class_map, 4, None),
    ),
    "measure_components": (
        {"labels": LABELS, "class_map": CLASS_MAP, "scores": probabilities(2, 3, 6, 7), "count": COUNT},
        lambda labels, class_map, scores, count: ops.measure_components(
            labels, class_map, scores, count=count, backend="triton"
        ),
        lambda labels, class_map, scores, count: component_statistics.launch_measure(
            labels, class_map, scores, count, int(count.sum())
        ),
    ),
    "classify_pixels": (
        {"logits": normal(2, 5, 3, 4), "class_index": WORDS},
        lambda logits, words: ops.classify_pixels(logits, (6, 7), class_index=words, backend="triton"),
        lambda logits, words: classify_pixels.launch(logits, (6, 7), 40.0, words, 3, 0.4, 0),
    ),
    "class_scores": (
        {"logits": normal(2, 5, 3, 4), "class_index": WORDS},
        lambda logits, words: ops.class_scores(logits, (6, 7), class_index=words, backend="triton"),
        lambda logits, words: classify_pixels.launch_scores(logits, (6, 7), 40.0, words, 3),
    ),
    "merge_masks": (
        {
            "mask_logits": normal(4, 8, 8),
            "class_index": torch.tensor([0, 2, 1, 1]),
            "image_index": torch.tensor([0, 1, 1, 0]),
            "scores": probabilities(2, 3, 5, 6),
            "labels": integers(3, 2, 9, 11),
        },
        lambda *given: ops.merge_masks(*given, input_size=(12, 16), padded_size=16, backend="triton"),
        lambda *given: merge_masks.launch(*given, (12, 16), 16),
    ),
    "spatial_entropy": (
        {"features": normal(2, 5, 4, 6)},
        lambda features: ops.spatial_entropy(features, backend="triton"),
        spatial_entropy.launch,
    ),
}
# Whose values cannot repeat along an axis and still be what the op takes.
FIXED = {("affinity_attention", "weights"), ("measure_components", "labels"), ("measure_components", "count")}
ORDERS = ["transposed", "sliced", "strided", "offset", "one row", "one number"]
FEW = ["strided", "one row", "one number"]  # what the op cannot mend before it hands its arguments on


def tensors(output):
    return [output] if isinstance(output, torch.Tensor) else list(output)


def test_every_order_is_tried():
    assert set(ORDERS) == set(layouts(WORDS)) - {"contiguous"} | set(expanded(WORDS))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("path", "order"), [*(("op", order) for order in ORDERS), *(("launch", order) for order in FEW)]
)
def test_memory_order_of_all_arguments_changes_no_bit(op, path, order):
    given, *functions = OPS[op]
    views = dict(given)
    for name, tensor in given.items():
        if (op, name) == ("affinity_attention", "weights") and order == "one number":
            views[name] = torch.tensor(0.5).expand(2, 2)
        elif order in layouts(tensor):
            views[name] = layouts(tensor)[order]
        elif (op, name) not in FIXED:
            views[name] = expanded(tensor)[order]
    function = functions[path == "launch"]
    copies = [view.clone(memory_format=torch.contiguous_format) for view in views.values()]
    for one, other in zip(tensors(function(*views.values())), tensors(function(*copies)), strict=True):
        assert torch.equal(one.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))


# Devices


class Guard:
    """Stands in for `torch.cuda.device_of`: knows whether a device is chosen."""

    depth = 0

    def __init__(self, tensor):
        assert isinstance(tensor, torch.Tensor)

    def __enter__(self):
        Guard.depth += 1

    def __exit__(self, *_):
        Guard.depth -= 1


@pytest.mark.parametrize("op", [*OPS, "connected_components_with_stats"])
def test_every_kernel_runs_on_the_device_of_its_data(op, monkeypatch, launches_seen):
    """Triton launches on the current device. Tensors say here that they are a GPU's, which need not be the current."""
    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    guarded = launches_seen(lambda: Guard.depth > 0)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    if op == "connected_components_with_stats":
        ops.drop_in._moments_by_kernel(LABELS[0], int(COUNT[0]) + 1)
    else:
        given, through_op, launch = OPS[op]
        launch(*given.values())
        through_op(*given.values())
    assert guarded
    assert all(guarded)


# Grids


def test_more_images_than_a_grid_has_rows_or_layers(monkeypatch, grids_seen):
    """CUDA allows 65,535 programs along y and z, 2³¹ − 1 along x."""
    batch = 70_000
    images = torch.empty(batch, 1, 2, 2, device="meta")
    words, mean = torch.empty(1, dtype=torch.int64, device="meta"), torch.empty(batch, device="meta")
    tokens, maps = torch.empty(batch, 1, 2, 16, device="meta"), torch.empty(batch, 2, 2, 16, device="meta")
    labels = torch.empty(batch, 2, 2, dtype=torch.int32, device="meta")
    region = torch.empty(1, dtype=torch.int64, device="meta")
    calls = {
        "recombined_attention": lambda: recombined_attention.launch(tokens, tokens, tokens, ("qq",), (1.0,), 1.0, None),
        "affinity_attention": lambda: affinity_attention.launch([maps], maps[:, :1, :1], mean[:, None], 1.2, 3.0, mean),
        "progressive_affinity": lambda: affinity_attention.launch_progressive(
            maps[None], maps[None], mean[:, None], 1.2, 3.0
        ),
        "classify_pixels": lambda: classify_pixels.launch(images, (4, 4), 40.0, words, 1, 0.0, 0),
        "class_scores": lambda: classify_pixels.launch_scores(images, (4, 4), 40.0, words, 1),
        "merge_masks": lambda: merge_masks.launch(images[:1, 0], region, region, images, labels, (2, 2), 2),
        "spatial_entropy": lambda: spatial_entropy.launch(images),
        "label_components": lambda: connected_components.launch_label(labels, 8, None),
        "measure_components": lambda: component_statistics.launch_measure(labels, labels, images, words, 1),
    }
    for name, call in calls.items():
        grids = grids_seen(call)
        assert grids, name
        for grid in grids:
            assert max((*grid, 1, 1)[1:]) <= 65_535, f"{name}: {grid}"
