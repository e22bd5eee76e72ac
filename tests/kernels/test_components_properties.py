"""2,000 random label maps against cc3d, and properties that hold for every labelling.

What the interpreter cannot show is said in test_connected_components.py and test_component_statistics.py.
"""

import cc3d
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2clip.kernels import component_statistics, connected_components

MAPS = 100  # of one size per example and launch: the interpreter pays per operation, not per pixel
EXAMPLES = 20


@st.composite
def label_maps(draw) -> torch.Tensor:
    """[MAPS,H,W] of 1 to 6 classes; from pure noise to patches of up to 4×4 pixels with some noise on them."""
    height, width, classes = draw(st.integers(1, 14)), draw(st.integers(1, 14)), draw(st.integers(1, 6))
    patch, share = draw(st.integers(1, 4)), draw(st.sampled_from([0.0, 0.1, 0.5]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    coarse = random.integers(0, classes, (MAPS, -(-height // patch), -(-width // patch)))
    maps = coarse.repeat(patch, 1).repeat(patch, 2)[:, :height, :width]
    noise = random.random(maps.shape) < share
    return torch.from_numpy(np.where(noise, random.integers(0, classes, maps.shape), maps))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
@given(maps=label_maps(), connectivity=st.sampled_from([4, 8]), ignore_index=st.sampled_from([None, 0]))
def check_labels(maps, connectivity, ignore_index, device, checked):
    labels, count = connected_components.launch_label(maps.to(device), connectivity, ignore_index)
    labels = labels.cpu().numpy()
    for index, class_map in enumerate(maps.numpy().astype(np.int32)):
        foreground = class_map if ignore_index == 0 else class_map + 1
        expected, number = cc3d.connected_components(foreground, connectivity=connectivity, return_N=True)
        np.testing.assert_array_equal(labels[index], expected)
        assert count[index] == number
    checked.append(len(maps))


def test_labels_of_2000_random_maps_are_those_of_cc3d(device):
    checked = []
    check_labels(device=device, checked=checked)
    assert sum(checked) >= 2000


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(maps=label_maps())
def check_relations(maps, device):
    maps = maps.to(device)
    labels, count = connected_components.launch_label(maps, 4, None)
    wider, fewer = connected_components.launch_label(maps, 8, None)
    assert (fewer <= count).all()
    _, same = connected_components.launch_label(maps.flip(1, 2), 4, None)
    assert torch.equal(count, same)
    again, _ = connected_components.launch_label(labels, 4, None)
    assert torch.equal(again, labels)
    pairs = torch.stack([torch.arange(len(maps), device=device)[:, None, None].expand_as(labels), labels, wider])
    assert len(pairs.flatten(1).unique(dim=1).T) == count.sum()  # a component of 4 neighbours lies in one of 8

    rows = int(count.sum())
    ones = torch.ones((len(maps), 6, *maps.shape[1:]), device=device)
    image_index, class_index, label, area, box, score, point = component_statistics.launch_measure(
        labels, maps, ones, count, rows
    )
    assert area.sum() == maps.numel()
    assert (area <= (box[:, 2] - box[:, 0] + 1) * (box[:, 3] - box[:, 1] + 1)).all()
    assert (score == 1).all()
    x, y = point.long().unbind(1)
    assert torch.equal(labels[image_index.long(), y, x], label)
    assert torch.equal(maps[image_index.long(), y, x], class_index.long())
    assert (y == box[:, 1]).all()  # all scores are equal: the point is the first pixel, which is in the top row


def test_relations_between_labellings_and_statistics(device):
    check_relations(device=device)
