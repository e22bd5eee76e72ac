"""`s2clip evaluate --images DIR --labels DIR`: anybody's data, the report of the benchmarks."""

import json

import numpy as np
import pytest
from command_line import one_line
from PIL import Image

from s2clip import scenes
from s2clip.evaluation.own import open_own

WORDS = "sky, water; sea, grass, house"
CLASSES = WORDS.split(", ")


@pytest.fixture
def folders(tmp_path):
    """Three pictures with their label maps, one a folder further down; numbers 1 to 4, 0 for nothing."""
    for number, name in enumerate(("a", "b", "more/c")):
        picture, labels = scenes.generate(number, (48, 64))
        for path, pixels in ((f"images/{name}.jpg", picture), (f"labels/{name}.png", (labels % 5).astype(np.uint8))):
            target = tmp_path / "mine" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)
    return tmp_path / "mine"


def arguments(folders, *more):
    given = ("--images", folders / "images", "--labels", folders / "labels", "--first-id", 1, "--ignore-id", 0)
    return ("evaluate", *given, "--classes", WORDS, "--method", "clip", "--short-side", 32, *more)


def test_own_data_is_scored_resumed_and_reported_as_a_benchmark(run, folders, tmp_path):
    result = run(*arguments(folders, "--limit", 2, "--save-predictions", "--json"))
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["pictures"] == {"in_dataset": 3, "asked": 2, "scored": 2}
    assert [one["name"] for one in row["per_class"]] == CLASSES
    hits = counted = 0
    for name in ("a", "b"):
        with Image.open(folders / f"labels/{name}.png") as image:
            true = np.array(image)
        with Image.open(f"{row['folder']}/predictions/{name}.png") as image:
            given = np.array(image)
        hits += (given + 1 == true)[true > 0].sum()
        counted += (true > 0).sum()
    assert row["pixel_accuracy"] == round(100 * hits / counted, 4)
    protocol = json.loads((tmp_path / "out/evaluate/mine/tiny/clip/protocol.json").read_text())
    assert protocol["dataset"]["layout"] == {"first_id": 1, "ignored": [0]}
    whole = run(*arguments(folders, "--resume"))
    assert whole.exit_code == 0, whole.output
    assert "mine: 3 of 3 pictures, per cent" in whole.stdout
    other = run(*arguments(folders, "--resume", "--ignore-id", 1))
    assert other.exit_code == 3
    assert "dataset.layout.ignored is [0] there and [0, 1] now" in one_line(other)


def test_what_does_not_fit_is_said(run, folders):
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folders / "labels/b.png")
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(folders / "labels/more/c.png")
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folders / "labels/nobody.png")
    Image.new("RGB", (64, 48)).save(folders / "images/alone.png")
    result = run(*arguments(folders))
    assert result.exit_code == 1
    assert "left out 1 file in" in result.stderr
    assert "labels: alone" in result.stderr
    assert "images: nobody" in result.stderr
    assert "b.png: expected 64x48, the size of" in result.stderr
    expected = "c.png: expected labels 1 to 4 or 255, received 7 at 100.0 % of the pixels (--first-id, --ignore-id)"
    assert expected in result.stderr
    assert "1 scored, 2 failed" in result.stderr


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda given: [*given, "--data", "x"], 2, "--data: of a DATASET"),
        (lambda given: ["evaluate", "voc21", *given[1:]], 2, "give a DATASET, or --images"),
        (lambda given: given[:3] + given[5:], 2, "--labels: the folder of the label maps"),
        (lambda given: [*given, "--threshold", 0.5], 2, "--threshold and --background go together"),
        (lambda given: [*given, "--background", "cat"], 2, "--threshold and --background go together"),
        (lambda given: [given[0], "--images", "nowhere", *given[3:]], 1, "nowhere: no such folder of pictures"),
        (lambda given: ["evaluate", "scenes", "--first-id", 1], 2, "--first-id: of data of your own"),
    ],
)
def test_what_is_wrong_is_one_line(run, folders, change, code, message):
    result = run(*change(list(arguments(folders))))
    assert result.exit_code == code, result.output
    assert message in one_line(result)


def test_names_that_do_not_meet_are_shown(folders):
    (folders / "other").mkdir()
    Image.new("RGB", (8, 8)).save(folders / "other/x.png")
    with pytest.raises(ValueError, match=r"no label map has the name of a picture: a, b and 1 more there, x in"):
        open_own(folders / "other", folders / "labels", CLASSES)
