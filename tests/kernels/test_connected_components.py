"""The labelling kernels against their reference, cc3d, OpenCV's SAUF, scipy and scikit-image.

What the interpreter cannot show: it runs programs one after the other, so that no program sees another's half-done
union, and it has no cache that could be stale. Within a program it runs all lanes in step, which does make unions
collide: every lane reads parents before any lane writes. The last test of the file runs the union's steps in Python in
random order with stale reads. Memory order on a device is left to the GPU tests.
"""

import os
import subprocess
import sys

import cc3d
import cv2
import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
import torch
from scipy.sparse import coo_array, csgraph
from specialisations import compiled, recorded

from s2clip.kernels import connected_components, reference
from s2clip.testing import checkerboard, comb, integers, layouts, snake, spiral

SIZES = [(1, 1), (1, 67), (61, 1), (2, 2), (5, 7), (31, 37), (64, 64)]
SMALL = connected_components.Configuration(rows=4, block=32, nodes=8, blocks=2, group=2)


def patterns(height: int, width: int) -> torch.Tensor:
    """[B,H,W]: maps that are hard for a labelling, each for its own reason."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    ridges = (7 * torch.sin(rows / 3) * torch.cos(columns / 4)).long().abs()
    return torch.stack(
        [
            torch.zeros(height, width, dtype=torch.int64),
            integers(2, height, width, seed=1),
            integers(5, height, width, seed=2),
            (integers(10, height, width, seed=3) < 6).long(),
            checkerboard(height, width),
            comb(height, width),
            comb(height, width).flip(0),
            comb(width, height).T,
            snake(height, width),
            spiral(height, width),
            spiral(height, width).flip(0, 1),
            ((rows - columns) % 4 == 0).long() + ((rows + columns) % 4 == 0).long(),
            ridges,
            rows * width + columns,
        ]
    )


def in_raster_order(labels: np.ndarray) -> np.ndarray:
    """Labels renumbered 1, 2, … by their first pixels; 0 stays."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    foreground = labels.ravel()[first] != 0
    rank = np.zeros(len(first), np.int32)
    rank[np.flatnonzero(foreground)[np.argsort(first[foreground])]] = np.arange(1, foreground.sum() + 1)
    return rank[inverse.reshape(labels.shape)]


def class_by_class(label, class_map: np.ndarray) -> np.ndarray:
    labels = np.zeros(class_map.shape, np.int64)
    for class_id in np.unique(class_map):
        one = label(class_map == class_id)
        labels += np.where(one > 0, one + labels.max(), 0)
    return in_raster_order(labels)


ORACLES = {
    "cc3d": lambda class_map, neighbours: cc3d.connected_components(
        class_map.astype(np.int32) + 1, connectivity=neighbours
    ),
    "scikit-image": lambda class_map, neighbours: skimage.measure.label(
        class_map, background=-1, connectivity={4: 1, 8: 2}[neighbours]
    ),
    "scipy": lambda class_map, neighbours: class_by_class(
        lambda mask: scipy.ndimage.label(mask, np.ones((3, 3)) if neighbours == 8 else None)[0], class_map
    ),
    "OpenCV": lambda class_map, neighbours: class_by_class(
        lambda mask: cv2.connectedComponentsWithAlgorithm(mask.astype(np.uint8), neighbours, cv2.CV_32S, cv2.CCL_SAUF)[
            1
        ],
        class_map,
    ),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_labels_are_those_of_other_libraries(height, width, connectivity, device):
    maps = patterns(height, width)
    labels, count = connected_components.launch_label(maps.to(device), connectivity, None)
    assert labels.dtype == count.dtype == torch.int32
    for index, class_map in enumerate(maps.numpy()):
        result = labels[index].cpu().numpy()
        assert count[index] == result.max()
        many = class_map.max() > 10  # a class per pixel: one call per class is left out
        for name in ("cc3d", "scikit-image") if many else ORACLES:
            np.testing.assert_array_equal(result, ORACLES[name](class_map, connectivity), f"map {index}, {name}")


@pytest.mark.parametrize("connectivity", [4, 8])
def test_binary_numbering_is_that_of_opencv(connectivity, device):
    mask = integers(2, 45, 51, seed=4)
    labels, count = connected_components.launch_label(mask[None].to(device), connectivity, 0)
    number, expected = cv2.connectedComponentsWithAlgorithm(
        mask.numpy().astype(np.uint8), connectivity, cv2.CV_32S, cv2.CCL_WU
    )
    assert count.tolist() == [number - 1]
    np.testing.assert_array_equal(labels[0].cpu().numpy(), expected)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("connectivity", "ignore_index"), [(4, None), (4, 1), (8, None), (8, 0)])
def test_runs_and_images_may_cross_blocks(connectivity, ignore_index, device, monkeypatch):
    """Blocks of 32 pixels cut rows of 40; images of 5 rows share tiles of 8; nodes and counts come 8 at a time."""
    monkeypatch.setattr(connected_components, "configuration", lambda arch: SMALL)
    for height, width in [(5, 40), (5, 7)]:
        maps = patterns(height, width)[[0, 1, 9]]
        result = connected_components.launch_label(maps.to(device), connectivity, ignore_index)
        for actual, expected in zip(result, reference.label_components(maps, connectivity, ignore_index), strict=True):
            assert torch.equal(actual.cpu(), expected)


def test_shipped_block_sizes(device, monkeypatch):
    """The configuration of GPUs, which the interpreter does not choose by itself."""
    monkeypatch.setattr(connected_components, "architecture", lambda device: 90)
    maps = patterns(9, 97)[[1, 9]]
    labels, count = connected_components.launch_label(maps.to(device), 8, None)
    expected, expected_count = reference.label_components(maps, 8, None)
    assert torch.equal(labels.cpu(), expected)
    assert torch.equal(count.cpu(), expected_count)


def test_batch_beyond_the_ids_of_one_launch(device, monkeypatch):
    monkeypatch.setattr(connected_components, "IDS", 5 * 64 * 2)  # rows count in whole blocks of 64
    maps = integers(2, 5, 5, 7, seed=5)
    labels, _ = connected_components.launch_label(maps.to(device), 8, None)
    assert torch.equal(labels.cpu(), reference.label_components(maps, 8, None)[0])
    with pytest.raises(ValueError, match="at most 640 pixels per image, received 768 in rows of 64"):
        connected_components.launch_label(torch.zeros(1, 12, 7, dtype=torch.int64, device=device), 8, None)


def test_an_image_does_not_depend_on_its_batch(device):
    maps = patterns(13, 17).to(device)
    labels, count = connected_components.launch_label(maps, 8, None)
    for index in (0, 3, 9):
        alone, number = connected_components.launch_label(maps[index : index + 1], 8, None)
        assert torch.equal(alone[0], labels[index])
        assert number == count[index]


DTYPES = [*(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), torch.uint16, torch.uint32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integer_dtypes(dtype, device):
    maps = integers(2, 2, 9, 11, seed=6)
    labels, _ = connected_components.launch_label(maps.to(dtype).to(device), 8, 1)
    assert torch.equal(labels.cpu(), reference.label_components(maps, 8, 1)[0])


def test_classes_beyond_32_bits_differ(device):
    maps = torch.tensor([[[1, 1 + (1 << 32), 1 << 40, 0]]], device=device)
    assert connected_components.launch_label(maps, 8, None)[0].tolist() == [[[1, 2, 3, 4]]]


@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided", "offset"])
def test_memory_layouts(layout, device):
    maps = integers(3, 3, 7, 10, seed=7, device=device)
    labels, _ = connected_components.launch_label(layouts(maps)[layout], 4, None)
    assert torch.equal(labels, connected_components.launch_label(maps, 4, None)[0])


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "ignored"),
    [(torch.uint8, 255, True), (torch.uint8, -1, False), (torch.int8, 300, False), (torch.int32, -1, True)],
    ids=str,
)
def test_ignore_index_within_and_beyond_the_dtype(dtype, ignore_index, ignored, device):
    maps = torch.ones((1, 3, 4), dtype=dtype)
    maps[0, 1] = 255 if dtype == torch.uint8 else -1 if ignored else 2
    labels, count = connected_components.launch_label(maps.to(device), 8, ignore_index)
    assert labels[0, :, 0].tolist() == ([1, 0, 2] if ignored else [1, 2, 3])
    assert count.tolist() == [2 if ignored else 3]


def test_negative_class_spoils_its_own_image_only(device):
    maps = torch.zeros((3, 4, 5), dtype=torch.int16)
    maps[1, 2, 3] = -7
    maps[2, 0, 0] = -1
    labels, count = connected_components.launch_label(maps.to(device), 8, -1)
    assert count.tolist() == [1, -1, 1]
    assert labels.flatten(1).sum(1).tolist() == [20, 0, 19]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty(shape, device):
    labels, count = connected_components.launch_label(torch.zeros(shape, dtype=torch.int32, device=device), 8, None)
    assert labels.shape == shape
    assert count.tolist() == [0] * shape[0]


def test_all_ignored(device):
    labels, count = connected_components.launch_label(torch.full((2, 6, 7), 3, device=device), 8, 3)
    assert not labels.any()
    assert count.tolist() == [0, 0]


def test_sizes_compile_nothing():
    """500 sizes, batches, alignments and ignored classes, and every other choice of arguments, are in the gate."""
    for connectivity, dtype in [(4, torch.uint8), (8, torch.int32), (8, torch.int64)]:
        memory = torch.zeros(4 * 80 * 80 + 16, dtype=dtype)
        with recorded(connected_components, 90) as launches:
            for step in range(500):
                batch, height, width = 1 + step % 4, 1 + step * 7 % 80, 1 + step * 13 % 79
                maps = memory[step % 3 :][: batch * height * width].view(batch, height, width)
                connected_components.launch_label(maps, connectivity, 1 + step % 100)
        assert sorted(launch.kernel for launch in launches) == [
            f"{name}_kernel" for name in ("flatten", "merge_runs", "relabel", "runs")
        ]
        assert set(launches) <= compiled("connected_components", 90)


PTX = """
import re
from s2clip.kernels import inspect
wanted = {"merge_runs_kernel": "u8 8 ignore", "flatten_kernel": "i32 8"}
for case in sorted(inspect.cases("connected_components", 90), key=lambda case: case.name, reverse=True):
    if wanted.get(case.kernel.__name__) == case.name:
        ptx = inspect.compile_case(case, 90).asm["ptx"]
        print(*sorted(set(re.findall(r"bar\\.sync|(?:atom|red|ld|st)\\.(?:global|shared)[a-z0-9.:]*", ptx))))
"""


@pytest.mark.long
def test_machine_code():
    """Loops of lanes without barriers, relaxed unions without shared memory, parents read past the L1 cache.

    Compiled in a process of its own, because the interpreter is chosen once per process.
    """
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", PTX], env=environment, capture_output=True, text=True, check=True)
    merge, flatten = (set(line.split()) for line in run.stdout.splitlines())
    reads = {"ld.global.b8", "ld.global.b16", "ld.global.b32", "ld.global.cg.b32"}
    assert merge == {"atom.global.gpu.relaxed.min.s32"} | reads
    flatten = {access for access in flatten if ".shared" not in access}  # counts change lanes between chunks of nodes
    sums = {"atom.global.gpu.relaxed.add.u32", "atom.global.gpu.relaxed.max.s32"}
    assert flatten == {"ld.global.b32", "ld.global.cg.b32", "st.global.b32"} | sums


def union_in_steps(parents, left, right, choose):
    """The steps of `_union` for one lane; parents[node] is the list of all values the parent has had.

    Yields between memory accesses. A read returns any value since the beginning; the atomic acts on the last one.
    """
    while True:
        left_parent = choose(parents[left])
        yield
        right_parent = choose(parents[right])
        yield
        if left_parent == right_parent:
            return
        higher = left if left_parent > right_parent else right
        high, low = max(left_parent, right_parent), min(left_parent, right_parent)
        if high == higher:
            previous = parents[higher][-1]
            parents[higher].append(min(previous, low))
            yield
            if previous == higher:
                return
            high = previous
        left, right = high, low


def test_union_holds_for_any_order_of_events_and_stale_reads():
    random = np.random.default_rng(0)
    for _ in range(200):
        nodes = int(random.integers(2, 14))
        edges = random.integers(0, nodes, (int(random.integers(1, 20)), 2))
        parents = [[node] for node in range(nodes)]
        running = [union_in_steps(parents, *edge, random.choice) for edge in edges.tolist()]
        while running:
            lane = running[random.integers(len(running))]
            if next(lane, "done") == "done":
                running.remove(lane)
        root = [history[-1] for history in parents]
        for node in range(nodes):  # parents are smaller, so theirs are roots already
            root[node] = root[root[node]]
        graph = coo_array((np.ones(len(edges)), edges.T), (nodes, nodes))
        component = csgraph.connected_components(graph, directed=False)[1]
        assert root == [int(np.flatnonzero(component == component[node])[0]) for node in range(nodes)]
