"""The embedded CLIP: its words, its file, and that it learnt the scenes from captions."""

import dataclasses
import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from open_clip.model import CLIP
from torch.nn import functional as F

from s2clip import scenes
from s2clip.backbones import tiny
from s2clip.backbones.clip import load_clip
from s2clip.backbones.tiny_tokenizer import UNKNOWN, WordTokenizer, read_vocabulary, split_words
from s2clip.evaluation.scenes import evaluate
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import get_method
from s2clip.segmenter import Segmenter

WORDS = [(index, word) for index, entry in enumerate(scenes.CLASSES) for word in entry.split("; ")]


@pytest.fixture(scope="module")
def loaded():
    return tiny.load_clip_model()


@pytest.fixture(scope="module")
def tokenizer():
    return WordTokenizer(["a", "hot-air", "house", "of", "photo"], context_length=6)


def test_words_become_ids_between_start_and_end(tokenizer):
    assert tokenizer("a photo of").tolist() == [[1, 3, 7, 6, 8, 0]]
    assert tokenizer.vocab_size == 9
    assert tokenizer(["a", "A Hot-Air, HOUSE!"]).tolist() == [[1, 3, 8, 0, 0, 0], [1, 3, 4, 5, 8, 0]]
    assert tokenizer([]).shape == (0, 6)


def test_a_long_text_is_cut_and_keeps_its_end(tokenizer):
    tokens = tokenizer("a photo of a house of a photo")
    assert tokens.tolist() == [[1, 3, 7, 6, 3, 8]]
    assert tokens.argmax(dim=1).item() == 5  # where CLIP's text tower reads


def test_unknown_words_are_named_once_in_order(tokenizer):
    texts = ["a zebra house", "Quagga of zebra"]
    assert tokenizer.unknown_words(texts) == ["zebra", "quagga"]
    assert tokenizer("zebra")[0, 1] == UNKNOWN
    assert tokenizer.unknown_words("photo of a house") == []
    scripts = "Straße – Кошка, 木、नदी; 🌳 house, hot-air zebra_1"
    assert tokenizer.unknown_words(scripts) == ["straße", "кошка", "木", "नदी", "🌳", "zebra", "1"]


def test_every_class_word_in_every_template_is_known_and_fits(loaded):
    _, tokenize = loaded
    prompts = [template(word) for template in OPENAI_IMAGENET_TEMPLATES for _, word in WORDS]
    assert tokenize.unknown_words(prompts) == []
    assert max(len(split_words(prompt)) for prompt in prompts) <= tokenize.context_length - 2


def test_the_vocabulary_is_sorted_unique_and_fits_the_model(loaded):
    model, tokenize = loaded
    words = read_vocabulary()
    assert list(words) == sorted(set(words))
    assert all(split_words(word) == [word] for word in words)
    assert model.vocab_size == tokenize.vocab_size == len(words) + 4


def test_it_is_open_clips_class_ready_for_inference(loaded):
    model, _ = loaded
    assert type(model) is CLIP
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.visual.image_mean == open_clip.OPENAI_DATASET_MEAN
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_random_weights_are_the_same_each_time_and_leave_the_global_state_alone(loaded):
    state = torch.random.get_rng_state()
    first, second = (tiny.load_clip_model(random=True)[0].state_dict() for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == loaded[0].state_dict().keys()
    assert not torch.equal(first["visual.proj"], loaded[0].state_dict()["visual.proj"])


@torch.no_grad()
def test_it_recognises_what_is_visible_in_scenes_it_never_saw(loaded):
    """Picture against words, whole scenes shrunk to the training crop: average precision of the visible classes."""
    model, tokenize = loaded
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (tiny.IMAGE_MEAN, tiny.IMAGE_STD))
    painted = [scenes.generate(seed, (64, 64)) for seed in range(5000, 5120)]
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in painted]).float() / 255
    visible = np.zeros((len(painted), len(scenes.CLASSES)), bool)
    for row, (_, labels) in enumerate(painted):
        visible[row, scenes.visible_classes(labels, 0.03)] = True
    prompts = [f"a photo of a {entry.split('; ')[0]}." for entry in scenes.CLASSES]
    image = F.normalize(model.encode_image((images - mean) / std), dim=-1)
    scores = (image @ F.normalize(model.encode_text(tokenize(prompts)), dim=-1).T).numpy()

    precisions = []
    for index in range(len(scenes.CLASSES)):
        ranked = visible[np.argsort(-scores[:, index]), index]
        hits = np.cumsum(ranked)
        precisions.append((hits / np.arange(1, len(ranked) + 1))[ranked].mean())
    assert np.mean(precisions) > 0.8, json.dumps(dict(zip(scenes.CLASSES, np.round(precisions, 2), strict=True)))


@torch.no_grad()
def test_words_of_one_class_mean_the_same(loaded):
    model, tokenize = loaded
    text = F.normalize(model.encode_text(tokenize([f"a photo of a {word}." for _, word in WORDS])), dim=-1)
    similarity = text @ text.T
    classes = torch.tensor([index for index, _ in WORDS])
    same = (classes[:, None] == classes[None]) & ~torch.eye(len(classes), dtype=torch.bool)
    other = classes[:, None] != classes[None]
    assert similarity[same].min() > similarity[other].max()


def test_recombined_attention_segments_and_the_plain_last_block_does_not():
    """The embedded benchmark in small: 8 held-out scenes, mIoU in per cent. 200 scenes: see tools/README.md."""
    clip = load_clip("tiny")
    recombined = get_method("s2clip", levels=(), vfm_weight=None)
    methods = (get_method("clip"), dataclasses.replace(recombined, terms=("qk",)), recombined)
    segmenters = [Segmenter(clip=clip, method=RECIPES["tiny"].adapt(method)) for method in methods]
    plain, query_key, self_self = (row["miou"] for row in evaluate(segmenters, range(8)))
    assert self_self > 60
    assert self_self > plain + 20
    assert self_self > query_key + 20
