"""Label maps and the sizes of pictures from files: PNG (palette, grey, 16 bit) to the numbers that stand in it."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from s2clip.errors import DAMAGE, DatasetError

INDEXED = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")
_ORIENTATION = 0x0112


def read_label_map(
    path: Path, *, missing: str = "no such annotation", fix: str = "unpack or convert it again"
) -> np.ndarray:
    """The numbers as they stand in the file, [H,W] uint8, uint16 or int32; a palette PNG gives its indices.

    missing, fix: what is said of a file that is not there, and what helps against a damaged one.

    Raises:
        DatasetError: missing, damaged, or colours instead of numbers; one line naming the file.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in INDEXED:
                raise DatasetError(
                    f"{path}: expected one label per pixel (grey or palette PNG), received mode {image.mode}; "
                    "colour pictures of labels have to be turned into labels first"
                )
            values = np.asarray(image)
    except DatasetError:
        raise
    except FileNotFoundError:
        raise DatasetError(f"{path}: {missing}") from None
    except DAMAGE as error:
        raise DatasetError(f"{path}: cannot be read as a label map ({_reason(error)}); {fix}") from None
    return values.astype(np.uint8) if values.dtype == bool else values


def picture_size(path: Path, *, decode: bool = False) -> tuple[int, int]:
    """(height, width) of a picture, upright, from its header; with `decode` its pixels are read as well.

    Raises:
        DatasetError: missing, or damaged as far as it was read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            if decode:
                image.load()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such picture") from None
    except DAMAGE as error:
        raise DatasetError(f"{path}: truncated or damaged ({_reason(error)}); unpack it again") from None
    return (width, height) if turned else (height, width)


def _reason(error: Exception) -> str:
    """Pillow's words, without the path once more."""
    return "not a picture" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
