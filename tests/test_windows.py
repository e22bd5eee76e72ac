import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import picture

from s2clip.pictures.windows import (
    Box,
    Splice,
    WindowMean,
    cut_windows,
    padding,
    resize,
    resized_size,
    window_boxes,
    window_starts,
)


@pytest.mark.parametrize(
    ("size", "short", "long", "multiple", "expected"),
    [
        ((375, 500), 336, 2048, 1, (336, 448)),
        ((500, 375), 336, 2048, 1, (448, 336)),
        ((480, 641), 336, 2048, 1, (336, 449)),  # 448.7 rounds up
        ((100, 5000), 336, 2048, 1, (41, 2048)),  # the long side's limit rules
        ((1, 5000), 336, 2048, 1, (1, 2048)),
        ((1, 1), 336, 2048, 1, (336, 336)),
        ((30, 40), None, None, 1, (30, 40)),
        ((30, 40), None, 2048, 1, (30, 40)),
        ((30, 4096), None, 2048, 1, (15, 2048)),
        ((480, 641), 336, 2048, 16, (336, 448)),
        ((1, 5000), 336, 2048, 16, (16, 2048)),
        ((7, 9), None, None, 8, (8, 8)),
    ],
)
def test_resized_size(size, short, long, multiple, expected):
    assert resized_size(*size, short, long, multiple) == expected


@pytest.mark.parametrize(("height", "width"), [(37, 52), (9, 200), (64, 80), (1, 1), (1, 7), (200, 3)])
def test_resize_is_torch_bilinear(height, width):
    image = picture(height, width)
    expected = F.interpolate(image[None].double() / 255, (48, 64), mode="bilinear", align_corners=False)[0].float()
    torch.testing.assert_close(resize(image, (48, 64)), expected, rtol=0, atol=5e-7)


def test_resize_is_opencv_up_to_its_rounding():
    image = picture(91, 123)
    expected = cv2.resize(image.permute(1, 2, 0).numpy(), (64, 48), interpolation=cv2.INTER_LINEAR)
    difference = resize(image, (48, 64)).permute(1, 2, 0).numpy() * 255 - expected
    assert np.abs(difference).max() < 1.01


def test_antialias_averages_where_bilinear_skips():
    image = torch.zeros(3, 8, 64, dtype=torch.uint8)
    image[:, :, 1::4] = 200  # one column in four
    plain, smooth = resize(image, (8, 8)), resize(image, (8, 8), antialias=True)
    assert plain.max() == 0
    torch.testing.assert_close(smooth[:, :, 2:-2], torch.full((3, 8, 4), 50 / 255), rtol=0, atol=0.01)


def test_window_starts_of_the_papers():
    assert window_starts(336, 224, 112) == [0, 112]
    assert window_starts(448, 224, 112) == [0, 112, 224]
    assert window_starts(597, 336, 224) == [0, 224, 261]  # the last one is moved back to the border
    assert window_starts(200, 224, 112) == [0]
    assert window_starts(200, None, 112) == [0]


@given(st.integers(1, 150), st.integers(1, 150), st.integers(4, 100), st.data())
@settings(max_examples=60, deadline=None)
def test_windows_are_equal_and_cover_every_pixel(height, width, crop, data):
    stride = data.draw(st.integers(crop // 4, crop))
    boxes = window_boxes(height, width, crop, stride)
    assert {box.size for box in boxes} == {(min(crop, height), min(crop, width))}
    hits = torch.zeros(height, width, dtype=torch.int64)
    for box in boxes:
        assert 0 <= box.top < box.bottom <= height
        assert 0 <= box.left < box.right <= width
        hits[box.top : box.bottom, box.left : box.right] += 1
    assert hits.min() >= 1
    assert len(set(boxes)) == len(boxes)


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [
        ((16, 16), 16, Box(0, 0, 16, 16)),
        ((10, 13), 16, Box(3, 1, 13, 14)),  # the odd pixel goes right and bottom
        ((17, 16), 16, Box(7, 0, 24, 16)),
    ],
)
def test_padding(size, multiple, expected):
    assert padding(*size, multiple) == expected


def test_cut_windows_pads_with_the_colour_given():
    image = torch.rand(3, 20, 26)
    boxes = window_boxes(20, 26, 13, 7)
    fill = torch.tensor([0.25, 0.5, 0.75])
    windows = cut_windows(image, boxes, 8, fill)
    assert windows.shape == (len(boxes), 3, 16, 16)
    inner = padding(13, 13, 8)
    for window, box in zip(windows, boxes, strict=True):
        content = window[:, inner.top : inner.bottom, inner.left : inner.right]
        assert torch.equal(content, image[:, box.top : box.bottom, box.left : box.right])
        border = window.clone()
        border[:, inner.top : inner.bottom, inner.left : inner.right] = fill[:, None, None]
        assert torch.equal(border, fill[:, None, None].expand(3, 16, 16))


def added(mean, maps):
    """The windows added in two batches."""
    for part in (maps[:2], maps[2:]):
        mean.add(part)
    return mean.result()


def test_the_mean_is_over_what_covers_a_cell():
    boxes = window_boxes(5, 7, 4, 2)
    maps = torch.rand(len(boxes), 2, 4, 4, dtype=torch.float64)
    average = added(WindowMean(boxes, (5, 7)), maps)
    for row in range(5):
        for column in range(7):
            values = [
                window[:, row - box.top, column - box.left]
                for window, box in zip(maps, boxes, strict=True)
                if box.top <= row < box.bottom and box.left <= column < box.right
            ]
            torch.testing.assert_close(average[:, row, column], torch.stack(values).mean(0))


@pytest.mark.parametrize("ratio", [1, 2])
def test_splicing_windows_of_one_map_gives_the_map(ratio):
    """Windows cut out of a feature map and spliced are that map again: nothing is shifted or transposed."""
    patch, size, crop = 8, (40, 72), 32
    whole = torch.rand(5, size[0] // patch * ratio, size[1] // patch * ratio, dtype=torch.float64)
    boxes = window_boxes(*size, crop, 16)
    cells = [Box(*(side * ratio // patch for side in box)) for box in boxes]
    maps = torch.stack([whole[:, cell.top : cell.bottom, cell.left : cell.right] for cell in cells])
    torch.testing.assert_close(added(Splice(boxes, size, patch), maps), whole)


def test_splice_resamples_maps_of_another_grid():
    """Patches of 14 under patches of 16: 24x24 of a 336 window lands on 21x21, 42x42 stays."""
    boxes = window_boxes(336, 448, 336, 112)
    for side, expected in ((24, (21, 28)), (42, (42, 56)), (30, (21, 28)), (10, (21, 28))):
        maps = torch.ones(len(boxes), 2, side, side)
        spliced = added(Splice(boxes, (336, 448), 16), maps)
        assert spliced.shape == (2, *expected)
        torch.testing.assert_close(spliced, torch.ones_like(spliced))
