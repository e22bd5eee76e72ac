"""The whole command line on a folder where a fifth of the pictures is broken, each in a way of its own."""

import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from fuzzing import picture_seeds, saved
from PIL import Image

from s2clip import Segmenter, cli, scenes

CUT = (
    *("rgb.png", "palette.png", "alpha.png", "grey16.png", "alpha16.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg"),
    *(
        "rgb.gif",
        "rgb.webp",
        "lossless.webp",
        "rgb.bmp",
        "rgb.avif",
        "rgb.ppm",
        "rgb.tif",
        "jpeg.tif",
        "planes.lzw.tif",
    ),
    "rgb.jp2",
)


def png(width, height, *chunks):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*one) for one in chunks) + chunk(b"IEND", b"")


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def broken():
    """{name: content} of 37 files that are no good."""
    seeds = picture_seeds()
    files = {f"cut-{name}": seeds[name][: len(seeds[name]) * 2 // 5] for name in CUT}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", seeds["rgb.png"])
    gif, half = bytearray(seeds["rgb.gif"]), np.zeros((5, 6, 3), np.float32)
    gif[6:10] = struct.pack("<HH", 60000, 60000)
    return files | {
        "empty.png": b"",
        "start-only.mpo": seeds["two.mpo"][:40],
        "text.jpg": b"this was to be a picture\n",
        "page.png": b"<!doctype html><title>404</title>",
        "video.gif": b"\0\0\0\x18ftypmp42" + bytes(60),
        "phone.jpg": b"\0\0\0\x18ftypheic" + bytes(60),
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "paper.tif": b"%PDF-1.7\n",
        "packed.png": packed.getvalue(),
        "noise.jpg": np.random.default_rng(0).bytes(500),
        "bomb.png": png(60000, 60000, (b"IDAT", zlib.compress(bytes(1000)))),
        "nothing.png": png(0, 5, (b"IDAT", zlib.compress(b"0"))),
        "comments.png": png(5, 5, (b"tEXt", b"a\0" + bytes(17 << 20)), (b"IDAT", zlib.compress(bytes(80)))),
        "bomb.gif": bytes(gif),
        "pixels-missing.png": png(50, 50, (b"IDAT", zlib.compress(bytes(100)))),
        "float.tif": tiff(half, photometric="rgb"),
        "bands.tif": tiff(np.zeros((5, 6, 7), np.uint8), photometric="minisblack", planarconfig="contig"),
        "checksum.png": seeds["rgb.png"].replace(b"IDAT", b"IDAU"),
        "many-scans.jpg": seeds["progressive.jpg"][:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 150,
    }


@pytest.fixture
def folder(tmp_path):
    """`fill(good)`: so many scenes, and 40 broken files among them."""

    def fill(good):
        photos = tmp_path / "photos"
        photos.mkdir()
        kinds = ("png", "jpeg", "webp", "bmp", "tiff")
        for number in range(good):
            kind = kinds[number % len(kinds)]
            image = Image.fromarray(scenes.generate(number % 16, (32, 48))[0])
            (photos / f"good-{number:03}.{kind}").write_bytes(saved(image, kind.upper()))
        for name, content in broken().items():
            (photos / name).write_bytes(content)
        os.mkfifo(photos / "pipe.png")
        (photos / "nowhere.png").symlink_to(tmp_path / "gone.png")
        (photos / "circle.png").symlink_to(photos / "circle.png")
        return photos

    return fill


@pytest.mark.parametrize("good", [8, pytest.param(160, marks=pytest.mark.slow)])
def test_the_good_are_done_and_the_broken_are_named(folder, good, tmp_path, monkeypatch):
    photos = folder(good)
    assert len(list(photos.iterdir())) == good + 40
    arguments = ["segment", str(photos), "-o", str(tmp_path / "out"), "--classes", "sky, grass, tree, house"]
    result = CliRunner().invoke(cli.main, [*arguments, "--method", "clip", "--format", "png"])
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1] == f"{good} done, 40 failed"
    named = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(named) == 40
    assert all(len(line) <= 9 + 200 + len(str(photos)) for line in named)
    assert "Traceback" not in result.output
    assert len(list((tmp_path / "out").glob("*.png"))) == good
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert len(record["images"]) == good
    assert len(record["failed"]) == 40
    assert {one["source"] for one in record["failed"]} == {
        str(photos / name) for name in os.listdir(photos) if "good" not in name
    }


def test_a_stream_records_them_too(folder):
    photos = folder(3)
    segmenter = Segmenter.from_pretrained("tiny", method="clip").set_classes("sky, grass")
    paths = sorted(photos.iterdir())
    outcomes = list(segmenter.stream(paths, on_error="record"))
    assert sum(hasattr(one, "segmentation") for one in outcomes) == 3
    assert len(outcomes) == 43
