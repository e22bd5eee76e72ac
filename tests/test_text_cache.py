"""Word vectors on disk: the same as computed, by content, whole under several writers, and never in the way."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small_models import small_clip

from s2clip.segmenter import Segmenter
from s2clip.words.text import TextEncoder
from s2clip.words.text_cache import FOLDER, VectorFiles, default_folder

WORDS = ["sky", "red house", "Bäume {}"]


@pytest.fixture(scope="module")
def clip():
    return small_clip()


class Counting:
    """A CLIP that counts what it encodes; attributes may be overridden."""

    def __init__(self, clip, **other):
        self.clip, self.other, self.texts = clip, other, []

    def __getattr__(self, name):
        return self.other[name] if name in self.other else getattr(self.clip, name)

    def encode_text(self, texts):
        self.texts += texts
        return self.clip.encode_text(texts)


def encode(clip, folder, words=WORDS, templates="plain", **other):
    counting = Counting(clip, **other)
    return TextEncoder(counting, files=VectorFiles(folder, counting))(words, templates), counting.texts


def test_a_second_process_encodes_nothing_and_gets_the_same_bits(clip, tmp_path):
    expected = TextEncoder(clip)(WORDS, "plain")
    first, texts = encode(clip, tmp_path / "new" / "folder")
    assert len(texts) == 3
    second, texts = encode(clip, tmp_path / "new" / "folder")
    assert texts == []
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    second[0, 0] = 2.0  # an ordinary tensor
    _, texts = encode(clip, tmp_path / "new" / "folder", [*WORDS, "sea"])
    assert texts == ["a photo of a sea."]


@pytest.mark.parametrize(
    "change",
    [
        {"templates": ("a {}",)},
        {"words": ["Sky", "red  house", "Bäume"]},
        {"name": "other"},
        {"weights_sha256": "0" * 64},
        {"dtype": torch.float16},
        {"embed_dim": 32, "weights_sha256": "1" * 64},
    ],
)
def test_anything_a_vector_depends_on_names_another_file(clip, tmp_path, change):
    encode(clip, tmp_path)
    _, texts = encode(clip, tmp_path, **change)
    assert len(texts) == 3


@pytest.mark.parametrize("damage", ["flip", "short", "empty", "folder"])
def test_a_damaged_file_is_recomputed_with_a_warning(clip, tmp_path, damage, caplog):
    expected, _ = encode(clip, tmp_path)
    path = VectorFiles(tmp_path, clip)._path("sky", ("a photo of a {}.",))
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"flip": content, "short": content[:50], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, logger="s2clip"):
        again, texts = encode(clip, tmp_path)
    assert texts == ["a photo of a sky."]
    assert torch.equal(again, expected)
    assert "'sky' is encoded again" in caplog.text
    if damage != "folder":
        assert encode(clip, tmp_path)[1] == []  # and it is repaired


def test_a_folder_that_cannot_be_written_is_said_once(clip, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="s2clip"):
        vectors, texts = encode(clip, tmp_path / "file" / "folder")
    assert len(texts) == 3
    assert torch.equal(vectors, TextEncoder(clip)(WORDS, "plain"))
    assert caplog.text.count("not kept") == 1


def test_several_writers_of_the_same_files(clip, tmp_path):
    def write_and_read(seed):
        files = VectorFiles(tmp_path, clip)
        for _ in range(20):
            for word in WORDS:
                files.store(word, ("{}",), torch.full((32,), float(len(word))))
                assert torch.equal(files.load(word, ("{}",)), torch.full((32,), float(len(word))))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(write_and_read, range(3))) == [None] * 3
    assert len(list(tmp_path.iterdir())) == len(WORDS)  # and no temporary file


def test_the_folder_lies_beside_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "hub" / "checkpoints" / FOLDER
    assert default_folder(tmp_path / "own") == tmp_path / "own" / FOLDER


@pytest.mark.parametrize(
    ("model", "options", "kept"),
    [
        ("ViT-B-16", {}, True),
        ("ViT-B-16", {"text_cache": False}, False),
        ("ViT-B-16", {"weights": "random"}, False),
        ("ViT-B-16", {"weights": "random", "text_cache": True}, False),
        ("tiny", {}, False),
        ("tiny", {"text_cache": True}, True),
    ],
)
def test_which_models_keep_their_vectors(model, options, kept, clip, monkeypatch, tmp_path):
    monkeypatch.setattr("s2clip.loading.load_clip", lambda name, **_: clip)
    segmenter = Segmenter.from_pretrained(model, method="clip", cache_dir=tmp_path, **options)
    segmenter.set_classes(["sky"])
    assert [path.name for path in tmp_path.iterdir()] == ([FOLDER] if kept else [])
