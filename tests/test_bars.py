"""Bars on a terminal: of the words and of the pictures, below every line that is written meanwhile; -q has none."""

import logging

import click.testing
import pytest
from command_line import paint

from s2clip import Segmenter
from s2clip.words.text import TextEncoder

MANY = ", ".join(f"word {number}" for number in range(300))


@pytest.fixture
def terminal(monkeypatch):
    """stderr says that it is one, and the bar of the words does not wait for a second to pass."""
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda stream: True)
    monkeypatch.setattr("s2clip.cli.console.WORDS_DELAY", 0)


def segment(run, tmp_path, *more):
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    result = run("segment", "a.png", "b.png", "--method", "clip", *more)
    assert result.exit_code == 0, result.output
    return result


def test_words_and_pictures_have_bars_and_quiet_has_none(run, tmp_path, terminal):
    shown = segment(run, tmp_path, "--classes", MANY).stderr
    assert "words:" in shown
    assert "300/300" in shown or "/300 [" in shown
    assert "/2 [" in shown
    quiet = segment(run, tmp_path, "--classes", MANY, "-q")
    assert "/300 [" not in quiet.stderr
    assert "/2 [" not in quiet.stderr
    assert quiet.stdout == ""


def test_a_line_does_not_run_into_a_bar(run, tmp_path, terminal, monkeypatch):
    encode = TextEncoder._word

    def telling(encoder, word, *more):
        if word == "word 5":
            logging.getLogger("s2clip").warning("something")
        return encode(encoder, word, *more)

    monkeypatch.setattr(TextEncoder, "_word", telling)
    shown = segment(run, tmp_path, "--classes", MANY).stderr
    before, _, after = shown.partition("WARNING: something\n")
    assert "/300 [" in before
    assert before.rpartition("\r")[2] == ""  # the bar was taken away
    assert "/300 [" in after


def test_the_programs_own_logger_is_left_as_it_was(run, tmp_path):
    root, own = logging.getLogger(), logging.getLogger("s2clip")
    before = [(one.level, list(one.handlers), one.propagate) for one in (root, own)]
    segment(run, tmp_path, "--classes", "sky, tree", "-v")
    assert [(one.level, list(one.handlers), one.propagate) for one in (root, own)] == before


def test_a_bar_of_ones_own_is_given_the_words():
    given = []
    segmenter = Segmenter.from_pretrained("tiny", method="clip")
    segmenter.set_classes("sky, house; hut", progress=lambda words: given.extend(words) or words)
    assert given == ["sky", "house", "hut"]
