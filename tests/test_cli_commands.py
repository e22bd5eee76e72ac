"""The commands beside `segment`: the demo, the evaluation, the doctor and everyone's help."""

import json

import click
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import one_line, opened

from s2clip import cli, scenes
from s2clip.cli.demo import DEMO_SCENE


def test_demo_writes_its_files_and_says_where(run, tmp_path):
    result = run("demo")
    assert result.exit_code == 0, result.output
    for name in ("input.png", "png", "overlay.png", "coarse.png"):
        path = f"out/demo/scene-{DEMO_SCENE}.{name}"
        assert path in result.stdout
        assert (tmp_path / path).is_file()
    truth = scenes.generate(DEMO_SCENE)[1]
    assert np.asarray(opened(tmp_path / f"out/demo/scene-{DEMO_SCENE}.png")).shape == truth.shape
    for name in ("%", "load", "ms"):
        assert name in result.stdout
    record = json.loads(run("demo", "--json", "--scene", "3", "--refine", "none", "-o", "coarse").stdout)
    assert record["source"] == "coarse/scene-3.input.png"
    assert 0 <= record["pixel_accuracy"] <= 1
    assert "coarse" not in record["files"]


def test_demo_shows_what_sam_changes(run, tmp_path):
    record = json.loads(run("demo", "--json").stdout)
    assert 0.9 < record["pixel_accuracy_coarse"] < record["pixel_accuracy"] <= 1
    refined, coarse = (opened(tmp_path / record["files"][name]) for name in ("overlay", "coarse"))
    assert refined.size[0] == coarse.size[0]
    assert refined.tobytes() != coarse.tobytes()
    coarse = json.loads(run("demo", "--json", "--refine", "none", "-o", "coarse").stdout)
    assert coarse["pixel_accuracy"] == record["pixel_accuracy_coarse"]


def test_evaluate_prints_methods_side_by_side(run):
    result = run(
        "evaluate", "scenes", "--method", "clip", "maskclip", "--method", "sclip", "--limit", "2", "--short-side", "64"
    )
    assert result.exit_code == 0, result.output
    head = next(line for line in result.stdout.splitlines() if "maskclip" in line)
    assert head.split() == ["clip", "maskclip", "sclip"]
    for name in (*scenes.CLASSES, "mIoU", "pixel accuracy", "ms per image"):
        line = next(line for line in result.stdout.splitlines() if line.startswith(name))
        assert len(line.removeprefix(name).split()) == 3


def test_evaluate_json_holds_what_the_table_shows(run):
    arguments = (
        "evaluate",
        "scenes",
        "--method",
        "clip",
        "s2clip",
        "--limit",
        "3",
        "--seed",
        "5",
        "--short-side",
        "64",
        "--json",
    )
    document = json.loads(run(*arguments).stdout)
    assert set(document) == {"dataset", "rows"}
    assert document["dataset"] == "scenes"
    assert [row["method"] for row in document["rows"]] == ["clip", "s2clip"]
    for row in document["rows"]:
        figures = {"miou", "pixel_accuracy", "per_class", "ms_per_image", "ms_per_stage"}
        assert set(row) == {"method", "refine", "stage", *figures}
        assert row["refine"] == row["stage"] == "none"
        assert tuple(row["per_class"]) == scenes.CLASSES
        known = [iou for iou in row["per_class"].values() if iou is not None]
        assert row["miou"] == pytest.approx(np.mean(known), abs=0.02)
        assert row["ms_per_image"] > 0
    again = json.loads(run(*arguments).stdout)
    assert [row["per_class"] for row in again["rows"]] == [row["per_class"] for row in document["rows"]]


def test_evaluate_prints_the_ablation_of_the_refinement(run):
    arguments = (
        "evaluate",
        "scenes",
        "--refine",
        "none",
        "trident",
        "sam",
        "--ablate",
        "--limit",
        "1",
        "--short-side",
        "64",
    )
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    *_, head, rule, none, trident, sam, components, box, mask, point = result.stdout.splitlines()
    assert head.split()[:4] == ["method", "refine", "mIoU", "gain"]
    assert head.split()[-5:] == ["sam_encoder", "components", "prompts", "decoder", "merge"]
    assert set(rule) == {"-"}
    assert none.split()[-5:] == ["-"] * 5
    assert trident.split()[1:4] == [*sam.replace("sam", "trident", 1).split()[1:4]]  # the same mIoU and gain
    for line, name in ((components, "components"), (box, "box"), (mask, "mask"), (point, "point")):
        assert f"sam w/o {name}" in line
        assert all(float(cell) >= 0 for cell in line.split()[-5:])
    rows = json.loads(
        run("evaluate", "scenes", "--refine", "sam", "--limit", "1", "--short-side", "64", "--json").stdout
    )["rows"]
    assert [row["refine"] for row in rows] == ["sam"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "expected one of scenes, voc21"),
        (["scenes", "--ablate"], "--ablate needs --refine sam"),
        (["scenes", "--method", "magic"], "clip, maskclip"),
        (["scenes", "--refine", "magic"], "none"),
        (["scenes", "--limit", "0"], "limit: expected 1 to 10000, received 0"),
        (["scenes", "--seed", "-1"], "seed: expected 0 to 99999"),
        (["scenes", "--seed", "100000"], "trained on"),
    ],
)
def test_evaluate_usage_errors(run, arguments, message):
    result = run("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in one_line(result)


def test_doctor_reports_and_fails_on_a_problem(run, monkeypatch):
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("torch", "triton", "gpu", "cache", "tiny (clip): embedded", "ViT-H-14", "no problem found"):
        assert word in result.stdout
    found = json.loads(run("doctor", "--json").stdout)
    assert found["versions"]["s2clip"]
    assert found["problems"] == []
    monkeypatch.setattr("s2clip.doctor.OLDEST_TORCH", "999")
    result = run("doctor")
    assert result.exit_code == 3
    assert "older than 999" in result.stdout


def test_doctor_does_without_triton(run, monkeypatch):
    import s2clip.doctor
    import s2clip.results.sidecars

    without = {**s2clip.results.sidecars.versions(), "triton": None}
    monkeypatch.setattr(s2clip.doctor, "versions", lambda: without)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "the CPU path works" in result.stdout


def test_every_command_has_help():
    for command in ("segment", "demo", "evaluate", "doctor"):
        result = CliRunner().invoke(cli.main, [command, "--help"])
        assert result.exit_code == 0
        assert isinstance(cli.main.commands[command], click.Command)
        assert "Usage: " in result.stdout
