"""Work on many files at once: Pillow and zlib run without holding the interpreter."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_threads(
    work: Callable[[Item], Answer], items: Sequence[Item], progress: Callable[[Sequence[Item]], Iterable[Item]] = iter
) -> Iterator[Answer]:
    """work(item) of every item, in order, by a thread per core; what has not begun is dropped when the caller stops."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(work, items)
        try:
            for _, answer in zip(progress(items), answers, strict=True):
                yield answer
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
