"""The memory cap: sizes, plans that are kept to, chunks that change nothing but rounding, refusals in one line."""

import dataclasses

import numpy as np
import pytest
import torch
from small_models import picture, small_clip, small_vfm
from torch.profiler import ProfilerActivity, profile

from s2clip import memory
from s2clip.decision.by_words import WordScores
from s2clip.memory import Cap, Load, Sizes, Tower, load_of, parse_size, show_size
from s2clip.pictures.windows import padded_size, resized_size, window_boxes
from s2clip.published.catalogue import METHODS, get_method
from s2clip.segmenter import Segmenter
from s2clip.testing import confidence_rounding

CLASSES = ["sky", "house; hut", "tree", "green grass", "sea; water; lake", "sand", "rock"]


@pytest.fixture(scope="module")
def models():
    return {"clip": small_clip(), "vfm": small_vfm()}


def make(models, name, *, classes=CLASSES, background=None, max_memory=None, **fields):
    method = get_method(name, **{"short_side": None, "crop": 32, "stride": 16, "templates": "plain", **fields})
    vfm = models["vfm"] if method.uses_vfm else None
    segmenter = Segmenter(models["clip"], vfm=vfm, method=method, max_memory=max_memory)
    return segmenter.set_classes(classes, background=background)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("8GB", 8e9),
        ("8gb", 8e9),
        (" 12 GB ", 12e9),
        ("7.5GiB", 7.5 * 2**30),
        ("500MB", 5e8),
        ("64 k", 64e3),
        (123, 123),
    ],
)
def test_sizes(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "8XB", "-1GB", "0GB", "8GB!", "1e9", 0, -5, True, 2.5, None])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match=r'max_memory: expected a size such as "8GB" or "7\.5GiB", received'):
        parse_size(size)


def test_what_is_shown_is_enough():
    for size in (1, 10**7, 10**7 + 1, 123_456_789, 8 * 10**9):
        assert size <= parse_size(show_size(size)) < size + 2 * 10**7


def sizes_of(method, picture, patch, words):
    canvas = resized_size(*picture, method.short_side, method.long_side, patch)
    boxes = window_boxes(*canvas, method.crop, method.stride)
    return Sizes(picture, canvas, padded_size(*boxes[0].size, patch), len(boxes), words)


CLIPS = {
    "ViT-B-16": (Tower(12, 768, 16), 12, 512, 150),
    "ViT-L-14": (Tower(24, 1024, 14), 16, 768, 428),
    "ViT-H-14": (Tower(32, 1280, 14), 16, 1024, 986),
}
SAMS = {None: (0, 0), "sam-vit-b": (12, 94), "sam-vit-h": (16, 641)}


@pytest.mark.parametrize("sam", SAMS)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", METHODS)
def test_8_gb_of_a_gpu_hold_4096x4096_and_171_classes(name, clip, sam):
    """With every method's own windows, and at native size, where 1,225 of them overlap; peaks stay under the cap."""
    tower, heads, joint, parameters = CLIPS[clip]
    sam_heads, sam_parameters = SAMS[sam]
    native = {"short_side": None, "long_side": None, "crop": 336, "stride": 112}
    largest = parameters + sam_parameters > 1000  # ViT-H with a SAM, any CLIP but ViT-B with SAM's ViT-H: up to 9.1 GB
    for fields in ({},) if largest or METHODS[name].extension is not None else ({}, native):
        method = dataclasses.replace(METHODS[name], **fields)
        load = Load(
            weights=2 * 10**6 * (parameters + 86 + sam_parameters),
            item=2,
            on_cuda=True,
            clip=tower,
            heads=heads,
            joint=joint,
            vfm=Tower(12, 768, 8) if method.uses_vfm else None,
            vfm_scale=1.0,
            levels=7 if method.uses_levels else 0,
            affinity=method.vfm_weight is not None,
            terms=len(method.terms),
            spliced=method.merge == "splice",
            sam_scores=2 * sam_heads * 4096**2,
        )
        cap = Cap(8 * 10**9, load).check()
        plan = cap.plan(sizes_of(method, (4096, 4096), 112, 171), most_windows=32)
        assert plan.windows >= 1
        assert plan.words >= 1
        assert plan.peak <= 8 * 10**9
        assert cap.prompts >= 1


def test_a_larger_cap_allows_larger_chunks():
    tower, heads, joint, _ = CLIPS["ViT-B-16"]
    load = Load(10**9, 4, False, tower, heads, joint, Tower(12, 768, 8), 1.0, 0, True, 0, spliced=False)
    sizes = Sizes((4096, 4096), (2048, 2048), (336, 336), 289, 171)
    plans = [Cap(size * 10**9, load).plan(sizes, most_windows=64) for size in (4, 8, 12, 16, 24)]
    for attribute in ("windows", "words", "peak"):
        values = [getattr(plan, attribute) for plan in plans]
        assert values == sorted(values)
        assert values[0] < values[-1]
    assert plans[0].words < 171 == plans[-1].words


def test_what_cannot_be_is_refused_with_what_would_do():
    tower, heads, joint, _ = CLIPS["ViT-B-16"]
    load = Load(10**9, 4, False, tower, heads, joint, None, 1.0, 0, False, 1, spliced=True)
    with pytest.raises(ValueError, match=r"max_memory: expected more than 1GB, which the models take, received 500MB"):
        Cap(5 * 10**8, load).check()
    sizes = Sizes((4096, 4096), (4096, 4096), (4096, 4096), 1, 171)
    with pytest.raises(ValueError, match=r"at least [0-9.]+GB for a picture of 4096x4096") as caught:
        Cap(2 * 10**9, load).plan(sizes, most_windows=8)
    least = str(caught.value).split("at least ")[1].split(" ")[0]
    assert Cap(parse_size(least), load).plan(sizes, most_windows=8).windows == 1


def test_pictures_that_fit_together():
    cap = Cap(100, Load(20, 4, False, Tower(1, 1, 1), 1, 1, None, 1.0, 0, False, 0, spliced=True))
    assert cap.together([10, 10, 20, 1, 50, 5, 35, 1]) == [3, 1, 1, 2, 1]
    assert cap.together([]) == []


def peak_bytes(run):
    """The most that torch's allocator held during the call, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    live = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@pytest.mark.parametrize("name", ["s2clip", "proxyclip", "sclip", "naclip"])
@pytest.mark.parametrize("most_windows", [1, 8])
def test_peaks_stay_under_the_plan(name, most_windows, models):
    """Live bytes of a real run, against the planned ones: never more, and not less than a fifth."""
    segmenter, size = make(models, name, max_memory="8GB"), (128, 160)
    encoder = segmenter._encoder
    encoder.max_batch = most_windows
    image = picture(*size)
    segmenter(picture(64, 64))
    measured = peak_bytes(lambda: segmenter(image))
    sizes = sizes_of(segmenter.method, size, encoder.multiple if segmenter.method.merge == "splice" else 1, 10)
    plan = encoder.cap.plan(sizes._replace(window=(32, 32)), most_windows=most_windows)
    assert plan.windows == most_windows
    planned = plan.peak - encoder.cap.fixed
    assert planned / 5 < measured <= planned


def least(segmenter, size):
    """The smallest cap that a picture can be segmented under."""
    low, high = segmenter._encoder.cap.fixed, 8 * 10**9
    while high - low > 1000:
        middle = (low + high) // 2
        try:
            segmenter._encoder.cap._replace(size=middle).plan(
                sizes_of(segmenter.method, size, 8, None)._replace(window=(32, 32)), most_windows=8
            )
            high = middle
        except ValueError:
            low = middle
    return high


@pytest.mark.parametrize("name", ["s2clip", "proxyclip", "sclip"])
def test_a_tight_cap_changes_rounding_only(name, models):
    size = (96, 128)
    image, free = picture(*size), make(models, name)
    tight = make(models, name, max_memory=least(make(models, name, max_memory="8GB"), size) + 20_000)
    expected, result = free(image), tight(image)
    rounding = confidence_rounding(free.method.logit_scale)
    torch.testing.assert_close(result.confidence, expected.confidence, rtol=0, atol=rounding)
    assert (result.segmentation == expected.segmentation).float().mean() > 0.999
    assert len(expected.segmentation.unique()) > 1
    with pytest.raises(ValueError, match="max_memory: expected at least"):
        make(models, name, max_memory=tight._encoder.cap.fixed + 20_000)(image)


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("rules", [{}, {"threshold": 0.2}, {"area_threshold": 0.2}, {"threshold": 0.2, "pamr": True}])
def test_deciding_word_by_word(at_once, rules, models):
    fields = {"pamr_iterations": 2} if rules.pop("pamr", False) else {}
    segmenter = make(models, "sclip", background=0 if rules else None, **rules, **fields)
    encoded, words = segmenter.encode(picture(60, 90)), segmenter._vocabulary
    expected = segmenter.segment(encoded)
    limited = dataclasses.replace(encoded, words_at_once=at_once)
    result = segmenter.segment(limited)
    rounding = {"rtol": 0, "atol": confidence_rounding(segmenter.method.logit_scale)}
    torch.testing.assert_close(result.confidence, expected.confidence, **rounding)
    assert (result.segmentation == expected.segmentation).float().mean() > 0.999
    dense, chunked = (segmenter.scores(one) for one in (encoded, limited))
    assert isinstance(chunked, WordScores) == (at_once < len(words.words))
    sizes = [(60, 90)] if "area_threshold" in rules else [(60, 90), (30, 45)]  # else resized after the softmax
    for size in sizes:
        torch.testing.assert_close(chunked.whole(size), dense.whole(size), **rounding)
    step = 60 // sizes[-1][0]
    labels = expected.segmentation[::step, ::step]
    for one, other in zip(chunked.summary(labels), dense.summary(labels), strict=True):
        torch.testing.assert_close(one, other, **rounding)


def test_pixels_that_are_not_finite_are_marked():
    cosines = torch.rand(3, 4, 4)
    cosines[1, 2, 2] = torch.nan
    options = {"scale": 40.0, "class_index": (0, 1, 2), "device": torch.device("cpu")}
    scores = WordScores(lambda words: cosines[list(words)], (4, 4), at_once=2, **options)
    labels, confidence = scores.decide(threshold=0.0, background=None, area_threshold=None)
    assert labels[2, 2] == -1
    assert confidence[2, 2].isnan()
    assert (labels >= 0).sum() == 15


def test_the_load_counts_shared_tensors_once(models):
    segmenter = make(models, "s2clip")
    load = load_of(segmenter._models, segmenter.method)
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for model in models.values()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.numel()
    }
    assert load.weights == sum(tensors.values())
    assert (load.clip, load.vfm) == (Tower(6, 48, 8), Tower(2, 24, 4))
    assert load.levels == 3
    assert load_of(segmenter._models, METHODS["sclip"]).vfm is None


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
@pytest.mark.parametrize("cap", [None, "2GB"])
def test_shapes_that_no_machine_holds_are_refused_beforehand(size, cap):
    """One window as long as the picture: the attention of 1x3000 has 10^12 numbers and more."""
    segmenter = Segmenter.from_pretrained("tiny", method="cliper", max_memory=cap).set_classes("sky, tree")
    with pytest.raises(ValueError, match=f"a picture of {size[0]}x{size[1]} with these models and windows"):
        segmenter(np.zeros((*size, 3), np.uint8))
    ordinary = segmenter(np.zeros((40, 60, 3), np.uint8))
    assert ordinary.segmentation.shape == (40, 60)


def test_what_others_leave_of_the_machine_is_what_there_is(monkeypatch):
    """Uncropped methods make one window of a long picture; the kernel ends who takes what is not free."""
    monkeypatch.setattr(memory, "machine_bytes", lambda device: 10**12)
    monkeypatch.setattr(memory, "left_bytes", lambda most, on_cuda: min(most, 10**9))
    segmenter = Segmenter.from_pretrained("tiny", method="cliper").set_classes("sky, tree")
    with pytest.raises(ValueError, match=r"needs .*GB, and this machine has 1000GB, of which 1GB are free: cut it"):
        segmenter(np.zeros((1, 300, 3), np.uint8))
    assert segmenter(np.zeros((40, 60, 3), np.uint8)).segmentation.shape == (40, 60)


def test_the_machines_memory_is_known():
    assert 0 < memory.left_bytes(1 << 62, False) < 1 << 62
    assert memory.left_bytes(1 << 62, True) == 1 << 62
    assert 1 << 28 < memory.machine_bytes(torch.device("cpu")) < 1 << 63
