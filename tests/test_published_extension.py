"""The seam: what a method's hooks are given, in which order, and what they give back."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from small_models import picture, small_clip

from s2clip import Segmenter
from s2clip.decision.decided import Decision
from s2clip.encoding.hooks import PictureFeatures, WindowFeatures
from s2clip.published.catalogue import METHODS, get_method
from s2clip.published.extension import SHARED_PATH, Extension
from s2clip.published.gem import Gem

WORDS = ["red", "green", "blue"]
SMALL = {"short_side": 40, "crop": 32, "stride": 16}


@dataclass(frozen=True, kw_only=True)
class Recorder(Extension):
    """The shared path, with notes on what went through it."""

    kind: str = field(default="recorder", init=False)
    seen: list = field(default_factory=list)

    needs_regions: ClassVar[bool] = True

    def prepare(self, picture, method, multiple):
        self.seen.append(("prepare", tuple(picture.shape)))
        return super().prepare(picture, method, multiple)

    def window_features(self, batch, models, method, watch):
        self.seen.append(("windows", batch))
        result = super().window_features(batch, models, method, watch)
        return WindowFeatures(result.maps, {"colour": batch.images.mean((2, 3)), "regions": batch.regions})

    def picture_features(self, maps, picture, models, method, watch):
        self.seen.append(("picture", tuple(maps.shape)))
        return PictureFeatures(maps.flip(2))

    def decide(self, encoded, text, class_index, background, models, method, *, with_scores):
        self.seen.append(("decide", encoded))
        decision = super().decide(encoded, text, class_index, background, models, method, with_scores=with_scores)
        return Decision(decision.labels.clamp(max=1), decision.confidence, decision.scores)


class Whole(Recorder):
    whole_picture: ClassVar[bool] = True


def quadrants(pixels, source):
    """Four ids, one per quarter of the picture."""
    height, width = pixels.shape[1:]
    rows, columns = torch.arange(height)[:, None] >= height // 2, torch.arange(width) >= width // 2
    return 2 * rows.int() + columns.int()


def segmenter(extension, regions=quadrants, **fields):
    method = get_method("naclip", extension=extension, **SMALL | fields)
    return Segmenter(small_clip(), method=method, regions=regions, max_batch=3).set_classes(WORDS)


@pytest.mark.parametrize("merge", ["pixel", "splice"])
def test_the_hooks_of_a_picture_in_their_order(merge):
    extension = Recorder()
    own = segmenter(extension, merge=merge)
    result = own(picture(40, 60))
    order = [name for name, _ in extension.seen]
    expected = ["prepare", *["windows"] * 2, *(["picture"] if merge == "splice" else []), "decide"]
    assert order == expected  # 2x3 windows, at most three at a time
    encoded = extension.seen[-1][1]
    assert encoded.extra["colour"].shape == (6, 3)
    assert torch.equal(encoded.regions, quadrants(picture(40, 60), None).long())
    assert result.segmentation.max() <= 1


@pytest.mark.parametrize("merge", ["pixel", "splice"])
def test_the_defaults_are_the_shared_path(merge):
    plain = get_method("naclip", merge=merge, **SMALL)
    through = dataclasses.replace(plain, extension=Extension())
    first, second = (Segmenter(small_clip(), method=method).set_classes(WORDS) for method in (plain, through))
    image = picture(40, 60)
    assert torch.equal(first.encode(image).features, second.encode(image).features)
    assert torch.equal(first(image).confidence, second(image).confidence)
    assert Extension() == SHARED_PATH


def test_the_features_of_a_picture_are_what_its_hook_says():
    mirrored = segmenter(Recorder(), merge="splice").encode(picture(40, 60)).features
    plain = Segmenter(small_clip(), method=get_method("naclip", merge="splice", **SMALL)).encode(picture(40, 60))
    torch.testing.assert_close(mirrored.flip(3), plain.features)


def test_windows_bring_their_regions():
    """Ids of the nearest pixel, cut as the picture is, and -1 where it is padded."""
    extension = Recorder()
    image = picture(52, 36)
    own = segmenter(extension, short_side=18)  # 26x18, padded to 32x24 windows
    own.encode(image)
    batch = extension.seen[1][1]
    assert batch.regions.shape == (1, 32, 24)
    inner = batch.regions[0, 3:29, 3:21]
    assert torch.equal(inner, quadrants(torch.empty(3, 26, 18), None).long())
    outside = batch.regions[0].clone()
    outside[3:29, 3:21] = -1
    assert (outside == -1).all()
    mean = small_clip().mean
    torch.testing.assert_close(batch.images[0, :, 0, 0], mean)


@pytest.mark.parametrize("mix", [False, True])
def test_a_method_of_whole_pictures_gets_one_picture_at_a_time(mix):
    extension = Whole()
    method = get_method("naclip", extension=extension, **SMALL)
    own = Segmenter(small_clip(), method=method, regions=quadrants, max_batch=3, mix_pictures=mix)
    own.set_classes(WORDS)
    own([picture(40, 60), picture(60, 40, 1)])
    batches = [value for name, value in extension.seen if name == "windows"]
    assert [len(batch.images) for batch in batches] == [6, 6]
    assert {batch.max_batch for batch in batches} == {3}


def test_what_windows_leave_stays_with_their_picture():
    """Windows of two pictures in one batch."""
    pictures = [picture(40, 60), picture(40, 60, 1)]
    method = get_method("naclip", extension=Recorder(), **SMALL)
    models = {"regions": quadrants, "max_batch": 4}
    together = Segmenter(small_clip(), method=method, mix_pictures=True, **models).set_classes(WORDS)
    together(pictures)
    kept = [value for name, value in method.extension.seen if name == "decide"]
    for one, image in zip(kept, pictures, strict=True):
        alone = segmenter(Recorder()).encode(image)
        for name in ("colour", "regions"):
            assert torch.equal(one.extra[name], alone.extra[name])


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (lambda pixels, source: torch.zeros(3, 4), r"torch\.float32 \[3, 4\]"),
        (lambda pixels, source: torch.zeros(5, 4, dtype=torch.int32), r"torch\.int32 \[5, 4\]"),
        (lambda pixels, source: torch.zeros(40, 60, dtype=torch.bool), r"torch\.bool \[40, 60\]"),
    ],
)
def test_wrong_regions_are_refused(answer, received):
    with pytest.raises(ValueError, match=rf"regions: expected integers \[H,W\] = \[40, 60\], received {received}"):
        segmenter(Recorder(), regions=answer).encode(picture(40, 60))


@pytest.mark.parametrize(
    ("need", "argument"),
    [("needs_vfm", "vfm"), ("needs_sam", "sam"), ("needs_diffusion", "diffusion"), ("needs_regions", "regions")],
)
def test_a_model_that_is_missing_is_named(need, argument):
    extension = type("Needy", (Extension,), {need: True})()
    with pytest.raises(ValueError, match=rf"{argument}: expected .* for method naclip, received None"):
        Segmenter(small_clip(), method=get_method("naclip", extension=extension))


def test_methods_stay_json_values_that_name_their_extension():
    for method in METHODS.values():
        described = json.loads(json.dumps(dataclasses.asdict(method)))
        assert (described["extension"] or {"kind": method.name})["kind"] == method.name
        assert hash(method) == hash(dataclasses.replace(method))
    assert dataclasses.asdict(get_method("gem", **{"extension.depth": 2}))["extension"] == {
        "kind": "gem",
        "depth": 2,
        "iterations": 1,
        "square": True,
    }


def test_an_extension_is_one():
    with pytest.raises(ValueError, match=r"Method\.extension: expected None or an Extension, received 'gem'"):
        get_method("clip", extension="gem")
    assert get_method("gem", extension=Gem(depth=2)).extension.depth == 2
