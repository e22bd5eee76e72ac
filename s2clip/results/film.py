"""Overlays of frames as a film: H.264 in MP4, which every player shows, by PyAV (extra `video`)."""

import os
import secrets
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from s2clip.files import written_by_others


class Film:
    """A file that appears under `path` when it is closed, with all frames that were added until then."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self._rate = path, rate.limit_denominator(1000)
        self._temporary = path.parent / f".{secrets.token_hex(8)}.mp4"
        self._file: Any = None

    def add(self, pixels: np.ndarray) -> None:
        """uint8 [H,W,3]; frames of one size, whose odd last row and column are left out, as the format asks.

        Raises `OutputError`, and so does `close`.
        """
        with written_by_others(self.path):
            self._add(pixels)

    def _add(self, pixels: np.ndarray) -> None:
        import av

        height, width = (side - side % 2 for side in pixels.shape[:2])
        if self._file is None:
            self._file = av.open(str(self._temporary), "w", format="mp4")
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self._stream = self._file.add_stream(codec, rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        for packet in self._stream.encode(frame):
            self._file.mux(packet)

    def close(self) -> Path | None:
        """Write what is left; None where no frame was added."""
        if self._file is None:
            return None
        try:
            with written_by_others(self.path):
                for packet in self._stream.encode():
                    self._file.mux(packet)
                self._file.close()
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
        return self.path
