"""The public layer: registration, dispatch, memory layouts, empty inputs, bad inputs, drop-ins."""

import importlib
import inspect
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only

from s2clip import ops
from s2clip.kernels import reference
from s2clip.testing import integers, layouts, normal, probabilities

LAUNCHERS = {
    "recombined_attention": "recombined_attention.launch",
    "affinity_attention": "affinity_attention.launch",
    "progressive_affinity": "affinity_attention.launch_progressive",
    "label_components": "connected_components.launch_label",
    "measure_components": "component_statistics.launch_measure",
    "classify_pixels": "classify_pixels.launch",
    "class_scores": "classify_pixels.launch_scores",
    "merge_masks": "merge_masks.launch",
    "spatial_entropy": "spatial_entropy.launch",
}


def arguments(op: str, batch: int = 2, side: int = 5) -> tuple:
    """What the registered op takes, with maps of side × (side + 1), or 1 × 1."""
    height, width = side, side + (side > 1)
    maps = normal(batch, 3, height, width)
    class_map = integers(3, batch, height, width)
    scores = probabilities(batch, 3, height, width)
    regions = torch.tensor([0, 2, 1, 1][: 4 * batch])
    query, key, value = (normal(batch, 2, height * width, 16, seed=seed) for seed in range(3))
    grid = normal(batch, height, width, 4)
    return {
        "recombined_attention": lambda: (query, key, value, ["qq", "kv"], [0.5, 0.5], 0.25, None),
        "affinity_attention": lambda: ([grid, grid + 1], grid, torch.full((batch, 2), 0.5), 1.2, 3.0, None),
        "progressive_affinity": lambda: (
            *(torch.stack([grid, grid + 1]), torch.stack([grid, grid - 1])),
            *(normal(batch, 2, seed=4), 1.2, 3.0),
        ),
        "label_components": lambda: (class_map, 8, 0),
        "measure_components": lambda: (
            *(ops.label_components(class_map)[0], class_map, scores),
            ops.label_components(class_map)[1],
        ),
        "classify_pixels": lambda: (maps, [7, 6], 40.0, torch.tensor([0, 1, 1]), None, 0.4, 0),
        "class_scores": lambda: (maps, [7, 6], 40.0, torch.tensor([0, 1, 1]), None),
        "merge_masks": lambda: (
            *(normal(len(regions), side, side), regions, regions.clamp(max=batch - 1), scores, class_map),
            *([6, 8], 8),
        ),
        "spatial_entropy": lambda: (maps,),
    }[op]()


def assert_same(results, expected):
    for result, truth in zip(tree_leaves(results), tree_leaves(expected), strict=True):
        roundings = 0.0
        if truth.is_floating_point() and truth.numel():
            roundings = 16 * torch.finfo(truth.dtype).eps * max(1.0, truth.nan_to_num().abs().max().item())
        torch.testing.assert_close(result, truth, rtol=0, atol=roundings, equal_nan=True)


class TestRegistration:
    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "strided", "offset"])
    @pytest.mark.parametrize("op", LAUNCHERS)
    def test_opcheck_on_every_memory_layout(self, op, layout):
        registered = getattr(torch.ops.s2clip, op).default
        plain = arguments(op)
        arranged = tree_map_only(torch.Tensor, lambda tensor: layouts(tensor)[layout], plain)
        torch.library.opcheck(registered, arranged)
        assert_same(registered(*arranged), registered(*plain))

    @pytest.mark.parametrize(("batch", "side"), [(0, 5), (1, 1)], ids=["empty", "single element"])
    @pytest.mark.parametrize("op", LAUNCHERS)
    def test_opcheck_on_extreme_sizes(self, op, batch, side):
        torch.library.opcheck(getattr(torch.ops.s2clip, op).default, arguments(op, batch, side))

    @pytest.mark.parametrize("op", LAUNCHERS)
    def test_reference_and_launcher_take_the_same_arguments(self, op):
        module, function = LAUNCHERS[op].split(".")
        launch = getattr(importlib.import_module(f"s2clip.kernels.{module}"), function)
        specification = inspect.signature(getattr(reference, op)).parameters
        assert list(inspect.signature(launch).parameters) == list(specification)

    def test_compiles_whole_with_dynamic_shapes(self):
        def program(query, grid, class_map, logits, masks, region):
            attended = ops.recombined_attention(query, query, query)
            mixed = ops.affinity_attention([grid, grid], grid, weights=(0.25, 0.75))
            labels, count = ops.label_components(class_map)
            size = class_map.shape[1:]
            classes, confidence = ops.classify_pixels(logits, size, class_index=[0, 1, 1, 2], threshold=0.4)
            scores = ops.class_scores(logits, size, class_index=[0, 1, 1, 2])
            regions = ops.measure_components(labels, class_map, scores, count=count)
            merged = ops.merge_masks(masks, region, region, scores, classes, input_size=(6, 8), padded_size=8)
            return attended, mixed, labels, classes, confidence, regions, merged, ops.spatial_entropy(logits)

        torch.compiler.reset()
        compiled = torch.compile(program, fullgraph=True, dynamic=True, backend="aot_eager")
        for side in (5, 7):
            inputs = (
                *(normal(2, 2, side, 16), normal(2, side, side + 1, 4), integers(3, 2, side, side + 2)),
                *(normal(2, 4, side, side), normal(2, side, side), torch.tensor([0, 1])),
            )
            assert_same(compiled(*inputs), program(*inputs))

    def test_number_of_classes_may_be_read_within_a_compiled_program(self):
        torch.compiler.reset()
        compiled = torch.compile(
            lambda logits, index: ops.class_scores(logits, (5, 6), class_index=index),
            fullgraph=True,
            backend="aot_eager",
        )
        assert compiled(normal(1, 3, 4, 4), torch.tensor([0, 4, 1])).shape == (1, 5, 5, 6)


class TestDispatch:
    def test_cpu_tensors_take_the_reference(self):
        maps = normal(2, 3, 4, 5)
        for backend in ("auto", "torch"):
            assert torch.equal(ops.spatial_entropy(maps, backend=backend), reference.spatial_entropy(maps))

    def test_triton_on_cpu_tensors_needs_the_interpreter(self, monkeypatch):
        calls = []
        module = SimpleNamespace(launch=lambda *arguments: calls.append(arguments) or "launched")
        monkeypatch.setitem(sys.modules, "s2clip.kernels.spatial_entropy", module)
        maps = normal(2, 3, 4, 5)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match=r"backend: expected CUDA tensors .* received cpu"):
            ops.spatial_entropy(maps, backend="triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert ops.spatial_entropy(maps, backend="triton") == "launched"
        assert calls == [(maps,)]
        with pytest.raises(ValueError, match=r"dtype: expected float16, bfloat16 or float32"):
            ops.spatial_entropy(maps.double(), backend="triton")

    def test_body_prepares_the_arguments_of_the_launcher(self, monkeypatch):
        calls = []
        module = SimpleNamespace(launch=lambda *a: calls.append(a), launch_scores=lambda *a: calls.append(a))
        monkeypatch.setitem(sys.modules, "s2clip.kernels.classify_pixels", module)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        logits = normal(1, 3, 4, 5)
        ops.classify_pixels(logits, (8, 9), class_index=[0, 2, 0], threshold=0.5, background=7, backend="triton")
        ops.class_scores(logits, (8, 9), class_index=torch.tensor([0, 2, 0], dtype=torch.uint8), backend="triton")
        _, size, scale, index, classes, threshold, background = calls[0]
        assert (size, scale, classes, threshold, background) == ((8, 9), 40.0, 3, 0.5, 7)
        assert torch.equal(index, calls[1][3])
        assert index.dtype == torch.int64
        assert calls[1][4] == 3

    @pytest.mark.filterwarnings("ignore:overflow encountered")  # classify_pixels does such pixels again
    @pytest.mark.parametrize("op", LAUNCHERS)
    def test_kernel_and_reference_agree_through_the_op(self, op, device):
        """One small case per op, on the GPU or in the interpreter; the kernels' own tests are in tests/kernels."""
        homes = (ops.attention, ops.components, ops.pixels, ops.entropy)
        registered = next(getattr(home, f"_{op}") for home in homes if hasattr(home, f"_{op}"))
        given = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), arguments(op))
        data = next(leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))
        results = [registered(backend, data, *given) for backend in ("triton", "torch")]
        for result, truth in zip(*map(tree_leaves, results), strict=True):
            torch.testing.assert_close(result, truth, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("op", LAUNCHERS)
    def test_inputs_stay_as_they_were(self, op):
        given = arguments(op)
        kept = tree_map_only(torch.Tensor, torch.clone, given)
        getattr(torch.ops.s2clip, op).default(*given)
        assert all(
            map(torch.equal, *([x for x in tree_leaves(a) if isinstance(x, torch.Tensor)] for a in (given, kept)))
        )


class TestOnCuda:
    """Without a GPU: fake CUDA tensors go through checks, conversions and the registered op, but not into a kernel."""

    def test_results_are_on_the_device_and_have_their_dtypes(self):
        with FakeTensorMode(shape_env=ShapeEnv()):
            maps = torch.empty(2, 3, 4, 5, device="cuda", dtype=torch.float16)
            query = torch.empty(2, 3, 7, 64, device="cuda", dtype=torch.float16)
            class_map = torch.empty(2, 4, 5, device="cuda", dtype=torch.uint8)
            labels, count = ops.label_components(class_map, ignore_index=255)
            results = [
                ops.recombined_attention(query, query, query),
                ops.affinity_attention([maps, maps], maps, weights=(0.5, 0.5)),
                *(labels, count, *ops.measure_components(labels, class_map, maps, count=count)),
                *ops.measure_components(labels, class_map, maps, count=[1, 2]),
                *ops.classify_pixels(maps, (8, 9), class_index=[0, 1, 1], threshold=0.2),
                ops.class_scores(maps, (8, 9), class_index=torch.tensor([0, 1, 1])),
                *ops.merge_masks(maps[:, 0, :, :4], [0, 1], [0, 1], maps, labels, input_size=(6, 8), padded_size=8),
                ops.spatial_entropy(maps),
            ]
            assert {result.device.type for result in results} == {"cuda"}
        half, full, integer = torch.float16, torch.float32, torch.int32
        components = [*[integer] * 5, full, integer]
        expected = [half, half, integer, integer, *components, *components, integer, full, half, integer, full, full]
        assert [result.dtype for result in results] == expected

    def test_every_op_has_a_kernel_for_cuda(self):
        for op in LAUNCHERS:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"s2clip::{op}", "CUDA")

    def test_a_device_mix_is_refused(self):
        with FakeTensorMode():
            maps, other = torch.empty(2, 3, 4, 5, device="cuda"), torch.empty(2, 3, 4, 5)
            with pytest.raises(ValueError, match=r"features\[0\]: expected the device of value, cuda:0, received cpu"):
                ops.affinity_attention(other, maps)
            with pytest.raises(ValueError, match="dtype: expected float16, bfloat16 or float32 for Triton"):
                ops.spatial_entropy(maps.double())


class TestDefaults:
    def test_recombined_attention(self):
        query, key, value = (normal(1, 2, 7, 16, seed=seed) for seed in range(3))
        expected = reference.recombined_attention(query, key, value, ("qq", "kk", "vv"), (1 / 3,) * 3, 0.25, None)
        assert torch.equal(ops.recombined_attention(query, key, value), expected)

    def test_affinity_attention_weights_alike_whether_floats_or_tensors(self):
        maps, value = [normal(2, 3, 4, 8), normal(2, 3, 4, 5)], normal(2, 2, 2, 6)
        floats = ops.affinity_attention(maps, value, weights=(0.25, 0.75))
        tensors = ops.affinity_attention(maps, value, weights=torch.tensor([[0.25, 0.75]] * 2))
        assert torch.equal(floats, tensors)
        half = ops.affinity_attention(maps, value)
        assert torch.equal(half, ops.affinity_attention(maps, value, weights=(0.5, 0.5)))

    def test_a_missing_batch_axis(self):
        class_map, scores = integers(3, 5, 6), probabilities(1, 3, 5, 6)[0]
        labels, count = ops.label_components(class_map)
        assert labels.shape == (5, 6)
        assert count.shape == (1,)
        result = ops.measure_components(labels, class_map, scores, count=count)
        batched = ops.measure_components(labels[None], class_map[None], scores[None])
        assert_same(result, batched)
        assert len(result.area) == int(count)

    def test_count_of_any_form_gives_the_same(self):
        class_map, scores = integers(3, 2, 5, 6), probabilities(2, 3, 5, 6)
        labels, count = ops.label_components(class_map)
        expected = ops.measure_components(labels, class_map, scores)
        for form in (count, count.long(), count.tolist(), tuple(count.tolist())):
            assert_same(ops.measure_components(labels, class_map, scores, count=form), expected)

    def test_class_index_of_any_form_gives_the_same(self):
        logits = normal(2, 3, 4, 5)
        expected = ops.class_scores(logits, (7, 6), class_index=[1, 0, 1])
        assert expected.shape[1] == 2
        for form in ((1, 0, 1), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1], dtype=torch.int32)):
            assert torch.equal(ops.class_scores(logits, (7, 6), class_index=form), expected)
        assert_same(ops.class_scores(logits, (7, 6)), ops.class_scores(logits, (7, 6), class_index=range(3)))


class TestEmpty:
    def test_results_are_empty(self):
        none = torch.zeros(2, 3, 0, 16)
        assert ops.recombined_attention(none, none, none).shape == (2, 3, 0, 16)
        assert ops.affinity_attention(torch.zeros(2, 0, 4, 5), torch.zeros(2, 0, 0, 6)).shape == (2, 0, 4, 6)
        assert ops.affinity_attention(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 0)).shape == (2, 3, 4, 0)
        for shape in ((0, 4, 5), (2, 0, 5), (2, 4, 0)):
            class_map = torch.zeros(shape, dtype=torch.int64)
            labels, count = ops.label_components(class_map)
            assert labels.shape == shape
            assert count.tolist() == [0] * shape[0]
            result = ops.measure_components(labels, class_map, torch.zeros(shape[0], 3, *shape[1:]), count=count)
            assert [list(column.shape) for column in result] == [[0], [0], [0], [0], [0, 4], [0], [0, 2]]
            merged, score = ops.merge_masks(
                *(torch.zeros(0, 4, 4), [], [], torch.zeros(shape[0], 3, 2, 2), labels),
                input_size=(4, 4),
                padded_size=4,
            )
            assert merged.shape == score.shape == shape
            masks = class_map.bool()
            assert ops.get_connected_components(masks[:, None])[1].shape == (shape[0], 1, *shape[1:])
            assert ops.connected_components_with_stats(masks)[1].shape == shape
        assert ops.classify_pixels(torch.zeros(0, 3, 4, 4), (5, 6))[0].shape == (0, 5, 6)
        assert ops.class_scores(torch.zeros(0, 3, 4, 4), (5, 6)).shape == (0, 3, 5, 6)
        assert ops.spatial_entropy(torch.zeros(0, 3, 4, 4)).shape == (0,)
        assert ops.spatial_entropy(torch.zeros(2, 3, 0, 4)).tolist() == [0, 0]


def opencv(mask: np.ndarray, connectivity: int):
    algorithm = cv2.connectedComponentsWithStatsWithAlgorithm
    return algorithm(mask.astype(np.uint8), connectivity, cv2.CV_32S, cv2.CCL_WU)


class TestDropIns:
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(
        masks=hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)),
        connectivity=st.sampled_from([4, 8]),
    )
    def test_stats_equal_opencv(self, masks, connectivity):
        numbers, labels, stats, centroids = ops.connected_components_with_stats(torch.from_numpy(masks), connectivity)
        for image, mask in enumerate(masks):
            single = ops.connected_components_with_stats(torch.from_numpy(mask * 7.5), connectivity)
            for result in ((numbers[image], labels[image], stats[image], centroids[image]), single):
                for value, expected in zip(result, opencv(mask, connectivity), strict=True):
                    np.testing.assert_array_equal(value, expected)
        assert (labels.dtype, stats[0].dtype, centroids[0].dtype) == (torch.int32, torch.int32, torch.float64)

    def test_takes_connectivity_by_position_and_refuses_others(self):
        diagonal = torch.eye(3)
        assert ops.connected_components_with_stats(diagonal, 4)[0] == 4
        assert ops.connected_components_with_stats(diagonal)[0] == 2
        with pytest.raises(ValueError, match="connectivity"):
            ops.connected_components_with_stats(diagonal, 6)

    def test_areas_of_sam2_masks(self):
        masks = integers(2, 3, 1, 15, 17).bool()  # odd sizes, which SAM2's own kernel refuses
        labels, areas = ops.get_connected_components(masks)
        assert labels.shape == areas.shape == masks.shape
        assert labels.dtype == areas.dtype == torch.int32
        for mask, label, area in zip(masks[:, 0].numpy(), labels[:, 0], areas[:, 0], strict=True):
            expected, number = ndimage.label(mask, np.ones((3, 3)))
            sizes = np.bincount(expected.ravel())
            sizes[0] = 0
            assert int(label.max()) == number
            np.testing.assert_array_equal(area, sizes[expected])
