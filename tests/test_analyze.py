"""`s2clip analyze`: what the figures hold, what the tables hold, and how bad input is answered."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image

from s2clip import scenes
from s2clip.analysis.consistency import Consistency
from s2clip.analysis.entropy import LayerEntropy
from s2clip.analysis.failures import find_failures
from s2clip.analysis.pairs import PairHistogram
from s2clip.analysis.pictures import Picture
from s2clip.analysis.plots.consistency import consistency_figure, drawn, plot_average_precision, plot_precision_recall
from s2clip.analysis.plots.entropy import entropy_figure, plot_by_layer, plot_deviation, plot_entropy
from s2clip.analysis.plots.failures import failures_figure
from s2clip.analysis.plots.features import classes_figure, colours_figure, patch_figure
from s2clip.analysis.plots.separability import plot_bars, plot_projection, plot_scatter, separability_figure
from s2clip.analysis.plots.style import save
from s2clip.analysis.separability import ClassMoments
from s2clip.analysis.stages import HeatMaps
from s2clip.analysis.tables import write_csv
from s2clip.cli import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(main, ["analyze", *map(str, arguments)])

    return call


def error(result):
    return next(line for line in result.stderr.splitlines() if line.startswith("Error: "))


def texts(axes):
    return [text.get_text() for text in axes.texts]


# Figures


@pytest.fixture(scope="module")
def entropy():
    values = np.array([[4.0, 4.25, 4.5], [3.0, 3.5, 3.25]])
    spread = np.array([[0.1, 0.2, 0.3], [np.nan] * 3])
    return LayerEntropy(
        ("a", "b"), (1, 2, 12), values, spread, values / 10, values / 100, np.array([5.0, 4.0]), np.array([9, 1])
    )


def test_entropy_is_a_map_of_data_by_layers(axes, entropy):
    plot_entropy(axes, entropy)
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), entropy.entropy)
    assert image.get_cmap().name == "cividis"  # from dark to light, in grey print too
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "12"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert texts(axes) == ["4.000", "4.250", "4.500", "3.000", "3.500", "3.250"]
    assert "nats" in axes.get_title(loc="left")


def test_entropy_lines(axes, entropy):
    plot_deviation(axes, entropy)
    lines = [line for line in axes.lines if line.get_marker() in "os"]
    np.testing.assert_array_equal(lines[0].get_ydata(), [1, 0.75, 0.5])
    assert lines[0].get_marker() != lines[1].get_marker()
    assert "nats" in axes.get_ylabel()
    other = Figure().subplots()
    plot_by_layer(other, entropy, "gini")
    np.testing.assert_array_equal(other.lines[1].get_ydata(), entropy.gini[1])
    assert (other.get_xlabel(), other.get_ylabel()) == ("CLIP layer", "Gini coefficient")
    assert len(entropy_figure(entropy).subfigs) == 2


@pytest.fixture(scope="module")
def consistency():
    generator = torch.Generator().manual_seed(0)
    curves = {}
    for name, strength in (("CLIP 1", 0.2), ("CLIP 2", 0.6), ("dino-b8", 0.4)):
        histogram = PairHistogram(1 << 12)
        alike = torch.rand(5000, generator=generator) < 0.3
        histogram.add((torch.rand(5000, generator=generator) - 0.5 + strength * alike).clamp(-1, 1), alike)
        curves["a", name] = histogram.result()
    return Consistency(("a",), ("CLIP 1", "CLIP 2", "dino-b8"), curves)


def test_consistency_bars_and_curves(axes, consistency):
    plot_average_precision(axes, consistency, "a")
    bars = axes.patches
    np.testing.assert_array_equal([bar.get_width() for bar in bars], consistency.average_precision[0])
    assert [bool(bar.get_hatch()) for bar in bars] == [False, False, True]  # told apart without colour
    assert [label.get_text() for label in axes.get_yticklabels()] == list(consistency.features)
    assert axes.lines[0].get_xdata()[0] == consistency.curves["a", "CLIP 1"].chance
    assert axes.get_xlabel() == "average precision (black: chance)"
    curves = Figure().subplots()
    plot_precision_recall(curves, consistency, "a")
    assert [line.get_label() for line in curves.lines] == list(consistency.features)
    assert [line.get_linestyle() for line in curves.lines] == ["-", "-", "--"]
    assert (curves.get_xlabel(), curves.get_ylabel()) == ("recall", "precision")
    assert len(consistency_figure(consistency).axes) == 2


def test_drawn_points_are_the_curves_own_with_its_ends(consistency):
    curve = consistency.curves["a", "CLIP 1"]
    recall, precision = drawn(curve, 50)
    assert 30 < len(recall) <= 50
    own = dict(zip(curve.recall, curve.precision, strict=True))
    assert set(recall) <= set(own)
    assert recall[-1] == 1
    assert recall[0] == curve.recall[0]
    assert precision[-1] == pytest.approx(curve.chance)


@pytest.fixture(scope="module")
def separable():
    found = {}
    for seed, method in enumerate(("clip", "s2clip")):
        rng = np.random.default_rng(seed)
        moments = ClassMoments(4)
        moments.add(torch.from_numpy(rng.normal(size=(80, 6))), torch.arange(80) % 4)
        found[method] = moments.result(("sky", "water; sea", "tree", "car"))
    return found


def test_separability_bars_scatter_and_projection(axes, separable):
    plot_bars(axes, separable)
    heights = [bar.get_height() for bar in axes.patches]
    wanted = [one.distance.mean() for one in separable.values()] + [one.variance.mean() for one in separable.values()]
    np.testing.assert_allclose(heights, wanted)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["clip", "s2clip"]
    scatter = Figure().subplots()
    plot_scatter(scatter, separable)
    for line, one in zip(scatter.lines, separable.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), one.variance)
        np.testing.assert_array_equal(line.get_ydata(), one.distance)
    assert scatter.get_xlabel() == "intra-class variance"
    hardest = np.argsort(separable["s2clip"].distance - separable["s2clip"].variance)[:3]
    assert texts(scatter) == [["sky", "water", "tree", "car"][index] for index in hardest]
    projection = Figure().subplots()
    plot_projection(projection, "clip", separable["clip"])
    assert projection.collections[0].get_offsets().shape == (4, 2)
    assert "%" in projection.get_xlabel()
    assert len(separability_figure(separable).subfigs) == 2


@pytest.fixture(scope="module")
def scene():
    pixels, labels = scenes.generate(3, (48, 64))
    return Picture("scene-3", torch.from_numpy(pixels).movedim(-1, 0), torch.from_numpy(labels))


def test_pictures_of_features(scene):
    colours = {"CLIP 2": np.random.default_rng(0).random((6, 8, 3)), "dino": np.ones((12, 16, 3))}
    panels = colours_figure(scene.pixels, colours).axes
    assert [one.get_title() for one in panels] == ["picture", "CLIP 2", "dino"]
    np.testing.assert_array_equal(panels[1].images[0].get_array(), colours["CLIP 2"])
    assert {tuple(one.images[0].get_extent()) for one in panels} == {(-0.5, 63.5, 47.5, -0.5)}  # one picture, one place
    heats = {"CLIP qq": np.linspace(-1, 1, 48).reshape(6, 8)}
    marked = patch_figure(scene.pixels, heats, (5, 40)).axes
    np.testing.assert_array_equal(marked[1].images[0].get_array(), heats["CLIP qq"])
    assert marked[1].get_title() == "CLIP qq\ncosine -1 to 1"
    assert [tuple(line.get_xydata()[0]) for one in marked for line in one.lines] == [(5, 40)] * 4


def test_heat_maps_by_class(scene):
    scores = np.random.default_rng(0).random((2, 48, 64)).astype(np.float32)
    maps = {"clip": HeatMaps(("sky", "water; sea"), scores, scores.argmax(0))}
    figure = classes_figure(scene.pixels, maps, [1, 0])
    panels = figure.axes
    assert panels[0].get_ylabel() == "water"
    assert [one.get_title() for one in panels[:2]] == ["picture", "clip"]
    np.testing.assert_array_equal(panels[1].images[0].get_array(), scores[1])
    assert panels[1].images[0].get_clim() == (0, 1)
    assert panels[-1].get_ylabel() == "class score P (line: labelled so)"


def test_failures_are_the_worst_pictures(scene):
    class Half:
        """Right above, class 0 below; the second picture gets nothing right."""

        classes = scenes.CLASSES
        seen = 0

        def __call__(self, pixels):
            from types import SimpleNamespace

            Half.seen += 1
            answer = scene.labels.clone()
            answer[24 if Half.seen != 2 else 0 :] = 0
            return SimpleNamespace(segmentation=answer)

    pictures = [scene._replace(name=f"p{index}") for index in range(3)]
    found = find_failures(pictures, Half(), count=2)
    assert [one.picture.name for one in found.worst] == ["p1", "p0"]
    assert found.pictures == 3
    assert found.matrix.sum() == 3 * 48 * 64
    ((mean, number),) = found.crowds.values()
    assert number == 3
    assert mean == pytest.approx((2 * found.worst[1].miou + found.worst[0].miou) / 3)
    _, rows = found.rows()
    assert all(given == "sky" for _, given, *_ in rows)
    assert sum(row[2] for row in rows) == found.matrix.sum() - np.trace(found.matrix)
    panels = failures_figure(found).axes
    assert len(panels) == 8
    assert panels[3].get_title() == f"wrong: {100 * (1 - found.worst[0].accuracy):.0f} % of the pixels"
    black = (np.asarray(panels[7].images[0].get_array()) == 0).mean()
    assert black == pytest.approx(1 - found.worst[1].accuracy)
    with pytest.raises(ValueError, match="count: expected at least 1, received 0"):
        find_failures(pictures, Half(), count=0)


def test_figures_leave_matplotlib_as_it_was(tmp_path, entropy):
    before = dict(matplotlib.rcParams)
    path = save(entropy_figure(entropy), tmp_path / "figure.png")
    assert dict(matplotlib.rcParams) == before
    with Image.open(path) as image:
        assert image.width == 7 * 160
    assert save(entropy_figure(entropy), tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_tables_say_nothing_where_there_is_no_number(tmp_path):
    write_csv(tmp_path / "a.csv", ["a", "b"], [[np.float64(0.1), float("nan")], ["x, y", np.int64(3)]])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n0.1,\n"x, y",3\n'


# The program


def test_entropy_of_own_pictures_in_a_fresh_process(tmp_path):
    for seed in range(2):
        Image.fromarray(scenes.generate(seed)[0]).save(tmp_path / f"{seed}.png")
    command = [sys.executable, "-m", "s2clip", "analyze", "entropy", ".", "--layers", "1", "6", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["entropy"]
    assert [(row["layer"], row["pictures"]) for row in rows] == [(1, 2), (6, 2)]
    with open(tmp_path / "out/analysis/entropy.csv", newline="") as handle:
        written = list(csv.DictReader(handle))
    assert [float(row["entropy_nats"]) for row in written] == [row["entropy_nats"] for row in rows]
    with Image.open(tmp_path / "out/analysis/entropy.png") as image:
        assert image.width == 1120


def test_a_folder_with_one_picture_has_an_entropy_without_deviation(run, tmp_path):
    (tmp_path / "one").mkdir()
    Image.fromarray(scenes.generate(0)[0]).save(tmp_path / "one/a.png")
    result = run("entropy", "one", "--json")
    assert result.exit_code == 0, result.stderr
    assert {row["deviation_nats"] for row in json.loads(result.stdout)["entropy"]} == {None}


def test_consistency_on_scenes(run, tmp_path):
    result = run("consistency", "scenes", "--limit", 2, "--layers", 1, "--vfm", "tiny-dino", "--json", "-o", "c")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["consistency"]
    assert [row["features"] for row in rows] == ["CLIP 1", "tiny-dino"]
    for row in rows:
        assert row["chance"] < row["at_least"] <= row["average_precision"] <= row["at_most"]
    files = {"consistency.csv", "consistency-curves.csv", "consistency.png"}
    assert {path.name for path in (tmp_path / "c").iterdir()} == files


def test_separability_on_scenes_and_by_predicted_masks(run, tmp_path):
    Image.fromarray(scenes.generate(0)[0]).save(tmp_path / "a.png")
    sources = ["scenes", "a.png", "--limit", 1, "--method", "maskclip", "--classes", "snow, rock, sky, water"]
    result = run("separability", *sources, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["separability"]
    assert found["scenes"] == found["pictures"]  # the same picture, the same masks
    names = [path.name for path in (tmp_path / "out/analysis").iterdir()]
    assert sorted(names) == [f"separability-{x}.{y}" for x in ("pictures", "scenes") for y in ("csv", "png")]


def test_features_of_a_picture(run, tmp_path):
    Image.fromarray(scenes.generate(0)[0]).save(tmp_path / "a.png")
    arguments = ["--view", "2", "qq", "--method", "maskclip", "--stages", "--classes", "snow, rock, sky, water"]
    result = run("features", "a.png", *arguments, "--near", "sky")
    assert result.exit_code == 0, result.stderr
    names = {path.name for path in (tmp_path / "out/analysis").iterdir()}
    assert names == {"a.colours.png", "a.patch.png", "a.classes.png"}
    result = run("features", "a.png", "a.png", "scenes", "--limit", 1, "--view", "3", "--shared-colours", "-o", "s")
    assert result.exit_code == 0, result.stderr
    assert {"a.colours.png", "scene-0.colours.png"} <= {path.name for path in (tmp_path / "s").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("entropy scenes --limit 1 --layers 7", "layers: expected 1 to 6 for tiny, received 7"),
        ("entropy scenes --limit 0", "limit: expected at least 1, received 0"),
        ("entropy scenes --seed -1", "seed: expected 0 to"),
        ("entropy voc21", "data: expected the folder of voc21, received None"),
        ("consistency a.png", "consistency needs label maps: scenes, or a benchmark with --data; received pictures"),
        ("failures a.png", "failures needs label maps: scenes, or a benchmark with --data; received pictures"),
        ("consistency scenes --limit 1 --bins 1", "bins: expected 2 to 67108864, received 1"),
        ("separability a.png", "pictures has no classes of its own: name them by --classes"),
        ("separability a.png --masks true --classes x,y", "separability --masks true needs label maps"),
        ("features a.png --view 9", "layers: expected 1 to 6 for tiny, received 9"),
        ("features a.png --view qx", "view: expected a block 1..6, two of q, k, v (qk, kk@3)"),
        ("features a.png --view 2 --patch 8,0", "patch: expected row in 0..7 and column in 0..10, received 8,0"),
        ("features a.png --view 2 --at 128,0", "at: expected x in 0..127 and y in 0..95, pixels of the picture"),
        ("features a.png --view 2 --at 3", "--at: expected two numbers with a comma, received '3'"),
        ("features a.png --at 1,1 --patch 0,0", "--patch, --at and --near name one place: give one of them"),
        ("features a.png --near sky", "--near needs --classes"),
        ("features a.png --classes sky,tree --near snow", "near: expected one of sky, tree"),
        ("features a.png --attention", "--attention needs a place: --patch, --at or --near"),
        ("features a.png --attention --at 1,1 --view 2", "--attention: expected views of terms"),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, arguments, message):
    Image.fromarray(scenes.generate(0)[0]).save(tmp_path / "a.png")
    method = ["--method", "maskclip"] if arguments.startswith(("features", "separability", "failures")) else []
    result = run(*arguments.split(), *method)
    assert result.exit_code == 2, result.output
    assert message in error(result)
    out = tmp_path / "out/analysis"
    assert not (out.exists() and list(out.iterdir()))


def test_pictures_that_fail_are_listed_and_the_others_analysed(run, tmp_path):
    Image.fromarray(scenes.generate(0)[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    result = run("entropy", "a.png", "b.png", "c.png", "--layers", 1)
    assert result.exit_code == 1
    assert "(1 picture)" in result.stdout
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == ["c.png", "b.png"]
    nothing = run("entropy", "c.png")
    assert nothing.exit_code == 1
    assert nothing.stderr == "failed: c.png: no such file\n"


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("entropy", "scenes")
    assert result.exit_code == 3
    assert error(result) == "Error: figures are drawn by matplotlib: pip install 's2clip[plot]'"


# The page


def test_tables_of_the_page_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import docs_figures

    monkeypatch.delitem(sys.modules, "docs_figures")
    monkeypatch.setattr(docs_figures, "DOCS", tmp_path)
    page = tmp_path / "analysis.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\n<!-- end -->\n")
    docs_figures.fill_in({"a": docs_figures.markdown(["", "x"], [["y", "1"]]), "b": "new"})
    assert page.read_text() == (
        "before\n<!-- a -->\n| | x |\n|---|---|\n| y | 1 |\n<!-- end -->\nbetween\n<!-- b -->\nnew\n<!-- end -->\n"
    )
    with pytest.raises(SystemExit, match="one place for the table c, found 0"):
        docs_figures.fill_in({"c": ""})
    kept = (ROOT / "docs" / "analysis.md").read_text()
    for name in ("entropy", "consistency", "separability", "failures", "crowds"):
        assert re.search(rf"<!-- {name} -->\n\|.*?<!-- end -->", kept, flags=re.DOTALL), f"{name}: make docs-figures"
