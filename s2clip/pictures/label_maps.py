"""Label maps and the sizes of pictures from files: the numbers that stand in them, by the reader of all pictures."""

import os
import struct

import numpy as np

from s2clip.errors import DatasetError
from s2clip.pictures import bounded
from s2clip.pictures.decoding import LABELS, MAX_LABEL_PIXELS, MAX_PIXELS, PIXELS, SIZE
from s2clip.pictures.structure import Unusable

MISSING = "no such file"
PNG = b"\x89PNG\r\n\x1a\n"
CHUNKS = 100
"""How far a palette is looked for; it stands before the pixels."""


def read_label_map(
    path: str | os.PathLike, *, missing: str = "no such annotation", fix: str = "unpack or convert it again"
) -> np.ndarray:
    """The numbers as they stand in the file, [H,W] of its own integer type, upright; palettes give their indices.

    At most `MAX_LABEL_PIXELS` pixels. 2 and 4 bits give 0 to 3 and 0 to 15, not shades.
    missing, fix: what is said of a file that is not there, and what helps against a damaged one.

    Raises:
        DatasetError: missing, damaged, too large, or colours instead of numbers; one line naming the file.
    """
    try:
        return bounded.decode(LABELS, os.fspath(path), max_pixels=MAX_LABEL_PIXELS)
    except Unusable as error:
        reason = str(error)
    if reason == MISSING:
        raise DatasetError(f"{path}: {missing}")
    if reason.startswith("received "):
        raise DatasetError(
            f"{path}: expected one label per pixel (grey or palette PNG), {reason}; "
            "colour pictures of labels have to be turned into labels first"
        )
    raise DatasetError(f"{path}: cannot be read as a label map ({reason}); {fix}")


def read_palette(path: str | os.PathLike) -> np.ndarray | None:
    """uint8 [n,3], RGB of the numbers of a palette PNG; None of other files, and of such as cannot be read."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(26)
            if head[:8] != PNG or head[25:] != b"\3":
                return None
            handle.seek(33)
            for _ in range(CHUNKS):
                length, kind = struct.unpack(">I4s", handle.read(8))
                if kind == b"PLTE":
                    return np.frombuffer(handle.read(min(length, 768) // 3 * 3), np.uint8).reshape(-1, 3)
                handle.seek(length + 4, os.SEEK_CUR)
    except (OSError, struct.error):
        pass
    return None


def picture_size(path: str | os.PathLike, *, decode: bool = False, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a picture, upright, from its header: the shape of `read_image`; with `decode` its pixels are
    read as well, as far as `max_pixels`.

    Raises:
        DatasetError: missing, or damaged as far as it was read.
    """
    try:
        if not decode:
            return bounded.decode(SIZE, os.fspath(path), max_pixels=max_pixels)
        height, width = bounded.decode(PIXELS, os.fspath(path), max_pixels=max_pixels).shape[:2]
    except Unusable as error:
        reason = str(error)
    else:
        return height, width
    if reason == MISSING:
        raise DatasetError(f"{path}: no such picture")
    raise DatasetError(f"{path}: {reason}; unpack it again")
