"""What phones write: HEIC (extra `heif`), motion photos, portraits with depth maps and gain maps, turned pictures."""

from io import BytesIO

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from s2clip.errors import ImageError
from s2clip.pictures import decoding, worker
from s2clip.pictures.images import read_image
from s2clip.pictures.label_maps import picture_size
from s2clip.scenes import generate

PIXELS = generate(5, (64, 96))[0]


def near(path, expected):
    found = read_image(path).permute(1, 2, 0).numpy().astype(int)
    return found.shape == expected.shape and np.abs(found - expected).mean() < 6


def heic(path, pixels=PIXELS, mode="RGB", **options):
    picture = pillow_heif.from_bytes(mode=mode, size=pixels.shape[1::-1], data=np.ascontiguousarray(pixels).tobytes())
    picture.save(path, quality=95, **options)
    return path


def test_heic_is_read_in_a_process_that_can_be_ended(tmp_path, monkeypatch):
    path = heic(tmp_path / "a.heic")
    asked = []
    ask = worker.ask
    monkeypatch.setattr(worker, "ask", lambda *arguments: (asked.append(arguments), ask(*arguments))[1])
    assert near(path, PIXELS)
    assert picture_size(path) == (64, 96)
    assert len(asked) == 2


def test_heic_is_upright_once_and_lies_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = heic(tmp_path / "turned.heic", exif=exif.tobytes())
    with_plugin = pillow_heif.open_heif(turned).to_pillow().size[::-1]
    assert tuple(read_image(turned).shape[1:]) == picture_size(turned) == with_plugin
    alpha = np.concatenate([PIXELS, np.full((64, 96, 1), 255, np.uint8)], 2)
    alpha[:32, :, 3] = 0
    shown = PIXELS.copy()
    shown[:32] = 255
    assert near(heic(tmp_path / "alpha.heic", alpha, "RGBA"), shown)


def test_heic_keeps_the_bounds(tmp_path):
    path = heic(tmp_path / "a.heic")
    with pytest.raises(ImageError, match=r"96x64 is 0\.0 megapixels, over the limit"):
        read_image(path, max_pixels=1000)
    for length in (40, 200, path.stat().st_size // 2):
        (tmp_path / "cut.heic").write_bytes(path.read_bytes()[:length])
        with pytest.raises(ImageError, match=r"cut\.heic: ") as error:
            read_image(tmp_path / "cut.heic")
        assert "\n" not in str(error.value)


def test_without_the_extra_one_line_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"a\.heic: a file of kind HEIC, which needs pillow-heif: pip install"):
        read_image(heic(tmp_path / "a.heic"))


def test_a_folder_lists_heic_where_it_is_read(tmp_path, monkeypatch):
    from s2clip.pictures.inputs import find

    heic(tmp_path / "a.HEIC")
    assert [path.name for path in find([str(tmp_path)]).pictures] == ["a.HEIC"]
    monkeypatch.setattr("s2clip.pictures.inputs.find_spec", lambda name: None)
    assert find([str(tmp_path)]).skipped == [f"skipped in {tmp_path}: 1 HEIC (.heic)"]


def test_pictures_with_more_behind_them_are_the_picture(tmp_path):
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95)
    film = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 400
    (tmp_path / "motion.jpg").write_bytes(buffer.getvalue() + film)
    assert near(tmp_path / "motion.jpg", PIXELS)
    # a gain map or a depth map: a smaller picture behind the main one, told of by an MPF segment
    other = Image.fromarray(255 - PIXELS).resize((24, 16))
    Image.fromarray(PIXELS).save(tmp_path / "gain.jpg", "MPO", save_all=True, append_images=[other], quality=95)
    assert near(tmp_path / "gain.jpg", PIXELS)
    assert picture_size(tmp_path / "gain.jpg") == (64, 96)
