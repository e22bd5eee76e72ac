"""Samples of any depth to 8 bits, alpha onto white, and turning upright: what the readers have in common."""

import numpy as np
from PIL import Image

ROWS_AT_ONCE = 1 << 20


def to_bytes(values: np.ndarray, white: int) -> np.ndarray:
    """round(255·v/white), uint8, of unsigned integers v at most `white`."""
    if white == 255:
        return values.astype(np.uint8, copy=False)
    return np.round(np.arange(white + 1) * (255 / white)).astype(np.uint8)[values]


def on_white(colour: np.ndarray, alpha: np.ndarray, white: int, *, premultiplied: bool = False) -> np.ndarray:
    """round(255·(a·c + (w - a)·w)/w²), uint8, of colour c [H,W,S] and alpha a [H,W] with white w; premultiplied: a·c/w
    is what `colour` holds."""
    out = np.empty(colour.shape, np.uint8)
    rows = max(1, ROWS_AT_ONCE // max(1, colour.shape[1] * colour.shape[2]))
    for start in range(0, len(colour), rows):
        part = slice(start, start + rows)
        share = alpha[part, :, None] / np.float64(white)
        values = colour[part] / np.float64(white)
        laid = (values if premultiplied else values * share) + 1 - share
        out[part] = np.round(255 * laid.clip(0, 1)).astype(np.uint8)
    return out


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """[H,W] or [H,W,1] → [H,W,3]."""
    return np.repeat(grey.reshape(*grey.shape[:2], 1), 3, axis=2)


def cmyk_to_rgb(values: np.ndarray) -> np.ndarray:
    """uint8 [H,W,4] → [H,W,3], by Pillow's rule, as for JPEG."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(values), "CMYK").convert("RGB"))


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Stored [H,W,...] → upright, by the eight values of EXIF's tag 274; any other value turns nothing."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return array[rows, columns]
