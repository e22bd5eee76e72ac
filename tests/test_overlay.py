"""Overlays that can be read: colours told apart by all eyes, names inside their regions, letters of any script."""

import numpy as np
import pytest
import torch
from colorspacious import cspace_convert
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from s2clip.results import letters as letters_module
from s2clip.results.colours import IGNORED, class_colours
from s2clip.results.letters import Letters, font_files
from s2clip.results.places import find_places
from s2clip.results.visualize import overlay


@pytest.mark.parametrize("vision", ["normal", "protanomaly", "deuteranomaly", "tritanomaly"])
@pytest.mark.parametrize(("count", "least"), [(13, 14.5), (40, 7.5), (255, 2.5)])
def test_colours_are_told_apart_by_normal_and_colour_blind_eyes(vision, count, least):
    """Distance in CAM02-UCS, where one is just seen; ignored pixels' white is one of the colours to be told."""
    colours = np.vstack([class_colours(count), [IGNORED]]) / 255
    if vision != "normal":
        space = {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}
        colours = np.clip(cspace_convert(colours, space, "sRGB1"), 0, 1)
    places = cspace_convert(colours, "sRGB1", "CAM02-UCS")
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e3 * np.eye(len(places))
    assert distance.min() >= least


def test_after_255_classes_the_colours_come_again():
    assert np.array_equal(class_colours(300)[255:], class_colours(45))


def regions():
    """A map of 40 classes in 63 tiles, one of them too small for a name."""
    labels = np.arange(63).reshape(7, 9).repeat(100, 0).repeat(140, 1) % 40
    labels[10:16, 10:16] = 39
    return labels


def test_names_stand_in_their_regions_and_do_not_overlap():
    labels = regions()
    places = find_places(labels, 40, lambda index, scale: (110 * scale, 30 * scale))
    assert len(places) == 60
    covered = np.zeros(labels.shape, int)
    for place in places:
        half_width, half_height = 55 * place.scale, 15 * place.scale
        rows = slice(round(place.y - half_height), round(place.y + half_height))
        columns = slice(round(place.x - half_width), round(place.x + half_width))
        assert (labels[rows, columns] == place.class_index).mean() > 0.8
        covered[rows, columns] += 1
    assert covered.max() == 1


def test_a_name_without_room_is_left_to_the_legend():
    labels = np.zeros((400, 400), np.int64)
    labels[:, 200:210] = 1
    labels[300:, :60] = 255
    found = find_places(labels, 2, lambda index, scale: (120 * scale, 30 * scale))
    assert [place.class_index for place in found] == [0, 0]


def test_names_are_drawn_white_in_dark_unless_switched_off():
    image, labels = torch.full((3, 800, 800), 100, dtype=torch.uint8), torch.zeros(800, 800, dtype=torch.int64)
    plain, named = (
        np.asarray(overlay(image, labels, ("sky",), legend=False, names=names)).astype(int) for names in (False, True)
    )
    assert len(np.unique(plain.reshape(-1, 3), axis=0)) == 1
    assert (named == 255).all(2).sum() > 30
    assert (named == 20).all(2).sum() > 30


def drawn(text, folders=None, size=32):
    picture = Image.new("L", (400, 60))
    Letters(size, folders).draw(ImageDraw.Draw(picture), (10, 30), text, "l", fill=255)
    return np.asarray(picture)


@pytest.fixture
def font_with(tmp_path):
    """A folder with a font of one letter, a filled square."""

    def make(letter):
        builder = FontBuilder(1000, isTTF=True)
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for point in ((0, 700), (700, 700), (700, 0)):
            pen.lineTo(point)
        pen.closePath()
        empty = TTGlyphPen(None)
        builder.setupGlyphOrder([".notdef", "one"])
        builder.setupCharacterMap({ord(letter): "one"})
        builder.setupGlyf({".notdef": empty.glyph(), "one": pen.glyph()})
        builder.setupHorizontalMetrics({".notdef": (800, 0), "one": (800, 0)})
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": "One", "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / "OneSans.ttf")
        return (tmp_path,)

    return make


def test_a_letter_comes_from_the_installed_font_that_has_it(font_with, caplog):
    folders = font_with("木")
    assert [path.name for path in font_files(folders)] == ["OneSans.ttf"]
    square = drawn("木", folders)
    assert (square == 255).sum() == pytest.approx((0.7 * 32) ** 2, rel=0.1)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "latin"), [("木", "Mu"), ("Кошка", "Koshka"), ("\U0001f600", ":grinning:"), ("\u0378", "U+0378")]
)
def test_letters_that_no_font_has_are_written_in_latin_and_said_once(name, latin, tmp_path, caplog):
    letters_module._in_latin.cache_clear()
    assert np.array_equal(drawn(name, (tmp_path,)), drawn(latin, (tmp_path,)))
    drawn(name, (tmp_path,))
    assert [latin in record.getMessage() for record in caplog.records] == [True]


def test_plain_names_need_no_installed_font(tmp_path, caplog):
    assert drawn("traffic light", (tmp_path,)).any()
    assert not caplog.records


def test_a_damaged_font_is_passed_over(tmp_path):
    (tmp_path / "Broken.ttf").write_bytes(b"no font")
    assert np.array_equal(drawn("Кот", (tmp_path,)), drawn("Kot", (tmp_path,)))
