"""The page of published figures: generated, filtered, and true to what the source's tables hold."""

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from s2clip.cli import main
from s2clip.evaluation import published_figures
from s2clip.evaluation.benchmarks import benchmark
from s2clip.evaluation.report import Report, joined
from s2clip.published.catalogue import METHODS

ROWS = published_figures.published_rows()


def run(*arguments):
    return CliRunner().invoke(main, ["field", *arguments])


def test_the_page_is_what_the_command_writes():
    page = (Path(__file__).parents[1] / "docs" / "field.md").read_text()
    assert page == run("--markdown").stdout, "s2clip field --markdown > docs/field.md"


def test_every_row_is_whole():
    for row in ROWS:
        assert row["read"] in ("code", "paper", "second hand"), row
        assert row["source"], row
        assert row["miou"] or row["average"], row
        assert all(0 < figure < 100 for figure in row["miou"].values()), row
        assert row["method"] in METHODS or row["method"].lower() not in METHODS, row
    assert len({(row["method"], row["model"], row["with"], row["source"]) for row in ROWS}) == len(ROWS)
    for name in published_figures.datasets():
        benchmark(name)


def test_averages_are_those_of_their_figures():
    """A slip of the pen in one of eight figures moves the mean. The source's own averages differ from its figures."""
    complete = [row for row in ROWS if row["average"] and len(row["miou"]) == 8 and "Table 1" not in row["source"]]
    assert len(complete) > 7
    for row in complete:
        assert row["average"] == pytest.approx(sum(row["miou"].values()) / 8, abs=0.11), row


def test_rows_are_filtered_and_disagreeing_sources_stand_together():
    rows = json.loads(run("--json", "--method", "cliper", "--model", "ViT-B-16", "--dataset", "voc21").stdout)["rows"]
    found = {(row["source"].split()[0], row["with"]): row["miou"]["voc21"] for row in rows}
    assert found["linsun449/cliper.code", "whole picture, Stable Diffusion"] == 66.4
    assert found["the", "with post-processing"] == 65.9
    assert {row["model"] for row in rows} == {"ViT-B-16"}
    text = run("--method", "CASS").stdout.splitlines()
    assert [line.split()[0] for line in text] == ["method", "CASS", "CASS"]
    assert run("--method", "cass, corrclip v2").stdout == run("--method", "CASS", "CorrCLIP v2").stdout
    pairs = [(row["method"], row["model"]) for row in ROWS]
    assert sum(one != other for one, other in itertools.pairwise(pairs)) == len(set(pairs)) - 1


def test_the_measured_column_is_that_of_the_scenes_page():
    page = (Path(__file__).parents[1] / "docs" / "scenes.md").read_text().splitlines()
    names = [cell.strip() for cell in next(line for line in page if line.startswith("| | clip |")).split("|")[2:-1]]
    means = [cell.strip(" *") for cell in next(line for line in page if line.startswith("| **mIoU**")).split("|")[2:-1]]
    shown = published_figures.measured()
    assert {name: float(mean) for name, mean in zip(names, means, strict=True)} == {
        name: figure for name, figure in shown.items() if name in names
    }
    assert set(shown) <= set(METHODS)
    lines = published_figures.cells(published_figures.choose(ROWS, methods=("naclip",)))
    assert {line[lines[0].index("scenes")] for line in lines[1:]} == {f"{shown['naclip']:g}"}


def test_what_is_published_of_a_method_model_and_data_set():
    figures = published_figures.published_for("naclip", "ViT-B-16", "voc21")
    assert {58.9, 64.07} <= set(figures)
    assert list(figures) == sorted(figures)
    assert published_figures.published_for("naclip", "ViT-H-14", "voc21") == ()
    assert joined(figures) == f"{figures[0]:.1f} to {figures[-1]:.1f}"
    protocol = {"method": {"name": "naclip"}, "clip": "ViT-B-16", "dataset": {"name": "voc21"}}
    assert Report(protocol, None, 0, Path()).published == figures
    steadied = {**protocol, "method": {"name": "naclip", "propagation": {"grid": 80}}}
    assert Report(steadied, None, 0, Path()).published == ()
    assert (joined(()), joined((58.94,)), joined((58.94, 58.91))) == ("-", "58.9", "58.9")


@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [("--method", "nope", "trident"), ("--model", "ViT-Z", "ViT-B-16"), ("--dataset", "voc", "voc21")],
)
def test_an_unknown_name_is_one_line_with_the_known_ones(option, value, valid):
    answer = run(option, value)
    assert answer.exit_code == 2
    assert f"received '{value}'" in answer.stderr
    assert valid in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
