"""CLIPSurgery, GEM and SC-CLIP against dense re-statements, on pictures that are no squares and at several depths."""

import math

import pytest
import torch
import torch.nn.functional as F
from dense_published import GRID, dense_clipsurgery, dense_gem, dense_scclip
from small_models import PATCH, WIDTH, picture, small_clip

from s2clip import Segmenter, scenes
from s2clip.encoding.hooks import Models, Windows
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import METHODS, get_method
from s2clip.published.clipsurgery import ClipSurgery
from s2clip.published.gem import Gem
from s2clip.published.scclip import ScClip
from s2clip.stopwatch import Stopwatch

TOLERANCE = 1e-5
DENSE = {"clipsurgery": dense_clipsurgery, "gem": dense_gem, "scclip": dense_scclip}
DEPTHS = (2, 6, 12)


@pytest.fixture(scope="module")
def clips():
    return {layers: small_clip(layers=layers).double() for layers in DEPTHS}


@pytest.fixture(scope="module")
def images():
    return torch.stack([picture(6 * PATCH, 10 * PATCH, seed) for seed in (3, 4)]).double() / 255


def features(images, method, clip):
    with torch.inference_mode():
        watch = Stopwatch(images.device)
        return method.extension.window_features(Windows(images), Models(clip), method, watch).maps


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("name", DENSE)
def test_agrees_with_the_dense_restatement(name, layers, clips, images):
    clip = clips[layers]
    maps = features(images, METHODS[name], clip)
    assert maps.shape == (2, WIDTH, *GRID)
    with torch.inference_mode():
        expected = torch.stack([DENSE[name](clip, image) for image in images])
        actual = maps.flatten(2).mT
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
        unit, expected_unit = (F.normalize(clip.head(tokens), dim=-1) for tokens in (actual, expected))
        torch.testing.assert_close(unit, expected_unit, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", DENSE)
def test_a_window_does_not_depend_on_its_batch(name, clips, images):
    together = features(images, METHODS[name], clips[6])
    alone = torch.cat([features(image[None], METHODS[name], clips[6]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9 * float(alone.abs().max()))


def test_methods_differ(clips, images):
    every = [features(images, METHODS[name], clips[6]) for name in DENSE]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (every[first] - every[second]).abs().max() > 0.01 * every[first].abs().max()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("clipsurgery", {"extension.depth": 1}),
        ("clipsurgery", {"terms": ("kk",)}),
        ("clipsurgery", {"terms": ("vv", "kk"), "weights": (0.9, 0.1)}),
        ("gem", {"extension.depth": 3}),
        ("gem", {"extension.iterations": 0}),
        ("gem", {"extension.iterations": 3}),
        ("scclip", {"extension.blocks": (5, 2, 1, 4)}),
        ("scclip", {"extension.residual_cls": 0.0}),
        ("scclip", {"extension.similarity_threshold": 0.9}),
        ("scclip", {"extension.anomalies": "l2norm"}),
        ("scclip", {"extension.anomalies": "none"}),
        ("scclip", {"extension.neighbors": 2}),
        ("scclip", {"extension.contamination": 0.5}),
        ("scclip", {"terms": ("qq",)}),
        ("scclip", {"extension.sharpness": 30.0}),
    ],
    ids=str,
)
def test_every_setting_can_be_changed_and_matters(name, fields, clips, images):
    plain, other = (features(images, method, clips[6]) for method in (METHODS[name], get_method(name, **fields)))
    assert other.isfinite().all()
    assert (other - plain).abs().max() > 1e-4 * plain.abs().max()


def test_gem_without_and_with_more_iterations(clips, images):
    for iterations in (0, 2):
        method = get_method("gem", **{"extension.iterations": iterations})
        with torch.inference_mode():
            expected = torch.stack([dense_gem(clips[6], image, iterations) for image in images])
        actual = features(images, method, clips[6]).flatten(2).mT
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_sc_clip_at_other_blocks(clips, images):
    method = get_method("scclip", **{"extension.blocks": [10, 7, 2, 5], "extension.residual_cls": 0.8})
    with torch.inference_mode():
        expected = dense_scclip(clips[12], images[0], pre=9, post=6, multi=(1, 2, 3, 4), rho=0.8)
    actual = features(images[:1], method, clips[12])[0].flatten(1).T
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_the_stored_positions_stay_as_they_were(clips, images):
    clip = clips[6]
    before = clip.model.visual.positional_embedding.clone()
    first = features(images, METHODS["clipsurgery"], clip)
    features(images[..., :40], METHODS["clipsurgery"], clip)
    assert torch.equal(clip.model.visual.positional_embedding, before)
    assert torch.equal(features(images, METHODS["clipsurgery"], clip), first)


# The picture


def test_gem_sees_a_square():
    prepared = Gem().prepare(picture(60, 100), get_method("gem", short_side=32), 1)
    assert prepared.shape == (3, 32, 32)
    assert prepared.min() >= 0
    assert prepared.max() <= 1
    image = picture(60, 100)[None].double() / 255
    expected = F.interpolate(image, (32, 32), mode="bicubic", antialias=True)[0].clamp(0, 1)
    torch.testing.assert_close(prepared.double(), expected, atol=1e-5, rtol=0)
    kept = Gem(square=False).prepare(picture(60, 100), get_method("gem", short_side=30), 1)
    assert kept.shape == (3, 30, 50)
    native = Gem().prepare(picture(60, 100), get_method("gem", short_side=None), 1)
    assert native.shape == (3, 60, 100)


@pytest.mark.parametrize("name", DENSE)
def test_segments_scenes_with_the_embedded_model(name):
    segmenter = Segmenter.from_pretrained("tiny", method=name)
    segmenter.set_classes(scenes.CLASSES)
    found, pixels = 0, 0
    for seed in (1, 2):
        image, labels = scenes.generate(seed)
        result = segmenter(image)
        assert result.segmentation.shape == labels.shape
        found += int((result.segmentation == torch.from_numpy(labels)).sum())
        pixels += labels.size
    assert found > 0.6 * pixels  # the commonest class covers less than half of it
    described = segmenter.settings["method"]
    assert described["extension"]["kind"] == name
    assert described["short_side"] == RECIPES["tiny"].short_side


# Wrong settings


@pytest.mark.parametrize(
    ("extension", "field", "value"),
    [
        *[(kind, "depth", value) for kind in (ClipSurgery, Gem) for value in (0, 1.5, True)],
        *[(Gem, "iterations", value) for value in (-1, None)],
        (Gem, "square", 1),
        *[(ScClip, "blocks", value) for value in ((1, 2, 3), (1, 2, 4, 3), (0, 1, 1, 2), 5)],
        (ScClip, "residual_cls", math.nan),
        (ScClip, "similarity_threshold", None),
        (ScClip, "sharpness", 0),
        (ScClip, "anomalies", "LOF"),
        *[(ScClip, "neighbors", value) for value in (0, 2.0)],
        *[(ScClip, "contamination", value) for value in (-0.1, 1.1)],
    ],
)
def test_wrong_settings_name_field_and_value(extension, field, value):
    with pytest.raises(ValueError, match=rf"{extension.__name__}\.{field}: expected .*, received ") as caught:
        extension(**{field: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("gem", "terms", ("qq",)), ("clipsurgery", "residual", True), ("scclip", "gamma", 15.0), ("gem", "mu", 0.5)],
)
def test_fields_that_would_be_ignored_are_refused(name, field, value):
    with pytest.raises(ValueError, match=rf"Method\.{field}: expected .* for {name}, received"):
        get_method(name, **{field: value})


def test_fields_of_an_extension_are_set_by_name():
    assert get_method("gem", **{"extension.depth": 3}).extension == Gem(depth=3)
    assert METHODS["gem"].extension == Gem()
    with pytest.raises(
        ValueError, match=r"method: expected extension\.depth, extension\.iterations, extension\.square"
    ):
        get_method("gem", **{"extension.kind": "other"})
    with pytest.raises(ValueError, match=r"method: expected no field of an extension, received 'extension\.depth'"):
        get_method("naclip", **{"extension.depth": 3})
