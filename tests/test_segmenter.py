"""The pipeline on small random backbones: parity of windows and merging, any size, any batch, words, errors."""

import json
import logging
import math
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_models import PATCH, picture

from s2clip.decision import pixels as decision
from s2clip.encoding.features import patch_features
from s2clip.errors import ImageError
from s2clip.pictures.reading import Failure
from s2clip.published.catalogue import get_method
from s2clip.segmenter import Segmenter
from s2clip.testing import confidence_rounding

CLASSES = ["sky", "house; hut", "tree", "green grass"]
GEOMETRY = {"short_side": 40, "crop": 32, "stride": 16}


@pytest.fixture(scope="module")
def make(clip, vfm):
    def make(name="s2clip", classes=CLASSES, background=None, options=None, **fields):
        method = get_method(name, **{**GEOMETRY, "templates": "plain", **fields})
        segmenter = Segmenter(clip, vfm=vfm if method.uses_vfm else None, method=method, **(options or {}))
        return segmenter.set_classes(classes, background=background) if classes else segmenter

    return make


def text_of(clip, words):
    return F.normalize(torch.cat([clip.encode_text([f"a photo of a {word}."]) for word in words]), dim=-1)


def close(result, expected_scores, method):
    """Confidence up to rounding; labels agree wherever the two best classes differ by more than that."""
    rounding = confidence_rounding(method.logit_scale)
    torch.testing.assert_close(result.confidence, expected_scores.amax(0), rtol=0, atol=rounding)
    top = expected_scores.topk(2, 0)
    clear = top.values[0] - top.values[1] > 2 * rounding
    assert clear.float().mean() > 0.95
    assert torch.equal(result.segmentation[clear], top.indices[0][clear])


@pytest.mark.parametrize("name", ["clip", "maskclip", "sclip", "clearclip", "naclip", "proxyclip"])
def test_pixel_merging_is_the_papers_loop(name, clip, vfm, make):
    """Windows one by one, padded, cosines at crop pixels, averaged, to the picture's size, softmax, max over words."""
    image = picture(50, 71, seed=5)
    crop, stride = 28, 16  # no multiple of the patch: every window is padded
    method = get_method(name)
    segmenter = make(name, short_side=40, crop=crop, stride=stride)
    result = segmenter(image)

    factor = 40 / 50
    size = (40, int(71 * factor + 0.5))
    resized = F.interpolate(image[None].double() / 255, size, mode="bilinear", align_corners=False)[0].float()
    text = text_of(clip, ["sky", "house", "hut", "tree", "green grass"])
    total, hits = torch.zeros(5, *size), torch.zeros(size)
    mean = clip.mean.reshape(3, 1, 1)
    for row in range(max(math.ceil((size[0] - crop) / stride), 0) + 1):
        for column in range(max(math.ceil((size[1] - crop) / stride), 0) + 1):
            bottom, right = min(row * stride + crop, size[0]), min(column * stride + crop, size[1])
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            window = F.pad(resized[:, top:bottom, left:right] - mean, (2, 2, 2, 2)) + mean
            with torch.inference_mode():
                features = patch_features(window[None], method, clip, vfm if method.uses_vfm else None)[0]
                unit = F.normalize(clip.head(features.permute(1, 2, 0)), dim=-1)
                cosines = torch.einsum("hwc,qc->qhw", unit, text)[None]
            pixels = F.interpolate(cosines, (32, 32), mode="bilinear", align_corners=False)[0]
            total[:, top:bottom, left:right] += pixels[:, 2:-2, 2:-2]
            hits[top:bottom, left:right] += 1
    cosines = F.interpolate((total / hits)[None], (50, 71), mode="bilinear", align_corners=False)[0]
    words = torch.softmax(method.logit_scale * cosines, 0)
    scores = torch.stack([words[0], words[1:3].amax(0), words[3], words[4]])
    close(result, scores, method)


@pytest.mark.parametrize("name", ["s2clip", "naclip", "proxyclip"])
def test_splicing_is_a_mean_of_features(name, clip, vfm, make):
    image = picture(50, 71, seed=6)
    segmenter = make(name, merge="splice", short_side=40, crop=32, stride=16)
    method = segmenter.method
    result = segmenter(image)

    size = (40, 56)  # 56.8 to the nearest patch multiple
    resized = F.interpolate(image[None].double() / 255, size, mode="bilinear", align_corners=False)[0].float()
    ratio = 2 if method.uses_vfm else 1
    total, hits = 0, torch.zeros(5 * ratio, 7 * ratio)
    with torch.inference_mode():
        for top in (0, 8):
            for left in (0, 16, 24):
                features = patch_features(resized[None, :, top : top + 32, left : left + 32], method, clip, vfm)[0]
                row, column, side = top // PATCH * ratio, left // PATCH * ratio, 4 * ratio
                whole = torch.zeros(features.shape[0], *hits.shape)
                whole[:, row : row + side, column : column + side] = features
                hits[row : row + side, column : column + side] += 1
                total = total + whole
        unit = F.normalize(clip.head((total / hits).permute(1, 2, 0)), dim=-1)
        cosines = torch.einsum("hwc,qc->qhw", unit, text_of(clip, ["sky", "house", "hut", "tree", "green grass"]))
    cosines = F.interpolate(cosines[None], (50, 71), mode="bilinear", align_corners=False)[0]
    words = torch.softmax(method.logit_scale * cosines, 0)
    scores = torch.stack([words[0], words[1:3].amax(0), words[3], words[4]])
    close(result, scores, method)


def test_labels_follow_the_picture(make):
    """The small model tells pictures apart, so the equalities below are not those of constant maps."""
    first, second = make()([picture(64, 90, seed=1), picture(64, 90, seed=2)])
    assert len(first.segmentation.unique()) > 1
    assert not torch.equal(first.segmentation, second.segmentation)


@pytest.mark.parametrize("name", ["s2clip", "proxyclip", "sclip"])
@pytest.mark.parametrize("max_batch", [1, 5, 64])
def test_same_labels_whatever_the_batch(name, max_batch, make):
    pictures = [picture(50, 71, seed=1), picture(90, 33, seed=2), picture(50, 71, seed=3), picture(12, 12, seed=4)]
    segmenter = make(name, options={"max_batch": max_batch})
    alone = [segmenter(one) for one in pictures]
    together = segmenter(pictures)
    backwards = segmenter(pictures[::-1])[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert torch.equal(one.segmentation, two.segmentation)
        assert torch.equal(one.segmentation, three.segmentation)
        assert torch.equal(one.confidence, two.confidence)


@pytest.mark.parametrize("name", ["s2clip", "sclip"])
def test_mixed_batches_hold_windows_of_several_pictures(name, make, monkeypatch):
    """Windows of one size share forward passes across pictures, and every picture gets its own windows back."""
    pictures = [picture(50, 71, seed=1), picture(90, 33, seed=2), picture(50, 71, seed=3), picture(12, 12, seed=4)]
    apart, mixed = make(name), make(name, options={"mix_pictures": True, "max_batch": 7})
    batches = []
    hidden_states = mixed.clip.hidden_states
    monkeypatch.setattr(
        mixed.clip, "hidden_states", lambda images: batches.append(len(images)) or hidden_states(images)
    )
    together = mixed(pictures)
    assert batches == [7, 7, 7, 7]  # of 6, 12, 6 and 4 windows
    batches.clear()
    separate = apart(pictures)
    assert batches == [6, 8, 4, 6, 4]
    for one, other in zip(together, separate, strict=True):
        rounding = confidence_rounding(get_method("s2clip").logit_scale)
        torch.testing.assert_close(one.confidence, other.confidence, rtol=0, atol=rounding)
        assert (one.segmentation == other.segmentation).float().mean() > 0.999


@pytest.mark.parametrize("name", ["s2clip", "proxyclip", "clip"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 500), (500, 2), (7, 9), (33, 65), (120, 121)])
def test_any_size(name, size, make):
    result = make(name, long_side=120)(picture(*size))
    assert result.segmentation.shape == result.confidence.shape == size
    assert result.segmentation.dtype == torch.int64
    assert 0 <= result.segmentation.min() <= result.segmentation.max() < len(CLASSES)
    assert ((result.confidence > 0) & (result.confidence <= 1)).all()


def test_whole_picture_and_native_size(make):
    encoded = make("naclip", crop=None, short_side=None)
    encoded = encoded.encode(picture(48, 72))
    assert encoded.canvas == (48, 72)
    assert len(encoded.boxes) == 1
    assert encoded.features.shape[2:] == (6, 9)


def test_a_flat_picture_is_not_nan(make):
    for name in ("s2clip", "proxyclip"):
        result = make(name)(torch.full((3, 40, 60), 128, dtype=torch.uint8))
        assert result.confidence.isfinite().all()


def test_every_kind_of_source(make, tmp_path):
    segmenter, tensor = make(), picture(40, 61)
    array = tensor.permute(1, 2, 0).numpy().copy()
    image = Image.fromarray(array)
    image.save(tmp_path / "photo.png")
    expected = segmenter(tensor)
    results = segmenter([tmp_path / "photo.png", str(tmp_path / "photo.png"), image, array, tensor])
    assert isinstance(results, list)
    for result in results:
        assert torch.equal(result.segmentation, expected.segmentation)
        assert torch.equal(result.image, tensor)
    assert [result.source for result in results] == [str(tmp_path / "photo.png")] * 2 + [None] * 3
    assert segmenter([]) == []
    assert len(segmenter((tensor,))) == 1


def test_encode_once_segment_with_many_words(make, monkeypatch):
    segmenter, image = make(), picture(50, 71)
    encoded = segmenter.encode(image)
    monkeypatch.setattr(segmenter, "_encoder", None)  # no second look at the picture
    first = segmenter.segment(encoded)
    other = segmenter.segment(encoded, "car, sky; cloud")
    again = segmenter.segment(encoded)
    assert other.classes == ("car", "sky; cloud")
    assert first.classes == again.classes == segmenter.classes == tuple(CLASSES)
    assert torch.equal(first.segmentation, again.segmentation)
    monkeypatch.undo()
    assert torch.equal(first.segmentation, segmenter(image).segmentation)
    expected = segmenter.set_classes("car, sky; cloud")(image)
    assert torch.equal(other.segmentation, expected.segmentation)


@pytest.mark.parametrize(("workers", "first"), [(0, [0, 1]), (2, [0, 1, 2, 3])])
def test_stream_is_lazy_and_in_order(make, workers, first):
    pulled = []

    def source():
        for seed in range(5):
            pulled.append(seed)
            yield picture(20 + seed, 30, seed=seed)

    stream = make().stream(source(), batch_size=2, workers=workers)
    assert pulled == []
    heights = [next(stream).segmentation.shape[0]]
    assert pulled == first
    heights += [result.segmentation.shape[0] for result in stream]
    assert heights == [20, 21, 22, 23, 24]


def test_stream_records_failures_in_their_place(make, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    sources = [picture(20, 30), tmp_path / "broken.png", picture(21, 30), tmp_path / "missing.png"]
    results = list(make().stream(sources, batch_size=3, on_error="record"))
    assert [isinstance(result, Failure) for result in results] == [False, True, False, True]
    assert results[1].source == tmp_path / "broken.png"
    assert "missing.png" in str(results[3].error)
    assert results[2].segmentation.shape == (21, 30)


def test_stream_raises_after_the_good_ones_before(make, tmp_path):
    stream = make().stream([picture(20, 30), tmp_path / "missing.png", picture(21, 30)])
    assert next(stream).segmentation.shape == (20, 30)
    with pytest.raises(ImageError, match=r"missing\.png"):
        next(stream)
    with pytest.raises(ImageError, match=r"missing\.png"):
        make()(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"missing\.png"):
        make().encode(tmp_path / "missing.png")


def test_threshold_gives_the_background(make):
    image = picture(50, 71)
    plain = make()(image)
    threshold = float(plain.confidence.median())
    result = make(background="tree", threshold=threshold)(image)
    below = plain.confidence < threshold
    assert below.any()
    assert torch.equal(result.segmentation, torch.where(below, 2, plain.segmentation))
    assert result.background == 2


def test_an_area_threshold_without_background_is_refused(make):
    segmenter = make(classes=None, area_threshold=0.3)
    with pytest.raises(ValueError, match=r"background: expected one of sky, tree, for area_threshold=0\.3"):
        segmenter.set_classes("sky, tree")
    assert segmenter.set_classes("sky, tree", background="sky").classes == ("sky", "tree")
    encoded = segmenter.encode(picture(20, 30))
    with pytest.raises(ValueError, match="background"):
        segmenter.segment(encoded, "sky, tree")
    assert segmenter.segment(encoded, "sky, tree", background=1).background == 1
    assert segmenter.segment(encoded, background=1).background == 1


def test_area_rule_drops_small_foreground_classes(make):
    image = picture(64, 90, seed=1)
    classes = ["sky", "tree", "house", "dog", "green grass", "boat"]
    plain = make("sclip", classes=classes)(image)
    area = torch.bincount(plain.segmentation.flatten(), minlength=6)
    background = int(area.argmax())
    foreground = area.clone()
    foreground[background] = 0
    share = foreground / foreground.sum()
    theta = float(share[share > 0].min())
    result = make("sclip", classes=classes, background=background, area_threshold=theta)(image)
    left = torch.bincount(result.segmentation.flatten(), minlength=6)
    dropped = (share <= theta) & (torch.arange(6) != background)
    assert (area[dropped] > 0).any()
    assert left[dropped].sum() == 0
    stays = ~dropped[plain.segmentation]
    assert torch.equal(result.segmentation[stays], plain.segmentation[stays])
    torch.testing.assert_close(result.confidence[stays], plain.confidence[stays])
    assert (result.confidence[~stays] < plain.confidence[~stays]).all()


def test_classes_come_first(make):
    segmenter = make(classes=None)
    assert segmenter.classes == ()
    for call in (segmenter, segmenter.stream, lambda image: segmenter.segment(segmenter.encode(image[0]))):
        with pytest.raises(ValueError, match="no classes: call set_classes first"):
            call([picture(20, 30)])


def test_failed_set_classes_keeps_the_old_ones(make):
    segmenter = make()
    with pytest.raises(ValueError, match="every name once"):
        segmenter.set_classes("sky, sky")
    assert segmenter.classes == tuple(CLASSES)


def test_unknown_words_are_said(make, caplog):
    with caplog.at_level(logging.WARNING, logger="s2clip"):
        make(classes=["sky", "zyx"])
    assert "model small does not know zyx: expect" in caplog.text


def test_only_the_first_unknown_words_are_said(make, caplog):
    words = [f"zyx{letter}" for letter in "abcdefghijklm"]
    with caplog.at_level(logging.WARNING, logger="s2clip"):
        make(classes=["sky", *words])
    (record,) = [one for one in caplog.records if "does not know" in one.getMessage()]
    assert f"does not know {', '.join(words[:10])} and 3 more: expect" in record.getMessage()


def test_settings_and_timings(make):
    segmenter = make(tau=2.0)
    result = segmenter(picture(40, 60))
    settings = json.loads(json.dumps(result.settings))
    assert settings["clip"] == "small"
    assert settings["vfm"] == "small-dino"
    assert settings["method"]["tau"] == 2.0
    assert settings["refine"] == "none"
    assert len(settings["weights_sha256"]["clip"]) == 64
    expected = {"read", "resize", "clip", "vfm", "levels", "recombination", "affinity", "head", "text", "classify"}
    assert set(result.timings) == expected
    assert all(value >= 0 for value in result.timings.values())
    assert "vfm" not in make("sclip").settings


def test_timings_of_a_list_add_up(make):
    results = make()([picture(40, 60), picture(90, 40)])
    assert all(result.timings["clip"] > 0 for result in results)


def global_state():
    return (
        torch.random.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
    )


def test_nothing_global_changes_and_results_are_ordinary_tensors(make):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 (the global state is what is watched)
    random.seed(7)
    before = global_state()
    stream = make().stream([picture(20, 30), picture(20, 31)], batch_size=1)
    result = next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    list(stream)
    assert global_state() == before
    result.segmentation[0, 0] = 3  # an inference tensor would refuse
    (result.confidence * torch.ones((), requires_grad=True)).sum().backward()


def test_stream_checks_its_arguments(make):
    with pytest.raises(ValueError, match="on_error: expected raise or record, received 'skip'"):
        make().stream([], on_error="skip")
    with pytest.raises(ValueError, match="batch_size: expected at least 1, received 0"):
        make().stream([], batch_size=0)
    with pytest.raises(ValueError, match="workers: expected at least 0, received -1"):
        make().stream([], workers=-1)


def test_pixels_that_a_kernel_marked_as_not_finite_are_an_error(make, monkeypatch):
    segmenter, classify = make(), decision.ops.classify_pixels

    def marking(logits, size, **options):
        labels, confidence = classify(logits, size, **options)
        if tuple(size) == (21, 30):
            labels[0, 5, 7], confidence[0, 5, 7] = -1, torch.nan
        return labels, confidence

    monkeypatch.setattr(decision.ops, "classify_pixels", marking)
    sources = [picture(20, 30), picture(21, 30), picture(22, 30)]
    with pytest.raises(ValueError, match="cosines: expected finite"):
        segmenter.segment(segmenter.encode(sources[1]))
    stream = segmenter.stream(sources)
    assert next(stream).segmentation.shape == (20, 30)
    with pytest.raises(ValueError, match="cosines: expected finite"):
        next(stream)
    for mixed in (False, True):
        first, failed, last = make(options={"mix_pictures": mixed}).stream(sources, on_error="record")
        assert isinstance(failed, Failure)
        assert torch.equal(failed.source, sources[1])
        assert "cosines: expected finite" in str(failed.error)
        assert (first.segmentation.shape, last.segmentation.shape) == ((20, 30), (22, 30))


def test_leaving_a_stream_early_ends_its_threads(make, tmp_path):
    for index in range(12):
        Image.new("RGB", (30, 20 + index)).save(tmp_path / f"{index:02}.png")
    stream = make().stream(sorted(tmp_path.iterdir()), batch_size=4, workers=2)
    assert next(stream).segmentation.shape == (20, 30)
    assert any(thread.name.startswith("s2clip-read") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("s2clip-read") for thread in threading.enumerate())
