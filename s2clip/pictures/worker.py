"""Decoding in a process that can be ended: for files that could take longer, or more memory, than their pixels.

A thread inside a decoder cannot be stopped. The process imports Pillow and no torch, starts in a fifth of a second when
the first such file comes, and is kept for the next. Its stderr goes nowhere: what C libraries print names no file.
"""

import atexit
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from typing import Any, BinaryIO

import numpy as np

from s2clip.pictures import decoding
from s2clip.pictures.structure import Unusable

KEPT = 4
ROOM = 1 << 30
BYTES_PER_PIXEL = 64
"""The most that decoding holds: 16-bit samples, their alpha on white, and the result, with room."""
_PROGRAM = "import sys; sys.path[:] = {}; from s2clip.pictures.worker import serve; serve()"

_idle: "list[Worker]" = []
_lock = threading.Lock()


def ask(task: str, source: str | bytes, max_pixels: int, max_seconds: float) -> Any:
    """`decoding.guarded` by a process that is ended after `max_seconds`. Raises `Unusable`."""
    with _lock:
        worker = _idle.pop() if _idle else None
    worker = worker or Worker()
    try:
        answer, error = worker.ask(task, source, max_pixels, max_seconds)
    except BaseException:
        worker.end()
        raise
    with _lock:
        keep = len(_idle) < KEPT
        if keep:
            _idle.append(worker)
    if not keep:
        worker.end()
    if error is not None:
        raise Unusable(error)
    return answer


class Worker:
    """One process, and the pipes to it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _PROGRAM.format([os.path.abspath(path) for path in sys.path])]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
            )
        except (OSError, ValueError) as error:
            raise Unusable(f"needs a process to read it, which could not be started: {error}") from None
        assert self.process.stdin is not None
        assert isinstance(self.process.stdout, io.BufferedReader)
        self.requests, self.answers = self.process.stdin, self.process.stdout
        if self.answers.readline() != b"ready\n":
            self.end()
            raise Unusable("needs a process to read it, which could not be started")

    def ask(self, task: str, source: str | bytes, max_pixels: int, max_seconds: float) -> tuple[Any, str | None]:
        """(answer, None) or (None, reason); `Unusable` where the process is gone."""
        content = source if isinstance(source, bytes) else b""
        path = None if isinstance(source, bytes) else os.path.abspath(source)
        request = {"task": task, "path": path, "bytes": len(content), "max_pixels": max_pixels}
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(max_seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            self.requests.write(json.dumps(request).encode() + b"\n" + content)
            self.requests.flush()
            return self._answer()
        except (OSError, ValueError):
            if late.is_set():
                raise Unusable(
                    f"not decoded within {max_seconds:g} s (max_seconds, --max-seconds-per-picture)"
                ) from None
            raise Unusable("damaged: the decoder did not survive it") from None
        finally:
            timer.cancel()

    def _answer(self) -> tuple[Any, str | None]:
        """`ValueError` where the process ended."""
        head = json.loads(self.answers.readline())
        if "error" in head:
            return None, head["error"]
        if "size" in head:
            return tuple(head["size"]), None
        values = np.empty(head["shape"], head["dtype"])
        view = values.data.cast("B")
        if self.answers.readinto(view) != len(view):
            raise ValueError("ended")
        return values, None

    def end(self) -> None:
        """Stop the process and wait for it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()


@atexit.register
def end_all() -> None:
    """End the processes that wait for work."""
    with _lock:
        while _idle:
            _idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # two processes on one pipe would read each other's answers


def serve() -> None:
    """The process: requests from stdin, answers to stdout, until stdin ends."""
    from PIL import Image

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    Image.init()
    answers.write(b"ready\n")
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        source = request["path"] if request["path"] is not None else requests.read(request["bytes"])
        _limit_memory(request["max_pixels"], request["bytes"])
        _reply(answers, request["task"], source, request["max_pixels"])


def _reply(answers: BinaryIO, task: str, source: str | bytes, max_pixels: int) -> None:
    head: dict[str, Any]
    values: bytes | memoryview = b""
    try:
        answer = decoding.guarded(task, source, max_pixels, plain_only=False)
    except Unusable as error:
        head = {"error": str(error)}
    else:
        if isinstance(answer, tuple):
            head = {"size": answer}
        else:
            native = answer.dtype.newbyteorder("=")
            head = {"shape": answer.shape, "dtype": str(native)}
            values = np.ascontiguousarray(answer).astype(native, copy=False).data.cast("B")
    answers.write(json.dumps(head).encode() + b"\n")
    answers.write(values)
    answers.flush()


def _limit_memory(max_pixels: int, content: int) -> None:
    """A decoder that asks for more gets a `MemoryError` before the machine is short of it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else contextlib.nullcontext() as file:
        used = int(file.read().split()[0]) * resource.getpagesize() if file else 0
    if used:
        limit = used + ROOM + content + min(max_pixels, decoding.MAX_LABEL_PIXELS) * BYTES_PER_PIXEL
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
