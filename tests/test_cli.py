"""The program as a user meets it: exit codes, one clear line for every bad input, nothing half-written."""

import json
import logging
import os
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import CLASSES, one_line, opened, paint

from s2clip import Segmenter
from s2clip.cli.options import output_options


def test_segment_writes_a_label_map_of_the_pictures_size(run, tmp_path):
    paint(tmp_path / "a.png")
    result = run("segment", "a.png", "--classes", CLASSES, "--method", "clip")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.overlay.png",
        "a.png",
        "classes.json",
        "manifest.jsonl",
        "run.json",
    ]
    labels = opened(tmp_path / "out/a.png")
    assert (labels.mode, labels.size) == ("P", (64, 48))
    assert np.asarray(labels).max() < 4
    run_file = json.loads((tmp_path / "out/run.json").read_text())
    assert run_file["settings"]["method"]["name"] == "clip"
    assert len(run_file["settings"]["weights_sha256"]["clip"]) == 64
    assert run_file["failed"] == []
    assert "a.png: " in result.stdout
    assert result.stderr == ""


def test_a_batch_does_the_good_pictures_and_lists_the_bad_ones(run, tmp_path):
    paint(tmp_path / "photos/a.png")
    paint(tmp_path / "photos/b.jpg")
    whole = (tmp_path / "photos/b.jpg").read_bytes()
    (tmp_path / "photos/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos/zero.png").touch()
    (tmp_path / "photos/notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    result = run("segment", "photos", "missing.jpg", "empty", "none*.png", "--classes", CLASSES, "--method", "clip")
    assert result.exit_code == 1
    written = {path.name for path in (tmp_path / "out").iterdir()}
    sidecars = {"classes.json", "run.json", "manifest.jsonl"}
    assert written == {"a.png", "a.overlay.png", "b.png", "b.overlay.png", *sidecars}
    lines = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 5
    for name, reason in {
        "photos/cut.jpg": "truncated",
        "photos/zero.png": "empty file",
        "missing.jpg": "no such file",
        "empty": "no pictures in this folder",
        "none*.png": "nothing matches",
    }.items():
        assert any(line.startswith(f"failed: {name}: ") and reason in line for line in lines), name
    assert result.stderr.splitlines()[-1] == "2 done, 5 failed"
    failed = json.loads((tmp_path / "out/run.json").read_text())["failed"]
    assert {row["source"] for row in failed} == {
        "photos/cut.jpg",
        "photos/zero.png",
        "missing.jpg",
        "empty",
        "none*.png",
    }


def test_json_is_one_object(run, tmp_path):
    paint(tmp_path / "a.png")
    result = run(
        "segment", "a.png", "no.png", "--classes", CLASSES, "--method", "clip", "--json", "--format", "png,npz,coco"
    )
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert set(document) == {"images", "failed"}
    assert set(document["images"][0]["files"]) == {"png", "npz", "coco"}
    assert sum(document["images"][0]["shares"].values()) == pytest.approx(1, abs=1e-4)
    assert document["failed"] == [{"source": "no.png", "error": "no such file"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", ""], "at least one name"),
        (["--classes", "sky,,tree"], "empty name"),
        (["--classes", "sky, Sky"], "every name once"),
        (["--classes", "sky; sky"], "every name once"),
        ([], "--classes or by --classes-file"),
        (["--classes", "sky", "--classes-file", "f"], "--classes or by --classes-file"),
        (["--classes-file", "no.txt"], "no.txt: No such file"),
        (["--classes-file", "a.png"], "not UTF-8"),
        (["--classes", "sky", "--model", "ViT-X"], "tiny, ViT-B-16, ViT-L-14, ViT-H-14"),
        (["--classes", "sky", "--method", "magic"], "s2clip-source, received 'magic'"),
        (["--classes", "sky", "--vfm", "dino-x"], "dino-b8"),
        (["--classes", "sky", "--refine", "magic"], "none"),
        (["--classes", "sky", "--threshold", "2", "--background", "sky"], "threshold"),
        (["--classes", "sky", "--threshold", "0.5", "--background", "tree"], "background"),
        (["--classes", "sky", "--format", "png,gif"], "geojson, received 'gif'"),
        (["--classes", "sky", "--max-megapixels", "0"], "--max-megapixels"),
        (["--classes", "sky", "--max-megapixels", "nan"], "--max-megapixels"),
        (["--classes", "sky", "--device", "toaster"], "--device must be"),
        (["--classes", "sky", "--crop", "-5"], "crop"),
        (["--classes", "sky", "--no-such-option"], "No such option"),
        (["--classes", "sky", "--crop", "-5"], "--crop: expected"),
        (["--classes", "sky", "--crop", "1"], "--crop: expected at least the stride"),
        (["--classes", "sky", "--stride", "0"], "--stride: expected"),
        (["--classes", "sky", "--stride", "8", "--crop", "0"], "--stride: has no effect"),
        (["--classes", "sky", "--sam", "sam-tiny"], "--sam: has no effect on s2clip without --refine sam"),
        (["--classes", "sky", "--vfm", "tiny-dino", "--method", "clip"], "--vfm: has no effect, clip uses no"),
        (["--classes", "sky, sea", "--background", "sky"], "--background: has no effect without --threshold"),
        (["--classes", "sky", "--regions", "sam"], "--regions: has no effect, s2clip takes no regions"),
        (["--classes", "sky", "--method", "clip", "--method", "naclip"], "--method: given 2 times"),
        (["--classes", "sky", "--method", "slip"], "did you mean 'sclip'"),
        (["--classes", "sky", "--refine", "sma"], "did you mean 'sam'"),
        (["--classes", "sky", "--max-memory", "8"], "8 bytes hold no model"),
        (["--classes", "sky", "--weights", "none.pt"], "--weights: expected 'pretrained', 'random' or a file"),
    ],
)
def test_usage_errors(run, tmp_path, arguments, message):
    paint(tmp_path / "a.png", size=(8, 8))
    result = run("segment", "a.png", *arguments)
    assert result.exit_code == 2, result.output
    assert message in one_line(result)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def forbid_loading(monkeypatch):
    module = sys.modules["s2clip.cli.segment"]  # as an attribute of the package, the name is the command
    monkeypatch.setattr(module, "load_segmenter", lambda *args, **kwargs: pytest.fail("a model was loaded"))


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/no/such"])
def test_an_output_folder_that_cannot_be_written_stops_everything_before_the_work(run, tmp_path, monkeypatch, output):
    paint(tmp_path / "a.png")
    (tmp_path / "file").touch()
    forbid_loading(monkeypatch)
    result = run("segment", "a.png", "--classes", CLASSES, "-o", output)
    assert result.exit_code == 3
    assert f"{output}: cannot write there" in one_line(result)


def test_missing_weights_are_the_environments_fault(run, tmp_path):
    paint(tmp_path / "a.png")
    result = run(
        *("segment", "a.png", "--classes", CLASSES, "--model", "ViT-B-16", "--method", "clip"),
        *("--cache-dir", tmp_path / "cache", "--local-files-only"),
    )
    assert result.exit_code == 3
    assert "ViT-B-16" in result.stderr
    assert "--model tiny" in result.stderr


def test_a_device_that_is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    paint(tmp_path / "a.png")
    result = run("segment", "a.png", "--classes", CLASSES, "--device", "cuda")
    assert result.exit_code == 3
    assert "no CUDA device" in one_line(result)


def test_only_bad_inputs_load_no_model(run, monkeypatch):
    forbid_loading(monkeypatch)
    result = run("segment", "no.png", "--classes", CLASSES)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["failed: no.png: no such file", "0 done, 1 failed"]


def test_the_pixel_limit(run, tmp_path):
    paint(tmp_path / "a.png", size=(48, 64))
    result = run("segment", "a.png", "--classes", CLASSES, "--method", "clip", "--max-megapixels", "0.003")
    assert result.exit_code == 1
    assert "megapixels, over the limit of 0.003" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.json", "run.json"]
    assert json.loads((tmp_path / "out/run.json").read_text())["failed"][0]["source"] == "a.png"


def test_unknown_words_are_said_in_one_line(run, tmp_path):
    paint(tmp_path / "a.png")
    result = run("segment", "a.png", "--classes", "sky, xylophone, tree", "--method", "clip")
    assert result.exit_code == 0
    assert len(result.stderr.splitlines()) == 1
    assert "xylophone" in result.stderr


def test_a_warning_is_said_once():
    @click.command()
    @output_options
    def command(as_json, show_progress):
        for text in ("one", "two", "one"):
            logging.getLogger("s2clip.any").warning(text)

    for _ in range(2):  # anew in every run of a command
        assert CliRunner().invoke(command).stderr.splitlines() == ["WARNING: one", "WARNING: two"]


def test_verbose_says_what_is_loaded_and_from_where(run, tmp_path):
    paint(tmp_path / "a.png")
    result = run("segment", "a.png", "--classes", CLASSES, "--method", "clip", "-v", "-q")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["INFO: tiny: embedded in the package"]


def test_threshold_gives_pixels_to_the_background(run, tmp_path):
    paint(tmp_path / "a.png")
    arguments = ("segment", "a.png", "--classes", "sky, water; sea, tree", "--method", "clip", "--json")
    result = run(*arguments, "--threshold", "1", "--background", "sea")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"][0]["shares"] == {"sky": 0.0, "water; sea": 1.0, "tree": 0.0}
    assert json.loads((tmp_path / "out/classes.json").read_text())["background"] == 1


def test_classes_from_a_file(run, tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "classes.txt").write_text("# mine\nsky\n\nwater; sea\n")
    result = run("segment", "a.png", "--classes-file", "classes.txt", "--method", "clip", "--json")
    assert set(json.loads(result.stdout)["images"][0]["shares"]) == {"sky", "water; sea"}


def test_an_interrupt_keeps_what_is_done(run, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    encode = Segmenter._encode

    def interrupted_at_b(segmenter, pictures):
        if pictures[0].source == "b.png":
            raise KeyboardInterrupt
        return encode(segmenter, pictures)

    monkeypatch.setattr(Segmenter, "_encode", interrupted_at_b)
    result = run("segment", "a.png", "b.png", "--classes", CLASSES, "--method", "clip")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert len(json.loads((tmp_path / "out/run.json").read_text())["images"]) == 1


def test_the_program_in_processes_of_its_own(tmp_path):
    """`python -m s2clip` and the installed script: exit codes, and stderr apart from stdout."""
    paint(tmp_path / "a.png")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}

    def process(*command):
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    module = (sys.executable, "-m", "s2clip")
    script = (os.path.join(os.path.dirname(sys.executable), "s2clip"),)
    good = process(*module, "segment", "a.png", "no.png", "--classes", CLASSES, "--method", "clip", "--json")
    assert good.returncode == 1, good.stderr
    assert len(json.loads(good.stdout)["images"]) == 1
    assert good.stderr.splitlines() == ["failed: no.png: no such file", "1 done, 1 failed"]
    usage = process(*script, "segment", "a.png", "--classes", "sky", "--method", "magic")
    assert usage.returncode == 2
    assert usage.stdout == ""
    assert "Traceback" not in usage.stderr


def test_a_picture_that_cannot_be_computed_does_not_stop_the_others(run, tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        paint(tmp_path / name)
    encode = Segmenter._encode

    def failing_at_b(segmenter, pictures):
        if pictures[0].source == "b.png":
            raise RuntimeError("out of memory")
        return encode(segmenter, pictures)

    monkeypatch.setattr(Segmenter, "_encode", failing_at_b)
    result = run("segment", "a.png", "b.png", "c.png", "--classes", CLASSES, "--method", "clip")
    assert result.exit_code == 1
    assert "failed: b.png: out of memory" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.overlay.png")) == ["a.overlay.png", "c.overlay.png"]


def test_a_memory_cap(run, tmp_path):
    paint(tmp_path / "a.png")
    command = ("segment", "a.png", "--classes", CLASSES, "--method", "clip", "--max-memory")
    assert run(*command, "8GB").exit_code == 0
    for size, message in (
        ("much", "--max-memory: expected a size such as"),
        ("1MB", "--max-memory: expected more than"),
    ):
        result = run(*command, size)
        assert result.exit_code == 2
        assert message in result.stderr


def test_word_vectors_are_kept_on_request(run, tmp_path):
    paint(tmp_path / "a.png")
    command = ("segment", "a.png", "--classes", CLASSES, "--method", "clip", "--cache-dir", "cache")
    assert run(*command).exit_code == 0
    assert not (tmp_path / "cache").exists()
    assert run(*command, "--text-cache").exit_code == 0
    assert any((tmp_path / "cache" / "s2clip-text").iterdir())
