"""Pictures in: every kind that should just work, and every kind that must be refused in one line."""

import errno
import io
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from s2clip.errors import ImageError
from s2clip.pictures.images import read_image

HEIGHT, WIDTH = 6, 9


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def as_array(tensor):
    return tensor.permute(1, 2, 0).numpy()


def test_rgb_file_comes_back_as_it_is(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert np.array_equal(as_array(image), pixels)
    assert torch.equal(read_image(str(tmp_path / "a.png")), image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "jp2", "gif", "jpg", "avif"])
def test_every_format_is_read_by_content_not_by_name(tmp_path, pixels, suffix):
    flat = np.broadcast_to(np.uint8([200, 100, 50]), pixels.shape)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(flat).save(path, **({"lossless": True} if suffix == "webp" else {}))
    path = path.rename(tmp_path / "wrong.xyz")
    assert np.abs(as_array(read_image(path)).astype(int) - flat).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, pixels, orientation):
    upright = np.repeat(np.repeat(pixels, 8, axis=0), 8, axis=1)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(as_array(read_image(tmp_path / "a.png")), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_unreadable_exif_does_not_make_a_good_picture_bad(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(as_array(read_image(tmp_path / "a.png")), pixels)


def test_grey_one_bit_and_palette(tmp_path, pixels):
    grey = Image.fromarray(pixels[..., 0])
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(as_array(read_image(tmp_path / "grey.png")), pixels[..., :1].repeat(3, 2))
    bits = grey.point(lambda value: 255 * (value > 127), "1")
    bits.save(tmp_path / "bits.png")
    assert np.array_equal(as_array(read_image(tmp_path / "bits.png"))[..., 0], 255 * (pixels[..., 0] > 127))
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(as_array(read_image(tmp_path / "palette.png")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / name)
    expected = np.round(values * (255 / 65535)).astype(np.uint8)
    assert np.array_equal(as_array(read_image(tmp_path / name)), expected[..., None].repeat(3, 2))


def test_sixteen_bit_grey_is_turned_too():
    image = Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 257 * 40)
    image.getexif()[0x0112] = 3
    assert read_image(image)[0].flatten().tolist() == [200, 160, 120, 80, 40, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_lies_on_white(tmp_path, mode):
    """Left half opaque, right half transparent with red under it."""
    if mode in ("RGBA", "LA"):
        colour = np.zeros((4, 4, 4), np.uint8)
        colour[:, :2, 3] = 255
        colour[:, 2:, 0] = 255
        Image.fromarray(colour).convert(mode).save(tmp_path / "a.png")
    else:
        colour = np.zeros((4, 4), np.uint8)
        colour[:, 2:] = 1
        image = Image.fromarray(colour)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image = image.convert(mode)
        image.save(tmp_path / "a.png", transparency=1 if mode == "P" else (255, 0, 0))
    image = read_image(tmp_path / "a.png")
    assert (image[..., :2] == 0).all()
    assert (image[..., 2:] == 255).all()


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    expected = torch.tensor([200, 30, 40]).view(3, 1, 1)
    assert (read_image(tmp_path / "a.jpg").int() - expected).abs().max() <= 3


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_arrays_and_tensors(pixels):
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(read_image(pixels), expected)
    assert torch.equal(read_image(pixels[:, ::-1]), expected.flip(2))
    assert torch.equal(read_image(pixels[..., 0]), expected[:1].expand(3, -1, -1))
    assert torch.equal(read_image(expected), expected)
    assert torch.equal(read_image(expected.float() / 255), expected)
    assert torch.equal(read_image((expected.double() / 255)[:1]), expected[:1].expand(3, -1, -1))
    assert torch.equal(read_image(Image.fromarray(pixels)), expected)


def test_alpha_of_arrays_and_tensors_is_laid_on_white(pixels):
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 0, np.uint8)])
    alpha[0, 0, 3] = 255
    for source in (alpha, torch.from_numpy(alpha).permute(2, 0, 1)):
        image = as_array(read_image(source))
        assert np.array_equal(image[0, 0], pixels[0, 0])
        assert (image[1:] == 255).all()


def test_open_files_and_bytes(tmp_path, pixels):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")  # which leaves the position at the end
    with path.open("rb") as handle:
        for source in (handle, written, written, path.read_bytes()):
            assert np.array_equal(as_array(read_image(source)), pixels)
    for source, message in (
        (io.StringIO("text"), 'opened with "rb"'),
        (io.BytesIO(), "empty"),
        (b"no picture", "bytes: not a picture"),
        (handle, "closed file"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(source)


def test_floats_may_miss_their_bounds_by_rounding():
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert above > 1
    assert read_image(above.expand(3, 2, 2)).unique().tolist() == [255]
    assert read_image(torch.full((3, 2, 2), -1e-7)).unique().tolist() == [0]
    assert read_image(torch.full((3, 2, 2), 1.0009765625).half()).unique().tolist() == [255]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_arrays_that_may_not_be_written_to(shape, recwarn):
    array = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    frozen = np.frombuffer(array.tobytes(), np.uint8).reshape(shape)
    torch.set_warn_always(True)  # torch warns of such arrays once a process
    try:
        assert torch.equal(read_image(frozen), read_image(array))
    finally:
        torch.set_warn_always(False)
    assert not recwarn.list


def test_the_callers_pixels_are_not_shared(pixels):
    image = read_image(pixels)
    image.zero_()
    assert pixels.any()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "255"),
        (np.zeros((4, 4, 3), np.uint16), "uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 5), np.uint8), r"\[H,W,3\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (torch.zeros(4, 5, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 4, 5), "list"),
        (torch.full((3, 4, 4), 2.0), r"from 2.0 to 2.0; divide by 255"),
        (torch.full((3, 4, 4), 1.0625), r"from 1.0625 to 1.0625; image.clamp\(0, 1\)"),
        (torch.full((3, 4, 4), float("nan")), "finite"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8"),
        (torch.zeros(3, 0, 4), "no pixels"),
        (Image.new("F", (4, 4)), "float pixels"),
        (Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "16 bits"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
        ("https://example.org/a.jpg", "not fetched"),
        ("null\0byte.png", "null"),
        ("x" * 5000, "too long"),
    ],
)
def test_refused_sources_say_why(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


def encoded(kind, size=(64, 48)):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def test_refused_files_name_the_file_and_the_reason(tmp_path):
    files = {
        "missing.jpg": (None, "no such file"),
        "zero.jpg": (b"", "empty file"),
        "text.jpg": (b"not a picture at all, but a text", "not a picture"),
        "short.png": (b"\x89PNG\r\n\x1a\n", "damaged"),
        "tiny.bin": (b"\xff", "not a picture"),
    }
    for name, (content, reason) in files.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path, kind, part):
    content = encoded(kind)
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageError, match=r"cut\.jpg: (truncated|damaged|not a picture)"):
        read_image(path)


def png_header(width, height):
    """A PNG whose header promises width x height, with one row of data."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 12_000, 60_000])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, side):
    """60,000 squared bits would be 450 MB even as one bit a pixel; Pillow's own limits lie at 89 and 179 megapixels."""
    (tmp_path / "big.png").write_bytes(png_header(side, side))
    with pytest.raises(ImageError, match=r"megapixels, over the limit of 64"):
        read_image(tmp_path / "big.png")


def test_the_pixel_limit_is_settable_beyond_pillows_own(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    with pytest.raises(ImageError, match=r"over the limit of 0\.001"):
        read_image(path, max_pixels=1000)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"over the limit of 0\.001"):
        read_image(image, max_pixels=1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert read_image(path, max_pixels=3072).shape == (3, 48, 64)


def test_pillows_settings_are_left_alone(tmp_path):
    from PIL import ImageFile

    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    read_image(tmp_path / "a.png")
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # a chmod does not stop root

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: permission denied$"):
        read_image(path)


def test_tensors_without_values_in_a_row_and_premultiplied_grey():
    for odd in (torch.zeros(3, 4, 5).to_sparse(), torch.zeros(3, 4, 5, device="meta")):
        with pytest.raises(ImageError, match="expected a dense tensor with values"):
            read_image(odd)
    grey = Image.new("LA", (5, 4), (10, 128))
    assert (read_image(grey.convert("La")) - read_image(grey).float()).abs().max() <= 1
