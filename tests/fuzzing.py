"""Mutated files: seeds made here, changed in the ways that files break, and what must hold of every one."""

import io
import random
import struct

import numpy as np
import tifffile
from PIL import Image

SIZE = (40, 28)
NUMBERS = (0, 1, 255, 65_535, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
BYTES = (0, 1, 0x7F, 0x80, 0xFF)


def picture_seeds():
    """{name: bytes} of small pictures: every format, with EXIF, palettes, alpha, animations and compressions."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    pixels = np.stack([6 * columns, 9 * rows, 3 * (columns + rows)], 2).astype(np.uint8)
    image, grey = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    palette, alpha = image.quantize(16), image.copy()
    alpha.putalpha(grey)
    tags = Image.Exif()
    tags[0x0112] = 6
    frames = [image, image.rotate(90), image.rotate(180)]
    wide = pixels.astype(np.uint16) * 257
    seeds = {
        "rgb.png": saved(image, "PNG", exif=tags),
        "palette.png": saved(palette, "PNG", transparency=3),
        "alpha.png": saved(alpha, "PNG"),
        "bits.png": saved(grey.convert("1"), "PNG"),
        "grey16.png": saved(Image.fromarray(wide[..., 0]), "PNG"),
        "moving.png": saved(image, "PNG", save_all=True, append_images=frames),
        "rgb.jpg": saved(image, "JPEG", exif=tags, comment=b"a comment"),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "rgb.gif": saved(image, "GIF", comment=b"a comment"),
        "moving.gif": saved(image, "GIF", save_all=True, append_images=frames, transparency=0),
        "rgb.webp": saved(image, "WEBP", exif=tags),
        "lossless.webp": saved(alpha, "WEBP", lossless=True),
        "moving.webp": saved(image, "WEBP", save_all=True, append_images=frames),
        "rgb.bmp": saved(image, "BMP"),
        "palette.bmp": saved(palette, "BMP"),
        "rgb.avif": saved(image, "AVIF", exif=tags),
        "alpha.avif": saved(alpha, "AVIF"),
        "rgb.ppm": saved(image, "PPM"),
        "grey16.pgm": saved(Image.fromarray(wide[..., 0]), "PPM"),
        "text.ppm": b"P3\n3 2\n255\n" + b"1 22 255 " * 6,
        "rgb.tif": saved(image, "TIFF", exif=tags),
        "jpeg.tif": saved(image, "TIFF", compression="jpeg"),
        "fax.tif": saved(grey.convert("1"), "TIFF", compression="group4"),
        "rgb.jp2": saved(image, "JPEG2000"),
        "grey4.png": saved(grey.quantize(16), "PNG", bits=4),
        "grey.webp": saved(grey, "WEBP", quality=10),
        "moving.avif": saved(image, "AVIF", save_all=True, append_images=frames),
        "two.mpo": saved(image, "MPO", save_all=True, append_images=frames),
        "palette.tif": saved(palette, "TIFF"),
        "cmyk.tif": saved(image.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "lab.tif": saved(image.convert("LAB"), "TIFF"),
        "white100.pgm": b"P5\n# a comment\n6 4\n100\n" + bytes(range(0, 96, 4)),
        "rle.bmp": run_length_bmp(),
        "alpha16.png": deep_png(np.concatenate([wide, wide[..., :1]], 2)),
        "rgb16.jp2": deep_jpeg2000(wide),
    }
    for compression in (None, "lzw", "zlib", "packbits"):
        for name, values, options in (
            ("planes", np.moveaxis(wide, 2, 0), {"planarconfig": "separate", "photometric": "rgb"}),
            ("white", wide[..., 0], {"photometric": "miniswhite", "byteorder": ">"}),
            ("tiles", pixels, {"tile": (16, 16), "photometric": "rgb"}),
        ):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, values, compression=compression, **options)
            seeds[f"{name}.{compression}.tif"] = buffer.getvalue()
    return seeds


def deep_png(values):
    import imagecodecs

    return bytes(imagecodecs.png_encode(values))


def deep_jpeg2000(values):
    import imagecodecs

    return bytes(imagecodecs.jpeg2k_encode(values, level=0))


def run_length_bmp():
    """8 x 4 pixels by run lengths, with an escape of literal pixels and a jump."""
    palette = b"".join(bytes([value, 255 - value, value, 0]) for value in range(256))
    rows = b"\x08\x11\0\0" + b"\0\x04\1\2\3\4\x04\x22\0\0" + b"\0\2\2\0\6\x33\0\0" + b"\x08\x44\0\1"
    place = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", place + len(rows), 0, 0, place)
    return head + struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(rows), 0, 0, 256, 0) + palette + rows


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated(seed: bytes, choice: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers of the header, pieces lost, doubled, moved or of another value."""
    data = bytearray(seed)
    for _ in range(choice.choice((1, 1, 2, 4))):
        if not data:
            break
        place = choice.randrange(len(data)) if choice.random() < 0.5 else choice.randrange(min(len(data), 64))
        length = choice.choice((1, 2, 4, 8, 64, 500))
        kind = choice.randrange(9)
        if kind == 0:
            data[place] ^= 1 << choice.randrange(8)
        elif kind == 1:
            data[place] = choice.choice(BYTES)
        elif kind == 2:
            data[place : place + length] = choice.randbytes(length)
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[place:place] = data[place : place + length]
        elif kind == 6:
            data[place:place] = data[place : place + 4] * choice.choice((3, 30, 300))
        elif kind == 7:
            order, number = choice.choice("<>"), choice.choice(NUMBERS)
            data[place : place + 4] = struct.pack(order + "I", number)
        else:
            other = choice.randrange(len(data))
            data[place : place + length] = data[other : other + length]
    return bytes(data)
