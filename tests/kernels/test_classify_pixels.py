"""The pixel decision and the class scores against their references.

What the interpreter cannot show here: coalescing and speed. There is no matrix product and no memory shared between
programs, so its arithmetic is the GPU's but for the last bit of exp2.
"""

import pytest
import torch
from specialisations import compiled, recorded
from torch.nn import functional as F

from s2clip.kernels import classify_pixels, reference
from s2clip.testing import assert_labels_equal_by_margin, assert_within_budget, in_float64, normal

# ((B, Q, h, w), (H, W), class of each word)
SHAPES = {
    "identity": ((2, 5, 4, 6), (13, 17), (0, 1, 2, 3, 4)),
    "several words a class, in no order": ((1, 6, 3, 3), (31, 7), (2, 0, 0, 1, 4, 1)),
    "one word": ((1, 1, 2, 3), (5, 5), (0,)),
    "one patch": ((1, 3, 1, 1), (3, 4), (0, 1, 2)),
    "downwards": ((1, 3, 9, 8), (4, 5), (0, 1, 0)),
    "one row": ((2, 4, 1, 7), (1, 29), (0, 1, 1, 2)),
    "more pixels than a program": ((1, 3, 5, 5), (41, 37), (0, 1, 2)),
}
SCALE = 40.0


def arguments_of(shape, dtype=torch.float32):
    dimensions, size, words = shape
    return 0.1 * normal(*dimensions).to(dtype), size, SCALE, torch.tensor(words), max(words) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("poisoned")
def test_labels_and_confidence(shape, dtype):
    arguments = arguments_of(shape, dtype)
    labels, confidence = classify_pixels.launch(*arguments, 0.4, 0)
    assert_within_budget(confidence, reference.classify_pixels, *arguments, 0.4, 0, output=1)
    scores = reference.class_scores(*in_float64(list(arguments)))
    expected = scores.max(1).indices.masked_fill(scores.amax(1) < 0.4, 0)
    assert_labels_equal_by_margin(labels, expected, scores, margin=1e-5, threshold=0.4)
    assert labels.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("poisoned")
def test_class_scores(shape, dtype):
    arguments = arguments_of(shape, dtype)
    scores = classify_pixels.launch_scores(*arguments)
    assert scores.dtype == dtype
    assert_within_budget(scores, reference.class_scores, *arguments)


def test_class_without_words_scores_zero_and_is_never_chosen():
    logits = 0.1 * normal(1, 2, 3, 3)
    scores = classify_pixels.launch_scores(logits, (5, 5), SCALE, torch.tensor([0, 3]), 4)
    assert (scores[:, 1:3] == 0).all()
    assert set(classify_pixels.launch(logits, (5, 5), SCALE, torch.tensor([0, 3]), 4, 0.0, 0)[0].unique().tolist()) <= {
        0,
        3,
    }


def test_ties_go_to_the_first_class_whatever_the_order_of_the_words():
    logits = torch.full((1, 4, 2, 2), 0.25)
    labels, confidence = classify_pixels.launch(logits, (3, 3), SCALE, torch.tensor([3, 1, 2, 1]), 4, 0.0, 0)
    assert (labels == 1).all()
    torch.testing.assert_close(confidence, torch.full((1, 3, 3), 0.25))


def test_below_the_threshold_is_background_at_the_threshold_is_not():
    logits = torch.zeros(1, 2, 1, 1)
    words = torch.tensor([0, 1])
    assert (classify_pixels.launch(logits, (2, 2), SCALE, words, 2, 0.5, 7)[0] == 0).all()
    assert (classify_pixels.launch(logits, (2, 2), SCALE, words, 2, 0.5001, 7)[0] == 7).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_logit_marks_the_pixels_it_touches(bad):
    logits = 0.1 * normal(2, 3, 4, 4)
    logits[1, 2, 0, 0] = bad
    arguments = (logits, (9, 9), SCALE, torch.tensor([0, 1, 0]), 3)
    labels, confidence = classify_pixels.launch(*arguments, 0.0, 0)
    expected, expected_confidence = reference.classify_pixels(*arguments, 0.0, 0)
    assert torch.equal(labels == -1, expected == -1)
    assert torch.equal(confidence.isnan(), expected_confidence.isnan())
    assert (labels[1] == -1).any()
    assert (labels[0] >= 0).all()
    scores = classify_pixels.launch_scores(*arguments)
    assert torch.equal(scores.isnan(), (expected == -1)[:, None].expand_as(scores))


def test_images_do_not_depend_on_their_batch():
    logits = 0.1 * normal(3, 4, 5, 3)
    words = torch.tensor([0, 1, 2, 1])
    labels, confidence = classify_pixels.launch(logits, (11, 6), SCALE, words, 3, 0.0, 0)
    for image in range(3):
        alone = classify_pixels.launch(logits[image : image + 1], (11, 6), SCALE, words, 3, 0.0, 0)
        assert torch.equal(alone[0][0], labels[image])
        assert torch.equal(alone[1][0], confidence[image])


def test_views_and_empty_batches():
    logits = 0.1 * normal(2, 4, 3, 5)
    words = torch.tensor([0, 1, 2])
    turned = logits.permute(0, 3, 2, 1)[:, :3]
    expected = classify_pixels.launch(turned.contiguous(), (7, 7), SCALE, words, 3, 0.0, 0)
    actual = classify_pixels.launch(turned, (7, 7), SCALE, words, 3, 0.0, 0)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    empty = torch.zeros(0, 3, 2, 2)
    assert classify_pixels.launch(empty, (4, 5), SCALE, words, 3, 0.0, 0)[0].shape == (0, 4, 5)
    assert classify_pixels.launch_scores(empty, (4, 5), SCALE, words, 3).shape == (0, 3, 4, 5)


def test_resize_is_torch_interpolate():
    """With one class of two words the score of a word is a logistic of the difference: solve for the resized logit."""
    logits = torch.cat([normal(1, 1, 5, 7), torch.zeros(1, 1, 5, 7)], 1)
    scores = classify_pixels.launch_scores(logits, (23, 16), 1.0, torch.tensor([0, 1]), 2)
    resized = F.interpolate(logits[:, :1].double(), (23, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores[:, :1].double().logit(), resized, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_500_image_sizes_compile_once(dtype):
    """Whatever the sizes, the alignment of the inputs and the counts of words, classes and images."""
    with recorded(classify_pixels, 90) as launches:
        for case in range(500):
            size = (1 + 7 * case % 300, 1 + 13 * case % 301)
            shape = (1 + case % 3, 1 + case % 21, 1 + case % 9, 1 + case % 31)
            count = shape[0] * shape[1] * shape[2] * shape[3]
            logits = torch.empty(count + 5, dtype=dtype)[case % 5 :][:count].view(shape)
            words = torch.zeros(shape[1] + 1, dtype=torch.int64)[case % 2 :][: shape[1]]
            classify_pixels.launch(logits, size, SCALE, words, 1, 0.1, case % 17)
            classify_pixels.launch_scores(logits, size, SCALE, words, 1)
    kernels = ("_class_scores_kernel", "_classify_pixels_kernel")  # of one row of pixels a program, and of four
    assert sorted(launch.kernel for launch in launches) == sorted(2 * kernels)
    assert set(launches) <= compiled("classify_pixels", 90)


@pytest.mark.parametrize("scale", [0.0, -40.0])
def test_a_scale_that_is_not_positive_decides_as_the_reference(scale):
    """Below 0 the smallest logit is the best, at 0 all are equal and the first class is."""
    logits = normal(1, 5, 3, 4) * 0.1
    given = (logits, (6, 8), scale, torch.tensor([3, 1, 0, 2, 4]), 5, 0.0, 0)
    labels, confidence = classify_pixels.launch(*given)
    expected_labels, expected = reference.classify_pixels(*given)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(confidence, expected)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("spread", [1.0, 3.0, 30.0, 3e4])
def test_logits_far_apart_are_summed_from_their_maximum(spread):
    """Some 2^57 apart at 1; from 3 on powers beside the first word's leave the range of fp32, above or below."""
    arguments = (spread * normal(1, 4, 5, 6), (23, 17), SCALE, torch.tensor([2, 0, 1, 3]), 4)
    labels, confidence = classify_pixels.launch(*arguments, 0.0, 0)
    scores = reference.class_scores(*in_float64(list(arguments)))
    assert_labels_equal_by_margin(labels, scores.max(1).indices, scores, margin=1e-5, threshold=0.0)
    torch.testing.assert_close(confidence.double(), scores.amax(1), rtol=1e-4 * spread, atol=1e-6)
    actual = classify_pixels.launch_scores(*arguments)
    torch.testing.assert_close(actual.double(), scores, rtol=1e-4 * spread, atol=1e-6)


@pytest.mark.parametrize("size", [(13, 17), (2, 3)], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
def test_a_logit_that_is_not_finite_marks_what_sees_it_wherever_it_lies(size):
    """One image per place of the logit; four rows of pixels share three of logits, of which a pixel sees two."""
    logits = 0.1 * normal(12, 2, 3, 4)
    for place, bad in enumerate(3 * [float("nan"), float("inf"), float("-inf"), float("inf")]):
        logits[place, place % 2].view(-1)[place] = bad
    arguments = (logits, size, SCALE, torch.tensor([0, 1]), 2)
    labels, _ = classify_pixels.launch(*arguments, 0.0, 0)
    expected, _ = reference.classify_pixels(*arguments, 0.0, 0)
    assert torch.equal(labels, expected)
    assert torch.equal(
        classify_pixels.launch_scores(*arguments).isnan(), (expected == -1)[:, None].expand(-1, 2, -1, -1)
    )
