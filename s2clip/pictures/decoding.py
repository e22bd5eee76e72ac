"""A file becomes pixels, label ids or a size: the one place where files of pictures are decoded. Knows no torch.

Whatever a decoder raises becomes `Unusable`. Users come by `s2clip.pictures.bounded`.
"""

import contextlib
import os
import stat
import struct
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from PIL import Image

from s2clip.pictures import tiff
from s2clip.pictures.samples import cmyk_to_rgb, grey_to_rgb, on_white, to_bytes, turned
from s2clip.pictures.structure import MIB, PLAIN_BYTES, Structure, Unusable, examine, maxval, other_kind

MAX_PIXELS = 64_000_000
MAX_LABEL_PIXELS = 4 * MAX_PIXELS
"""Of label maps: a byte a pixel, where a picture takes four."""
MAX_BYTES = 1024 * MIB
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
HEIF_KINDS = ("HEIC", "HEIF")
INDEXED = ("L", "P", "1", "I", *SIXTEEN_BIT)
PIXELS, LABELS, SIZE = "pixels", "labels", "size"
ORIENTATION = 0x0112
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def guarded(task: str, source: str | bytes, max_pixels: int, *, plain_only: bool) -> Any:
    """PIXELS: uint8 [H,W,3], upright. LABELS: integers [H,W], as they stand in the file. SIZE: (H,W), upright.

    In this process, however long it takes; with `plain_only` None where that could be longer than its pixels take.
    source: a path, or a file's content. max_pixels: refuse more before decoding; not for SIZE.

    Raises:
        Unusable: the file cannot be used; why, in one line.
    """
    try:
        if isinstance(source, bytes):
            return _content(task, BytesIO(source), len(source), max_pixels, plain_only)
        with opened(source) as handle:
            return _content(task, handle, os.fstat(handle.fileno()).st_size, max_pixels, plain_only)
    except Unusable as error:
        raise Unusable(shortened(str(error))) from None
    except MemoryError:
        raise Unusable("does not fit into memory") from None
    except Exception as error:
        raise Unusable(shortened(f"truncated or damaged: {reason_of(error)}")) from None


def opened(name: str) -> BinaryIO:
    """The file, if it is one: a pipe would be waited for without end."""
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise Unusable("is a folder, not a picture")
        if not stat.S_ISREG(mode):
            kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
            raise Unusable(f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file of a picture")
        return Path(name).open("rb")
    except FileNotFoundError:
        raise Unusable("no such file") from None
    except (OSError, ValueError) as error:  # unreadable, or a path that cannot exist (a null byte, too long)
        raise Unusable(f"cannot be read: {reason_of(error)}") from None


def _content(task: str, handle: BinaryIO, whole: int, max_pixels: int, plain_only: bool) -> Any:
    if whole == 0:
        raise Unusable("empty file (0 bytes)")
    prefix = handle.read(16)
    if prefix[:4] in TIFF_MARKS:
        return _tiff(task, handle, whole, max_pixels, plain_only)
    if other_kind(prefix) in HEIF_KINDS and find_spec("pillow_heif") is not None:
        return None if plain_only else _heif(task, prefix + handle.read(MAX_BYTES), max_pixels)
    kind = _kind(prefix)
    if whole > MAX_BYTES:
        raise Unusable(f"{whole / 1e9:.1f} GB, over the limit of {MAX_BYTES / 1e9:.1f}")
    rest = whole if not plain_only or whole <= PLAIN_BYTES else MIB
    data = prefix + handle.read(rest)
    structure = examine(kind, data, whole)
    if task != SIZE and structure.size:
        check_size(*structure.size, max_pixels)
    if plain_only and not structure.plain:
        return None
    with _headed(kind, data) as image:
        return _picture(task, image, structure, data, max_pixels)


def _heif(task: str, data: bytes, max_pixels: int) -> Any:
    """The main picture of a HEIF file, which libheif turns upright itself."""
    import pillow_heif

    with contextlib.suppress(AttributeError):
        pillow_heif.options.THUMBNAILS = False
    file = pillow_heif.open_heif(BytesIO(data), convert_hdr_to_8bit=True)
    width, height = file.size
    if task == SIZE:
        return height, width
    check_size(width, height, max_pixels)
    image = file.to_pillow()
    return label_ids(image, Structure("HEIF", False), b"") if task == LABELS else rgb(image)


def _kind(prefix: bytes) -> str:
    """The name of the reader whose signature fits the first bytes."""
    Image.init()
    for name in FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is not None and accept(prefix) is True and other_kind(prefix) is None:
            return name
    other = other_kind(prefix)
    known = f"not a picture that can be read ({', '.join(FORMATS)})"
    if other in HEIF_KINDS:
        known = "which needs pillow-heif: pip install 's2clip[heif]'"
    raise Unusable(f"a file of kind {other}, {known}" if other else known)


def _headed(kind: str, data: bytes) -> Image.Image:
    """Pillow's reader after it has read the header.

    Not `Image.open`: that enforces Pillow's process-wide pixel limit, which a library may neither raise nor silence
    for others; ours is an argument.
    """
    if kind == "JPEG":  # the factory looks for further pictures first, and warns of what it finds
        from PIL.JpegImagePlugin import JpegImageFile

        factory: Callable[[IO[bytes], str | bytes], Image.Image] = JpegImageFile
    else:
        factory = Image.OPEN[kind][0]
    try:
        return factory(BytesIO(data), "")
    except MemoryError:
        raise
    except Exception as error:
        reason = reason_of(error)
        known = any(word in reason.lower() for word in ("unsupported", "not supported", "cannot handle"))
        raise Unusable(
            f"a kind of {kind} that is not read: {reason}" if known else f"damaged header: {reason}"
        ) from None


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise `Unusable` for too many pixels, and for none."""
    if width * height > max_pixels:
        raise Unusable(
            f"{width}x{height} is {width * height / 1e6:.1f} megapixels, "
            f"over the limit of {max_pixels / 1e6:g} (max_pixels, --max-megapixels)"
        )
    if width * height == 0:
        raise Unusable(f"has no pixels ({width}x{height})")


def _picture(task: str, image: Image.Image, structure: Structure, data: bytes, max_pixels: int) -> Any:
    if task == SIZE:
        # Pillow's reader of PNG decodes the picture to see what may follow the pixels
        exif = image.getexif if structure.late or structure.kind != "PNG" else lambda: Image.Image.getexif(image)
        width, height = image.size
        return (width, height) if orientation_of(exif) >= 5 else (height, width)
    check_size(*image.size, max_pixels)
    deep = task == PIXELS and _deep(structure, data)
    if not deep:
        size = image.size
        image.load()
        check_size(*image.size, max_pixels)
        if image.size != size:
            raise Unusable("damaged header: two sizes")
        values = label_ids(image, structure, data) if task == LABELS else rgb(image, structure)
    else:
        values = deep(data, image.mode)
    return turned(values, orientation_of(image.getexif))


def orientation_of(exif: Any) -> int:
    """1 to 8. Broken metadata do not make a good picture bad."""
    try:
        value = exif().get(ORIENTATION, 1)
        return next((known for known in range(2, 9) if known == value), 1)
    except Exception:
        return 1


def rgb(image: Image.Image, structure: Structure | None = None) -> np.ndarray:
    """A loaded picture as uint8 [H,W,3], not turned. Raises `Unusable` for pixels without a white."""
    if image.mode in SIXTEEN_BIT or image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("integer pixels beyond 16 bits have no defined white: save it with 8 or 16 bits")
        return grey_to_rgb(to_bytes(values, 65535))
    if image.mode == "F":
        raise Unusable("float pixels have no defined white: save it with 8 or 16 bits")
    if structure is not None and structure.kind == "PNG":
        _scale_transparent(image, structure.bits)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _scale_transparent(image: Image.Image, bits: int) -> None:
    """The transparent colour in the file's own depth → in Pillow's 8 bits. PNG counts its lowest bits only."""
    colour, white = image.info.get("transparency"), (1 << min(bits, 8)) - 1
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = (colour & white) * (255 // white)
    elif image.mode == "RGB" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value & white for value in colour)


def _deep(structure: Structure, data: bytes) -> Any:
    """Who reads more than 8 bits of colour, which Pillow cuts; None where Pillow is right."""
    if structure.kind == "PNG" and structure.bits == 16 and structure.colour:
        return _deep_png
    if structure.kind == "JPEG2000" and 8 < _depth_of_jpeg2000(data) <= 16:
        return _deep_jpeg2000
    return None


def _deep_png(data: bytes, mode: str) -> np.ndarray:
    import imagecodecs

    return _laid(imagecodecs.png_decode(data), 65535)


def _deep_jpeg2000(data: bytes, mode: str) -> np.ndarray:
    import imagecodecs

    return _laid(imagecodecs.jpeg2k_decode(data), (1 << _depth_of_jpeg2000(data)) - 1)


def _laid(values: np.ndarray, white: int) -> np.ndarray:
    """[H,W] or [H,W,1 to 4]: grey, with alpha, RGB, with alpha → uint8 [H,W,3]."""
    values = values.reshape(*values.shape[:2], -1)
    count = values.shape[2]
    if count > 4:
        raise Unusable(f"{count} bands: expected grey or red, green and blue")
    bands = 1 if count < 3 else 3
    laid = to_bytes(values, white) if count == bands else on_white(values[..., :bands], values[..., bands], white)
    return grey_to_rgb(laid) if bands == 1 else laid


def _depth_of_jpeg2000(data: bytes) -> int:
    """Bits of a sample, 0 where the components differ or have signs."""
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0 or len(data) < place + 45:
        return 0
    (count,) = struct.unpack_from(">H", data, place + 40)
    kinds = set(data[place + 42 : place + 42 + 3 * count : 3])
    return kinds.pop() + 1 if len(kinds) == 1 and max(kinds) < 128 else 0


def label_ids(image: Image.Image, structure: Structure, data: bytes) -> np.ndarray:
    """The numbers of a loaded label map [H,W] as they stand in the file; shades that Pillow made of them undone."""
    if image.mode not in INDEXED:
        raise Unusable(f"received mode {image.mode}")
    values = np.asarray(image)
    if values.dtype == bool:
        return values.astype(np.uint8)
    if image.mode == "L" and structure.kind == "PNG" and structure.bits < 8:
        return values // (255 // ((1 << structure.bits) - 1))
    if structure.kind == "PPM" and (white := maxval(data)):
        shown = 255 if image.mode == "L" else 65535
        return np.round(values * (white / shown)).astype(np.uint8 if white < 256 else np.uint16)
    return values


def _tiff(task: str, handle: BinaryIO, whole: int, max_pixels: int, plain_only: bool) -> Any:
    found = tiff.directory(handle, whole)
    height, width = (found.width, found.height) if 5 <= found.orientation <= 8 else (found.height, found.width)
    if task == SIZE:
        return height, width
    check_size(width, height, max_pixels)
    if plain_only and not found.plain:
        return None
    if found.simple:
        values = tiff.read(handle, found, labels=task == LABELS)
        if values.shape != (found.height, found.width, *((3,) if task == PIXELS else ())):
            raise Unusable("damaged header: its pixels are no picture of its size")
        return turned(values, found.orientation)
    handle.seek(0)
    with _headed("TIFF", handle.read(MAX_BYTES)) as image:
        image.load()  # turns it, too
        if image.size != (width, height):
            raise Unusable("damaged header: two sizes")
        if image.mode == "CMYK":
            return cmyk_to_rgb(np.asarray(image))
        return label_ids(image, Structure("TIFF", False), b"") if task == LABELS else rgb(image)


def reason_of(error: BaseException) -> str:
    """The first line of what a reader said."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text if text and text != "0" else type(error).__name__


def shortened(text: str, most: int = 150) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
