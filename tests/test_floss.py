"""FLOSS's choice of templates: re-stated pixel by pixel, made beforehand or in the picture, refused where none fits."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import picture, small_clip, small_vfm

from s2clip import Segmenter
from s2clip.decision import experts
from s2clip.methods import get_method
from s2clip.methods.stages import STAGES, TemplateChoice, stage_name

CLASSES = ["sky", "house; hut", "tree", "sea"]
TEMPLATES = ("a photo of a {}.", "the {}", "many {} here", "art of the {}.", "one {}")
WINDOWS = {"short_side": 40, "crop": 32, "stride": 16, "templates": TEMPLATES}


@pytest.fixture(scope="module")
def models():
    return {"clip": small_clip(), "vfm": small_vfm()}


def make(models, name="naclip", **fields):
    method = get_method(name, **{**WINDOWS, **STAGES["floss"], **fields})
    return Segmenter(**models, method=method).set_classes(CLASSES)


def softmax(values):
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def class_probabilities(words, owner):
    return [max(p for p, own in zip(words, owner, strict=True) if own == index) for index in range(max(owner) + 1)]


def dense_choice(segmenter, encoded, count):
    """Per class the templates of lowest mean entropy, pixel by pixel."""
    owner, scale = [0, 1, 1, 2, 3], segmenter.method.logit_scale
    vectors = segmenter._text.by_template(["sky", "house", "hut", "tree", "sea"], TEMPLATES)
    table = []
    for rows in vectors:
        total, hits = torch.zeros(5, *encoded.canvas), torch.zeros(encoded.canvas)
        for features, box in zip(encoded.features, encoded.boxes, strict=True):
            cosines = torch.einsum("qc,chw->qhw", rows, features)
            window = F.interpolate(cosines[None], encoded.padded, mode="bilinear", align_corners=False)[0]
            height, width = box.size
            total[:, box.top : box.bottom, box.left : box.right] += window[:, :height, :width]
            hits[box.top : box.bottom, box.left : box.right] += 1
        whole = F.interpolate((total / hits)[None], encoded.size, mode="bilinear", align_corners=False)[0]
        found = [[] for _ in range(4)]
        for pixel in whole.flatten(1).T.tolist():
            p = class_probabilities(softmax([scale * value for value in pixel]), owner)
            found[p.index(max(p))].append(-sum(value * math.log(value + 1e-10) for value in p))
        table.append([sum(own) / len(own) if own else None for own in found])
    ranked = [sorted((row[k], t) for t, row in enumerate(table) if row[k] is not None) for k in range(4)]
    return [tuple(number for _, number in own[:count]) for own in ranked]


@pytest.mark.parametrize("count", [1, 3])
def test_templates_are_those_of_lowest_entropy(models, count):
    segmenter = make(models, template_choice=TemplateChoice(count=count))
    encoded = segmenter.encode(picture(21, 27))
    expected = dense_choice(segmenter, encoded, count)
    vectors = segmenter._by_template(segmenter._require_classes())
    found = experts.lowest(*experts.entropies(encoded, vectors, (0, 1, 1, 2, 3), segmenter.method), count)
    assert found == expected
    assert any(found)
    chosen = segmenter.choose_templates([picture(21, 27)], count=count).chosen
    assert dict(chosen) == dict(zip(CLASSES, expected, strict=True))


def dense_fusion(features, size, text, rows_of, owner, scale):
    """Pixel by pixel: the surest expert among those that call the pixel theirs, else all templates."""

    def maps(rows):
        p = torch.softmax(scale * torch.einsum("qc,chw->qhw", rows, features), 0)
        return F.interpolate(p[None], size, mode="bilinear", align_corners=False)[0]

    default, own = maps(text), {index: maps(rows) for index, rows in rows_of.items()}
    fused = default.clone()
    claims = 0
    for y in range(size[0]):
        for x in range(size[1]):
            best = None
            for index, p in own.items():
                word = max(range(len(owner)), key=lambda q: float(p[q, y, x]))
                if owner[word] == index and (best is None or p[word, y, x] > best[0]):
                    best = (p[word, y, x], p)
            if best is not None:
                claims += 1
                fused[:, y, x] = best[1][:, y, x]
    return fused, claims


@pytest.mark.parametrize("seed", [0, 1])
def test_experts_are_fused_as_published(seed):
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(16, 4, 5, generator=generator), dim=0)
    by_template = F.normalize(torch.randn(6, 5, 16, generator=generator), dim=-1)
    text, owner = experts.expert(by_template, range(6)), [0, 1, 1, 2, 3]
    rows_of = {0: experts.expert(by_template, (1, 4)), 1: experts.expert(by_template, (2,)), 3: by_template[5]}
    expected, claims = dense_fusion(features, (11, 9), text, rows_of, owner, 12.0)
    fused = experts.fuse(features, (11, 9), text, rows_of, torch.tensor(owner), 12.0)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-6)
    assert 0 < claims < 99


@pytest.mark.parametrize("name", ["naclip", "s2clip"])
def test_it_decides_by_window_and_by_picture(models, name):
    segmenter, image = make(models, name), picture(40, 61)
    result = segmenter(image)
    plain = segmenter.with_method(name, **WINDOWS)(image)
    assert result.segmentation.shape == (40, 61)
    assert not torch.equal(result.confidence, plain.confidence)
    assert stage_name(segmenter.method) == "floss"
    choice = segmenter.choose_templates([image])
    again = segmenter.with_method(name, **WINDOWS, template_choice=choice)(image)
    assert torch.equal(again.confidence, result.confidence)
    scores = segmenter.scores(segmenter.encode(image)).whole((40, 61))
    assert torch.equal(scores.argmax(0), result.segmentation)


def test_without_an_expert_all_templates_decide(models):
    segmenter = make(models, "s2clip", template_choice=TemplateChoice(chosen=(("sky", ()),)))
    encoded = segmenter.encode(picture(40, 61))
    text = segmenter.encode_words(["sky", "house", "hut", "tree", "sea"])
    words = torch.softmax(segmenter.method.logit_scale * torch.einsum("qc,chw->qhw", text, encoded.features[0]), 0)
    words = F.interpolate(words[None], (40, 61), mode="bilinear", align_corners=False)[0]
    classes = torch.stack([words[0], torch.maximum(words[1], words[2]), words[3], words[4]])
    result = segmenter.segment(encoded)
    torch.testing.assert_close(result.confidence, classes.amax(0), rtol=1e-4, atol=1e-5)


def test_a_choice_over_pictures_sums_their_pixels(models):
    segmenter = make(models)
    both = segmenter.choose_templates([picture(21, 27), picture(21, 27, seed=1)], count=2)
    vectors, sums, pixels = segmenter._by_template(segmenter._require_classes()), 0, 0
    for seed in (0, 1):
        encoded = segmenter.encode(picture(21, 27, seed=seed))
        own = experts.entropies(encoded, vectors, (0, 1, 1, 2, 3), segmenter.method)
        assert int(own[1].sum()) == len(TEMPLATES) * 21 * 27
        sums, pixels = sums + own[0], pixels + own[1]
    assert [numbers for _, numbers in both.chosen] == experts.lowest(sums, pixels, 2)


def test_what_it_does_not_go_with_is_refused():
    for fields in ({"pamr_iterations": 10}, STAGES["pearl"], STAGES["freecp"], {"area_threshold": 0.1}):
        with pytest.raises(ValueError, match=r"^Method.template_choice: expected None with propagation"):
            get_method("naclip", **STAGES["floss"], **fields)
    with pytest.raises(ValueError, match=r"^Method.template_choice: expected None for cliper, whose decision"):
        get_method("cliper", **STAGES["floss"])
    with pytest.raises(ValueError, match=r"^TemplateChoice.count: expected a whole number >= 1, received 0"):
        TemplateChoice(count=0)
    with pytest.raises(ValueError, match=r"^TemplateChoice.chosen: expected None or \(class, numbers"):
        TemplateChoice(chosen=(("sky", (-1,)),))


def test_no_picture_is_no_choice(models):
    segmenter = make(models)
    with pytest.raises(ValueError, match=r"^images: expected at least one picture, received none"):
        segmenter.choose_templates([])
    with pytest.raises(ValueError, match=r"^max_memory: expected None with purification or template_choice"):
        Segmenter(**models, method=segmenter.method, max_memory="4GB")
