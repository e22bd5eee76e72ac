"""fp64 from the picture to the label map, on the CPU: what differs from fp32 is rounding."""

import pytest
import torch
from small_models import picture

from s2clip import Segmenter, ops
from s2clip.decision.scores import LogitScores
from s2clip.methods.stages import STAGES
from s2clip.scenes import CLASSES, generate

REFINED = ("s2clip", "cliper")


@pytest.mark.parametrize("method", ["naclip", "trident", "corrclip", *REFINED])
def test_fp64_tells_rounding(method):
    image = torch.from_numpy(generate(7)[0]).permute(2, 0, 1)
    features, results = [], []
    for dtype in ("float32", "float64"):
        settings = {"method": method, "device": "cpu", "dtype": dtype, "short_side": 64}
        if method == "corrclip":
            ids = torch.arange(96)[:, None] // 32 * 4 + torch.arange(128) // 32 + 1
            settings["regions"] = lambda pixels, source, ids=ids: ids
        if method == "cliper":
            settings |= {"extension.sliding_crop": 64, "extension.sliding_stride": 32}
        refine = "sam" if method in REFINED else "none"
        segmenter = Segmenter.from_pretrained("tiny", refine=refine, **settings).set_classes(CLASSES)
        encoded = segmenter.encode(image)
        features.append(encoded.features)
        results.append(segmenter.segment(encoded))
    single, double = features
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert 0 < (single - double).abs().max() < 1e-4
    assert (results[0].segmentation == results[1].segmentation).float().mean() > 0.999


@pytest.mark.parametrize(("method", "stage"), [("radseg", "none"), ("naclip", "freecp")])
def test_fp64_where_scores_are_made_before_they_are_compared(method, stage):
    """These decide from score maps, whose running best was fp32 whatever the maps were."""
    image = torch.from_numpy(generate(7)[0]).permute(2, 0, 1)
    settings = {"method": method, "device": "cpu", "short_side": 64, **STAGES[stage]}
    single, double = (
        Segmenter.from_pretrained("tiny", dtype=dtype, **settings).set_classes(CLASSES[:4])(image)
        for dtype in ("float32", "float64")
    )
    assert double.confidence.dtype == torch.float64
    assert 0 < (single.confidence - double.confidence).abs().max() < 1e-3
    assert (single.segmentation == double.segmentation).float().mean() > 0.999


def test_scores_of_fp64_cosines_are_fp64():
    """What SAM's stage reads agrees with the op on all words to fp64's rounding, not to fp32's 1e-7."""
    cosines = torch.rand(5, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 4
    maps = LogitScores(cosines, 40.0, (0, 1, 1, 2, 3), (24, 32))
    expected = ops.class_scores(cosines[None], (24, 32), scale=40.0, class_index=torch.tensor([0, 1, 1, 2, 3]))[0]
    torch.testing.assert_close(maps.planes(range(4), (24, 32)), expected.double(), rtol=0, atol=1e-12)
    assert maps.summary(torch.zeros(24, 32, dtype=torch.int64)).best.dtype == torch.float64


def test_fp64_is_not_fp32_in_disguise():
    """Two batch sizes round differently in fp32 (about 1e-7); in fp64 that is below 1e-13."""
    image = picture(96, 128)
    one, eight = (
        Segmenter.from_pretrained("tiny", device="cpu", dtype=torch.float64, max_batch=most, short_side=96)
        .encode(image)
        .features
        for most in (1, 8)
    )
    torch.testing.assert_close(one, eight, rtol=0, atol=1e-13)
