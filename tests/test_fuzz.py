"""Whatever stands in a file: a picture or an `ImageError` of one line, within time and memory. More: `make fuzz`."""

import contextlib
import os
import random
import time

import hypothesis.strategies as st
import pytest
import torch
from fuzzing import mutated, picture_seeds
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save

from s2clip.backbones.weights import Fingerprint, read_tensors
from s2clip.errors import DatasetError, ImageError, WeightsError
from s2clip.evaluation import records
from s2clip.pictures.images import read_image
from s2clip.pictures.label_maps import picture_size, read_label_map
from s2clip.words.text import read_classes, vocabulary

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", 700))
SECONDS = 20
"""Of one file: ordinary ones take milliseconds; a process that is ended had 5."""
SEEDS = picture_seeds()
PROFILE = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
NUMBERS = st.integers(0, 2**63)

pytestmark = pytest.mark.filterwarnings("ignore")  # what Pillow says of damaged metadata


def examples(share):
    return settings(max_examples=max(1, round(MUTATIONS * share)), **PROFILE)


def held_to_one_line(error, path):
    text = str(error)
    assert text.startswith(f"{path}: ")
    assert len(text) <= 300
    assert "\n" not in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@examples(0.7)
@given(name=st.sampled_from(sorted(SEEDS)), number=NUMBERS)
def test_pictures(folder, name, number):
    path = folder / "picture"
    path.write_bytes(mutated(SEEDS[name], random.Random(number)))
    start = time.perf_counter()
    shape = None
    try:
        image = read_image(path, max_pixels=1_000_000, max_seconds=5)
        shape = tuple(image.shape[1:])
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert 0 < image[0].numel() <= 1_000_000
    except ImageError as error:
        held_to_one_line(error, path)
    try:
        size = picture_size(path)
    except DatasetError as error:
        held_to_one_line(error, path)
        size = None
    assert shape is None or shape == size
    assert time.perf_counter() - start < SECONDS


@examples(0.2)
@given(name=st.sampled_from(sorted(SEEDS)), number=NUMBERS)
def test_label_maps(folder, name, number):
    path = folder / "labels"
    path.write_bytes(mutated(SEEDS[name], random.Random(number)))
    try:
        ids = read_label_map(path)
        assert ids.ndim == 2
        assert ids.dtype.kind in "iu"
    except DatasetError as error:
        held_to_one_line(error, path)


@examples(0.1)
@given(number=NUMBERS)
def test_class_lists(folder, number):
    path = folder / "classes.txt"
    path.write_bytes(mutated("sky\nhouse; hut # a comment\nBäume, 木\n\n".encode(), random.Random(number)))
    with contextlib.suppress(ValueError, OSError):
        assert vocabulary(read_classes(path)).classes


@examples(0.1)
@given(number=NUMBERS)
def test_run_logs(folder, number):
    log = folder / "run" / "records" / "0-of-1.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    pictures = [{"index": index, "name": str(index), "counts": [[0, 1, 5]]} for index in range(3)]
    records.append(log, {"pictures": pictures, "seconds": 1.0, "stages_ms": {"clip": 2.0}, "peak_mib": {"host": 3.0}})
    log.write_bytes(mutated(log.read_bytes(), random.Random(number)))
    tally = records.tally(records.read(folder / "run"), 2, range(3))
    assert tally.done <= {0, 1, 2}


@examples(0.1)
@given(number=NUMBERS, suffix=st.sampled_from(["pt", "safetensors"]))
def test_weights(folder, number, suffix):
    path = folder / f"weights.{suffix}"
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)}
    if suffix == "pt":
        torch.save(tensors, path)
    else:
        path.write_bytes(save(tensors))
    path.write_bytes(mutated(path.read_bytes(), random.Random(number)))
    with contextlib.suppress(WeightsError):
        read = read_tensors("tiny", path, Fingerprint(path))
        assert all(isinstance(value, torch.Tensor) for value in read.values())
