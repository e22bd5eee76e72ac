"""`s2clip table`: every cell of the source's tables planned, those that can be run measured, and nothing filled in."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from data_trees import make_tree, save

from s2clip import cli
from s2clip.evaluation import tables
from s2clip.evaluation.benchmarks import DATASETS
from s2clip.evaluation.datasets import open_dataset
from s2clip.evaluation.table_text import page
from s2clip.published.catalogue import METHODS
from s2clip.refinement.settings import REFINEMENTS, Refinement

# rows, columns, rows that s2clip does not run, and figures as the source prints them: (row, data set, mIoU)
PRINTED = {
    1: (18, 8, 0, [(0, "voc21", 60.1), (4, "cityscapes", 40.4), (8, "context60", 39.0), (11, "ade20k", 22.2)]),
    2: (7, 8, 0, [(0, "voc21", 70.41), (3, "coco_stuff", 27.42), (5, "voc20", 86.50), (6, "context60", 38.0)]),
    3: (24, 8, 8, [(0, "voc21", 50.4), (4, "voc20", 49.1), (12, "ade20k", 14.1), (19, "coco_object", 36.2)]),
    4: (8, 7, 0, [(0, "cityscapes", 46.9), (3, "ade20k", 21.0), (4, "coco_stuff", 28.16), (5, "voc21", 65.7)]),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the program in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(cli.main, ["table", *map(str, arguments), "--device", "cpu", "--local-files-only"])

    return call


@pytest.mark.parametrize("number", tables.NUMBERS)
def test_the_tables_are_the_sources(number):
    rows, columns, foreign, figures = PRINTED[number]
    table = tables.read_table(number)
    assert (len(table.rows), len(table.columns)) == (rows, columns)
    assert [name for name in DATASETS if name in table.columns] == list(table.columns)
    assert sum(row.method is None for row in table.rows) == foreign
    for place, dataset, miou in figures:
        assert table.rows[place].miou[table.columns.index(dataset)] == miou
    for row in table.rows:
        assert len(row.miou) == columns
        assert row.time is None or len(row.time) == columns


@pytest.mark.parametrize("number", tables.NUMBERS)
def test_every_cell_has_settings_that_s2clip_has(number):
    for cell in tables.plan(tables.read_table(number)):
        row = cell.row
        if row.method is None:
            assert cell.status == tables.NO_METHOD
            assert row.needs in cell.reason
            continue
        assert row.method in METHODS
        assert row.refine in REFINEMENTS
        options = row.options(cell.dataset)
        assert options["method"].name == row.method
        Refinement(**options.get("refine_options", {}))
        assert cell.status == tables.READY
        assert cell.record()["settings"]["model"] == row.model
        assert cell.miou is None


def test_rows_change_what_they_say():
    by_name = {(row.group, row.name): row for number in (2, 3, 4) for row in tables.read_table(number).rows}
    options = {place: row.options("ade20k") for place, row in by_name.items() if row.method}
    assert options["DINO", "ViT-S/16"]["vfm"] == "dino-s16"
    assert options["SAM", "ViT-B/16"]["vfm"] == "sam-vit-b"
    ablation = "Ablation studies (based on Optimization SAM)"
    assert options[ablation, "w/o CCA"]["refine_options"]["use_components"] is False
    assert options[ablation, "w/o box"]["refine_options"]["use_box"] is False
    assert options[ablation, "w/o mask"]["refine_options"]["use_mask"] is False
    assert options["Post-processing", "CLIPer"]["method"].extension.stable_diffusion
    assert not options["No post-processing", "CLIPer"]["method"].extension.stable_diffusion
    assert options["Post-processing", "NACLIP"]["method"].pamr_iterations == 10
    assert options["Main methods", "Trident SAM"]["refine"] == "trident"


def test_rows_that_run_the_same_share_a_folder_and_others_do_not():
    cells = [cell for number in tables.NUMBERS for cell in tables.plan(tables.read_table(number)) if cell.row.method]
    described = {}
    for cell in cells:
        settings = json.dumps({**cell.settings(), "dataset": cell.dataset}, sort_keys=True)
        described.setdefault(cell.folder, set()).add(settings)
    assert all(len(settings) == 1 for settings in described.values())
    shared = [cell for cell in cells if cell.row.name in ("Optimization SAM", "full model")]
    assert len({cell.folder for cell in shared}) == 7


@pytest.mark.parametrize("number", tables.NUMBERS)
def test_a_dry_run_lists_every_cell_and_computes_nothing(number, run, tmp_path):
    result = run(number, "--dry-run")
    assert result.exit_code == 0, result.output
    rows, columns, foreign, _ = PRINTED[number]
    assert f"{rows * columns} cells, {(rows - foreign) * columns} of them s2clip can compute" in result.stdout
    assert result.stdout.count("reported") == (rows - foreign) * columns + foreign
    assert list(tmp_path.iterdir()) == []
    record = json.loads(run(number, "--dry-run", "--json").stdout)
    assert len(record["cells"]) == rows * columns
    assert {cell["measured_miou"] for cell in record["cells"]} == {None}
    assert all(cell["source"] for cell in record["cells"] if cell["settings"])


def test_a_model_chooses_its_rows_or_takes_the_place_of_all():
    table = tables.read_table(1)
    large = tables.with_model(table, "ViT-L-14")
    assert [row.model for row in large.rows] == ["ViT-L-14"] * 6
    assert large.rows[0].miou[0] == 61.2
    tiny = tables.with_model(table, "tiny")
    assert len(tiny.rows) == 6  # three CLIPs are one now
    assert {row.model for row in tiny.rows} == {"tiny"}
    assert {figure for row in tiny.rows for figure in row.miou} == {None}  # what is reported is of other models
    vfms = [row.vfm for row in tables.with_model(tables.read_table(2), "tiny").rows]
    assert vfms == ["tiny-dino", "sam-tiny"]


def test_data_sets_that_are_there_run_and_the_others_are_said(run, tmp_path):
    make_tree("cityscapes", tmp_path / "data", count=2)
    result = run(2, "--data-root", "data", "--model", "tiny", "-o", "out", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert "voc21: not run: data: no pictures of PASCAL VOC 2012" in result.stdout
    record = json.loads((tmp_path / "out/table-2.json").read_text())
    measured = [cell for cell in record["cells"] if cell["measured_miou"] is not None]
    assert [cell["dataset"] for cell in measured] == ["cityscapes"] * 2
    assert {cell["status"] for cell in record["cells"] if cell["dataset"] != "cityscapes"} == {tables.NO_DATA}
    protocol = json.loads((tmp_path / "out" / measured[0]["folder"] / "protocol.json").read_text())
    assert protocol["source"].startswith("default: ")
    line = next(line for line in result.stdout.splitlines() if line.startswith("ViT-B/8"))
    assert line.split()[1:] == ["-", "(-)"] * 4 + [f"{measured[0]['measured_miou']:.2f}", "(-)"] + ["-", "(-)"] * 4

    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    again = run(2, "--data-root", "data", "--model", "tiny", "-o", "out", "--limit", 2, "--json")
    assert again.exit_code == 0, again.output
    for path, content in before.items():
        assert path.read_bytes().startswith(content)  # the first picture was not computed again
        assert path.read_bytes().count(b"\n") == 2
    cells = [cell for cell in json.loads(again.stdout)["cells"] if cell["status"] == tables.MEASURED]
    assert [cell["pictures"]["scored"] for cell in cells] == [2, 2]


def test_saved_predictions_fill_the_rows_that_are_not_run(tmp_path):
    tree = make_tree("voc20", tmp_path / "data")
    dataset = open_dataset("voc20", tree.root)
    for index, sample in enumerate(dataset):
        save(tmp_path / "maps/groupvit/voc20" / f"{sample.name}.png", dataset.labels(sample) % 255)
        assert dataset.annotation(index).shape == (32, 48)
    table = dataclasses.replace(tables.read_table(3), rows=tables.read_table(3).rows[:2])
    cells = tables.plan(table, tmp_path / "data", tmp_path / "maps")
    tables.measure(cells, tmp_path / "out")
    measured = {(cell.row.name, cell.dataset): cell.miou for cell in cells if cell.miou is not None}
    assert measured == {("GroupViT", "voc20"): 100.0}
    text = page(table, cells, None)
    assert "100.00 (79.7)" in text
    assert "TCL: not run by s2clip: it was trained: give its label maps by --predictions" in text


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path):
    """Weights that are not there are looked for once; a broken picture costs itself."""
    tree = make_tree("cityscapes", tmp_path / "data", count=2)
    make_tree("voc20", tmp_path / "data", count=1)
    save(tree.annotations[tree.names[0]], np.full((32, 48), 200, np.uint8))
    table = tables.read_table(3)
    rows = [row for row in table.rows if row.name in ("ClearCLIP", "MaskCLIP")]
    missing = dataclasses.replace(rows[1], name="elsewhere", model="ViT-H-14")
    rows = [missing, dataclasses.replace(rows[0], model="tiny"), dataclasses.replace(rows[1], model="tiny")]
    table = dataclasses.replace(table, columns=("voc20", "cityscapes"), rows=tuple(rows))
    cells = tables.plan(table, tmp_path / "data")
    started = []
    loading = {"device": "cpu", "local_files_only": True, "cache_dir": tmp_path / "no weights"}
    tables.measure(cells, tmp_path / "out", loading=loading, announce=lambda cell: started.append(cell.row.name))
    assert [cell.status for cell in cells] == [tables.FAILED] * 2 + [tables.MEASURED] * 4
    assert started.count("elsewhere") == 1
    assert "ViT-H-14" in cells[0].reason
    assert "labels 0 to 18" in cells[3].failures[0]
    assert cells[3].report.document["pictures"]["scored"] == 1
    text = page(table, cells, None)
    assert "elsewhere: voc20, cityscapes: " in text
    assert "MaskCLIP: cityscapes: 1 picture failed" in text


def test_an_average_needs_every_figure():
    table = tables.read_table(1)
    cells = tables.plan(table)[:8]
    assert tables.average(cells) is None
    assert tables.average([]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["5", "--dry-run"], "1<=x<=4"),
        (["1"], "--data-root: the folder that holds the data sets is needed, or --dry-run"),
        (["1", "--data-root", "nowhere"], "--data-root nowhere: no such folder"),
        (["1", "--dry-run", "--model", "RN50"], "--model: expected one of tiny, "),
    ],
)
def test_usage_errors(arguments, said, run):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]


def test_an_error_is_one_line_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "s2clip", "table", "1", "--data-root", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr == "Error: --data-root nowhere: no such folder\n"


def test_no_data_set_at_all_is_a_failure(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run(4, "--data-root", "empty", "-o", "out")
    assert result.exit_code == 1
    assert "voc21: not run: empty: no pictures of PASCAL VOC 2012" in result.stdout
    assert "- (2min 50s)" in result.stdout
