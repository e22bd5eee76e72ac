"""The merge of masks against its reference, and against the formula on full maps.

What the interpreter cannot show here: coalescing, speed, and how much of it the skipped tiles save. There is no matrix
product and no memory shared between programs; its arithmetic is the GPU's but for the last bit of exp.
"""

from unittest.mock import MagicMock

import pytest
import torch
from specialisations import compiled, recorded
from torch.nn import functional as F

from s2clip.kernels import merge_kernels, merge_masks, reference
from s2clip.testing import (
    assert_labels_equal_by_margin,
    assert_within_budget,
    generator,
    in_float64,
    integers,
    layouts,
    normal,
    probabilities,
)

# (side of a mask, padded square, its valid part, size of the images, size of the scores)
SHAPES = {
    "SAM's ratio, wide image": (16, 64, (40, 64), (19, 51), (12, 20)),
    "SAM's ratio, image smaller than the mask": (16, 64, (64, 48), (9, 7), (9, 7)),
    "first resize by less than two": (20, 32, (32, 27), (21, 40), (5, 6)),
    "no first resize": (12, 12, (12, 9), (30, 25), (1, 1)),
    "first resize downwards": (24, 9, (9, 7), (33, 20), (40, 50)),
    "no second resize": (8, 32, (21, 32), (21, 32), (21, 32)),
    "one logit a mask": (1, 16, (16, 10), (5, 9), (2, 2)),
    "one pixel": (8, 32, (32, 32), (1, 1), (3, 3)),
    "one column": (8, 32, (32, 1), (20, 1), (7, 1)),
}
BATCH, CLASSES, REGIONS = 2, 3, 7


def blobs(regions: int, side: int, seed: int = 0) -> torch.Tensor:
    """[R,m,m]: a disc above 0 in a map below 0, anywhere in it, as masks of objects are."""
    draw = torch.rand(3, regions, 1, 1, generator=generator(seed))
    centre, radius = side * draw[:2], side * (0.1 + 0.2 * draw[2])
    y, x = torch.arange(side)[:, None], torch.arange(side)
    distance = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).sqrt()
    return radius - distance + 0.3 * normal(regions, side, side, seed=seed)


def arguments_of(shape, dtype=torch.float32, masks=None):
    side, padded, valid, size, score_size = shape
    masks = normal(REGIONS, side, side) if masks is None else masks
    regions = masks.shape[0]
    return (
        *(masks.to(dtype), integers(CLASSES, regions, seed=1), integers(BATCH, regions, seed=2)),
        *(probabilities(BATCH, CLASSES, *score_size).to(dtype), integers(CLASSES + 4, BATCH, *size, seed=3)),
        *(valid, padded),
    )


def qualities(mask_logits, class_index, image_index, scores, labels, input_size, padded_size) -> torch.Tensor:
    """[B,K,H,W] in fp64: Q_c by way of every full map."""
    mask_logits, scores = in_float64([mask_logits, scores])
    size = labels.shape[1:]
    padded = F.interpolate(mask_logits[:, None], (padded_size, padded_size), mode="bilinear")
    logits = F.interpolate(padded[..., : input_size[0], : input_size[1]], size, mode="bilinear")[:, 0]
    quality = F.interpolate(scores, size, mode="bilinear")
    for image in range(quality.shape[0]):
        for index in range(quality.shape[1]):
            own = logits[(class_index == index) & (image_index == image)]
            factor = (own > 0).any(0) * own.sigmoid().amax(0) if len(own) else 0.0
            quality[image, index] *= factor
    return quality


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("poisoned")
def test_labels_and_score(shape, dtype):
    arguments = arguments_of(shape, dtype)
    labels, score = merge_masks.launch(*arguments)
    assert (labels.dtype, score.dtype) == (torch.int32, torch.float32)
    # The kernel computes in fp32 whatever it reads, so its error is held to torch's in fp32.
    upcast = [
        each.float() if isinstance(each, torch.Tensor) and each.is_floating_point() else each for each in arguments
    ]
    assert_within_budget(score, reference.merge_masks, *upcast, output=1)
    quality = qualities(*arguments)
    expected = torch.where(quality.amax(1) > 0, quality.max(1).indices, arguments[4])
    assert_labels_equal_by_margin(labels, expected, quality, margin=1e-5)
    torch.testing.assert_close(score.double(), quality.amax(1), atol=1e-5, rtol=0)


class Survey:
    """The survey, which keeps what it wrote, and finds every column of every region live if told so."""

    def __init__(self, kernel, all_live=False):
        self.kernel, self.all_live = kernel, all_live

    def __getitem__(self, grid):
        def launch(*arguments, **keywords):
            self.kernel[grid](*arguments, **keywords)
            self.order, self.class_of, self.image_start, self.live = arguments[3:7]
            if self.all_live:
                self.live.copy_(torch.tensor([0, 2**30 - 1]))

        return launch


@pytest.mark.parametrize("tile", [(16, 32), (32, 16)])
def test_tiles_that_no_mask_reaches_change_nothing(tile, monkeypatch):
    """Tiles of every size skip other regions at other places; bitwise as when none is skipped."""
    arguments = arguments_of((32, 128, (100, 128), (14, 64), (15, 32)), masks=blobs(REGIONS, 32))
    choice = merge_masks.configuration(0)._replace(block_y=tile[0], block_x=tile[1], strips=1)
    monkeypatch.setattr(merge_masks, "configuration", lambda arch: choice)
    labels, score = merge_masks.launch(*arguments)
    assert torch.equal(labels, reference.merge_masks(*arguments)[0])
    survey = Survey(merge_masks.survey_kernel, all_live=True)
    monkeypatch.setattr(merge_masks, "survey_kernel", survey)
    for actual, expected in zip(merge_masks.launch(*arguments), (labels, score), strict=True):
        assert torch.equal(actual, expected)


class WithOtherMasks:
    """The merging kernel, given other masks than the survey saw."""

    def __init__(self, kernel, masks):
        self.kernel, self.masks = kernel, masks

    def __getitem__(self, grid):
        return lambda mask_logits, *arguments, **keywords: self.kernel[grid](self.masks, *arguments, **keywords)


def test_tiles_that_no_mask_reaches_read_no_mask(monkeypatch):
    masks = torch.full((2, 32, 32), -1.0)
    masks[0, 2:6, 3:7] = 1.0
    masks[1, 25:28, 25:30] = 2.0
    arguments = arguments_of((32, 128, (128, 128), (64, 128), (8, 8)), masks=masks)
    expected = merge_masks.launch(*arguments)
    poisoned = masks.clone()
    poisoned[0, 18:], poisoned[0, :, 18:] = torch.nan, torch.nan
    poisoned[1, :13], poisoned[1, :, :13] = torch.nan, torch.nan
    monkeypatch.setattr(merge_masks, "merge_masks_kernel", WithOtherMasks(merge_masks.merge_masks_kernel, poisoned))
    for actual, known in zip(merge_masks.launch(*arguments), expected, strict=True):
        assert torch.equal(actual, known)


@pytest.mark.usefixtures("poisoned")
def test_survey_orders_regions_and_finds_live_columns(monkeypatch):
    """More regions than it reads at a time, in no order, some without an image or a class."""
    regions, side, images, classes = 70, 21, 4, 3
    masks = torch.where(integers(40, regions, side, side) == 0, 1.0, -1.0)
    masks[:, 8:16] = -1.0
    masks[3, 9, 4], masks[5, 10, 20], masks[6, 15, 0] = torch.nan, torch.inf, -torch.inf
    class_index, image_index = integers(classes + 1, regions, seed=1), integers(images + 1, regions, seed=2) - 1
    image_index[image_index == 2] = 3  # an image without regions
    survey = Survey(merge_masks.survey_kernel)
    monkeypatch.setattr(merge_masks, "survey_kernel", survey)
    monkeypatch.setattr(merge_masks, "merge_masks_kernel", MagicMock())  # visits all of them, slowly
    scores, labels = torch.ones(images, classes, 1, 1), torch.zeros(images, 1, 1, dtype=torch.int64)
    merge_masks.launch(masks, class_index, image_index, scores, labels, (64, 64), 64)

    known = (class_index < classes) & (image_index >= 0)
    key = torch.where(known, image_index * classes + class_index, images * classes)
    order = key.sort(stable=True).indices
    assert survey.order.tolist() == order.tolist()
    assert survey.class_of.tolist() == class_index[order].tolist()
    assert survey.image_start.tolist() == [int((key < image * classes).sum()) for image in range(images + 1)]
    live = ~(masks <= 0) | masks.isinf()
    for rank, region in enumerate(order.tolist()):
        for strip in range(3):
            columns = live[region, 8 * strip : 8 * strip + 8].any(0).nonzero()
            expected = [int(columns.min()), int(columns.max())] if len(columns) else [2**31 - 1, -1]
            broken = (~masks[region, 8 * strip : 8 * strip + 8].isfinite()).any(0).nonzero()
            if len(broken):
                expected[1] = int(broken.max()) + merge_kernels.BROKEN.value
            assert survey.live[rank, strip].tolist() == expected


def test_first_class_wins_ties_whatever_the_order_of_the_regions():
    masks = normal(1, 8, 8).expand(4, 8, 8)
    arguments = (
        torch.zeros(4, dtype=torch.int64),
        torch.full((1, 5, 3, 3), 0.2),
        torch.full((1, 20, 20), 9),
        (32, 32),
        32,
    )
    labels, score = merge_masks.launch(masks, torch.tensor([4, 2, 3, 2]), *arguments)
    assert set(labels.unique().tolist()) == {2, 9}
    assert torch.equal(labels == 9, score == 0)


def test_order_of_regions_and_batch_play_no_part():
    shape = SHAPES["SAM's ratio, wide image"]
    masks, class_index, image_index, scores, labels, *sizes = arguments_of(shape)
    together = merge_masks.launch(masks, class_index, image_index, scores, labels, *sizes)
    shuffled = torch.randperm(REGIONS, generator=torch.Generator().manual_seed(1))
    again = merge_masks.launch(masks[shuffled], class_index[shuffled], image_index[shuffled], scores, labels, *sizes)
    for image in range(BATCH):
        own = image_index == image
        one = slice(image, image + 1)
        alone = merge_masks.launch(masks[own], class_index[own], image_index[own] * 0, scores[one], labels[one], *sizes)
        for output in range(2):
            assert torch.equal(together[output][image], alone[output][0])
            assert torch.equal(together[output], again[output])


def test_region_without_image_or_class_is_skipped():
    arguments = list(arguments_of(SHAPES["no second resize"]))
    expected = merge_masks.launch(*(each[:3] for each in arguments[:3]), *arguments[3:])
    arguments[1][3:] = torch.tensor([-1, CLASSES, 0, 1])
    arguments[2][3:] = torch.tensor([0, 0, -1, BATCH])
    for actual, known in zip(merge_masks.launch(*arguments), expected, strict=True):
        assert torch.equal(actual, known)


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("taps", ["SAM's ratio, wide image", "first resize downwards"])
def test_logit_that_is_not_finite_marks_the_pixels_it_touches(bad, taps):
    """Also where no logit is above 0, and where the pixel's other classes are sound, before and after."""
    masks, class_index, image_index, scores, labels, *sizes = arguments_of(SHAPES[taps])
    masks[0] = -1.0
    masks[0, 4, 7] = bad
    for index in (0, 2):
        class_index[0], image_index[0] = index, 1
        arguments = (masks, class_index, image_index, scores, labels, *sizes)
        actual, score = merge_masks.launch(*arguments)
        expected, expected_score = reference.merge_masks(*arguments)
        marked = actual == -1
        assert torch.equal(marked, score.isnan())
        assert torch.equal(expected == -1, expected_score.isnan())
        # The kernel also multiplies the bad logit by a tap of weight 0, which the reference leaves out.
        assert marked[expected == -1].all()
        assert marked.sum() <= (expected == -1).sum() + 0.1 * marked[1].numel()
        assert torch.equal(actual[~marked], expected[~marked])
        if bad != bad:
            assert (actual[1] == -1).any()
        assert (actual[0] >= 0).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_score_that_is_not_finite_marks_pixels_of_its_own_class_only(bad):
    arguments = list(arguments_of(SHAPES["SAM's ratio, wide image"]))
    arguments[3][1, 1, 4, 5] = bad
    actual, score = merge_masks.launch(*arguments)
    expected, _ = reference.merge_masks(*arguments)
    assert torch.equal(actual == -1, expected == -1)
    assert torch.equal(actual == -1, score.isnan())
    assert (actual[1] == -1).any()
    assert (actual[1] >= 0).any()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided", "offset"])
def test_memory_layouts(layout):
    arguments = list(arguments_of(SHAPES["SAM's ratio, wide image"]))
    expected = merge_masks.launch(*arguments)
    for position in (0, 1, 2, 3, 4):
        arguments[position] = layouts(arguments[position])[layout]
    for actual, known in zip(merge_masks.launch(*arguments), expected, strict=True):
        assert torch.equal(actual, known)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_old_labels_of_any_integer_dtype(dtype):
    arguments = list(arguments_of(SHAPES["no second resize"], masks=torch.full((2, 8, 8), -1.0)))
    arguments[4] = arguments[4].to(dtype)
    labels, score = merge_masks.launch(*arguments)
    assert torch.equal(labels, arguments[4].int())
    assert not score.any()


@pytest.mark.usefixtures("poisoned")
def test_nothing_to_merge():
    masks, class_index, image_index, scores, labels, *sizes = arguments_of(SHAPES["no second resize"])
    merged, score = merge_masks.launch(masks[:0], class_index[:0], image_index[:0], scores, labels, *sizes)
    assert torch.equal(merged, labels.int())
    assert not score.any()
    merged, score = merge_masks.launch(masks, class_index, image_index, scores, labels[:, :0], *sizes)
    assert merged.shape == score.shape == (BATCH, 0, 32)


@pytest.mark.parametrize(
    ("size", "tile"), [((2, 40), (0, 0)), ((6, 40), (2, 8)), ((18, 40), (2, 8)), ((80, 40), (8, 4))]
)
def test_shipped_tiles(size, tile, monkeypatch):
    """The configuration of GPUs, which the interpreter does not choose by itself."""
    monkeypatch.setattr(merge_masks, "architecture", lambda device: 90)
    assert merge_masks.lines(8, size[0], 64, 16, 64) == tile
    arguments = arguments_of((16, 64, (64, 64), size, (9, 20)), masks=blobs(4, 16))
    labels, score = merge_masks.launch(*arguments)
    expected, expected_score = reference.merge_masks(*arguments)
    assert torch.equal(labels, expected)
    torch.testing.assert_close(score, expected_score, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_500_image_sizes_compile_once(dtype):
    """Whatever the sizes, the alignment of the inputs and the counts of regions, classes and images."""
    with recorded(merge_masks, 90) as launches:
        for case in range(500):
            height, width = 1 + 7 * case % 300, 1 + 13 * case % 301
            regions, batch, classes = 1 + case % 40, 1 + case % 3, 1 + case % 21
            masks = torch.empty(regions * 256 + 5, dtype=dtype)[case % 5 :][: regions * 256].view(regions, 16, 16)
            scores = torch.empty(batch, classes, 1 + height // 2, 1 + width // 2, dtype=dtype)
            index = torch.empty(2, regions, dtype=torch.int64)
            valid = (1 + case % 64, 64) if case % 2 else (64, 1 + case % 64)
            labels = torch.empty(batch, height, width, dtype=torch.int32)
            merge_masks.launch(masks, *index, scores, labels, valid, 64)
    assert sorted(launch.kernel for launch in launches) == [*3 * ["merge_masks_kernel"], "survey_kernel"]
    assert set(launches) <= compiled("merge_masks", 90)
