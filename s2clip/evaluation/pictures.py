"""Pictures and annotations read ahead of the device by a few threads."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from s2clip.errors import DatasetError, S2ClipError
from s2clip.evaluation.metrics import IGNORE
from s2clip.images import read_image

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
    """One picture as it was read: pixels uint8 [3,H,W] (None where nobody looks at them), target uint8 [H,W].

    error: why it could not be read, and then nothing else is there. milliseconds: what reading took.
    """

    index: int
    name: str
    pixels: Tensor | None = None
    target: Tensor | None = None
    error: str | None = None
    milliseconds: float = 0.0


def read(dataset: Any, index: int, *, with_pixels: bool, max_pixels: int) -> Item:
    """Picture `index`; whatever is wrong with its files becomes `error`."""
    start = time.perf_counter()
    sample = dataset[index]
    try:
        target = _target(dataset.annotation(index), len(dataset.classes), sample.annotation_path)
        pixels = read_image(sample.image_path, max_pixels=max_pixels) if with_pixels else None
        if pixels is not None and pixels.shape[1:] != target.shape:
            raise DatasetError(
                f"{sample.annotation_path}: expected {pixels.shape[2]}x{pixels.shape[1]}, the size of "
                f"{sample.image_path}, received {target.shape[1]}x{target.shape[0]}"
            )
    except (S2ClipError, ValueError, OSError, MemoryError) as error:
        return Item(index, sample.name, error=one_line(error))
    return Item(index, sample.name, pixels, target, milliseconds=1000 * (time.perf_counter() - start))


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


def batches(
    dataset: Any, chunks: Sequence[Sequence[int]], *, with_pixels: bool, max_pixels: int
) -> Iterator[list[Item]]:
    """The items of each chunk of indices, in order, two chunks read ahead. Closing the iterator ends the threads."""
    waiting: deque[list[Future[Item]]] = deque()
    readers = ThreadPoolExecutor(THREADS, thread_name_prefix="s2clip-read")
    try:
        for position in range(len(chunks) + BATCHES_AHEAD):
            if position < len(chunks):
                options = {"with_pixels": with_pixels, "max_pixels": max_pixels}
                waiting.append([readers.submit(read, dataset, index, **options) for index in chunks[position]])
            if position >= BATCHES_AHEAD:
                yield [future.result() for future in waiting.popleft()]
    finally:
        readers.shutdown(wait=True, cancel_futures=True)
