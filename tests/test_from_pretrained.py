"""Segmenters by name: what is checked before anything loads, what is loaded, and what windows they have."""

import logging

import pytest
import torch
from small_models import picture, small_clip, small_vfm
from torch._dynamo.utils import counters

from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import METHODS, get_method
from s2clip.segmenter import Segmenter
from s2clip.testing import confidence_rounding

CLASSES = ["sky", "house; hut", "tree", "green grass"]
GEOMETRY = {"short_side": 40, "crop": 32, "stride": 16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "ViT-B-99"}, "model: expected one of tiny, ViT-B-16, ViT-L-14, ViT-H-14, .*, received 'ViT-B-99'"),
        ({"vfm": "dino"}, "vfm: expected one of tiny-dino, dino-s16"),
        ({"vfm": "dino", "method": "clip"}, "vfm: expected one of"),
        ({"method": "slip"}, "method: expected one of clip, maskclip"),
        ({"refine": "best"}, "refine: expected one of none"),
        ({"sigma": 3}, "keyword: expected one of from_pretrained or a field of Method, received 'sigma'"),
        ({"tau": -1}, r"Method\.tau: expected"),
        ({"crop": -5}, r"Method\.crop: expected"),
    ],
)
def test_from_pretrained_checks_before_it_loads(arguments, message):
    with pytest.raises(ValueError, match=message):
        Segmenter.from_pretrained(**{"model": "ViT-H-14", "local_files_only": True, **arguments})


@pytest.fixture
def loads(clip, vfm, monkeypatch):
    """What from_pretrained loads: (role, name, options) in order, answered by the small models."""
    calls = []
    monkeypatch.setattr("s2clip.loading.load_clip", lambda name, **o: calls.append(("clip", name, o)) or clip)
    monkeypatch.setattr("s2clip.loading.load_vfm", lambda name, **o: calls.append(("vfm", name, o)) or vfm)
    return calls


def test_from_pretrained_loads_what_the_method_needs(loads, tmp_path):
    Segmenter.from_pretrained("ViT-B-16", device="cpu", cache_dir=tmp_path, local_files_only=True)
    Segmenter.from_pretrained()
    Segmenter.from_pretrained("ViT-L-14", method="sclip", vfm="dinov2-s14")
    Segmenter.from_pretrained("tiny", vfm="dino-s8", method="sclip", vfm_weight=1.0)
    assert [(role, name) for role, name, _ in loads] == [
        *[("clip", "ViT-B-16"), ("vfm", "dino-b8"), ("clip", "tiny"), ("vfm", "tiny-dino")],
        *[("clip", "ViT-L-14"), ("clip", "tiny"), ("vfm", "dino-s8")],
    ]
    expected = {
        "weights": "pretrained",
        "device": "cpu",
        "dtype": None,
        "cache_dir": tmp_path,
        "local_files_only": True,
    }
    assert loads[0][2] == loads[1][2] == expected


def test_windows_come_from_the_method_then_the_model_then_the_call(loads):
    def windows(*arguments, **options):
        method = Segmenter.from_pretrained(*arguments, method="clearclip", **options).method
        return method.short_side, method.crop, method.stride

    tiny = RECIPES["tiny"]
    assert windows("ViT-B-16") == (448, 448, 224)
    assert windows("tiny") == (tiny.short_side, tiny.crop, tiny.stride)
    assert windows("tiny", crop=48, stride=24) == (tiny.short_side, 48, 24)
    assert windows("ViT-B-16", short_side=0, crop=0) == (None, None, 224)


def test_constructor_checks(clip, vfm):
    with pytest.raises(ValueError, match="vfm: expected a vision foundation model for method proxyclip"):
        Segmenter(clip, method="proxyclip")
    with pytest.raises(ValueError, match="crop: expected a multiple of 8, the patch of small, for merge='splice'"):
        Segmenter(clip, vfm=vfm, method=get_method("s2clip", crop=36, stride=8))
    with pytest.raises(ValueError, match="stride: expected a multiple of 8"):
        Segmenter(clip, vfm=vfm, method=get_method("s2clip", crop=32, stride=12))
    with pytest.raises(ValueError, match="max_batch: expected at least 1, received 0"):
        Segmenter(clip, method=METHODS["clip"], max_batch=0)


def test_compiled_backbones_give_the_same(monkeypatch, caplog):
    """Two graphs per backbone: one batch size, then any."""
    sources = [picture(50, 71, seed=1), picture(40, 40, seed=2), picture(50, 71, seed=3), picture(40, 90, seed=4)]
    options = {"method": "s2clip", "templates": "plain", **GEOMETRY, "max_batch": 4, "mix_pictures": False}

    def load(compiled):
        monkeypatch.setattr("s2clip.loading.load_clip", lambda *_, **__: small_clip())
        monkeypatch.setattr("s2clip.loading.load_vfm", lambda *_, **__: small_vfm())
        return Segmenter.from_pretrained("ViT-B-16", text_cache=False, compile=compiled, **options).set_classes(CLASSES)

    expected = load(False)(sources)
    torch.compiler.reset()
    counters.clear()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend="eager", **options))
    with caplog.at_level(logging.WARNING, logger="s2clip"):
        segmenter = load(True)
    assert "compiling the blocks of small and small-dino: the first pictures wait" in caplog.text
    for one, other in zip(segmenter(sources), expected, strict=True):
        rounding = confidence_rounding(get_method("s2clip").logit_scale)
        torch.testing.assert_close(one.confidence, other.confidence, rtol=0, atol=rounding)
    assert 2 <= counters["stats"]["unique_graphs"] <= 4
    torch.compiler.reset()
