"""Pictures and label maps of every depth and layout, held to other readers and to the numbers that were written."""

import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from s2clip.errors import DatasetError, ImageError
from s2clip.pictures.images import read_image
from s2clip.pictures.label_maps import picture_size, read_label_map

HEIGHT, WIDTH = 21, 35
LAYOUTS = {"grey": 1, "grey+alpha": 2, "rgb": 3, "rgb+alpha": 4}


def read(path):
    return read_image(path).permute(1, 2, 0).numpy().astype(int)


def expected(values, white, layout):
    """round(255·v/white), on white where there is alpha; in fp64."""
    shares = values / white
    if layout.endswith("alpha"):
        shares = shares[..., :-1] * shares[..., -1:] + 1 - shares[..., -1:]
    shares = shares if shares.shape[2] == 3 else shares.repeat(3, 2)
    return np.round(255 * shares).astype(int)


def samples(bits, layout, seed=0):
    kind = np.uint8 if bits <= 8 else np.uint16
    shape = (HEIGHT, WIDTH, LAYOUTS[layout])
    return np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(kind)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_of_every_layout(tmp_path, bits, compression):
    cases = itertools.product(LAYOUTS, ("contig", "separate"), "<>", (None, (16, 32)), ("minisblack", "miniswhite"))
    for layout, planes, order, tile, grey in cases:
        count = LAYOUTS[layout]
        if (count > 2 and grey == "miniswhite") or (count == 1 and planes == "separate"):
            continue
        values = samples(bits, layout)
        written = values.copy()
        if grey == "miniswhite":
            written[..., 0] = (1 << bits) - 1 - written[..., 0]
        written = np.moveaxis(written, 2, 0) if planes == "separate" else written
        written = written[..., 0] if count == 1 else written
        options = {"photometric": "rgb" if count > 2 else grey, "compression": compression, "byteorder": order}
        options |= {"planarconfig": planes} if count > 1 else {}
        options |= {"extrasamples": ["unassalpha"]} if layout.endswith("alpha") else {}
        options |= {"tile": tile} if tile else {"rowsperstrip": 5}
        options |= {"predictor": True} if compression in ("zlib", "lzw") and order == "<" else {}
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, written.astype(written.dtype.newbyteorder(order)), **options)
        assert np.array_equal(read(path), expected(values, (1 << bits) - 1, layout)), (layout, options)
        assert picture_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("layout", ["grey", "rgb", "rgb+alpha"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_opencv_writes_what_is_read(tmp_path, layout, suffix, bits):
    values = samples(bits, layout)
    channels = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), values[..., channels])
    difference = np.abs(read(tmp_path / f"a.{suffix}") - expected(values, (1 << bits) - 1, layout)).max()
    assert difference <= (bits == 8 and layout == "rgb+alpha")  # Pillow lays 8 bits on white in integers


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, colour, rows, width, *before, after=()):
    head = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    chunks = [chunk(b"IHDR", head), *before, data, *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def packed(row, bits):
    text = "".join(format(value, f"0{bits}b") for value in row)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_colour_is_of_the_files_own_depth(tmp_path, bits):
    white = (1 << bits) - 1
    ramp = np.linspace(0, white, 16).round().astype(int)
    for clear in sorted({0, white, int(ramp[5]), int(ramp[9])}):
        rows = [packed(ramp, bits)] * 2
        transparent = chunk(b"tRNS", struct.pack(">H", clear))
        (tmp_path / "a.png").write_bytes(png(bits, 0, rows, 16, transparent))
        grey = np.round(255 * ramp / white).astype(int)
        grey[ramp == clear] = 255
        assert read(tmp_path / "a.png")[0, :, 0].tolist() == grey.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["grey", "palette", "tiff"])
def test_label_maps_hold_ids_and_not_shades(tmp_path, bits, kind):
    ids = np.random.default_rng(bits).integers(0, 1 << bits, (9, 19))
    path = tmp_path / "a.png"
    if kind == "tiff":
        tifffile.imwrite(path, ids.astype(np.uint16 if bits == 16 else np.uint8))
    elif kind == "palette" and bits < 16:
        rows = [packed(row, bits) for row in ids]
        path.write_bytes(png(bits, 3, rows, 19, chunk(b"PLTE", bytes(3 << bits))))
    else:
        path.write_bytes(png(bits, 0, [packed(row, bits) for row in ids], 19))
    assert np.array_equal(read_label_map(path), ids)


@pytest.mark.parametrize("white", [1, 15, 20, 255, 1000, 65535])
def test_a_pgm_of_labels_holds_its_numbers(tmp_path, white):
    ids = np.random.default_rng(0).integers(0, white + 1, (9, 19))
    data = ids.astype(">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n# labels\n19 9\n%d\n" % white + data)
    assert np.array_equal(read_label_map(tmp_path / "a.pgm"), ids)


@pytest.mark.parametrize("bits", [2, 4, 10, 12])
def test_tiff_of_odd_depths(tmp_path, bits):
    """Packed rows, written by hand: bits follow each other, a row ends at a byte."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, (9, 19))
    data = b"".join(packed(row, bits) for row in values)
    tags = [(256, 3, 19), (257, 3, 9), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 9), (279, 4, len(data))]
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags]
    table = struct.pack("<H", len(tags)) + b"".join(entries)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + bytes(4))
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], np.round(255 * values / ((1 << bits) - 1)))
    assert np.array_equal(read_label_map(tmp_path / "a.tif"), values)


KINDS = {
    "float pixels": {"data": np.zeros((4, 5), np.float32)},
    "5 bands": {"data": np.zeros((4, 5, 5), np.uint8), "photometric": "minisblack", "planarconfig": "contig"},
    "2 bands": {"data": np.zeros((4, 5, 2), np.uint8), "photometric": "minisblack", "planarconfig": "contig"},
    "signed integers": {"data": np.zeros((4, 5), np.int16)},
    "integer pixels of 32 bits": {"data": np.zeros((4, 5), np.uint32)},
}


@pytest.mark.parametrize("said", KINDS)
def test_whole_files_of_other_kinds_are_named_for_what_they_are(tmp_path, said):
    tifffile.imwrite(tmp_path / "a.tif", **KINDS[said])
    with pytest.raises(ImageError, match=said) as caught:
        read_image(tmp_path / "a.tif")
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(1, 10), 0])
def test_sizes_are_those_of_the_pictures(tmp_path, kind, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    Image.new("RGB", (40, 24), (9, 99, 199)).save(tmp_path / "a", kind, exif=tags)
    assert picture_size(tmp_path / "a") == tuple(read_image(tmp_path / "a").shape[1:])


def test_orientation_after_the_pixels_counts_too(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    rows = [bytes(24)] * 4
    (tmp_path / "a.png").write_bytes(png(8, 2, rows, 8, after=[chunk(b"eXIf", tags.tobytes()[6:])]))
    assert picture_size(tmp_path / "a.png") == tuple(read_image(tmp_path / "a.png").shape[1:]) == (8, 4)


def test_label_maps_beyond_pillows_limit_are_read_and_beyond_ours_refused(tmp_path):
    Image.new("1", (10_240, 9000), 1).save(tmp_path / "a.png")
    assert read_label_map(tmp_path / "a.png").shape == (9000, 10_240)
    head = struct.pack(">IIBBBBB", 17_000, 17_000, 8, 0, 0, 0, 0)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b""))
    with pytest.raises(DatasetError, match=r"289\.0 megapixels, over the limit of 256"):
        read_label_map(tmp_path / "b.png")
