"""Files that would cost more than their pixels: refused or read within the bound, in one line."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from s2clip.errors import DatasetError, ImageError
from s2clip.pictures import worker
from s2clip.pictures.images import read_image
from s2clip.pictures.label_maps import picture_size, read_label_map

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
PIXELS = np.stack([4 * COLUMNS, 5 * ROWS, 2 * (ROWS + COLUMNS)], 2).astype(np.uint8)


def encoded(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def gif_with_comments(count):
    gif = encoded("GIF")
    start = 13 + (3 << (gif[10] % 8 + 1))
    return gif[:start] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * count + b"\0" + gif[start:]


def jpeg_with_segments(count):
    jpeg = encoded("JPEG")
    return jpeg[:2] + (b"\xff\xe1" + struct.pack(">H", 65535) + b"Exif\0\0" + b"x" * 65527) * count + jpeg[2:]


def jpeg_with_scans(count):
    jpeg = encoded("JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * count + jpeg[-2:]


def tiff_with_strips(count, height=48):
    """A grey TIFF whose directory promises `count` strips, all at one place."""
    place, ends = 8, 8 + 8 * count
    tags = [(256, 4, 1, 64), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, count, place), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, place + 4 * count)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    numbers = struct.pack("<I", ends) * count + struct.pack("<I", 64) * count
    return b"II*\0" + struct.pack("<I", ends + 64) + numbers + bytes(64) + table


def gif_larger_than_its_screen(side):
    image = struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + b"," + image


REFUSED = {
    "comments": (gif_with_comments(70_000), "over 16 MiB of text"),
    "segments": (jpeg_with_segments(260), "over 16 MiB of text"),
    "scans": (jpeg_with_scans(200), "progressive scans"),
    "strips": (tiff_with_strips(200_000), "200000 strips for 48 rows"),
    "frame": (gif_larger_than_its_screen(60_000), "over the limit of 64"),
    "lossless": (encoded("JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1), "lossless JPEG is not read"),
    "12 bits": (encoded("JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1), "12 bits a sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_picture_has_is_refused_before_decoding(case, tmp_path):
    content, reason = REFUSED[case]
    (tmp_path / "a.bin").write_bytes(content)
    before = time.process_time()
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(tmp_path / "a.bin")
    assert time.process_time() - before < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200
    assert str(caught.value).startswith(f"{tmp_path / 'a.bin'}: ")


SUSPICIOUS = {
    "comments": gif_with_comments(2_000),
    "segments": jpeg_with_segments(20),
    "scans": jpeg_with_scans(40),
    "text": b"P3\n64 48\n255\n" + b" ".join(b"%d" % v for v in PIXELS.ravel()) + b" " * 70_000,
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_what_could_take_long_is_read_in_a_process(case, tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(SUSPICIOUS[case])
    asked = []
    ask = worker.ask
    monkeypatch.setattr(worker, "ask", lambda *arguments: (asked.append(arguments), ask(*arguments))[1])
    image = read_image(tmp_path / "a.bin")
    assert asked
    assert tuple(image.shape) == (3, 48, 64) == (3, *picture_size(tmp_path / "a.bin"))
    assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - PIXELS).mean() < 8


def test_what_takes_too_long_is_ended_and_the_next_is_read(tmp_path):
    rle = struct.pack("<IiiHHIIiiII", 40, 8000, 7000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    bomb = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(rle)) + rle + b"\0\2\1\0" * 4_000_000
    (tmp_path / "bomb.bmp").write_bytes(bomb)
    start = time.perf_counter()
    with pytest.raises(ImageError, match=r"bomb\.bmp: not decoded within 0\.2 s"):
        read_image(tmp_path / "bomb.bmp", max_seconds=0.2)
    assert time.perf_counter() - start < 30
    (tmp_path / "a.gif").write_bytes(SUSPICIOUS["comments"])
    assert read_image(tmp_path / "a.gif").shape == (3, 48, 64)


def test_run_lengths_that_cannot_cover_the_picture_are_refused_before_they_are_padded(tmp_path, monkeypatch):
    """Python appends what is missing byte by byte: 32 s of these 1100 bytes."""
    monkeypatch.setattr(worker, "ask", lambda *_: pytest.fail("was read"))
    rle = struct.pack("<IiiHHIIiiII", 40, 16_000, 16_000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(rle)) + rle + b"\x08\x11\0\0")
    with pytest.raises(DatasetError, match="too few run lengths for its pixels"):
        read_label_map(tmp_path / "a.bmp")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is a pipe, not a file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="is a pipe"):
        read_label_map(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is a device"):
        read_image(os.devnull)


def test_a_process_that_dies_is_one_pictures_failure(tmp_path, monkeypatch):
    (tmp_path / "a.gif").write_bytes(SUSPICIOUS["comments"])
    worker.end_all()
    dead = worker.Worker()
    dead.process.kill()
    dead.process.wait()
    worker._idle.append(dead)
    with pytest.raises(ImageError, match="did not survive"):
        read_image(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif").shape == (3, 48, 64)


def test_the_process_imports_no_torch_and_ends_with_its_parent():
    program = (
        "import sys; from s2clip.pictures import worker; assert 'torch' not in sys.modules; "
        "one = worker.Worker(); worker._idle.append(one); print(one.process.pid)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_names_stay_on_one_line(tmp_path):
    path = tmp_path / "two\nlines.png"
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"two\\nlines\.png: not a picture") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
