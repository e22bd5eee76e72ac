"""TIFF at any depth, by tifffile; what it leaves to other libraries (JPEG, fax, CIELab) goes to Pillow.

Pillow reads planes of 16 bits as planes of 8, forgets to invert 16 bits whose smallest value is white, cuts 16-bit
colour, and libtiff, which it calls for compressed files, writes to stderr. tifffile gives the samples as they stand.
"""

import contextvars
import logging
import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from s2clip.pictures.samples import cmyk_to_rgb, grey_to_rgb, on_white, to_bytes
from s2clip.pictures.structure import MIB, PLAIN_PIXELS, Unusable

COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)  # none, LZW, deflate (two numbers), PackBits, LZMA, Zstandard
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, SENSOR, LINEAR = 0, 1, 2, 3, 5, 32803, 34892
ASSOCIATED, UNASSOCIATED, COREL = 1, 2, 999
PLACING = (33550, 33922, 34264, 34735)  # scale of a pixel, tie points, transformation, GeoTIFF's keys
PLAIN_STRIPS, PLAIN_ENTRIES = 20_000, 400
TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)

_reading = contextvars.ContextVar("reading", default=False)


@dataclass(frozen=True)
class Directory:
    """What the first directory says. simple: `read` takes it, Pillow is not asked. georeferenced: it says where on the
    ground it lies."""

    width: int
    height: int
    simple: bool
    plain: bool
    orientation: int
    georeferenced: bool = False


def directory(handle: BinaryIO, whole: int, *, any_kind: bool = False) -> Directory:
    """Read the first directory without reading what it points at. any_kind: also floats, whose white a picture has not.

    Raises `Unusable`.
    """
    tags, pointed = _tags(handle, whole)
    width, height = _one(tags, 256), _one(tags, 257)
    if not width or not height:
        raise Unusable("damaged header: no width or height")
    samples, photometric = _one(tags, 277, 1), _one(tags, 262, -1)
    if not any_kind:
        _check_kind(tags, photometric, samples)
    segments = max(tags[tag][1] if tag in tags else 0 for tag in (273, 324))
    if segments > (height if 324 not in tags else width * height) * samples:
        raise Unusable(f"damaged header: {segments} strips for {height} rows")
    tile = _one(tags, 322, width) * _one(tags, 323, 1) if 324 in tags else width * min(_one(tags, 278, height), height)
    simple = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK) and _one(tags, 259, 1) in COMPRESSIONS
    plain = segments <= PLAIN_STRIPS and len(tags) <= PLAIN_ENTRIES and pointed <= MIB
    plain = plain and width * height <= PLAIN_PIXELS and tile <= MIB + 4 * width * height
    return Directory(width, height, simple, simple and plain, _one(tags, 274, 1), any(tag in tags for tag in PLACING))


def _tags(handle: BinaryIO, whole: int) -> tuple[dict[int, tuple[int, int, bytes]], int]:
    """({tag: (type, count, the field itself)}, bytes that are pointed at)."""
    handle.seek(0)
    head = handle.read(16)
    order, big = "<" if head[:1] == b"I" else ">", head[2:3] == b"+" or head[3:4] == b"+"
    try:
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        handle.seek(min(place, whole))
        (count,) = struct.unpack(order + ("Q" if big else "H"), handle.read(8 if big else 2))
        size, inline = (20, 8) if big else (12, 4)
        if place + count * size > whole:
            raise Unusable("truncated or damaged: its directory lies beyond the end")
        tags: dict[int, tuple[int, int, bytes]] = {}
        fields, pointed = handle.read(count * size), 0
        for start in range(0, len(fields), size):
            tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), fields, start)
            length = (TYPE_BYTES[kind] if kind < len(TYPE_BYTES) else 1) * number
            pointed += length if length > inline else 0
            tags.setdefault(tag, (kind, number, order.encode() + fields[start + size - inline : start + size]))
    except struct.error:
        raise Unusable("truncated or damaged: ends in its directory") from None
    return tags, pointed


def _one(tags: dict[int, tuple[int, int, bytes]], tag: int, absent: int = 0) -> int:
    """A tag's only number, if it stands in the field itself."""
    if tag not in tags:
        return absent
    kind, number, field = tags[tag]
    code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if number != 1 or code is None or (code == "Q" and len(field) < 9):
        return absent
    return struct.unpack_from(field[:1].decode() + code, field, 1)[0]


def _check_kind(tags: dict[int, tuple[int, int, bytes]], photometric: int, samples: int) -> None:
    if photometric in (SENSOR, LINEAR):
        raise Unusable("a camera's raw data have no colours yet: develop it and save it with 8 or 16 bits")
    form = tags.get(339, (3, 1, b"<\1\0\0\0"))
    small = form[1] * 2 <= len(form[2]) - 1
    if form[0] == 3 and small:
        first = struct.unpack_from(form[2][:1].decode() + "H", form[2], 1)[0]
        if first in (3, 6):
            raise Unusable("float pixels have no defined white: save it with 8 or 16 bits")
    if _one(tags, 32997, 1) > 1:
        raise Unusable(f"a volume of {_one(tags, 32997)} slices: save the slice as a picture")


class _Quiet(logging.Filter):
    """What tifffile logs of a file while it is read here; the error says it with the file's name."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _reading.get()


_quiet = _Quiet()


def read(handle: BinaryIO, found: Directory, *, labels: bool) -> np.ndarray:
    """The first picture as stored, not turned: uint8 [H,W,3], or with `labels` its numbers [H,W].

    Raises `Unusable`, or whatever a damaged file makes the library raise.
    """
    import tifffile

    logging.getLogger("tifffile").addFilter(_quiet)
    token = _reading.set(True)
    try:
        handle.seek(0)
        with tifffile.TiffFile(handle, _multifile=False) as file:
            page = file.pages.first
            if (page.imagewidth, page.imagelength) != (found.width, found.height):
                raise Unusable("damaged header: two sizes")
            samples = _samples(page, handle)
            return _numbers(page, samples) if labels else _colours(page, samples)
    finally:
        _reading.reset(token)


def _samples(page: Any, handle: BinaryIO) -> np.ndarray:
    """[H,W,S], as they stand in the file."""
    if page.sampleformat in (3, 6):
        raise Unusable("float pixels have no defined white: save it with 8 or 16 bits")
    if not isinstance(page.bitspersample, int) or page.dtype is None or page.bitspersample > 32:
        raise Unusable(f"samples of {page.bitspersample} bits are not read: save it with 8 or 16 bits")
    ends = [start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)]
    whole, expected = handle.seek(0, 2), math.prod(page.chunked)
    if len(ends) < expected or 0 in page.databytecounts[:expected] or max(ends[:expected]) > whole:
        raise Unusable("truncated or damaged: strips of its pixels are missing")
    height, width, count = page.imagelength, page.imagewidth, page.samplesperpixel
    values = page.asarray(maxworkers=1)
    if values.size != height * width * count:
        raise Unusable("damaged header: its strips are no picture of its size")
    if page.planarconfig == 2 and count > 1:
        return np.moveaxis(values.reshape(count, height, width), 0, 2)
    return values.reshape(height, width, count)


def _numbers(page: Any, samples: np.ndarray) -> np.ndarray:
    if samples.shape[2] != 1 or page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE):
        names = {RGB: "RGB", CMYK: "CMYK"}
        raise Unusable(f"received mode {names.get(int(page.photometric), f'{samples.shape[2]} bands')}")
    return samples[..., 0].astype(np.uint8) if samples.dtype == bool else samples[..., 0]


def _colours(page: Any, samples: np.ndarray) -> np.ndarray:
    bits, count, kind = page.bitspersample, samples.shape[2], int(page.photometric)
    if page.sampleformat == 2 or bits > 16:
        what = "signed integers" if page.sampleformat == 2 else f"integer pixels of {bits} bits"
        raise Unusable(f"{what} have no defined white: save it with 8 or 16 bits")
    white = (1 << bits) - 1
    samples = samples.astype(np.uint8) if samples.dtype == bool else samples
    if kind == PALETTE:
        table = page.colormap
        sound = count == 1 and table is not None and table.ndim == 2 and len(table) == 3
        if not sound or table.shape[1] <= int(samples.max()):
            raise Unusable("damaged header: no palette for its pixels")
        table = table.T
        return (table if table.max() < 256 else table // 256).astype(np.uint8)[samples[..., 0]]
    bands = {RGB: 3, CMYK: 4}.get(kind, 1)
    extra = [int(value) for value in page.extrasamples]
    if count < bands or (bands == 1 and count > 1 and not (count == 2 and extra[:1] in ([1], [2], [COREL]))):
        raise Unusable(f"{count} bands: expected grey or red, green and blue; save the bands to look at as a picture")
    colour = samples[..., :bands]
    if kind == CMYK:
        return cmyk_to_rgb(to_bytes(colour, white))
    if kind == WHITE_IS_ZERO:
        colour = white - colour
    if count > bands and (extra[:1] in ([ASSOCIATED], [UNASSOCIATED], [COREL]) or (not extra and count == bands + 1)):
        laid = on_white(colour, samples[..., bands], white, premultiplied=extra[:1] == [ASSOCIATED])
    else:
        laid = to_bytes(colour, white)
    return grey_to_rgb(laid) if bands == 1 else laid
