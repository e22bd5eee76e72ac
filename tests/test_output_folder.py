"""One folder, several runs: more of the same is added, anything else refused, a killed run is gone on with."""

import functools
import json
import os
import shutil
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from s2clip import Segmenter, cli, scenes
from s2clip.errors import OutputError

CLASSES = "sky, water; sea, grass, house"


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted")
    for seed, name in enumerate(("a", "b", "c")):
        Image.fromarray(scenes.generate(seed, (48, 64))[0]).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def loaded():
    return functools.cache(lambda arguments: Segmenter.from_pretrained(**dict(arguments)))


@pytest.fixture
def run(tmp_path, monkeypatch, painted, loaded):
    """`s2clip segment` in this process; models are loaded once for all runs."""
    monkeypatch.chdir(tmp_path)
    module = sys.modules["s2clip.cli.segment"]
    monkeypatch.setattr(module, "load_segmenter", lambda settings, **more: loaded(tuple({**settings, **more}.items())))
    shutil.copytree(painted, tmp_path / "photos")

    def call(*arguments):
        words = ("--classes", CLASSES) if "--classes" not in arguments else ()
        side = ("--short-side", "48") if "--short-side" not in arguments else ()
        return CliRunner().invoke(cli.main, ["segment", *map(str, arguments), *words, *side, "--method", "clip"])

    return call


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.suffix == ".png"
    }


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def images(folder):
    return [one["source"] for one in json.loads((folder / "run.json").read_text())["images"]]


def test_more_pictures_of_the_same_classes_are_added(run, tmp_path):
    assert run("photos/a.png").exit_code == 0
    assert run("photos/b.png").exit_code == 0
    assert images(tmp_path / "out") == ["photos/a.png", "photos/b.png"]
    assert len(contents(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("more", "differs"),
    [
        (("--classes", "sky, tree"), "classes is"),
        (("--short-side", "32"), "settings.method.short_side is"),
        (("--threshold", "0.5"), "settings.method.threshold is 0.0 there and 0.5 now"),
        (("--refine", "sam"), "settings.refine is"),
    ],
)
def test_other_settings_are_refused(run, tmp_path, more, differs):
    assert run("photos/a.png").exit_code == 0
    before = contents(tmp_path / "out"), (tmp_path / "out/classes.json").read_bytes()
    for source in ("photos/a.png", "photos/b.png"):
        result = run(source, *more)
        assert result.exit_code == 3, result.output
        assert "out: holds results of other settings: " in result.stderr
        assert differs in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert (contents(tmp_path / "out"), (tmp_path / "out/classes.json").read_bytes()) == before


def test_a_saved_result_does_not_rename_the_ones_before(painted, tmp_path):
    segmenter = Segmenter.from_pretrained("tiny", method="clip").set_classes(CLASSES)
    segmenter(painted / "a.png").save(tmp_path)
    segmenter(painted / "b.png").save(tmp_path)
    assert len(json.loads((tmp_path / "run.json").read_text())["images"]) == 2
    segmenter.set_classes("sky, tree")
    for name in ("a.png", "c.png"):
        with pytest.raises(OutputError, match="classes is"):
            segmenter(painted / name).save(tmp_path)
    alone = tmp_path / "alone"
    for classes in ("sky, tree", CLASSES):  # of which nothing old remains
        segmenter.set_classes(classes)(painted / "a.png").save(alone)
    assert len(json.loads((alone / "classes.json").read_text())["classes"]) == 4


def counted(monkeypatch):
    seen, encode = [], Segmenter._encode

    def counting(segmenter, pictures):
        seen.extend(os.path.basename(picture.source) for picture in pictures)
        return encode(segmenter, pictures)

    monkeypatch.setattr(Segmenter, "_encode", counting)
    return seen


def test_resume_does_what_is_missing(run, tmp_path, monkeypatch):
    assert run("photos").exit_code == 0
    whole = contents(tmp_path / "out")
    cut = tmp_path / "out/b.png"
    cut.write_bytes(cut.read_bytes()[:50])
    (tmp_path / "out/c.overlay.png").unlink()
    seen = counted(monkeypatch)
    result = run("photos", "--resume")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == ["1 of 3 pictures were done before"]
    assert seen == ["b.png", "c.png"]
    assert contents(tmp_path / "out") == whole
    seen.clear()
    assert run("photos", "--resume", "--format", "png", "npz").exit_code == 0
    assert seen == ["a.png", "b.png", "c.png"]  # a format that is not there yet
    seen.clear()
    assert run("photos", "--resume", "--format", "overlay,npz,png").exit_code == 0
    assert seen == []
    Image.fromarray(scenes.generate(9, (48, 64))[0]).save(tmp_path / "photos/a.png")
    assert run("photos", "--resume").exit_code == 0
    assert seen == ["a.png"]  # another picture under the same name


@pytest.mark.parametrize("victim", ["a.png", "b.png", "c.png"])
def test_a_killed_run_is_gone_on_with(run, tmp_path, monkeypatch, victim):
    whole_run = run("photos", "-o", "whole")
    assert whole_run.exit_code == 0
    encode = Segmenter._encode

    def interrupted(segmenter, pictures):
        if pictures[0].source.endswith(victim):
            raise KeyboardInterrupt
        return encode(segmenter, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "_encode", interrupted)
        killed = run("photos")
    done = "abc".index(victim[0])
    assert killed.exit_code == 130
    assert killed.stderr.splitlines() == [f"{done} of 3 pictures are done; --resume does the others", "interrupted"]
    assert json.loads((tmp_path / "out/classes.json").read_text())["classes"][3]["name"] == "house"
    with (tmp_path / "out/manifest.jsonl").open("ab") as handle:
        handle.write(b'{"half a li')
    seen = counted(monkeypatch)
    assert run("photos", "--resume").exit_code == 0
    assert len(seen) == 3 - done
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(images(tmp_path / "out")) == sorted(images(tmp_path / "whole"))


def test_lines_are_there_before_the_run_ends(run, tmp_path, monkeypatch):
    encode, lines = Segmenter._encode, []

    def looking(segmenter, pictures):
        path = tmp_path / "out/manifest.jsonl"
        lines.append(len(path.read_bytes().splitlines()) if path.exists() else 0)
        assert json.loads((tmp_path / "out/run.json").read_text())["settings"]["method"]["name"] == "clip"
        return encode(segmenter, pictures)

    monkeypatch.setattr(Segmenter, "_encode", looking)
    assert run("photos").exit_code == 0
    assert lines == [0, 1, 2]
    assert {line["settings_sha256"] for line in manifest(tmp_path / "out")} == {
        json.loads((tmp_path / "out/run.json").read_text())["settings_sha256"]
    }


def test_a_second_run_does_not_read_its_own_output(run, tmp_path):
    Image.fromarray(scenes.generate(5, (48, 64))[0]).save(tmp_path / "photos/d.jpg")
    for name in ("a", "b", "c"):
        (tmp_path / f"photos/{name}.png").unlink()
    for _ in range(2):
        result = run("photos", "-o", "photos")
        assert result.exit_code == 0, result.output
        assert images(tmp_path / "photos") == ["photos/d.jpg"]
    assert "2 results of earlier runs" in result.stderr
    for sources in (("photos", "--recursive"), ("photos/*.png", "photos/d.jpg"), ("photos/d.png", "photos/d.jpg")):
        result = run(*sources, "-o", "photos")
        assert result.exit_code == 0, result.output
        assert images(tmp_path / "photos") == ["photos/d.jpg"]
    assert run("photos/d.jpg", "-o", "photos/deep/out").exit_code == 0
    result = run("photos", "--recursive", "-o", "again")  # what another run wrote below
    assert images(tmp_path / "again") == ["photos/d.jpg"]


def test_recursive_keeps_the_tree_and_folders_say_what_they_leave_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr("s2clip.pictures.inputs.find_spec", lambda name: None)  # without the extra that reads HEIC
    for name in ("deep/er/a.png", "deep/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "photos/a.png", tmp_path / "photos" / name)
    for name in ("x.HEIC", "y.cr2", "z.mp4", "notes.txt"):
        (tmp_path / "photos" / name).touch()
    result = run("photos", "-o", "flat")
    assert result.exit_code == 0
    skipped = "1 HEIC (.heic), 1 RAW (.cr2), 1 video (.mp4), 1 folder (deep; --recursive takes them)"
    assert result.stderr.splitlines() == [f"skipped in photos: {skipped}"]
    assert run("photos", "--recursive", "--format", "png").exit_code == 0
    assert set(contents(tmp_path / "out")) == {"a.png", "b.png", "c.png", "deep/b.png", "deep/er/a.png"}
    with Image.open(tmp_path / "out/deep/er/a.png") as image, Image.open(tmp_path / "out/a.png") as same:
        assert np.array_equal(np.asarray(image), np.asarray(same))
