"""The definitions of labelling and measuring regions, against cc3d, OpenCV, SciPy and a loop."""

import math

import cc3d
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torchvision.ops import masks_to_boxes

from s2clip.kernels import reference
from s2clip.testing import (
    checkerboard,
    comb,
    integers,
    layouts,
    probabilities,
    snake,
    spiral,
)

DOUBLE = torch.float64


def cc3d_labels(class_map: np.ndarray, connectivity: int, ignore_index: int | None) -> tuple[np.ndarray, int]:
    shifted = class_map.astype(np.int32, order="C") + 1  # cc3d ignores 0 and numbers in memory order
    if ignore_index is not None:
        shifted[class_map == ignore_index] = 0
    return cc3d.connected_components(shifted, connectivity=connectivity, return_N=True)


MAPS = {
    "spiral": spiral(61, 73),
    "spiral of one class on another": spiral(40, 41) + 3,
    "comb": comb(32, 65),
    "comb upside down": comb(32, 65).flip(0),
    "snake": snake(33, 65),
    "snake upright": snake(33, 65).T,
    "checkerboard": checkerboard(17, 19),
    "one colour": torch.full((13, 29), 7),
    "one row": integers(3, 1, 97),
    "one column": integers(3, 97, 1),
    "one pixel": torch.zeros(1, 1, dtype=torch.int64),
    "noise of two classes": integers(2, 47, 61, seed=1),
    "noise of five classes": integers(5, 47, 61, seed=2),
    "blocks": integers(4, 8, 9, seed=3).repeat_interleave(5, 0).repeat_interleave(7, 1),
}


class TestLabelComponents:
    @pytest.mark.parametrize("ignore_index", [None, 0])
    @pytest.mark.parametrize("connectivity", [4, 8])
    @pytest.mark.parametrize("name", MAPS)
    def test_equals_cc3d(self, name, connectivity, ignore_index):
        expected, number = cc3d_labels(MAPS[name].numpy(), connectivity, ignore_index)
        labels, count = reference.label_components(MAPS[name][None], connectivity, ignore_index)
        assert count.tolist() == [number]
        assert np.array_equal(labels[0], expected)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        maps=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.integers(0, 3)),
        connectivity=st.sampled_from([4, 8]),
        ignore_index=st.sampled_from([None, 0, 2]),
    )
    def test_equals_cc3d_on_any_batch(self, maps, connectivity, ignore_index):
        labels, count = reference.label_components(torch.from_numpy(maps), connectivity, ignore_index)
        for image, map_ in enumerate(maps):
            expected, number = cc3d_labels(map_, connectivity, ignore_index)
            assert count[image] == number
            assert np.array_equal(labels[image], expected)

    @pytest.mark.parametrize("connectivity", [4, 8])
    def test_equals_opencv_sauf(self, connectivity):
        mask = integers(2, 57, 83, seed=4)
        algorithm = cv2.connectedComponentsWithAlgorithm
        number, expected = algorithm(mask.numpy().astype(np.uint8), connectivity, cv2.CV_32S, cv2.CCL_WU)
        labels, count = reference.label_components(mask[None], connectivity, 0)
        assert int(count) == number - 1
        assert np.array_equal(labels[0], expected)

    def test_equals_scipy_as_a_partition(self):
        mask = integers(2, 57, 83, seed=5)
        expected, number = ndimage.label(mask.numpy(), np.ones((3, 3)))
        labels, count = reference.label_components(mask[None], 8, 0)
        assert int(count) == number
        assert len(set(zip(expected.flat, labels[0].flatten().tolist(), strict=True))) == number + 1

    def test_long_paths_take_few_rounds(self, monkeypatch):
        """A snake of 32,000 pixels: pointer doubling, not one step per pixel."""
        rounds = []
        doubling = torch.equal
        monkeypatch.setattr(torch, "equal", lambda *pair: rounds.append(1) or doubling(*pair))
        for map_ in (snake(255, 257), spiral(255, 257), comb(255, 257)):
            rounds.clear()
            reference.label_components(map_[None], 4, None)
            assert len(rounds) <= 40

    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool, torch.uint16], ids=str
    )
    def test_takes_any_integer_dtype(self, dtype):
        map_ = integers(2, 2, 9, 11)
        expected = reference.label_components(map_, 8, None)
        for result, truth in zip(reference.label_components(map_.to(dtype), 8, None), expected, strict=True):
            assert torch.equal(result, truth)

    def test_memory_layout_plays_no_part(self):
        map_ = integers(3, 2, 9, 11)
        expected = reference.label_components(map_, 8, None)
        for layout in layouts(map_).values():
            result = reference.label_components(layout, 8, None)
            assert torch.equal(result[0], expected[0])
            assert result[0].is_contiguous()

    def test_negative_class_marks_its_image(self):
        map_ = integers(3, 2, 4, 5)
        map_[1, 2, 2] = -1
        labels, count = reference.label_components(map_, 8, None)
        assert count[1] == -1
        assert not labels[1].any()
        assert count[0] == reference.label_components(map_[:1], 8, None)[1]
        assert (reference.label_components(map_, 8, -1)[1] > 0).all()


class TestMeasureComponents:
    def measured(self, class_map, scores):
        labels, count = reference.label_components(class_map, 8, 0)
        rows = int(count.sum())
        return labels, count, reference.measure_components(labels, class_map, scores, count, rows)

    def test_against_a_loop_over_components(self):
        class_map, scores = integers(4, 2, 19, 23, seed=6), probabilities(2, 4, 19, 23, dtype=DOUBLE)
        labels, count, result = self.measured(class_map, scores)
        row = 0
        for image in range(2):
            for label in range(1, int(count[image]) + 1):
                mask = labels[image] == label
                y, x = mask.nonzero(as_tuple=True)
                own_class = int(class_map[image][mask][0])
                own = scores[image, own_class][mask]
                best = int(own.argmax())
                assert [int(column[row]) for column in result[:4]] == [image, own_class, label, int(mask.sum())]
                assert result[4][row].tolist() == masks_to_boxes(mask[None])[0].tolist()
                assert result[5][row].item() == pytest.approx(own.mean().item(), rel=1e-12)
                assert result[6][row].tolist() == [int(x[best]), int(y[best])]
                row += 1
        assert row == len(result[0])
        assert result[5].dtype == DOUBLE
        assert {column.dtype for column in (*result[:5], result[6])} == {torch.int32}

    def test_areas_and_boxes_equal_opencv(self):
        mask = integers(2, 1, 31, 37, seed=7)
        algorithm = cv2.connectedComponentsWithStatsWithAlgorithm
        stats = algorithm(mask[0].numpy().astype(np.uint8), 8, cv2.CV_32S, cv2.CCL_WU)[2][1:]
        _, _, result = self.measured(mask, torch.ones(1, 2, 31, 37))
        left, top, right, bottom = result[4].T
        assert np.array_equal(torch.stack([left, top, right - left + 1, bottom - top + 1, result[3]], 1), stats)

    def test_ties_take_the_first_pixel_in_raster_order(self):
        class_map = torch.tensor([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]])
        scores = torch.zeros(1, 2, 3, 3)
        assert self.measured(class_map, scores)[2][6].tolist() == [[1, 0]]
        scores[0, 1, 1] = 0.5
        assert self.measured(class_map, scores)[2][6].tolist() == [[0, 1]]

    def test_non_finite_score_is_nan_and_the_point_is_finite(self):
        class_map = torch.tensor([[[1, 1, 1, 0, 2, 2, 0, 3, 3]]])
        scores = torch.zeros(1, 4, 1, 9)
        scores[0, 1, 0, :3] = torch.tensor([math.inf, 0.25, 0.5])
        scores[0, 2, 0, 4:6] = math.nan
        scores[0, 3, 0, 7:] = torch.tensor([0.5, 0.25])
        _, _, result = self.measured(class_map, scores)
        assert result[5].isnan().tolist() == [True, True, False]
        assert result[6].tolist() == [[2, 0], [4, 0], [7, 0]]

    def test_labels_without_pixels_and_beyond_the_count(self):
        labels = torch.tensor([[[1, 0, 3, 4]]], dtype=torch.int32)
        class_map = torch.zeros(1, 1, 4, dtype=torch.int64)
        result = reference.measure_components(labels, class_map, torch.ones(1, 1, 1, 4), torch.tensor([3]), 3)
        assert result[3].tolist() == [1, 0, 1]
        assert result[1].tolist() == [0, -1, 0]
        assert result[4].tolist() == [[0, 0, 0, 0], [4, 1, -1, -1], [2, 0, 2, 0]]
        assert result[5].isnan().tolist() == [False, True, False]
        assert result[6].tolist() == [[0, 0], [-1, -1], [2, 0]]

    def test_is_bitwise_the_same_each_time(self):
        class_map, scores = integers(2, 1, 64, 64), probabilities(1, 2, 64, 64)
        first = self.measured(class_map, scores)[2]
        for _ in range(5):
            assert all(map(torch.equal, first, self.measured(class_map, scores)[2]))
