"""Decoding ahead: order, failures in their place, endless and slow sources, no threads left behind."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from s2clip.errors import ImageError
from s2clip.pictures.reading import Failure, Picture, Uploader, read, read_batches


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("s2clip-read")]


def write(folder, count, side=8):
    paths = []
    for index in range(count):
        paths.append(folder / f"{index}.png")
        Image.new("RGB", (side, side + index), (index, 0, 0)).save(paths[-1])
    return paths


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_batches_keep_the_order(workers, batch_size, tmp_path):
    paths = write(tmp_path, 10)

    def slow_first(path):  # with several workers later ones are ready before earlier ones
        time.sleep(0.01 if path.stem in "048" else 0)
        return read(path)

    batches = list(read_batches(paths, slow_first, batch_size=batch_size, workers=workers))
    assert [len(batch) for batch in batches] == [len(paths[i : i + batch_size]) for i in range(0, 10, batch_size)]
    flat = list(itertools.chain(*batches))
    assert [one.source for one in flat] == [str(path) for path in paths]
    assert [one.pixels.shape[1] for one in flat] == [8 + index for index in range(10)]
    assert not threads()


def test_decoding_happens_in_workers_while_the_consumer_is_busy(tmp_path):
    decoded = threading.Event()
    paths = write(tmp_path, 2)

    def decode(path):
        assert threading.current_thread().name.startswith("s2clip-read")
        if path == paths[1]:
            decoded.set()
        return read(path)

    batches = read_batches(paths, decode, batch_size=1, workers=1)
    next(batches)
    assert decoded.wait(10)  # the second is read although nobody asked for it yet
    batches.close()


@pytest.mark.parametrize(("workers", "expected"), [(0, [2, 4, 6]), (2, [4, 6, 8])])
def test_endless_sources_are_pulled_one_batch_ahead(workers, expected):
    pulled = []

    def endless():
        for index in itertools.count():
            pulled.append(index)
            yield np.zeros((2, 2, 3), np.uint8)

    batches = read_batches(endless(), read, batch_size=2, workers=workers)
    assert pulled == []
    for count in expected:
        assert len(next(batches)) == 2
        assert len(pulled) == count
    batches.close()
    assert not threads()


@pytest.mark.parametrize("end", ["close", "drop"])
def test_no_thread_stays(end, tmp_path):
    finished = []

    def decode(path):
        time.sleep(0.02)
        finished.append(path)
        return read(path)

    batches = read_batches(write(tmp_path, 40), decode, batch_size=20, workers=2)
    next(batches)
    assert threads()
    if end == "close":
        batches.close()
    del batches
    assert not threads()
    assert len(finished) < 30  # what waited was cancelled


def test_no_thread_stays_when_the_consumer_fails(tmp_path):
    with pytest.raises(RuntimeError, match="consumer"):
        _fail_after_first(read_batches(write(tmp_path, 3), read, batch_size=1, workers=2))
    assert not threads()


def _fail_after_first(batches):
    for _ in batches:
        raise RuntimeError("consumer")


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_stay_in_their_place(workers, tmp_path):
    paths = write(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    sources = [paths[0], tmp_path / "broken.png", paths[1], tmp_path / "missing.png", paths[2]]
    flat = list(itertools.chain(*read_batches(sources, read, batch_size=2, workers=workers)))
    assert [isinstance(one, Failure) for one in flat] == [False, True, False, True, False]
    assert flat[1].source == sources[1]
    assert isinstance(flat[3].error, ImageError)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_source_come_after_what_it_gave(workers):
    def breaking():
        for _ in range(3):
            yield np.zeros((2, 2, 3), np.uint8)
        raise OSError("camera unplugged")

    batches = read_batches(breaking(), read, batch_size=2, workers=workers)
    assert len(next(batches)) == 2
    assert len(next(batches)) == 1
    with pytest.raises(OSError, match="unplugged"):
        next(batches)
    assert not threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unexpected_error_of_decoding_is_raised(workers, tmp_path):
    def decode(path):
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        list(read_batches(write(tmp_path, 2), decode, batch_size=1, workers=workers))
    assert not threads()


def test_a_reused_buffer_is_copied_when_it_is_pulled():
    buffer = np.zeros((2, 2, 3), np.uint8)

    def camera():
        for value in range(5):
            buffer[:] = value
            yield buffer

    flat = list(itertools.chain(*read_batches(camera(), read, batch_size=2, workers=2)))
    assert [int(one.pixels.max()) for one in flat] == [0, 1, 2, 3, 4]


def test_one_lazy_pil_image_many_times(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)).save(tmp_path / "photo.jpg")
    expected = read(tmp_path / "photo.jpg").pixels
    with Image.open(tmp_path / "photo.jpg") as image:
        for batch in read_batches([image] * 6, read, batch_size=6, workers=3):
            assert all(torch.equal(one.pixels, expected) for one in batch)


def test_read_and_upload(tmp_path):
    picture = read(write(tmp_path, 1)[0])
    assert isinstance(picture, Picture)
    assert picture.milliseconds > 0
    assert picture.staged is None
    assert torch.equal(Uploader(torch.device("cpu"))(picture), picture.pixels)
    assert isinstance(read(write(tmp_path, 1)[0], max_pixels=10), Failure)
