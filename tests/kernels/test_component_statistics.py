"""The statistics kernels against their reference, bit by bit, and against plain torch, cc3d and torchvision.

What the interpreter cannot show: atomics of programs that run at the same time. Results are sums and maxima of
integers, so the order cannot matter; the tests cut the maps into blocks of several sizes, which changes the order.
"""

import cc3d
import numpy as np
import pytest
import torch
from specialisations import compiled, recorded
from torchvision.ops import masks_to_boxes

from s2clip.kernels import component_statistics, reference
from s2clip.ops import drop_in
from s2clip.testing import integers, layouts, normal

NAMES = ("image_index", "class_index", "label", "area", "box", "score", "point")
BLOCKS = {
    "many labels in a block": (64, 64, 4, 1024),
    "a row at a time, labels cross blocks": (1, 32, 4, 8),
    "no rounds": (8, 32, 0, 32),
}


def scene(batch=3, height=19, width=23, classes=3, dtype=torch.float32, ignore_index=None, device="cpu"):
    """(labels, class_map, scores, count, rows); neighbouring pixels are alike, so that regions have many sizes."""
    coarse = integers(classes, batch, -(-height // 3), -(-width // 4), seed=8)
    class_map = coarse.repeat_interleave(3, 1).repeat_interleave(4, 2)[:, :height, :width].contiguous()
    noise = normal(batch, height, width, seed=9) > 1.2
    class_map = torch.where(noise, (class_map + 1) % classes, class_map)
    labels, count = reference.label_components(class_map, 8, ignore_index)
    scores = normal(batch, classes, height, width, seed=10, dtype=dtype)
    return *(tensor.to(device) for tensor in (labels, class_map, scores, count)), int(count.sum())


def assert_equal(results, expected):
    for name, result, truth in zip(NAMES, results, expected, strict=True):
        assert result.dtype == truth.dtype, name
        assert torch.equal(result.nan_to_num(nan=7e7), truth.nan_to_num(nan=7e7)), name


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS.keys())
def test_bits_of_the_reference(dtype, blocks, device, monkeypatch):
    tiles = component_statistics.Configuration(*blocks)
    monkeypatch.setattr(component_statistics, "configuration", lambda arch: tiles)
    arguments = scene(dtype=dtype, ignore_index=1, device=device)
    assert_equal(component_statistics.launch_measure(*arguments), reference.measure_components(*arguments))


def test_against_masks_of_every_region(device):
    labels, class_map, scores, count, rows = scene(device=device)
    measured = dict(
        zip(NAMES, component_statistics.launch_measure(labels, class_map, scores, count, rows), strict=True)
    )
    image_index = torch.arange(3, device=device).repeat_interleave(count)
    assert torch.equal(measured["image_index"].long(), image_index)
    masks = labels[image_index] == measured["label"][:, None, None]
    assert torch.equal(measured["area"], masks.sum((1, 2)).int())
    assert torch.equal(measured["box"], masks_to_boxes(masks).int())
    own = scores[image_index, measured["class_index"].long()]
    mean = (own.double() * masks).sum((1, 2)) / measured["area"]
    torch.testing.assert_close(measured["score"].double(), mean, rtol=2**-24, atol=2**-33)
    best = own.masked_fill(~masks, -torch.inf).flatten(1).argmax(1)
    assert torch.equal(measured["point"].long(), torch.stack([best % 23, best // 23], 1))


def test_area_and_box_of_cc3d(device):
    labels, class_map, scores, count, rows = scene(batch=1, device=device)
    _, _, _, area, box, _, _ = component_statistics.launch_measure(labels, class_map, scores, count, rows)
    expected = cc3d.statistics(labels[0].cpu().numpy().astype(np.uint32))
    assert area.tolist() == expected["voxel_counts"][1:].tolist()
    corners = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in expected["bounding_boxes"][1:]]
    assert box.tolist() == [list(corner) for corner in corners]


def test_labels_that_do_not_fit_the_count_or_the_classes(device):
    """Beyond the count and negative: skipped. Without pixels: an empty row. Class without scores: NaN."""
    labels = torch.tensor([[[1, 1, 9], [-4, 4, 0]], [[2, 2, 2], [0, 0, 2]]], device=device)
    class_map = torch.tensor([[[0, 0, 1], [1, 5, 0]], [[-3, -3, -3], [1, 1, -3]]], device=device)
    scores = normal(2, 2, 2, 3, device=device)
    count = torch.tensor([4, 2], device=device)
    results = component_statistics.launch_measure(labels, class_map, scores, count, 6)
    assert_equal(results, reference.measure_components(labels, class_map, scores, count, 6))
    measured = dict(zip(NAMES, results, strict=True))
    assert measured["area"].tolist() == [2, 0, 0, 1, 0, 4]
    assert measured["class_index"].tolist() == [0, -1, -1, 5, -1, -1]
    assert measured["score"].isnan().tolist() == [False, True, True, True, True, True]
    assert measured["point"].tolist()[1:] == [[-1, -1], [-1, -1], [1, 1], [-1, -1], [0, 0]]


def row_of(values, device, dtype=torch.float32):
    """(score, x of the point) of one region that holds the values from left to right."""
    scores = torch.tensor(values, dtype=dtype, device=device)[None, None, None]
    ones = torch.ones((1, 1, len(values)), dtype=torch.int32, device=device)
    results = component_statistics.launch_measure(ones, ones - 1, scores, ones[0, 0, :1], 1)
    return results[5].item(), results[6][0, 0].item()


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("values", "score", "point"),
    [
        ([1.0, 3.0, 3.0, 2.0], 2.25, 1),
        ([-0.0, 0.0, -1.0], -1 / 3, 0),
        ([-2.0, -1.0, -4.0], -7 / 3, 1),
        ([1.0, NAN, 2.0], NAN, 2),
        ([1.0, INF, 2.0], NAN, 2),
        ([-INF, -5.0], NAN, 1),
        ([NAN, INF, -INF], NAN, 0),
        ([65_504.0, -65_504.0, 65_504.0], 65_504 / 3, 0),
        ([65_536.0, 1.0], NAN, 0),
        ([1e-45, 3e38], NAN, 1),
        ([2.0**-32, 2.0**-33, 0.0, 0.0], 2.0**-33, 0),
        ([0.1] * 64, 0.1, 0),
    ],
)
def test_ties_infinities_and_range(values, score, point, device):
    measured, best = row_of(values, device)
    assert best == point
    assert measured == pytest.approx(score, rel=1e-7, abs=0, nan_ok=True)


def test_the_sum_of_a_large_map_is_exact(device):
    """65,536 scores of the largest magnitude fit the sum, which a sum in fp32 would round 65,536 times."""
    labels = torch.ones((1, 256, 256), dtype=torch.int32, device=device)
    scores = torch.full((1, 1, 256, 256), 65_503.99609375, device=device)
    results = component_statistics.launch_measure(labels, labels - 1, scores, labels[0, 0, :1], 1)
    assert results[5].item() == 65_503.99609375
    assert results[3].item() == 65_536


@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided", "offset"])
def test_memory_layouts(layout, device):
    labels, class_map, scores, count, rows = scene(device=device)
    arranged = [layouts(tensor)[layout] for tensor in (labels, class_map, scores, count)]
    expected = component_statistics.launch_measure(labels, class_map, scores, count, rows)
    assert_equal(component_statistics.launch_measure(*arranged, rows), expected)


def test_batch_beyond_the_ids_of_one_launch(device, monkeypatch):
    arguments = scene(device=device)
    expected = component_statistics.launch_measure(*arguments)
    monkeypatch.setattr("s2clip.kernels.connected_components.IDS", 19 * 23 * 2)
    assert_equal(component_statistics.launch_measure(*arguments), expected)


def test_an_image_does_not_depend_on_its_batch(device):
    labels, class_map, scores, count, rows = scene(device=device)
    together = component_statistics.launch_measure(labels, class_map, scores, count, rows)
    own = together[0] == 1
    part = slice(1, 2)
    alone = component_statistics.launch_measure(
        labels[part], class_map[part], scores[part], count[part], int(own.sum())
    )
    assert_equal(alone, [alone[0], *(values[own] for values in together[1:])])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty(shape, device):
    batch, height, width = shape
    maps = torch.zeros(shape, dtype=torch.int32, device=device)
    count = torch.zeros(batch, dtype=torch.int32, device=device)
    scores = torch.zeros((batch, 2, height, width), device=device)
    results = component_statistics.launch_measure(maps, maps, scores, count, 0)
    assert_equal(results, reference.measure_components(maps, maps, scores, count, 0))


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS.keys())
def test_moments_of_labels_and_background(blocks, device, monkeypatch):
    tiles = component_statistics.Configuration(*blocks)
    monkeypatch.setattr(component_statistics, "configuration", lambda arch: tiles)
    labels, _, _, count, rows = scene(ignore_index=0, device=device)
    labels[2] += 1  # no background
    numbers = count + torch.tensor([1, 1, 2], device=device, dtype=torch.int32)
    area, box, total = component_statistics.launch_moments(labels, numbers, rows + 4)
    image_index = torch.arange(3, device=device).repeat_interleave(numbers)
    label = torch.cat([torch.arange(number, device=device) for number in numbers.tolist()])
    masks = labels[image_index] == label[:, None, None]
    assert torch.equal(area, masks.sum((1, 2)))
    seen = area > 0
    assert (~seen).sum() == 1
    assert torch.equal(box[seen], masks_to_boxes(masks[seen]).long())
    assert box[~seen].tolist() == [[23, 19, -1, -1]]
    y, x = torch.meshgrid(torch.arange(19, device=device), torch.arange(23, device=device), indexing="ij")
    assert torch.equal(total, torch.stack([(masks * x).sum((1, 2)), (masks * y).sum((1, 2))], 1))


@pytest.mark.parametrize("shape", [(13, 17), (1, 5), (0, 4)], ids=str)
def test_moments_are_those_of_the_drop_in_for_cpu(shape, device):
    labels = integers(4, *shape, seed=11, dtype=torch.int32, device=device)
    results = zip(drop_in._moments_by_kernel(labels, 5), drop_in._moments(labels, 5), strict=True)
    assert all(torch.equal(actual, expected) for actual, expected in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sizes_compile_nothing(dtype):
    """500 sizes, batches, alignments, strides and class counts are in the gate, one compilation per kernel."""
    memory = torch.zeros(4 * 80 * 80 * 3, dtype=dtype)
    with recorded(component_statistics, 90) as launches:
        for step in range(500):
            batch, height, width, classes = 1 + step % 4, 1 + step * 7 % 80, 1 + step * 13 % 79, 1 + step % 3
            scores = memory[: batch * classes * height * width].view(batch, classes, height, width)
            scores = scores[:, :, :, step % 2 :] if width > 1 else scores
            labels = torch.zeros((batch, height, scores.shape[3]), dtype=torch.int32)
            component_statistics.launch_measure(labels, labels, scores, labels[:, 0, 0], 1 + 7 * step)
    assert sorted(launch.kernel for launch in launches) == ["measure_kernel", "report_kernel"]
    assert set(launches) <= compiled("component_statistics", 90)


def test_moments_are_in_the_gate():
    labels = torch.zeros((2, 3, 4), dtype=torch.int32)
    with recorded(component_statistics, 90) as launches:
        component_statistics.launch_moments(labels, labels[:, 0, 0] + 1, 2)
    assert len(launches) == 1
    assert set(launches) <= compiled("component_statistics", 90)
