"""What the analyses show of a picture: colours, views, and the stages of a method."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from small_models import LAYERS, picture

from s2clip import scenes
from s2clip.analysis.layers import prepare
from s2clip.analysis.patches import patch_at
from s2clip.analysis.pictures import scene_pictures
from s2clip.analysis.projection import principal_colours, project
from s2clip.analysis.stages import heat_maps, stages
from s2clip.analysis.views import feature_maps, parse_view, pixel_of
from s2clip.published.catalogue import get_method
from s2clip.segmenter import Segmenter

CLASSES = ["sky", "water; sea", "grass"]


@pytest.fixture(scope="module")
def segmenter(clip, vfm):
    windows = {"short_side": 48, "crop": 32, "stride": 16, "vfm_scale": 1.0}
    return Segmenter(clip, vfm=vfm, method=get_method("s2clip", **windows)).set_classes(CLASSES)


# Projection


def test_projection_is_scikit_learns():
    vectors = np.random.default_rng(3).normal(size=(30, 7)) * np.arange(1, 8)
    points, share = project(torch.from_numpy(vectors))
    oracle = PCA(2).fit(vectors)
    np.testing.assert_allclose(share, oracle.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(np.abs(points), np.abs(oracle.transform(vectors)), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="vectors: expected at least two, received 1"):
        project(torch.ones(1, 7))


def test_equal_patches_have_equal_colours_and_the_main_axis_is_lightness():
    features = torch.zeros(2, 6, 5)
    features[..., 0] = torch.linspace(-3, 3, 6)
    features[1, :, 1] = 0.5
    (colours,) = principal_colours([features])
    grey = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(grey[0]) > 0).all()
    assert ((colours >= 0) & (colours <= 1)).all()
    first, second = principal_colours([features, features.flip(1)])
    np.testing.assert_allclose(first, second[:, ::-1])


# Views


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("3", ("3", "layer", 3)), ("kk", ("kk", "term", LAYERS)), ("qk@2", ("qk@2", "term", 2))],
)
def test_views_by_name(clip, name, wanted):
    assert parse_view(name, clip) == wanted
    assert parse_view("s2clip", clip).kind == "method"
    assert parse_view("dino-b8", clip).kind == "vfm"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7", f"layers: expected 1 to {LAYERS} for small, received 7"),
        ("qq@0", f"layers: expected 1 to {LAYERS} for small, received 0"),
        ("qx", f"view: expected a block 1..{LAYERS}, two of q, k, v"),
        ("qq@", "view: expected a block"),
    ],
)
def test_views_that_do_not_exist(clip, name, message):
    with pytest.raises(ValueError, match=message):
        parse_view(name, clip)


def test_views_are_what_they_say(clip, vfm, segmenter):
    pixels = picture(48, 64)
    names = ["2", "qk@2", "vv", "s2clip"]
    layer, second, values, method = feature_maps(
        pixels, [parse_view(name, clip) for name in names], clip, {}, {"s2clip": segmenter}, short_side=0
    )
    images = prepare(pixels, clip, 0)
    with torch.inference_mode():
        states, grid = clip.hidden_states(images)
        torch.testing.assert_close(layer.features, states[2][0, 1:].unflatten(0, grid))
        # block 2 is X_1 + attention, then + FFN: the view is the attention alone
        after = states[1] + torch.cat([torch.zeros_like(states[1][:, :1]), second.features.flatten(0, 1)[None]], 1)
        torch.testing.assert_close((after + clip.feed_forward(after, 1))[:, 1:], states[2][:, 1:])
    torch.testing.assert_close(method.features.norm(dim=-1), torch.ones(method.grid))
    heat = values.attention((1, 2))
    assert heat.shape == grid
    query = values.queries[:, 1 + grid[1] + 2]
    weights = (query[:, None] @ values.keys.transpose(1, 2) / query.shape[1] ** 0.5).softmax(-1).mean(0)[0]
    np.testing.assert_allclose(heat.ravel(), weights[1:], rtol=1e-5)
    assert 0 < heat.sum() < 1  # the class token has the rest
    cosines = layer.affinity((1, 2))
    assert cosines[1, 2] == pytest.approx(1, abs=1e-6)
    flat = layer.features.flatten(0, 1).numpy()
    wanted = flat @ flat[grid[1] + 2] / np.linalg.norm(flat, axis=1) / np.linalg.norm(flat[grid[1] + 2])
    np.testing.assert_allclose(cosines.ravel(), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="attention is theirs, received CLIP 2"):
        layer.attention((0, 0))


def test_a_method_that_merges_pixels_is_spliced_to_be_seen(clip, segmenter):
    apart = segmenter.with_method(segmenter.method, merge="pixel")
    view = [parse_view("s2clip", clip)]
    (spliced,) = feature_maps(picture(48, 64), view, clip, segmenters={"s2clip": segmenter}, short_side=0)
    (pixels,) = feature_maps(picture(48, 64), view, clip, segmenters={"s2clip": apart}, short_side=0)
    assert torch.equal(spliced.features, pixels.features)


def test_places_in_a_picture():
    assert patch_at(63, 0, (48, 64), (6, 8)) == (0, 7)
    assert patch_at(8, 47.9, (48, 64), (6, 8)) == (5, 1)
    assert pixel_of((48, 64), patch=(5, 0), at=None, grid=(6, 8)) == (4, 44)
    assert pixel_of((48, 64), patch=None, at=(3, 4), grid=(6, 8)) == (3, 4)
    with pytest.raises(ValueError, match=r"at: expected x in 0..63 and y in 0..47, .* received 64,0"):
        pixel_of((48, 64), patch=None, at=(64, 0), grid=(6, 8))
    with pytest.raises(ValueError, match=r"patch: expected row in 0..5 and column in 0..7, received 6,0"):
        pixel_of((48, 64), patch=(6, 0), at=None, grid=(6, 8))


# Stages


def test_stages_build_the_method_up(segmenter):
    found = stages(segmenter)
    assert list(found) == ["last block as trained", "recombined: kk+vv", "with levels", "with affinity"]
    maps = heat_maps(found, picture(48, 64))
    for one in maps.values():
        assert one.scores.shape == (3, 48, 64)
        assert (one.scores.argmax(0) == one.segmentation).mean() > 0.99
    trained, recombined, levels, whole = (one.scores for one in maps.values())
    for before, after in ((trained, recombined), (recombined, levels), (levels, whole)):
        assert not np.allclose(before, after)
    np.testing.assert_array_equal(maps["with affinity"].segmentation, segmenter(picture(48, 64)).segmentation)
    plain = segmenter.with_method("maskclip", short_side=48, crop=32, stride=16)
    assert list(stages(plain)) == ["last block as trained", "recombined: v alone"]


def test_heat_after_a_refinement_is_the_own_class_confidence():
    tiny = Segmenter.from_pretrained("tiny", method="maskclip", refine="sam").set_classes(scenes.CLASSES)
    found = stages(tiny)
    assert list(found) == ["last block as trained", "recombined: v alone", "refined: sam"]
    assert [one.refiner is None for one in found.values()] == [True, True, False]
    pixels = scene_pictures(1).load(0).pixels
    result = tiny(pixels)
    heat = heat_maps({"last": found["refined: sam"]}, pixels)["last"]
    np.testing.assert_array_equal(heat.segmentation, result.segmentation)
    own = np.take_along_axis(heat.scores, heat.segmentation[None], 0)[0]
    np.testing.assert_array_equal(own, result.confidence)
    np.testing.assert_allclose(heat.scores.sum(0), own)  # nothing for the other classes
