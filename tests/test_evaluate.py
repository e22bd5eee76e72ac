"""`s2clip evaluate` on the eight layouts, resumed, shared out, merged, refused; exit codes and what is printed."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import one_line
from data_trees import LAYOUTS, make_tree, save
from PIL import Image

from s2clip.cli.console import load_segmenter
from s2clip.errors import WeightsError
from s2clip.evaluation.datasets import open_dataset
from s2clip.evaluation.presets import preset
from s2clip.published.catalogue import METHODS

UNTIMED = ("timings", "peak_memory_mib")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Data sets by name, made when they are first asked for."""
    made = {}

    def tree(name):
        if name not in made:
            made[name] = make_tree(name, tmp_path_factory.mktemp(name))
        return made[name]

    return tree


def untimed(path):
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in UNTIMED}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_benchmark_is_scored_as_numpy_scores_the_saved_maps(run, trees, tmp_path, name):
    tree = trees(name)
    options = ("--method", "maskclip", "--short-side", 32, "--limit", 2, "--save-predictions", "--json")
    result = run("evaluate", name.replace("_", "-"), "--data", tree.root, *options)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["pictures"] == {"in_dataset": 3, "asked": 2, "scored": 2}

    dataset = open_dataset(name, tree.root)
    hits, counted = 0, 0
    given = np.zeros(len(dataset.classes), np.int64)
    for index in range(2):
        with Image.open(f"{row['folder']}/predictions/{dataset[index].name}.png") as image:
            labels = np.array(image)
        target = dataset.annotation(index).numpy()
        hits += ((labels == target) & (target != 255)).sum()
        counted += (target != 255).sum()
        given += np.bincount(labels[target != 255], minlength=len(given))
    assert row["pixel_accuracy"] == round(100 * hits / counted, 4)
    assert [one["given"] for one in row["per_class"]] == given.tolist()
    assert [one["name"] for one in row["per_class"]] == list(dataset.classes)

    protocol = json.loads((tmp_path / "out/evaluate" / name / "tiny/maskclip/protocol.json").read_text())
    assert protocol["dataset"]["split"] == dataset.facts.split
    assert len(protocol["prompts"]) == len(dataset.classes)
    assert len(protocol["weights_sha256"]["clip"]) == 64
    assert protocol["versions"]["torch"]


def test_methods_and_refinements_stand_side_by_side(run, trees, tmp_path):
    tree = trees("voc20")
    options = ("--method", "clip", "maskclip", "--refine", "none", "sam", "--short-side", 32, "--limit", 1)
    result = run("evaluate", "voc20", "--data", tree.root, *options)
    assert result.exit_code == 0, result.output
    head = next(line for line in result.stdout.splitlines() if "clip+sam" in line)
    assert head.split() == ["clip", "clip+sam", "maskclip", "maskclip+sam"]
    assert "voc20: 1 of 3 pictures, per cent" in result.stdout
    assert len(next(line for line in result.stdout.splitlines() if line.startswith("mIoU")).split()) == 5
    assert any(line.split() == ["mIoU", "in", "print", *"----"] for line in result.stdout.splitlines())
    folders = sorted(path.name for path in (tmp_path / "out/evaluate/voc20/tiny").iterdir())
    assert folders == ["clip", "clip+sam", "maskclip", "maskclip+sam"]
    for name in ("protocol.json", "result.json", "result.md", "result.csv", "confusion.csv", "records"):
        assert (tmp_path / "out/evaluate/voc20/tiny/clip+sam" / name).exists()


def test_a_stage_has_a_folder_and_a_column_of_its_own(run, trees, tmp_path):
    options = ("--method", "maskclip", "--stage", "none", "pearl", "--short-side", 32, "--limit", 1)
    result = run("evaluate", "voc20", "--data", trees("voc20").root, *options)
    assert result.exit_code == 0, result.output
    head = next(line for line in result.stdout.splitlines() if "maskclip+pearl" in line)
    assert head.split() == ["maskclip", "maskclip+pearl"]
    folder = tmp_path / "out/evaluate/voc20/tiny/maskclip+pearl"
    assert json.loads((folder / "protocol.json").read_text())["method"]["propagation"]["grid"] == 80
    assert json.loads((folder / "result.json").read_text())["stage"] == "pearl"


def test_every_method_runs_with_its_preset_beside_the_others(run, trees):
    options = ("--method", *METHODS, "--regions", "sam", "--short-side", 32, "--limit", 1, "--json")
    result = run("evaluate", "voc20", "--data", trees("voc20").root, *options)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        assert row["pictures"]["scored"] == 1
        protocol = json.loads(Path(row["folder"], "protocol.json").read_text())
        chosen = preset(row["method"], "voc20", "tiny")
        assert protocol["source"] == chosen.source
        assert protocol["prompts"] == list(chosen.prompts)
        assert protocol["method"]["logit_scale"] == chosen.fields["logit_scale"]


def test_every_method_runs_on_the_scenes(run):
    options = ("--method", *METHODS, "--regions", "sam", "--short-side", 32, "--limit", 1, "--json")
    result = run("evaluate", "scenes", *options)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(0 <= row["miou"] <= 100 for row in rows)


def test_what_was_computed_is_told_before_the_error_of_a_later_method(run, trees, monkeypatch):
    from s2clip.cli import benchmark

    def load(settings):
        if settings["method"].name == "sclip":
            raise WeightsError("dino-b8: its weights are not on this machine")
        return load_segmenter(settings)

    monkeypatch.setattr(benchmark, "load_segmenter", load)
    options = ("--method", "clip", "sclip", "--short-side", 32, "--limit", 1)
    result = run("evaluate", "voc20", "--data", trees("voc20").root, *options)
    assert result.exit_code == 3
    assert one_line(result) == "Error: dino-b8: its weights are not on this machine"
    assert "clip: out/evaluate/voc20/tiny/clip" in result.stdout
    assert "mIoU" in result.stdout


def test_the_refinement_without_each_of_its_parts(run, trees, tmp_path):
    options = ("--method", "maskclip", "--refine", "sam", "--ablate", "--short-side", 32, "--limit", 1, "--json")
    result = run("evaluate", "voc20", "--data", trees("voc20").root, *options)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    parts = ["components", "box", "mask", "point"]
    assert [row["refine"] for row in rows] == ["sam", *(f"sam w/o {part}" for part in parts)]
    folders = [f"out/evaluate/voc20/tiny/maskclip+sam{end}" for end in ("", *(f"-without-{part}" for part in parts))]
    assert [row["folder"] for row in rows] == folders
    for row in rows:
        spent = row["timings"]
        assert set(spent["ms_per_picture"]) == {"wait", "models", "metric", "write"}
        assert sum(spent["ms_per_picture"].values()) == pytest.approx(1000 * spent["total_s"], abs=1)  # rounded
        assert {"decode", "clip", "sam_encoder", "decoder", "merge"} <= set(spent["ms_per_stage"])
        assert row["peak_memory_mib"]["host"] > 50


def test_shards_merged_are_the_single_run(run, trees, tmp_path):
    tree = make_tree("voc20", tmp_path / "data", count=10)
    base = ("evaluate", "voc20", "--data", tree.root, "--method", "maskclip", "--short-side", 32)
    assert run(*base, "-o", "whole").exit_code == 0
    for index in range(2):
        result = run(*base, "--shard", f"{index}/2", "-o", f"part{index}")
        assert result.exit_code == 0, result.output
        assert f"{(8, 2)[index]} of 10 pictures are done" in result.stdout
        assert "mIoU" not in result.stdout
    folders = [f"part{index}/voc20/tiny/maskclip" for index in range(2)]
    alone = run("merge", folders[0], "-o", "merged")
    assert alone.exit_code == 3
    assert "8 of 10 pictures are done, number 8 is not" in one_line(alone)
    assert not (tmp_path / "merged").exists()
    assert run("merge", *folders, "-o", "merged").exit_code == 0
    for name in ("protocol.json", "result.csv", "confusion.csv"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole/voc20/tiny/maskclip" / name).read_bytes()
    assert untimed(tmp_path / "merged/result.json") == untimed(tmp_path / "whole/voc20/tiny/maskclip/result.json")

    assert run(*base, "--stride", 48, "--shard", "1/2", "-o", "other").exit_code == 0
    refused = run("merge", folders[0], "other/voc20/tiny/maskclip", "-o", "mixed")
    assert refused.exit_code == 3
    assert "method.stride is 48 there and 32 now" in one_line(refused)


def test_one_folder_per_protocol(run, trees):
    base = ("evaluate", "voc20", "--data", trees("voc20").root, "--method", "maskclip", "--limit", 1)
    assert run(*base).exit_code == 0
    again = run(*base)
    assert again.exit_code == 3
    assert "--resume goes on with it" in one_line(again)
    other = run(*base, "--crop", 96, "--resume")
    assert other.exit_code == 3
    assert "method.crop is 64 there and 96 now" in one_line(other)
    assert run(*base, "--resume").exit_code == 0


def test_a_bad_picture_fails_alone(run, tmp_path):
    tree = make_tree("voc20", tmp_path / "data")
    bad = tree.names[1]
    save(tree.annotations[bad], np.full((32, 48), 99, np.uint8))
    result = run("evaluate", "voc20", "--data", tree.root, "--method", "maskclip")
    assert result.exit_code == 1
    assert f"failed: maskclip: {bad}: {tree.annotations[bad]}: expected labels 0 to 20 or 255" in result.stderr
    assert result.stderr.splitlines()[-1] == "2 scored, 1 failed"
    assert "mIoU" in result.stdout


def test_saved_predictions_need_no_model(run, trees, tmp_path, monkeypatch):
    tree = trees("voc21")
    monkeypatch.setattr("s2clip.cli.benchmark.load_segmenter", lambda *_, **__: pytest.fail("a model was loaded"))
    for name, labels in list(tree.values.items())[:2]:
        save(tmp_path / f"saved/{name}.png", np.where(labels == 255, 0, labels).astype(np.uint16))
    result = run("evaluate", "voc21", "--data", tree.root, "--predictions", "saved")
    assert result.exit_code == 1
    assert "pixel accuracy" in result.stdout
    assert untimed(tmp_path / "out/evaluate/voc21/predictions/saved/result.json")["miou"] == 100
    assert f"{tree.names[2]}.png: no prediction for this picture" in result.stderr
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", f"expected {tree.names[0]}.png and so on"), ("nowhere", "no such folder")):
        result = run("evaluate", "voc21", "--data", tree.root, "--predictions", folder)
        assert result.exit_code == 1
        assert message in one_line(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "dataset: expected one of scenes, voc21, context60"),
        (["voc21"], "--data: the folder of voc21 is needed"),
        (["voc21", "--data", "{root}", "--method", "magic"], "method: expected one of clip, maskclip"),
        (["voc21", "--data", "{root}", "--refine", "magic"], "refine: expected one of none"),
        (["voc21", "--data", "{root}", "--shard", "2/2"], "--shard: expected i/n with i from 0 to n-1, received '2/2'"),
        (["voc21", "--data", "{root}", "--limit", "0"], "limit: expected at least 1, received 0"),
        (["voc21", "--data", "{root}", "--seed", "1"], "--seed: of scenes only"),
        (["voc21", "--data", "{root}", "--ablate"], "--ablate needs --refine sam"),
        (["voc21", "--data", "{root}", "--predictions", ".", "--method", "clip"], "give it without --method"),
        (["scenes", "--resume"], "--resume: of scenes goes with -o FOLDER"),
        (["scenes", "--save-predictions"], "--save-predictions: not of scenes"),
    ],
)
def test_usage_errors(run, trees, arguments, message):
    result = run("evaluate", *(argument.format(root=trees("voc21").root) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in one_line(result)


def test_the_half_line_of_a_killed_run_ends_what_is_gone_on_with(run, trees, tmp_path):
    tree = trees("voc20")
    options = ["evaluate", "voc20", "--data", str(tree.root), "--method", "maskclip", "--short-side", "32"]
    assert run(*options).exit_code == 0
    folder = tmp_path / "out/evaluate/voc20/tiny/maskclip"
    result = untimed(folder / "result.json")
    log = folder / "records/0-of-1.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    (folder / "result.json").unlink()
    again = run(*options, "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    assert untimed(folder / "result.json") == result
    assert json.loads(again.stdout)["rows"][0]["miou"] == result["miou"]
