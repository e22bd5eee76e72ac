"""What a file of a picture says of itself before anything is decoded, in time proportional to its bytes.

Decoders take what they are given: text before the pixels is joined piece by piece, a progressive scan passes over all
pixels once more, a header can promise two million strips. What costs more than its pixels is told here: refused where
no picture has it, or not `plain`, which sends it to a process that can be ended (`s2clip.pictures.worker`).
"""

import struct
from dataclasses import dataclass

MIB = 1 << 20
MAX_METADATA = 16 * MIB
"""Bytes of text, profiles and previews before the pixels; maps of depth that phones store there take some 10."""
MAX_SCANS = 100
"""Of a progressive JPEG; encoders write 10, and a search for the smallest file found 40."""
PLAIN_BYTES, PLAIN_METADATA, PLAIN_SCANS, PLAIN_SEGMENTS = 64 * MIB, MIB, 20, 2000
PLAIN_CHUNKS = 100_000
PLAIN_PIXELS = 80_000_000  # below Pillow's own warning, at 89.5 million
RUN_PIXELS = 128
"""Of a BMP of run lengths, for each byte: a run of at most 255 takes two."""
BYTES_PER_PIXEL = 8
"""Of a plain file: four samples of 16 bits, uncompressed."""
PLAIN_LIMIT = MIB + BYTES_PER_PIXEL * PLAIN_PIXELS

SIGNATURES = (  # kinds that people have and that no reader here takes, by their first bytes and the place of those
    (b"ftypheic", 4, "HEIC"),
    (b"ftypheix", 4, "HEIC"),
    (b"ftyphevc", 4, "HEIC"),
    (b"ftypheim", 4, "HEIC"),
    (b"ftypheis", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIF"),
    (b"ftypmsf1", 4, "HEIF"),
    (b"\0\0\0\x0cJXL ", 0, "JPEG XL"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"%PDF", 0, "PDF"),
    (b"8BPS", 0, "Photoshop"),
    (b"v/1\x01", 0, "OpenEXR"),
    (b"#?RADIANCE", 0, "Radiance HDR"),
    (b"<svg", 0, "SVG"),
    (b"<?xml", 0, "XML or SVG"),
    (b"\x93NUMPY", 0, "NumPy"),
    (b"Pf\n", 0, "float PFM"),
    (b"PF\n", 0, "float PFM"),
    (b"P7\n", 0, "PAM"),
    (b"qoif", 0, "QOI"),
)


class Unusable(Exception):
    """Why a file cannot be used, without its name."""


@dataclass(frozen=True)
class Structure:
    """kind: as Pillow names it. bits: of a PNG's sample, else 0. colour: its type of colour, else 0. late: metadata
    may follow the pixels. size: (width, height) of all that will be decoded, where it is known here."""

    kind: str
    plain: bool
    bits: int = 0
    colour: int = 0
    late: bool = False
    size: tuple[int, int] | None = None


def examine(kind: str, data: bytes, whole: int) -> Structure:
    """data: the file, or its first bytes where it has `whole` of them. Raises `Unusable`."""
    walk = {"PNG": _png, "JPEG": _jpeg, "GIF": _gif, "BMP": _bmp, "PPM": _ppm}.get(kind)
    # a JPEG 2000 can ask for a block of memory per pixel
    structure = walk(data) if walk is not None else Structure(kind, plain=kind in ("WEBP", "AVIF"))
    pixels = structure.size[0] * structure.size[1] if structure.size else PLAIN_PIXELS
    if kind == "BMP" and structure.size and pixels > MIB + RUN_PIXELS * whole:
        # what no run covers is filled byte by byte: 32 s of a file of a hundred bytes whose header says 134 megapixels
        raise Unusable("truncated or damaged: too few run lengths for its pixels")
    plain = structure.plain and len(data) == whole and whole <= MIB + BYTES_PER_PIXEL * pixels <= PLAIN_LIMIT
    return structure if plain == structure.plain else Structure(**{**vars(structure), "plain": plain})


def other_kind(prefix: bytes) -> str | None:
    """The name of a kind of file that is no picture here."""
    found = (name for mark, place, name in SIGNATURES if prefix[place : place + len(mark)] == mark)
    return next(found, None)


def _png(data: bytes) -> Structure:
    if len(data) < 29 or data[12:16] != b"IHDR":
        raise Unusable("damaged header: no IHDR")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    place, chunks, before, pixels, transparent, late = 8, 0, 0, False, False, False
    while place + 8 <= len(data) and chunks < PLAIN_CHUNKS:
        length, name = struct.unpack_from(">I4s", data, place)
        place, chunks = place + 12 + length, chunks + 1
        if name == b"IDAT":
            pixels = True
        elif name == b"IEND":
            break
        else:
            transparent |= name == b"tRNS"
            late |= pixels and name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
            before += 0 if pixels else length
    _check_metadata(before)
    deep = bits == 16 and (colour != 0 or transparent)  # Pillow keeps the high byte of these, whose reader says things
    plain = not deep and chunks < PLAIN_CHUNKS and before <= PLAIN_METADATA
    return Structure("PNG", plain, bits, colour | (transparent << 3), late, (width, height))


def _jpeg(data: bytes) -> Structure:
    place, segments, before, size, progressive = 2, 0, 0, None, False
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            place = data.find(b"\xff", place)
            if place < 0:
                break
            continue
        marker = data[place + 1]
        if marker in (0xFF, 0x00) or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and place + 10 <= len(data):
            bits, height, width, bands = struct.unpack_from(">BHHB", data, place + 4)
            _check_frame(marker, bits, bands)
            size, progressive = (width, height), marker in (0xC2, 0xCA)
        elif marker >= 0xE0:
            before += length
        segments += 1
        place += 2 + length
    _check_metadata(before)
    scans = data.count(b"\xff\xda") if progressive else 1
    if scans > MAX_SCANS:
        raise Unusable(f"{scans} progressive scans (at most {MAX_SCANS} are read)")
    plain = scans <= PLAIN_SCANS and before <= PLAIN_METADATA and segments <= PLAIN_SEGMENTS
    return Structure("JPEG", plain, size=size)


def _check_frame(marker: int, bits: int, bands: int) -> None:
    if marker in (0xC3, 0xC7, 0xCB, 0xCF):
        raise Unusable("lossless JPEG is not read: save it as PNG")
    if bits != 8:
        raise Unusable(f"JPEG of {bits} bits a sample is not read: save it with 8 bits or as PNG")
    if bands not in (1, 3, 4):
        raise Unusable(f"{bands} bands: expected grey, red-green-blue or CMYK")


def _gif(data: bytes) -> Structure:
    if len(data) < 13:
        raise Unusable("damaged header: ends early")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place, start = 13 + (3 << (flags % 8 + 1) if flags & 128 else 0), 0
    start = place
    while place < len(data) and data[place] != 0x2C:
        if data[place] == 0x3B:
            break
        place += 2 if data[place] == 0x21 else 1
        if data[place - 2] == 0x21:
            while place < len(data) and data[place] and place - start <= MAX_METADATA:
                place += 1 + data[place]
            place += 1
        _check_metadata(place - start)
    if place + 9 <= len(data):
        left, top, columns, rows = struct.unpack_from("<4H", data, place + 1)
        width, height = max(width, left + columns), max(height, top + rows)
    plain = place - start <= PLAIN_METADATA // 4 and width * height <= PLAIN_PIXELS
    return Structure("GIF", plain, size=(width, height))


def _bmp(data: bytes) -> Structure:
    compression = struct.unpack_from("<I", data, 30)[0] if len(data) >= 34 and data[14] >= 40 else 0
    if compression in (4, 5):
        raise Unusable("a BMP that holds a JPEG or PNG is not read: save it as that")
    if compression not in (1, 2):
        return Structure("BMP", plain=True)
    width, height = struct.unpack_from("<ii", data, 18)
    return Structure("BMP", plain=False, size=(abs(width), abs(height)))  # Python reads run lengths, at 1 MB a second


def _ppm(data: bytes) -> Structure:
    """Text, and the white of other pictures than 255 and 65535, is read by Python, a number at a time."""
    plain = data[:2] in (b"P4", b"P5", b"P6") and maxval(data) in (None, 255, 65535)
    return Structure("PPM", plain or len(data) <= 64 * 1024)


def maxval(data: bytes) -> int | None:
    """The value of white of a PGM or PPM; None where there is none."""
    words = b" ".join(line.split(b"#")[0] for line in data[:4096].splitlines()).split()
    if data[:2] in (b"P1", b"P4") or len(words) < 4 or not words[3].isdigit():
        return None
    return int(words[3])


def _check_metadata(before: int) -> None:
    if before > MAX_METADATA:
        raise Unusable(f"over {MAX_METADATA // MIB} MiB of text or previews before its pixels")
