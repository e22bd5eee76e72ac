"""Sources of the command line and the names of what is written: none lost, none doubled, none replaced."""

import json
import os

from command_line import CLASSES, one_line, opened, paint

from s2clip.files import place
from s2clip.pictures.inputs import expand
from s2clip.results.naming import name_outputs


def test_pictures_of_one_name_get_files_of_their_own(run, tmp_path):
    paint(tmp_path / "one/a.png", size=(40, 64))
    paint(tmp_path / "two/a.jpg", size=(48, 64))
    result = run("segment", "one/a.png", "two/a.jpg", "one/a.png", "--classes", CLASSES, "--method", "clip")
    assert result.exit_code == 0, result.output
    assert opened(tmp_path / "out/one/a.png").size == (64, 40)
    assert opened(tmp_path / "out/two/a.png").size == (64, 48)
    assert not (tmp_path / "out/a.png").exists()
    images = json.loads((tmp_path / "out/run.json").read_text())["images"]
    assert [image["source"] for image in images] == ["one/a.png", "two/a.jpg"]


def test_a_file_name_that_is_not_text(run, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    paint(tmp_path / name)
    for extra in ((), ("--json",)):
        result = run("segment", ".", "--classes", CLASSES, "--method", "clip", *extra)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / name).is_file()
    for text in (result.stdout, (tmp_path / "out/run.json").read_text()):
        assert json.loads(text)["images"][0]["source"] == name


def test_names_that_meet_in_other_ways(tmp_path):
    for name in ("x.png", "x.overlay.png", "x-2.jpg", "X.jpg", "x.jpg"):
        paint(tmp_path / name, size=(8, 8))
    pictures, failures = expand(
        [str(tmp_path / name) for name in ("x.png", "x.overlay.png", "x-2.jpg", "X.jpg", "x.jpg")]
    )
    assert failures == []
    stems = name_outputs(pictures, tmp_path / "out")
    assert stems[:3] == ["x.png", "x.overlay.png", "x-2"]
    assert [stem.split("-")[0] for stem in stems[3:]] == ["X.jpg", "x.jpg"]  # one name where capitals are one
    assert len({stem.casefold() for stem in stems}) == 5
    assert name_outputs(pictures[::-1], tmp_path / "out") == stems[::-1]


def test_a_picture_keeps_its_name_and_leaves_it_to_no_other(tmp_path):
    for name in ("one/a.png", "two/a.png", "two/a.jpg"):
        paint(tmp_path / name, size=(8, 8))
    first, second, third = (tmp_path / name for name in ("one/a.png", "two/a.png", "two/a.jpg"))
    known = {place(first): "a"}
    assert name_outputs([second], tmp_path / "out", known=known) == ["two/a"]
    assert name_outputs([second, first], tmp_path / "out", known=known) == ["two/a", "a"]
    assert name_outputs([first, second, third], tmp_path / "out") == ["one/a", "two/a.png", "two/a.jpg"]


def test_a_result_never_replaces_a_picture(run, tmp_path):
    before = paint(tmp_path / "a.png").read_bytes()
    result = run("segment", "a.png", "--classes", CLASSES, "-o", ".")
    assert result.exit_code == 2
    assert "would replace a picture" in one_line(result)
    assert (tmp_path / "a.png").read_bytes() == before


def test_links_to_one_file_are_pictures_of_their_own(tmp_path):
    """As in a snapshot of the Hub, where equal files are links to one blob."""
    (tmp_path / "blob").write_bytes(b"x")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).symlink_to("../blob")
    (tmp_path / "same").symlink_to("snapshot")
    assert expand([str(folder)])[0] == [folder / "a.png", folder / "b.png"]
    again = [folder / "a.png", folder / ".." / "snapshot" / "a.png", tmp_path / "same" / "a.png"]
    assert expand([*map(str, again)])[0] == [folder / "a.png"]


def test_folders_patterns_and_repetitions_are_expanded_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.png", "p/a.JPG", "p/deep/c.png"):
        paint(tmp_path / name, size=(8, 8))
    pictures, failures = expand(["p", "p/*.png", "p/**/*.png", "./p/b.png"])
    assert [str(path) for path in pictures] == ["p/a.JPG", "p/b.png", "p/deep/c.png"]
    assert failures == []
