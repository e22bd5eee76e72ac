"""Every model and vision foundation model in its real architecture, from picture to label map, on random weights."""

import open_clip
import pytest
import torch
from small_models import picture

from s2clip import Segmenter
from s2clip.backbones.clip import CLIP_NAMES, load_clip
from s2clip.backbones.sam import SAM_NAMES, load_sam
from s2clip.backbones.vfm import VFM_NAMES, load_vfm
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import get_method
from s2clip.refinement.automatic import AutomaticMasks, SamRegions
from s2clip.refinement.refiner import Refiner
from s2clip.refinement.settings import Refinement

MODELS = [name for name in CLIP_NAMES if name != "tiny"]
VFMS = [name for name in VFM_NAMES if name not in ("tiny-dino", "sam-tiny")]
LOADING = {"weights": "random", "device": "cpu"}
WINDOWS = {"short_side": 112, "crop": 112, "stride": 112, "templates": "plain"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vit_b16():
    return load_clip("ViT-B-16", **LOADING)


def check(segmenter):
    """A picture of two windows, and an upright one: labels at its size, from both shapes of grid."""
    segmenter.set_classes("sky, house; hut, tree")
    encoded = segmenter.encode(picture(70, 96))
    for result, size in ((segmenter.segment(encoded), (70, 96)), (segmenter(picture(96, 70)), (96, 70))):
        assert result.segmentation.shape == size
        assert result.confidence.isfinite().all()
        assert 0 <= result.segmentation.min() <= result.segmentation.max() < 3
    torch.testing.assert_close(encoded.features.norm(dim=1), torch.ones_like(encoded.features[:, 0]))
    assert encoded.features.shape[1] == segmenter.clip.embed_dim
    return encoded


@pytest.mark.parametrize("vfm", VFMS)
def test_every_vfm(vfm, vit_b16):
    check(Segmenter(vit_b16, vfm=load_vfm(vfm, **LOADING), method=get_method("s2clip", **WINDOWS)))


@pytest.fixture
def few_words(monkeypatch):
    """MetaCLIP 2 has 901,629 pieces of words, 3.7 GB of vectors: here 49,408."""
    complete = open_clip.get_model_config

    def config(name):
        found = complete(name)
        words = found["text_cfg"]
        return found | {"text_cfg": words | {"vocab_size": min(words.get("vocab_size", 49408), 49408)}}

    monkeypatch.setattr(open_clip, "get_model_config", config)


@pytest.mark.parametrize("method", ["proxyclip", "s2clip"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model(model, method, few_words):
    encoded = check(Segmenter.from_pretrained(model, vfm="dino-s16", method=method, **LOADING, **WINDOWS))
    spliced = (7, 10) if model.endswith("16") else (8, 11)
    assert encoded.features.shape[2:] == (spliced if method == "s2clip" else (7, 7))  # else DINO's, window by window


@pytest.mark.parametrize("name", [name for name in SAM_NAMES if name != "sam-tiny"])
def test_every_sam_refines_and_makes_regions(name):
    """The wide picture has one prompt, a region of the coarse map; the regions nine."""
    sam, clip = load_sam(name, **LOADING), load_clip("tiny", device="cpu")
    settings = Refinement(minimal_area=1, sam_iou_threshold=-10.0)
    refiner = Refiner(sam, settings, name=name)
    method = RECIPES["tiny"].adapt(get_method("maskclip", templates="plain"))
    segmenter = Segmenter(clip, method=method, refiner=refiner).set_classes("sky, house; hut, tree")
    result = segmenter(picture(70, 96))
    assert result.segmentation.shape == (70, 96)
    assert result.refined is not None
    every = AutomaticMasks(points_per_side=3, iou_threshold=-10.0, stability_threshold=0.0)
    ids = SamRegions(sam, every, name)(picture(70, 96))
    assert ids.shape == (70, 96)


def test_the_papers_windows_at_full_size(vit_b16):
    method = get_method("proxyclip", templates="plain")
    segmenter = Segmenter(vit_b16, vfm=load_vfm("dino-b8", **LOADING), method=method)
    encoded = segmenter.encode(picture(375, 500))
    assert (encoded.canvas, len(encoded.boxes)) == ((336, 448), 2)
    assert encoded.features.shape == (2, 512, 42, 42)
    assert segmenter.segment(encoded, "sky, house; hut, tree").segmentation.shape == (375, 500)
