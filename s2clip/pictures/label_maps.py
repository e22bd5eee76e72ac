"""Label maps and the sizes of pictures from files: the numbers that stand in them, by the reader of all pictures."""

import os

import numpy as np

from s2clip.errors import DatasetError
from s2clip.pictures import bounded
from s2clip.pictures.decoding import LABELS, MAX_LABEL_PIXELS, MAX_PIXELS, PIXELS, SIZE
from s2clip.pictures.structure import Unusable

MISSING = "no such file"


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
