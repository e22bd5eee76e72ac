"""Sources to decoded pictures, in order, by threads that work ahead of whoever consumes them."""

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2clip.errors import ImageError
from s2clip.pictures.images import MAX_PIXELS, MAX_SECONDS, Source, read_image


class Picture(NamedTuple):
    """A decoded picture."""

    pixels: Tensor
    """uint8 [3,H,W] RGB on the CPU."""
    source: str | None
    """Its path, if it has one."""
    milliseconds: float
    """What reading took."""
    staged: Tensor | None = None
    """The pixels in pinned memory, where they go to a GPU."""


@dataclass(frozen=True)
class Failure:
    """A source that came to nothing, in its place in a stream."""

    source: Source
    error: Exception
    """`ImageError` where it could not be read; what the computing raised else."""


def read(
    source: Source, *, max_pixels: int = MAX_PIXELS, max_seconds: float = MAX_SECONDS, pin: bool = False
) -> Picture | Failure:
    """Decode one source. pin: also copy the pixels into pinned memory, from which a GPU fetches them by itself."""
    start = time.perf_counter()
    try:
        pixels = read_image(source, max_pixels=max_pixels, max_seconds=max_seconds)
    except ImageError as error:
        return Failure(source, error)
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    staged = pixels.pin_memory() if pin else None
    return Picture(pixels, name, (time.perf_counter() - start) * 1000, staged)


def read_batches(
    sources: Iterable[Source],
    decode: Callable[[Source], Picture | Failure],
    *,
    batch_size: int,
    workers: int,
) -> Generator[list[Picture | Failure], None, None]:
    """Batches of at most `batch_size` decoded sources, in order; the next batch is decoded while this one is used.

    The caller's thread pulls the sources, one batch further than it was given, so a source that blocks blocks nobody
    else, and none is pulled that is not decoded. Arrays and tensors are copied when they are pulled: a camera may use
    its buffer again. Files and PIL images are decoded by `workers` threads, PIL images and open files one at a time, as
    two threads may not load the same one; 0 workers decode in place and pull no further than the batch.

    What `sources` or `decode` raise is raised in its place, after the batches before it. Closing the iterator, or
    dropping it, ends the threads: what is being decoded is finished, what waits is cancelled.
    """
    remaining = iter(sources)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="s2clip-read") if workers else None
    lock = threading.Lock()
    broken: Exception | None = None

    def decode_alone(source: Source) -> Picture | Failure:
        with lock:
            return decode(source)

    def submit(source: Source) -> "Future[Picture | Failure]":
        if pool is not None and not isinstance(source, np.ndarray | Tensor):
            shared = isinstance(source, Image.Image) or hasattr(source, "read")
            return pool.submit(decode_alone if shared else decode, source)
        future: Future[Picture | Failure] = Future()
        try:
            future.set_result(decode(source))
        except Exception as error:
            future.set_exception(error)
        return future

    def pull() -> "list[Future[Picture | Failure]]":
        nonlocal broken
        batch: list[Future[Picture | Failure]] = []
        try:
            batch.extend(submit(source) for source in islice(remaining, batch_size if broken is None else 0))
        except Exception as error:  # what came before it is in the batch
            broken = error
        return batch

    try:
        ahead = pull()
        while ahead:
            batch, ahead = ahead, pull() if pool is not None else []
            yield [future.result() for future in batch]
            batch.clear()  # the pictures belong to the consumer alone
            ahead = ahead or pull()
        if broken is not None:
            raise broken
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


class Uploader:
    """Pictures to a device; to a GPU on a stream of its own, so that copies overlap with what is being computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __reduce__(self) -> tuple:
        return Uploader, (self.device,)

    def __call__(self, picture: Picture) -> Tensor:
        """uint8 [3,H,W] on the device, ordered before whatever the current stream is given next."""
        if self.stream is None:
            return picture.pixels.to(self.device)
        pixels = picture.pixels if picture.staged is None else picture.staged
        with torch.cuda.stream(self.stream):
            copy = pixels.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        copy.record_stream(current)
        return copy
