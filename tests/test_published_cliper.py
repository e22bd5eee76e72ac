"""CLIPer against a dense re-statement: one block, one head and one window at a time, on no square picture."""

import dataclasses
import json
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from dense_cliper import (
    GRID,
    PICTURE,
    SHORT,
    SIZE,
    ShiftAffinity,
    canvas,
    dense_decision,
    dense_levels,
    dense_out,
)
from small_models import HEADS, LAYERS, picture, small_clip, small_sam

from s2clip import scenes
from s2clip.decision.scores import DenseScores
from s2clip.encoding.encoder import Encoder
from s2clip.encoding.hooks import Models
from s2clip.methods.recipe import RECIPES
from s2clip.published import levels_attention
from s2clip.published.catalogue import METHODS, get_method
from s2clip.published.cliper import choose, foreground_scores
from s2clip.published.levels_attention import crop_features, level_features, sharpen
from s2clip.refinement.refiner import Refiner
from s2clip.refinement.settings import Refinement
from s2clip.segmenter import Segmenter
from s2clip.testing import confidence_rounding
from s2clip.words.text import resolve_templates

SLIDING = {"extension.sliding_crop": 32, "extension.sliding_stride": 16}


@pytest.fixture(scope="module")
def clip():
    return small_clip()


@pytest.fixture(scope="module")
def exact_clip():
    return small_clip().double()


def unit_rows(count, width=32, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def encode(clip, pixels=PICTURE, **fields):
    return Encoder(Models(clip), get_method("cliper", **SHORT, **fields))([pixels])[0]


# Features and attention


def test_levels_and_attention_agree_with_the_dense_restatement(exact_clip):
    encoded = encode(exact_clip)
    assert encoded.features.shape == (1, LAYERS, exact_clip.embed_dim, *GRID)
    with torch.inference_mode():
        units, attention, grid = dense_levels(small_clip().double(), canvas())
    assert grid == GRID
    expected = torch.stack([unit.T.unflatten(1, GRID) for unit in units])
    torch.testing.assert_close(encoded.features[0].double(), expected, rtol=0, atol=1e-5)
    scale = attention.amax()
    torch.testing.assert_close(encoded.extra["attention"][0].double() / scale, attention / scale, rtol=0, atol=1e-5)
    assert attention.amax() > 3 * attention.mean()  # no flat map, which would agree with anything


def test_groups_of_heads_change_nothing(exact_clip, monkeypatch):
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        together = level_features(exact_clip, images)
        monkeypatch.setattr(levels_attention, "GROUP", 1)
        for part, whole in zip(level_features(exact_clip, images), together, strict=True):
            torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)


def test_maps_of_all_blocks_are_never_held(clip):
    """Their sum, and up to three arrays of its size at work: not the five blocks' maps beside each other."""
    block, alive, most = HEADS * 401 * 401 * 4, [], 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal most
            output = function(*arguments, **(keywords or {}))
            if isinstance(output, torch.Tensor) and output.untyped_storage().nbytes() == block:
                alive.append(weakref.ref(output))
            held = {one.untyped_storage().data_ptr() for one in (known() for known in alive) if one is not None}
            most = max(most, len(held))
            return output

    with torch.inference_mode(), Watch():
        level_features(clip, torch.rand(1, 3, 160, 160))
    assert 2 <= most <= 4


def test_rows_that_are_cut_to_zeros_keep_their_token():
    flat = torch.full((2, 5, 5), 0.2)
    torch.testing.assert_close(sharpen(flat), torch.eye(5).expand(2, -1, -1))


# Windows


def test_windows_need_multiples_of_the_patch(clip):
    with pytest.raises(ValueError, match="sliding_stride: expected a multiple of 8, the patch of small, received 12"):
        crop_features(clip, torch.rand(3, *SIZE), 32, 12, 8)


def test_batches_of_windows_change_nothing(exact_clip):
    image = canvas()
    with torch.inference_mode():
        one, many = (crop_features(exact_clip, image, 32, 16, size) for size in (1, 4))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)


# The decision


CASES = {
    "as published without background": {},
    "background competes": {"background": 1, "extension.normalise": True},
    "as VOC21": {
        "background": 0,
        "threshold": 0.35,
        "extension.score_threshold": 0.3,
        "extension.normalise": True,
        "extension.background_words": ("ground", "lake"),
    },
    "the level before the last": {"extension.level": -2, "extension.attention_threshold": 0.6, "logit_scale": 40.0},
    "windows": SLIDING,
    "Stable Diffusion": {"extension.stable_diffusion": True, "background": 2, "threshold": 0.85},
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_dense_restatement(name, clip):
    fields = dict(CASES[name])
    background = fields.pop("background", None)
    method = get_method("cliper", **SHORT, **fields)
    extension = method.extension
    count, extra = 4, len(extension.extra_words)
    text = unit_rows(count + extra)
    classes = [index for index in range(count) if index != background]
    affinity = ShiftAffinity() if extension.stable_diffusion else None
    models = Models(clip, diffusion=affinity)
    encoded = Encoder(models, method)([PICTURE])[0]
    with torch.inference_mode():
        decision = extension.decide(encoded, text, tuple(range(count)), background, models, method, with_scores=True)
        out = dense_out(
            small_clip().double(),
            PICTURE,
            text.double(),
            classes,
            scale=method.logit_scale,
            level=extension.level,
            cut=extension.attention_threshold,
            sliding=extension.sliding_crop is not None,
        )
    refined = out if affinity is None else affinity.refine(None, out)
    settings = {"score_threshold": extension.score_threshold, "normalise": extension.normalise}
    labels, best = dense_decision(
        out, refined, encoded.size, classes, background, threshold=method.threshold, **settings
    )
    shown = (1 - best) ** 2 if background is not None and method.threshold == 0 else torch.zeros_like(best)
    confidence = torch.maximum(best, shown).clamp(max=1)
    rounding = confidence_rounding(method.logit_scale)
    torch.testing.assert_close(decision.confidence.double(), confidence, rtol=0, atol=rounding)
    assert (decision.labels == labels).float().mean() > 0.999  # but for ties in the last bit
    chosen = set(decision.labels.unique().tolist())
    assert len(chosen) > 1
    assert background is None or background in chosen
    planes = decision.scores.planes(range(count), encoded.size)
    torch.testing.assert_close(planes[classes].amax(0).double(), best.clamp(min=0), rtol=0, atol=rounding)
    if affinity is not None:
        image, threshold = affinity.asked[0]
        assert threshold == extension.attention_threshold
        assert torch.equal(image, PICTURE / 255)


def test_words_of_a_class_take_its_best(clip):
    """Two words of class 0 and the background's in the middle; each softmax is over all words and the mean."""
    text = unit_rows(5)
    features = unit_rows(6, seed=1).T[None]
    scores = foreground_scores(features, text, (0, 0, 1, 2), 1, 10.0)
    rows = [*text[[0, 1, 3]], *text[[2, 4]], text[[0, 1, 3]].mean(0) / text[[0, 1, 3]].mean(0).norm()]
    shares = torch.softmax(10.0 * torch.stack(rows) @ features[0], 0)
    torch.testing.assert_close(scores[0], torch.stack([torch.maximum(shares[0], shares[1]), shares[2]]))


def test_a_pixel_without_background_always_has_a_class():
    """Every class under the score threshold: the highest stays where no background can take its place."""
    method = get_method("cliper", **{"extension.score_threshold": 1.0})
    maps = (
        torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, 0.9, 0.5])[:, None, None]
    )
    kept = method.extension.heights(maps, maps, (8, 10), keep_best=True)
    assert [bool(plane.any()) for plane in kept] == [False, True, False]
    dropped = method.extension.heights(maps, maps, (8, 10), keep_best=False)
    assert not dropped.any()
    labels, confidence, planes = choose(DenseScores(dropped), (8, 10), [0, 2, 3], 1, 0.5)
    assert (labels == 1).all()
    assert not confidence.any()
    assert planes.shape == (4, 4, 5)
    assert (planes[1] == 1).all()


def test_a_flat_map_is_no_nan_when_stretched():
    method = get_method("cliper", **{"extension.normalise": True})
    flat = torch.full((2, 4, 5), 0.25)
    assert method.extension.heights(flat, flat, (8, 10), keep_best=True).isfinite().all()


# In the pipeline


@pytest.fixture
def segmenter(clip):
    return Segmenter(clip, method=get_method("cliper", **SHORT))


def test_a_picture_does_not_depend_on_its_company(exact_clip):
    method = get_method("cliper", **SHORT, **SLIDING)
    pictures = [picture(50, 75, 1), picture(50, 75, 2), picture(70, 41, 3)]
    encoder = Encoder(Models(exact_clip), method, mix_pictures=True)
    for pixels, together in zip(pictures, encoder(pictures), strict=True):
        alone = encoder([pixels])[0]
        torch.testing.assert_close(together.features, alone.features, rtol=1e-5, atol=1e-5)
        for name in ("attention", "crops"):
            torch.testing.assert_close(together.extra[name], alone.extra[name], rtol=1e-5, atol=1e-5)


def test_low_precision_follows_full_precision(clip):
    """bf16 backbones (fp16's CPU stand-in): attention is added up and balanced in fp32 either way."""
    full, low = encode(clip, **SLIDING), encode(small_clip().to(torch.bfloat16), **SLIDING)
    assert low.extra["attention"].dtype == torch.float32
    assert F.cosine_similarity(full.features, low.features, dim=2).mean() > 0.98
    for name in ("attention", "crops"):
        assert F.cosine_similarity(full.extra[name].flatten(), low.extra[name].flatten(), dim=0) > 0.98


def test_background_words_are_rows_and_no_class(clip):
    words = ("ground", "lake")
    method = get_method("cliper", **SHORT, **{"extension.background_words": words})
    plain = Segmenter(clip, method=get_method("cliper", **SHORT)).set_classes(["sky", "tree", "house"])
    segmenter = Segmenter(clip, method=method).set_classes(["sky", "tree", "house"])
    result = segmenter(PICTURE)
    assert result.classes == ("sky", "tree", "house")
    assert int(result.segmentation.max()) < 3
    assert not torch.equal(result.confidence, plain(PICTURE).confidence)


def test_a_class_among_the_background_words_is_refused(clip):
    method = get_method("cliper", **{"extension.background_words": ("ground", "Tree")})
    with pytest.raises(ValueError, match="classes: expected every name once, received 'Tree'"):
        Segmenter(clip, method=method).set_classes(["sky", "tree"])


def test_a_background_alone_is_refused(segmenter):
    segmenter.set_classes(["background"], background=0)
    with pytest.raises(ValueError, match="classes: expected one beside the background, received none"):
        segmenter(PICTURE)


def test_a_level_the_model_does_not_have_is_refused(clip):
    segmenter = Segmenter(clip, method=get_method("cliper", **SHORT, **{"extension.level": -7})).set_classes(
        "sky, tree"
    )
    with pytest.raises(ValueError, match=r"Cliper\.level: expected -1 to -6 for this model, received -7"):
        segmenter(PICTURE)


def test_stable_diffusion_must_be_there(clip):
    method = get_method("cliper", **{"extension.stable_diffusion": True})
    with pytest.raises(ValueError, match="diffusion: expected a DiffusionAffinity for method cliper"):
        Segmenter(clip, method=method)


def test_the_refinement_leaves_the_smoothing_to_the_method(clip):
    """refine="sam+sd": one pass of the affinity, before the thresholds, and SAM on what came out."""
    affinity = ShiftAffinity()
    refiner = Refiner(
        small_sam(), Refinement(minimal_area=4, sam_iou_threshold=-10.0), refine="sam+sd", diffusion=affinity
    )
    segmenter = Segmenter(clip, refiner=refiner, method=get_method("cliper", **SHORT)).set_classes("sky, tree, house")
    result = segmenter(PICTURE)
    assert len(affinity.asked) == 1
    assert len(result.refined.accepted) > 0


def test_run_json_names_the_extension(segmenter):
    settings = json.loads(json.dumps(segmenter.settings))
    assert settings["method"]["extension"]["kind"] == "cliper"
    assert settings["method"]["extension"]["background_words"] == []


def test_a_models_recipe_leaves_the_whole_picture():
    """The method relies on having no windows of its own; the size of the picture is the recipe's."""
    adapted = RECIPES["tiny"].adapt(METHODS["cliper"])
    assert adapted.crop is None
    assert adapted.short_side == RECIPES["tiny"].short_side


def test_templates():
    templates = resolve_templates("cliper15")
    assert len(templates) == len(set(templates)) == 15
    assert all(template.count("{}") == 1 for template in templates)
    assert "This is a photo of a medium {}." in templates


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_threshold", 1.5),
        ("score_threshold", -0.1),
        ("score_threshold", math.nan),
        ("level", 0),
        ("level", -1.0),
        ("normalise", None),
        ("background_words", "sky, tree"),
        ("background_words", ("sky", " ")),
        ("sliding_crop", 0),
        ("sliding_stride", 0),
        ("stable_diffusion", "yes"),
    ],
)
def test_wrong_settings_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"Cliper\.{field}: expected .*, received ") as caught:
        get_method("cliper", **{f"extension.{field}": value})
    assert repr(value) in str(caught.value)


def test_a_stride_beyond_the_crop_is_refused():
    with pytest.raises(ValueError, match=r"Cliper\.sliding_stride: expected .* at most the crop, 64, received 112"):
        get_method("cliper", **{"extension.sliding_crop": 64})


@pytest.mark.parametrize(("field", "value"), [("merge", "splice"), ("crop", 224), ("area_threshold", 0.1)])
def test_fields_that_would_do_nothing_cannot_be_changed(field, value):
    with pytest.raises(ValueError, match=rf"Method\.{field}: expected .* for cliper, received "):
        dataclasses.replace(METHODS["cliper"], **{field: value})


def test_on_scenes():
    """The embedded models, with windows of the size they were trained at: most pixels right."""
    windows = {"extension.sliding_crop": 64, "extension.sliding_stride": 32}
    segmenter = Segmenter.from_pretrained("tiny", method="cliper", **windows).set_classes(scenes.CLASSES)
    right = total = 0
    for seed in range(3):
        pixels, labels = scenes.generate(seed)
        right += int((segmenter(pixels).segmentation.numpy() == labels).sum())
        total += labels.size
    assert right > 0.5 * total
