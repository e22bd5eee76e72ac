import pytest
import torch
import torch.nn.functional as F
from small_models import small_clip

from s2clip.words.text import TextEncoder, Vocabulary, parse_classes, read_classes, resolve_templates, vocabulary


@pytest.fixture(scope="module")
def clip():
    return small_clip()


class Counting:
    """A CLIP that counts its text batches."""

    def __init__(self, clip):
        self.clip, self.batches = clip, []

    def encode_text(self, texts):
        self.batches.append(texts)
        return self.clip.encode_text(texts)


def test_words_that_become_the_same_tokens_are_encoded_once(clip, monkeypatch):
    """A small vocabulary makes "unknown" of most of three thousand classes; the vectors are those of each alone."""
    runs, encode = [], clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda texts: runs.append(texts) or encode(texts))
    words = ["tac", "cat", "act", "dog"]  # the small tokenizer adds letters up
    together = TextEncoder(clip)(words, "plain")
    assert len(runs) == 2
    for word, row in zip(words, together, strict=True):
        assert torch.equal(TextEncoder(clip)([word], "plain")[0], row)


def test_prompts_of_other_lengths_change_nothing(clip):
    texts = ["a cat", "a photo of many very small cats and one dog on the grass", "dog", "a photo of a dog"]
    alone = torch.cat([F.normalize(clip.encode_text([text]), dim=1) for text in texts])
    torch.testing.assert_close(F.normalize(clip.encode_text(texts), dim=1), alone, rtol=0, atol=1e-6)


def test_words_of_a_class():
    words = vocabulary(["sky", "house; hut", "tree"])
    assert words == Vocabulary(("sky", "house; hut", "tree"), ("sky", "house", "hut", "tree"), (0, 1, 1, 2))
    assert vocabulary("sky, house;hut ,  tree") == words
    assert vocabulary("sky\nhouse; hut\ntree") == words
    assert vocabulary(["person with clothes, people"]).words == ("person with clothes, people",)


def test_class_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeff# landscape\nsky\n\n  house ; hut\ntraffic light\n", encoding="utf-8")
    assert vocabulary(read_classes(path)).classes == ("sky", "house; hut", "traffic light")


def test_parse_classes():
    assert parse_classes(" sky, house; hut,tree ") == ["sky", "house; hut", "tree"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "expected at least one name"),
        ("", "expected at least one name"),
        ("  \n", "expected at least one name"),
        ("sky,,tree", "expected no empty name, received '' at position 1"),
        ("sky,", "expected no empty name"),
        (["sky", "house; "], "received 'house; ' at position 1"),
        (["sky", "tree", "sky"], "expected every name once, received 'sky' in 'sky' and in 'sky'"),
        (["sky", "tree; SKY"], "received 'SKY' in 'sky' and in 'tree; SKY'"),
        (["big  house", "big house"], "every name once"),
        (["house; house"], "every name once"),
        (["sky", 3], "expected strings, received 3 at position 1"),
    ],
)
def test_wrong_classes(classes, message):
    with pytest.raises(ValueError, match=r"^classes: ") as caught:
        vocabulary(classes)
    assert message in str(caught.value)


def test_finding_the_background():
    words = vocabulary(["sky", "house; hut"])
    assert [words.find(name) for name in (None, 1, "sky", "Hut", "house;  hut")] == [None, 1, 0, 1, 1]
    for wrong in (2, -1, "tree", True, 0.0):
        with pytest.raises(ValueError, match="background: expected one of sky, house; hut, or its number"):
            words.find(wrong)


def test_the_eighty_templates():
    templates = resolve_templates("imagenet80")
    assert len(set(templates)) == 80
    assert "itap of a {}." in templates
    assert resolve_templates("imagenet85")[:80] == templates
    assert len(set(resolve_templates("imagenet85"))) == 85
    assert "this is one {} in the scene." in resolve_templates("imagenet85")
    assert resolve_templates("plain") == ("a photo of a {}.",)
    assert resolve_templates(("the {}",)) == ("the {}",)


def test_unit_vectors_averaged_and_normalised(clip):
    words = ["sky", "red house"]
    rows = []
    for word in words:
        units = [
            F.normalize(clip.encode_text([t.replace("{}", word)])[0], dim=0) for t in resolve_templates("imagenet80")
        ]
        rows.append(F.normalize(torch.stack(units).mean(0), dim=0))
    vectors = TextEncoder(clip)(words)
    assert vectors.shape == (2, clip.embed_dim)
    torch.testing.assert_close(vectors, torch.stack(rows), rtol=0, atol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_a_word_is_encoded_once_and_alone(clip):
    counting = Counting(clip)
    encoder = TextEncoder(counting)
    first = encoder(["sky", "tree"], "plain")
    assert counting.batches == [["a photo of a sky."], ["a photo of a tree."]]
    again = encoder(["house", "tree", "sky"], "plain")
    assert counting.batches[2:] == [["a photo of a house."]]
    assert torch.equal(again[2], first[0])
    encoder(["sky"], ("a {}",))
    assert counting.batches[3:] == [["a sky"]]


def test_the_cache_forgets_the_least_recently_used(clip):
    counting = Counting(clip)
    encoder = TextEncoder(counting, capacity=2)
    for words in (["a", "b"], ["a"], ["c"], ["a"], ["b"]):
        encoder(words, ("{}",))
    assert counting.batches == [["a"], ["b"], ["c"], ["b"]]


def test_braces_in_a_word_are_just_letters(clip):
    counting = Counting(clip)
    TextEncoder(counting)(["{0} {x}"], ("a {} there",))
    assert counting.batches == [["a {0} {x} there"]]
