"""Files of pictures decoded within a bound of time: here where that is certain, else in a process that can be ended."""

from typing import Any

from s2clip.pictures import decoding, worker

MAX_SECONDS = 60.0


def decode(task: str, source: str | bytes, *, max_pixels: int, max_seconds: float = MAX_SECONDS) -> Any:
    """`decoding.guarded`, ended after max_seconds.

    Ordinary files, whose decoding is proportional to their pixels, stay in this process: nothing is faster, and
    `max_pixels` bounds them. Raises `Unusable`.
    """
    answer = decoding.guarded(task, source, max_pixels, plain_only=True)
    return worker.ask(task, source, max_pixels, max_seconds) if answer is None else answer
