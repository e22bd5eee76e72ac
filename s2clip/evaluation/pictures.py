"""Pictures and annotations read ahead of the device by a few threads."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from s2clip.errors import DatasetError
from s2clip.evaluation.metrics import IGNORE
from s2clip.pictures.images import MAX_PIXELS, MAX_SECONDS
from s2clip.pictures.reading import Failure, Picture, read

THREADS = 4
BATCHES_AHEAD = 2


class Sample(Protocol):
    """A picture of a data set; `name` is unique in it and can be the stem of a file."""

    name: str
    image_path: Path
    annotation_path: Path


class Dataset(Protocol):
    """Pictures with a class id for every pixel: what can be evaluated on."""

    name: str
    classes: Sequence[str]
    background: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def annotation(self, index: int) -> Tensor:
        """Class ids [H,W], any integer dtype; 255 does not count. `S2ClipError` where there is none to be had."""


@dataclass(frozen=True, eq=False)
class Item:
    """One picture as it was read.

    picture: the pixels, a `Failure` where picture or annotation cannot be used, None where nobody looks at pixels.
    target: ids uint8 [H,W], or None after a failure. milliseconds: what reading took.
    """

    index: int
    name: str
    picture: Picture | Failure | None = None
    target: Tensor | None = None
    milliseconds: float = 0.0

    @property
    def error(self) -> str | None:
        """Why the picture cannot be used."""
        return one_line(self.picture.error) if isinstance(self.picture, Failure) else None


@dataclass(frozen=True)
class Reading:
    """Whether pixels are needed at all, their limits, and whether they go to pinned memory."""

    pixels: bool = True
    max_pixels: int = MAX_PIXELS
    max_seconds: float = MAX_SECONDS
    pin: bool = False


def read_item(dataset: Any, index: int, reading: Reading) -> Item:
    """Picture `index` with its annotation; whatever is wrong with the files becomes a `Failure`."""
    start = time.perf_counter()
    sample = dataset[index]
    path = os.fspath(sample.image_path)
    try:
        target = _target(dataset.annotation(index), len(dataset.classes), sample.annotation_path)
        limits = {"max_pixels": reading.max_pixels, "max_seconds": reading.max_seconds}
        picture = read(path, **limits, pin=reading.pin) if reading.pixels else None
        if isinstance(picture, Failure):
            return Item(index, sample.name, picture)
        if picture is not None and picture.pixels.shape[1:] != target.shape:
            height, width = picture.pixels.shape[1:]
            raise DatasetError(
                f"{sample.annotation_path}: expected {width}x{height}, the size of {path}, "
                f"received {target.shape[1]}x{target.shape[0]}"
            )
    except Exception as error:  # whatever a data set of one's own raises, too
        return Item(index, sample.name, Failure(path, error))
    return Item(index, sample.name, picture, target, 1000 * (time.perf_counter() - start))


def _target(ids: Tensor, classes: int, path: Path) -> Tensor:
    """The ids as uint8, an eighth of the bytes for the device and the metric."""
    counted = torch.where(ids == IGNORE, 0, ids)
    if counted.numel():
        low, high = (int(value) for value in counted.aminmax())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise DatasetError(f"{path}: expected labels 0 to {classes - 1} or {IGNORE}, received {wrong}")
    return ids.to(torch.uint8)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def batches(dataset: Any, chunks: Sequence[Sequence[int]], reading: Reading) -> Iterator[list[Item]]:
    """The items of each chunk of indices, in order, two chunks read ahead. Closing the iterator ends the threads.

    Chunks stay what they are, so that a GPU sees the same pictures together whatever was computed before.
    """
    waiting: deque[list[Future[Item]]] = deque()
    readers = ThreadPoolExecutor(THREADS, thread_name_prefix="s2clip-read")
    try:
        for position in range(len(chunks) + BATCHES_AHEAD):
            if position < len(chunks):
                waiting.append([readers.submit(read_item, dataset, index, reading) for index in chunks[position]])
            if position >= BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
