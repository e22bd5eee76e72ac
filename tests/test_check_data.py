"""`s2clip check-data` on miniature trees: what is wrong is said before a run, with what to do."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from data_trees import make_tree, save, save_lines

from s2clip import cli
from s2clip.evaluation import benchmarks
from s2clip.evaluation.benchmarks import DATASETS
from s2clip.evaluation.check import check


@pytest.fixture
def official(monkeypatch):
    """The official count is that of the miniature tree."""

    def pretend(name, count):
        facts = benchmarks._read(name)
        fields = {**vars(facts), "images": count}
        monkeypatch.setattr(benchmarks, "_read", lambda _: benchmarks.Benchmark(**fields))

    return pretend


def run(*arguments):
    return CliRunner().invoke(cli.main, ["check-data", *map(str, arguments)])


@pytest.mark.parametrize("name", DATASETS)
def test_a_whole_tree_has_nothing_wrong(name, tmp_path, official):
    tree = make_tree(name, tmp_path)
    official(name, 3)
    found = check(name, tmp_path, full=True)
    assert found.problems == []
    assert found.root == tree.root
    assert found.read == 3
    assert found.counts == {"pictures": 3, "annotations": 3, "named": 3, "complete": 3}
    pixels = np.zeros(256, np.int64)
    for index in range(3):
        pixels += np.bincount(open_labels(name, tmp_path, index), minlength=256)
    assert np.array_equal(found.pixels, pixels)


def open_labels(name, root, index):
    from s2clip.evaluation.datasets import open_dataset

    return open_dataset(name, root).annotation(index).flatten().numpy()


def test_the_command_on_a_whole_tree(tmp_path, official):
    tree = make_tree("voc21", tmp_path)
    official("voc21", 3)
    result = run("VOC21", "--data", tmp_path, "--full")
    assert result.exit_code == 0, result.output
    assert "PASCAL VOC 2012 with background, val: 3 pictures, 21 classes" in result.stdout
    assert "pairs        3 of 3 named by ImageSets/Segmentation/val.txt" in result.stdout
    assert f"nothing is wrong: s2clip evaluate voc21 --data {tree.root}" in result.stdout


def test_a_part_of_a_data_set_is_not_the_data_set(tmp_path):
    make_tree("ade20k", tmp_path)
    result = run("ade20k", "--data", tmp_path, "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["official_pictures"] == 2000
    (problem,) = record["problems"]
    assert "images/validation: 3 pictures, ADE20K (SceneParse150) has 2000" in problem


def test_too_many_pictures(tmp_path, official):
    make_tree("ade20k", tmp_path)
    official("ade20k", 2)
    (problem,) = check("ade20k", tmp_path).problems
    assert "3 pictures, ADE20K (SceneParse150) has 2; remove what does not belong" in problem


def broken_labels(tree, label):
    values = tree.values[tree.names[1]].copy()
    values[3, 5] = label
    save(tree.annotations[tree.names[1]], values)


DAMAGE = {
    "annotation": (lambda tree: tree.annotations[tree.names[0]].unlink(), "SegmentationClass/2007_000033.png"),
    "two annotations": (
        lambda tree: [tree.annotations[name].unlink() for name in tree.names[1:]],
        "this annotation is not there, nor that of one other",
    ),
    "label": (lambda tree: broken_labels(tree, 99), "2007_000042.png: expected labels 0 to 20 or 255, received 99"),
    "size": (lambda tree: save(tree.annotations[tree.names[2]], np.zeros((9, 9), np.uint8)), "received 9x9"),
    "picture": (
        lambda tree: tree.pictures[tree.names[2]].write_bytes(tree.pictures[tree.names[2]].read_bytes()[:-200]),
        "JPEGImages/2007_000061.jpg: truncated or damaged",
    ),
    "split": (
        lambda tree: save_lines(tree.root / "ImageSets/Segmentation/val.txt", [*tree.names, "2012_000001"]),
        "JPEGImages/2012_000001.jpg: this picture is not there",
    ),
    "folder": (lambda tree: (tree.root / "SegmentationClass").rename(tree.root / "Segmentation"), "no such folder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_wrong_is_said(kind, tmp_path, official):
    tree = make_tree("voc21", tmp_path)
    official("voc21", 3)
    damage, said = DAMAGE[kind]
    damage(tree)
    result = run("voc21", "--data", tmp_path, "--full")
    assert result.exit_code == 1
    assert said in result.stdout
    assert "nothing is wrong" not in result.stdout


def test_all_that_is_wrong_is_said_at_once(tmp_path, official):
    """Not the first error only: one run of the check is enough to mend a tree."""
    tree = make_tree("voc21", tmp_path)
    official("voc21", 3)
    tree.pictures[tree.names[0]].unlink()
    tree.annotations[tree.names[2]].unlink()
    broken_labels(tree, 200)
    problems = check("voc21", tmp_path).problems
    assert [problem.split(": ")[0].rsplit("/", 1)[1] for problem in problems] == [
        f"{tree.names[0]}.jpg",
        f"{tree.names[2]}.png",
        f"{tree.names[1]}.png",
    ]


def test_many_bad_files_are_counted_not_listed(tmp_path, official):
    tree = make_tree("ade20k", tmp_path, count=12)
    official("ade20k", 12)
    for name in tree.names:
        save(tree.annotations[name], np.full((32, 48), 200, np.uint8))
    problems = check("ade20k", tmp_path).problems
    assert len(problems) == 6
    assert "7 more files like these" in problems[-1]


def test_a_sample_is_read_unless_all_is_asked_for(tmp_path, official):
    tree = make_tree("coco_stuff", tmp_path, count=70)
    official("coco_stuff", 70)
    save(tree.annotations[tree.names[1]], np.full((32, 48), 200, np.uint8))
    assert check("coco_stuff", tmp_path).problems == []
    assert 32 <= check("coco_stuff", tmp_path).read < 70
    full = check("coco_stuff", tmp_path, full=True)
    assert full.read == 70
    assert len(full.problems) == 1
    assert "convert coco-stuff" in full.problems[0]


def test_raw_labels_are_sent_to_the_converter(tmp_path):
    tree = make_tree("coco_object", tmp_path)
    for path in tree.annotations.values():
        path.rename(path.with_name(path.name.replace("_instanceTrainIds", "")))
    result = run("coco-object", "--data", tmp_path)
    assert result.exit_code == 1
    assert "no file ends in _instanceTrainIds.png (3 end in .png)" in result.stdout
    assert f"s2clip convert coco-object --data {tree.root}" in result.stdout


def test_exit_codes_in_a_process_of_its_own(tmp_path):
    def call(*arguments):
        command = [sys.executable, "-m", "s2clip", "check-data", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)

    unknown = call("voc", "--data", ".")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("Error: dataset: expected one of voc21, ")
    nowhere = call("voc21", "--data", "nowhere")
    assert nowhere.returncode == 1
    assert "nowhere: no such folder" in nowhere.stdout
    assert "Traceback" not in nowhere.stderr + unknown.stderr


def test_thousands_of_files_take_seconds(tmp_path, official):
    tree = make_tree("coco_stuff", tmp_path, count=1)
    (name,) = tree.names
    for number in range(2000):
        for path in (tree.pictures[name], tree.annotations[name]):
            path.with_name(path.name.replace(name, f"{number + 1000:012d}")).hardlink_to(path)
    official("coco_stuff", 2001)
    start = time.perf_counter()
    assert check("coco_stuff", tmp_path).problems == []
    assert time.perf_counter() - start < 10
