"""The painted scenes: exact, repeatable, and hard enough that neither colour nor frequency gives a class away."""

from collections import Counter

import numpy as np
import pytest

from s2clip import scenes


@pytest.fixture(scope="module")
def label_maps():
    return [scenes.generate(seed)[1] for seed in range(500)]


@pytest.mark.parametrize("size", [None, (96, 128), (1, 1), (1, 40), (37, 5), (200, 33), (240, 320)])
def test_every_pixel_is_painted_and_labelled(size):
    image, labels = scenes.generate(7, size)
    height, width = size or scenes.DEFAULT_SIZE
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    assert labels.shape == (height, width)
    assert labels.dtype == np.int64
    assert labels.min() >= 0
    assert labels.max() < len(scenes.CLASSES)


def test_a_seed_is_one_scene():
    first, second, other = scenes.generate(3), scenes.generate(3), scenes.generate(4)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).any()


def test_painting_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 the legacy state is what must not move
    scenes.generate(1)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("seed", range(8))
def test_the_content_does_not_depend_on_the_resolution(seed):
    small = scenes.generate(seed, (60, 80))[1]
    large = scenes.generate(seed, (180, 240))[1]
    assert (large[1::3, 1::3] == small).mean() > 0.98  # the same points of the picture, up to rounding at borders


def test_every_class_occurs_and_is_absent_from_at_least_half_of_the_scenes(label_maps):
    share = Counter(int(index) for labels in label_maps for index in np.unique(labels))
    for index, name in enumerate(scenes.CLASSES):
        assert 0.2 < share[index] / len(label_maps) <= 0.5, name


def test_things_are_large_enough_for_a_coarse_grid(label_maps):
    sizes = {index: [] for index in range(scenes.HOUSE, scenes.SHEEP + 1)}
    for labels in label_maps:
        for index, values in sizes.items():
            if (labels == index).any():
                values.append((labels == index).mean())
    for index, values in sizes.items():
        assert np.median(values) > 0.05, scenes.CLASSES[index]


def test_the_ground_has_no_fixed_order_from_top_to_bottom(label_maps):
    above = Counter()
    for labels in label_maps:
        rows = {int(index): np.nonzero(labels == index)[0].mean() for index in np.unique(labels)}
        ground = [index for index in rows if scenes.WATER <= index <= scenes.SNOW]
        above.update((upper, lower) for upper in ground for lower in ground if rows[upper] < rows[lower])
    for upper in range(scenes.WATER, scenes.SNOW + 1):
        for lower in range(upper + 1, scenes.SNOW + 1):
            share = above[upper, lower] / (above[upper, lower] + above[lower, upper])
            assert 0.3 < share < 0.7, (scenes.CLASSES[upper], scenes.CLASSES[lower])


def test_no_palette_belongs_to_one_class_alone():
    owners = Counter(name for names in scenes.CLASS_PALETTES for name in set(names))
    assert set(owners) == set(scenes.PALETTES)
    assert min(owners.values()) >= 2
    assert all(len(names) >= 3 for names in scenes.CLASS_PALETTES)


def test_mean_colour_does_not_tell_the_class():
    """Nearest class mean of a region's colour: far below what shape and texture give."""
    colours, classes = [], []
    for seed in range(300):
        image, labels = scenes.generate(seed, (48, 64))
        for index in scenes.visible_classes(labels, 0.03):
            colours.append(image[labels == index].mean(axis=0))
            classes.append(index)
    colours, classes = np.asarray(colours), np.asarray(classes)
    means = np.stack([colours[classes == index].mean(axis=0) for index in range(len(scenes.CLASSES))])
    nearest = np.linalg.norm(colours[:, None] - means[None], axis=2).argmin(axis=1)
    assert (nearest == classes).mean() < 0.4


def test_visible_classes_counts_the_share():
    labels = np.array([[0, 0, 0, 0], [0, 0, 0, 5], [2, 2, 2, 2]])
    assert scenes.visible_classes(labels) == [0, 2, 5]
    assert scenes.visible_classes(labels, 0.3) == [0, 2]


@pytest.mark.parametrize(("seed", "size", "argument"), [(-1, None, "seed"), (0, (0, 4), "size"), (0, (4, -1), "size")])
def test_bad_arguments_are_named(seed, size, argument):
    with pytest.raises(ValueError, match=argument):
        scenes.generate(seed, size)
