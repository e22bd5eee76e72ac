"""Frames of a film or a camera, upright, one after the other, by PyAV (extra `video`)."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np

from s2clip.errors import ImageError, MissingExtraError
from s2clip.pictures.decoding import MAX_PIXELS

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
CAMERA = re.compile(r"webcam:(\d+)$")


def is_video(source: str) -> bool:
    """Whether a word of the command line names a film by its suffix, or a camera (`webcam:0`)."""
    return bool(CAMERA.match(source)) or (os.path.isfile(source) and source.lower().endswith(SUFFIXES))


def require_av() -> None:
    """Raises MissingExtraError, which names the extra."""
    if find_spec("av") is None:
        raise MissingExtraError("films and cameras need PyAV: pip install 's2clip[video]'")


class Video:
    """An open film or camera; a context manager, and an iterator of (number, uint8 [H,W,3]).

    every: of so many frames the first is given. Frames are turned as the film's own rotation says.
    """

    def __init__(self, source: str, every: int = 1, max_pixels: int = MAX_PIXELS) -> None:
        """Raises ImageError for what cannot be opened, holds no film or has larger frames; MissingExtraError."""
        require_av()
        import av

        self.name, self.every = source, every
        camera = CAMERA.match(source)
        try:
            if camera:
                self._file = av.open(f"/dev/video{camera[1]}", format="v4l2")
            else:
                self._file = av.open(source)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            what = "no such camera" if camera else "cannot be read as a film"
            raise ImageError(f"{source}: {what}: {_reason(error)}") from None
        streams = self._file.streams.video
        size = (streams[0].width, streams[0].height) if streams else (0, 0)
        if not streams or not all(size) or size[0] * size[1] > max_pixels:
            self._file.close()
            limit = f"frames of {size[0]}x{size[1]}, over the limit of {max_pixels / 1e6:g} megapixels"
            raise ImageError(f"{source}: {limit if all(size) else 'holds no film'}")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"

    @property
    def rate(self) -> Fraction:
        """Frames a second of what is given, 25 where the film does not say."""
        return Fraction(self._stream.average_rate or 25) / self.every

    @property
    def count(self) -> int | None:
        """How many frames will be given, as far as the film says."""
        return -(-self._stream.frames // self.every) if self._stream.frames else None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Raises ImageError where the film is damaged, after the frames before."""
        import av

        number = -1
        try:
            for number, frame in enumerate(self._file.decode(self._stream)):
                if number % self.every == 0:
                    yield number, _upright(frame)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ImageError(f"{self.name}: damaged after frame {number}: {_reason(error)}") from None
        if number < 0:
            raise ImageError(f"{self.name}: holds no frame that can be read")


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(_rotation(frame) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _rotation(frame: Any) -> float:
    """Degrees against the clock by which the frame is to be turned for display."""
    return getattr(frame, "rotation", 0)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).lower()[:120]
