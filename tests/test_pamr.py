"""PAMR against its definition, one pixel and one neighbour at a time."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from small_models import picture, small_clip

from s2clip import Segmenter
from s2clip.decision import pamr
from s2clip.decision.pixels import along_edges, cosine_maps
from s2clip.published.catalogue import METHODS, get_method

SIZE = (9, 13)


def inputs(words=3, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    return picture(*size).double() / 255, torch.randn(words, *size, dtype=torch.float64, generator=generator)


def at(plane, row, column):
    """A pixel of a nested list; outside, the border's."""
    return plane[min(max(row, 0), len(plane) - 1)][min(max(column, 0), len(plane[0]) - 1)]


def offsets(dilations):
    return [(d * i, d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]


def dense_weights(image, dilations):
    planes = image.tolist()
    weights = {}
    for row in range(len(planes[0])):
        for column in range(len(planes[0][0])):
            likeness = [0.0] * 8 * len(dilations)
            for plane in planes:
                own = plane[row][column]
                around = [at(plane, row + down, column + right) for down, right in offsets(dilations)]
                sigma = statistics.stdev([*around, *[own] * len(dilations)])
                for n, other in enumerate(around):
                    likeness[n] -= abs(own - other) / (1e-8 + 0.1 * sigma) / len(planes)
            likeness = [math.exp(value) for value in likeness]
            weights[row, column] = [value / sum(likeness) for value in likeness]
    return weights


def dense_refinement(maps, weights, iterations, dilations):
    planes = maps.tolist()
    for _ in range(iterations):
        planes = [
            [
                [
                    sum(
                        weight * at(plane, row + i, column + j)
                        for weight, (i, j) in zip(weights[row, column], offsets(dilations), strict=True)
                    )
                    for column in range(len(plane[0]))
                ]
                for row in range(len(plane))
            ]
            for plane in planes
        ]
    return torch.tensor(planes, dtype=torch.float64)


@pytest.mark.parametrize("dilations", [(1,), (2, 5), (8, 16)])
def test_agrees_with_its_definition(dilations):
    """Dilation 16 reaches beyond all of the 9x13 picture."""
    image, maps = inputs()
    weights = dense_weights(image, dilations)
    received = pamr.neighbour_weights(image, dilations)
    assert received.shape == (8 * len(dilations), *SIZE)
    expected = torch.tensor([[weights[row, column] for column in range(SIZE[1])] for row in range(SIZE[0])])
    torch.testing.assert_close(received, expected.permute(2, 0, 1).double())
    refined = pamr.refine_maps(maps, SIZE, image, iterations=3, dilations=dilations)
    torch.testing.assert_close(refined, dense_refinement(maps, weights, 3, dilations))


def test_maps_are_resized_first():
    image, maps = inputs()
    small = maps[:, ::2, ::3]
    expected = F.interpolate(small[None], SIZE, mode="bilinear", align_corners=False)[0]
    settings = {"iterations": 2, "dilations": (1, 2)}
    received = pamr.refine_maps(small, SIZE, image, **settings)
    assert torch.equal(received, pamr.refine_maps(expected, SIZE, image, **settings))
    assert torch.equal(pamr.refine_maps(small, SIZE, image, iterations=0, dilations=(1,)), expected)


def test_a_few_words_at_a_time_are_all_words_at_once(monkeypatch):
    image, maps = inputs(words=7)
    settings = {"iterations": 2, "dilations": (1, 2)}
    whole = pamr.refine_maps(maps, SIZE, image, **settings)
    for elements in (1, 2 * SIZE[0] * SIZE[1] + 5):
        monkeypatch.setattr(pamr, "CHUNK", elements)
        assert torch.equal(pamr.refine_maps(maps, SIZE, image, **settings), whole)


def test_never_holds_neighbours_of_all_words(monkeypatch):
    """150 words of 16 neighbours at 60x80 would be 46 MB; what is allocated at a time stays below 3 MB."""
    monkeypatch.setattr(pamr, "CHUNK", 1 << 16)
    image, maps = torch.rand(3, 60, 80), torch.rand(150, 6, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        pamr.refine_maps(maps, (60, 80), image, iterations=1, dilations=(8, 16))
    largest = max(abs(event.cpu_memory_usage) for event in profiler.events())
    assert 4 * 150 * 60 * 80 <= largest < 4 * 150 * 60 * 80 * 1.1  # the result is the largest


def test_a_flat_picture_means_the_mean_of_the_neighbours():
    maps = torch.zeros(1, 5, 5)
    maps[0, 2, 2] = 8
    refined = pamr.refine_maps(maps, (5, 5), torch.full((3, 5, 5), 0.5), iterations=1, dilations=(1,))
    expected = torch.zeros(1, 5, 5)
    expected[0, 1:4, 1:4] = 1
    expected[0, 2, 2] = 0
    torch.testing.assert_close(refined, expected)


def test_contrast_and_brightness_do_not_matter():
    """The published code normalises the picture first."""
    image, _ = inputs()
    weights = pamr.neighbour_weights(image, (1, 2))
    other = pamr.neighbour_weights(image * 3.7 - 1.8, (1, 2))
    torch.testing.assert_close(other, weights, rtol=0, atol=32 * torch.finfo(torch.float32).eps)  # of weights up to 1


def test_labels_keep_to_the_edges():
    """A blurred border between two halves moves to where the picture has its edge."""
    image = torch.zeros(3, 40, 64)
    image[:, :, 32:] = 1
    image += 0.01 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    right = torch.sigmoid((torch.arange(64.0) - 37) / 4).expand(40, 64)
    labels = pamr.refine_maps(
        torch.stack([1 - right, right]), (40, 64), image, iterations=10, dilations=(8, 16)
    ).argmax(0)
    before = (torch.stack([1 - right, right]).argmax(0) == (image[0] > 0.5)).float().mean()
    after = (labels == (image[0] > 0.5)).float().mean()
    assert before < 0.94
    assert after == 1


# In the pipeline


def test_the_segmenter_applies_it_before_the_softmax():
    words = ("red", "green", "blue")
    image = picture(24, 36)
    fields = {"short_side": 16, "crop": 16, "stride": 8}
    plain = Segmenter(small_clip(), method=get_method("naclip", **fields))
    sharp = Segmenter(small_clip(), method=get_method("naclip", pamr_iterations=2, pamr_dilations=[1, 3], **fields))
    encoded = plain.encode(image)
    text = torch.stack([plain._text([word])[0] for word in words])
    cosines = cosine_maps(encoded, text)
    smaller = F.interpolate(image[None] / 255, encoded.canvas, mode="bilinear", align_corners=False)
    seen = F.interpolate(smaller, (24, 36), mode="bilinear", align_corners=False)[0].double()
    upsampled = F.interpolate(cosines, (24, 36), mode="bilinear", align_corners=False)[0].double()
    expected = dense_refinement(upsampled, dense_weights(seen, (1, 3)), 2, (1, 3))
    refined = along_edges(cosines, encoded, sharp.method)[0].double()
    torch.testing.assert_close(refined, expected, rtol=0, atol=2e-5)  # a picture in fp32
    result = sharp.segment(encoded, list(words))
    confidence, labels = torch.softmax(40.0 * expected, 0).max(0)
    torch.testing.assert_close(result.confidence.double(), confidence, rtol=0, atol=1e-3)
    assert (result.segmentation == labels).float().mean() > 0.999
    assert not torch.equal(result.confidence, plain.segment(encoded, list(words)).confidence)


def test_it_is_off_unless_asked_for():
    """Methods are compared alike; NACLIP's presets switch it on, with ten iterations at 8 and 16 as here by default."""
    assert {method.pamr_iterations for method in METHODS.values()} == {0}
    assert {method.pamr_dilations for method in METHODS.values()} == {(8, 16)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("pamr_iterations", value) for value in (-1, 1.0, True, None)],
        *[("pamr_dilations", value) for value in ((), (0,), (1.5,), 8, None)],
    ],
)
def test_wrong_settings_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"Method\.{field}: expected .*, received ") as caught:
        get_method("naclip", **{field: value})
    assert repr(value) in str(caught.value)
