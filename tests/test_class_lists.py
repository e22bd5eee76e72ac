"""Class lists in the notations that people use: read as meant, or told apart in one line."""

import logging

import pytest

from s2clip import Segmenter
from s2clip.words.lists import remarks, understood
from s2clip.words.text import parse_classes, read_classes, vocabulary

THREE = ["sky", "house; hut", "traffic light"]


@pytest.mark.parametrize(
    "text",
    [
        "sky, house; hut, traffic light",
        "sky . house; hut . traffic light .",
        "sky. house; hut. traffic light.",
        "sky|house; hut | traffic light",
        "sky，house；hut，traffic light",
        "sky、house; hut、traffic light",
        "sky\thouse; hut\ttraffic light",
        "sky\r\nhouse; hut\r\n\r\ntraffic light\r\n",
        "sky,\nhouse; hut,\ntraffic light",
        '["sky", "house; hut", "traffic light"]',
        '["sky", ["house", "hut"], "traffic light"]',
        "('sky', 'house; hut', 'traffic light')",
        "[sky, house; hut, traffic light]",
        '"sky", \'house; hut\', "traffic light"',
        "“sky”, “house; hut”, “traffic light”",
        "- sky\n- house; hut\n- traffic light\n",
        "• sky\n• house; hut\n• traffic light",
        "1. sky\n2. house; hut\n3. traffic light",
        "0: sky\n1: house; hut\n2: traffic light",
        "\ufeffsky, house;\u200b hut, traffic light",
    ],
)
def test_every_notation_gives_the_same_classes(text):
    assert list(vocabulary(text).classes) == THREE


def test_what_is_no_notation_stays_a_name():
    assert parse_classes("st. bernard, driver's seat, 'tis, (old) house") == [
        "st. bernard",
        "driver's seat",
        "'tis",
        "(old) house",
    ]
    assert parse_classes("st. bernard") == ["st. bernard"]
    assert parse_classes('"dress, red", hat') == ["dress, red", "hat"]


def test_a_class_file_of_one_line_or_of_json(tmp_path):
    path = tmp_path / "classes.txt"
    for text in ("sky, house; hut, traffic light\n", '["sky",\n "house; hut",\n "traffic light"]\n'):
        path.write_text(text, encoding="utf-8")
        assert read_classes(path) == THREE


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("3: sky\n7: tree", "expected numbers that count up from 0 or 1, as the place gives the id, received 3: sky"),
        ({"sky", "tree"}, "expected a list, whose order gives the ids, received a set"),
        (frozenset(["sky"]), "received a frozenset"),
        ({"sky": 1, "tree": 0}, "received a dict"),
        ('{"sky", "tree"}', "expected a list"),
        (3, "received a int"),
        ("sky|heaven, tree", "expected one sign between names"),
        (["cafe\u0301", "caf\u00e9"], "every name once"),
        (["ｓｋｙ", "sky"], "every name once"),
    ],
)
def test_lists_that_are_refused(classes, message):
    with pytest.raises(ValueError, match=r"^classes: ") as caught:
        vocabulary(classes)
    assert message in str(caught.value)


def test_a_file_of_marked_lines(tmp_path):
    (tmp_path / "classes.txt").write_text("# of a page\n- sky\n- house; hut\n- traffic light\n", encoding="utf-8")
    assert read_classes(tmp_path / "classes.txt") == THREE
    assert parse_classes("- sky\n-x") == ["- sky", "-x"]


def test_a_table_is_remarked_upon():
    said = remarks(parse_classes("id,name\n0,sky\n1,tree"))
    assert said == ["classes: 0, 1: numbers among the names, as of a table; expected names alone"]


def test_remarks_on_what_is_seldom_meant():
    assert remarks(["sky", "tree"]) == []
    for one in ("sky tree house", "sky; tree; house"):
        (line,) = remarks([one])
        assert repr(one) in line
        assert "commas part classes, semicolons words" in line
    (line,) = remarks(["sky, tree", "house"])
    assert "'sky, tree'" in line
    assert understood(THREE) == "3 classes: 0 sky, 1 house; hut, 2 traffic light"


def test_words_that_the_model_cannot_tell_apart_are_named(caplog):
    segmenter = Segmenter.from_pretrained("tiny", method="clip")
    long = "big red house " * 40
    with caplog.at_level(logging.WARNING, "s2clip"):
        segmenter.set_classes(["zebra", "giraffe", "sky", "tree", f"{long}a", f"{long}b"])
        segmenter.set_classes(["zebra", "giraffe", "sky", "tree", f"{long}a", f"{long}b"])
    same = [message for message in caplog.messages if "same vector" in message]
    assert len(same) == 2
    assert "'zebra', 'giraffe'" in same[0]
    assert "tokens" in same[1]
    caplog.clear()
    segmenter.set_classes(["sky", "tree"])
    assert not caplog.messages
