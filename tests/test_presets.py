"""Presets: every method on every benchmark, with fields that exist, published words and a source."""

import dataclasses

import pytest

from s2clip import Segmenter
from s2clip.evaluation.benchmarks import DATASETS, benchmark
from s2clip.evaluation.presets import preset
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import METHODS
from s2clip.refinement.settings import Refinement, resolve_settings
from s2clip.words.text import vocabulary

MODELS = ("ViT-B-16", "ViT-L-14", "ViT-H-14", "tiny")
PAIRS = [(method, dataset) for method in METHODS for dataset in DATASETS]


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_every_field_exists_and_every_value_is_allowed(method, dataset):
    for model in MODELS:
        chosen = preset(method, dataset, model)
        resolved = chosen.resolve(model)
        assert resolved.name == method
        for name, value in chosen.fields.items():
            owner = resolved.extension if name.startswith("extension.") else resolved
            if model not in RECIPES:
                held = getattr(owner, name.removeprefix("extension."))
                assert held == (tuple(value) if isinstance(value, list) else value)
        resolve_settings("sam-vit-b", chosen.refine)
        assert len(vocabulary(chosen.prompts, allow_repeats=True).classes) == len(benchmark(dataset).classes)
        assert chosen.source
        assert chosen.published == (not chosen.source.startswith("default: "))


@pytest.mark.parametrize(("method", "dataset"), PAIRS)
def test_a_threshold_needs_a_background(method, dataset):
    chosen = preset(method, dataset)
    resolved = chosen.resolve("ViT-B-16")
    if benchmark(dataset).background is None:
        assert (resolved.threshold, resolved.area_threshold or 0) == (0, 0)
    else:
        assert chosen.background == 0


# as the configuration files of the public repositories have them
PUBLISHED = [
    ("sclip", "voc21", {"logit_scale": 65, "threshold": 0.1, "area_threshold": 0.1, "crop": 224, "short_side": 336}),
    ("sclip", "coco_stuff", {"short_side": 448, "logit_scale": 40, "threshold": 0}),
    ("sclip", "cityscapes", {"short_side": 560}),
    ("clearclip", "coco_object", {"threshold": 0.4, "crop": 448, "stride": 224, "logit_scale": 50, "short_side": 448}),
    ("clearclip", "cityscapes", {"crop": 224, "stride": 224}),
    ("naclip", "voc20", {"crop": None, "logit_scale": 40}),
    ("naclip", "context60", {"crop": 224, "threshold": 0.1}),
    ("proxyclip", "coco_object", {"threshold": 0.25, "crop": 336, "stride": 112, "short_side": 336}),
    ("proxyclip", "ade20k", {"short_side": 448, "crop": 336}),
    ("proxyclip", "cityscapes", {"short_side": 448, "crop": 224}),
    ("corrclip", "context60", {"threshold": 0.15, "crop": 336, "stride": 112, "short_side": 336}),
    ("corrclip", "cityscapes", {"threshold": 0, "crop": 224, "short_side": 448}),
    ("scclip", "coco_object", {"logit_scale": 55, "threshold": 0.35}),
    ("naclip", "ade20k", {"pamr_iterations": 10, "pamr_dilations": (8, 16)}),
    ("cliper", "voc21", {"threshold": 0.6, "crop": None, "short_side": 336, "templates": "cliper15"}),
    ("cliper", "cityscapes", {"short_side": 560, "threshold": 0, "logit_scale": 100, "templates": "imagenet80"}),
    ("trident", "voc20", {"stride": 112, "short_side": 336}),
    ("trident", "cityscapes", {"stride": 224, "short_side": 688}),
    ("trident", "context59", {"short_side": 576, "crop": 336}),
]


@pytest.mark.parametrize(("method", "dataset", "values"), PUBLISHED)
def test_published_values(method, dataset, values):
    chosen = preset(method, dataset)
    assert chosen.published
    resolved = chosen.resolve("ViT-B-16")
    assert {name: getattr(resolved, name) for name in values} == values


def test_words_of_no_class_are_a_setting_of_cliper():
    settings = preset("cliper", "voc20").resolve("ViT-B-16").extension
    assert settings.background_words[:2] == ("ground", "land")
    assert settings.attention_threshold == 0.1
    assert preset("cliper", "voc21").resolve("ViT-B-16").extension.background_words == ()
    large = preset("cliper", "context60", "ViT-L-14").resolve("ViT-L-14").extension
    assert (large.level, large.score_threshold) == (-2, 0.3)
    assert preset("cliper", "voc21", "ViT-H-14").source.endswith("; the values of ViT-B-16")


def test_the_large_model_of_scclip_has_its_own_values():
    small, large = (preset("scclip", "voc21", model).resolve(model) for model in ("ViT-B-16", "ViT-L-14"))
    assert (small.logit_scale, small.threshold) == (50, 0.15)
    assert (large.logit_scale, large.threshold) == (40, 0.2)


def test_trident_has_its_extension_and_its_refinement_by_data_set():
    city, ade, voc20 = (
        preset("trident", name).resolve("ViT-B-16").extension for name in ("cityscapes", "ade20k", "voc20")
    )
    assert (city.cosine_factor, city.neg_threshold_floor, city.halves) == (3.0, 0.6, True)
    assert (ade.cosine_factor, ade.neg_threshold_floor, ade.halves) == (1.2, 0.6, False)
    assert (voc20.cosine_factor, voc20.neg_threshold_floor) == (0.0, None)
    options = preset("trident", "coco_object").options("ViT-B-16", "trident")
    assert (options["vfm"], options["sam"], options["refine_options"]["coarse_threshold"]) == (
        "dino-b16",
        "sam-vit-b",
        0.25,
    )
    assert Refinement(**options["refine_options"]).minimal_area == 225


@pytest.mark.parametrize("dataset", DATASETS)
def test_published_rows_are_the_published_computation(dataset):
    for refine in ("sam", "trident"):
        assert preset("trident", dataset).options("ViT-B-16", refine)["refine_options"]["faithful"]
        assert "faithful" not in preset("s2clip", dataset).options("ViT-B-16", refine)["refine_options"]
    assert preset("corrclip", dataset).resolve("MetaCLIP-B-16").extension.faithful


def test_the_tiny_model_keeps_its_windows_models_and_areas():
    chosen = preset("trident", "voc21")
    options = chosen.options("tiny", "sam")
    assert options.keys() == {"method", "refine", "refine_options"}
    assert "minimal_area" not in options["refine_options"]
    segmenter = Segmenter.from_pretrained("tiny", **preset("sclip", "voc21").options("tiny"))
    recipe = dataclasses.asdict(RECIPES["tiny"])
    assert {name: getattr(segmenter.method, name) for name in recipe} == recipe
    assert segmenter.method.threshold == 0.1


def test_published_words_may_stand_in_two_classes():
    """ "bed" is a class of COCO-Object and a word of its published background; CorrCLIP's list is without it."""
    chosen = preset("trident", "coco-object", "tiny")
    words = [word for entry in chosen.prompts for word in entry.split("; ")]
    assert words.count("bed") == 2
    segmenter = Segmenter.from_pretrained("tiny", **preset("sclip", "coco_object").options("tiny"))
    with pytest.raises(ValueError, match="every name once, received 'bed'"):
        segmenter.set_classes(chosen.prompts, background=0)
    assert chosen.set_classes(segmenter).classes == chosen.prompts


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method: expected one of clip, maskclip, .*, s2clip-source, received 'lavg'"):
        preset("lavg", "voc21")
    with pytest.raises(ValueError, match="dataset: expected one of voc21"):
        preset("clip", "scenes")
