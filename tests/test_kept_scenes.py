"""`evaluate scenes -o FOLDER`: kept as a benchmark's results are, gone on with, and how far it came when stopped."""

import json

import pytest
from command_line import one_line

from s2clip import Segmenter, scenes


def evaluate(run, *more):
    return run("evaluate", "scenes", "--short-side", 32, "--json", *more)


@pytest.fixture
def asked(monkeypatch):
    """The method of every call, the one before the clock included."""
    seen, call = [], Segmenter.__call__

    def counting(segmenter, source):
        seen.append(segmenter.method.name)
        return call(segmenter, source)

    monkeypatch.setattr(Segmenter, "__call__", counting)
    return seen


def untimed(row):
    return {name: value for name, value in row.items() if not name.startswith("ms_") and name != "folder"}


def test_scenes_are_kept_and_gone_on_with(run, tmp_path, asked):
    first = evaluate(run, "--method", "clip", "--limit", 2, "-o", "kept")
    assert first.exit_code == 0, first.output
    (row,) = json.loads(first.stdout)["rows"]
    assert row["folder"] == "kept/scenes/tiny/clip"
    document = json.loads((tmp_path / row["folder"] / "result.json").read_text())
    assert document["pictures"] == {"in_dataset": 10_000, "asked": 2, "scored": 2}
    assert document["miou"] == pytest.approx(row["miou"], abs=0.01)
    assert document["timings"]["share_in_models"] == 1
    again = evaluate(run, "--method", "clip", "--limit", 2, "-o", "kept")
    assert again.exit_code == 3
    assert "kept/scenes/tiny/clip: holds the records of an earlier run: --resume goes on" in one_line(again)
    asked.clear()
    more = evaluate(run, "--method", "clip", "maskclip", "--limit", 3, "-o", "kept", "--resume")
    assert more.exit_code == 0, more.output
    assert sorted(asked) == ["clip"] * 2 + ["maskclip"] * 4  # one each before the clock
    fresh = evaluate(run, "--method", "clip", "maskclip", "--limit", 3)
    assert [untimed(one) for one in json.loads(more.stdout)["rows"]] == [
        untimed(one) for one in json.loads(fresh.stdout)["rows"]
    ]
    asked.clear()
    assert evaluate(run, "--method", "clip", "--limit", 3, "-o", "kept", "--resume").exit_code == 0
    assert asked == []
    other = evaluate(run, "--method", "clip", "--limit", 3, "-o", "kept", "--resume", "--seed", 1)
    assert other.exit_code == 3
    assert 'dataset.split is "seed 0" there and "seed 1" now' in one_line(other)


@pytest.mark.parametrize(
    ("kept", "said"),
    [((), "-o FOLDER would keep them for --resume"), (("-o", "kept"), "--resume does the others")],
    ids=["printed", "kept"],
)
def test_an_interrupt_tells_how_far_it_came(run, tmp_path, monkeypatch, kept, said):
    generate = scenes.generate

    def interrupted(seed, *more):
        if seed == 2:
            raise KeyboardInterrupt
        return generate(seed, *more)

    monkeypatch.setattr(scenes, "generate", interrupted)
    result = evaluate(run, "--method", "clip", "--limit", 3, *kept)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [f"2 of 3 scenes are done; {said}", "interrupted"]
    lines = [path.read_text().count("\n") for path in tmp_path.rglob("*.jsonl")]
    assert lines == ([2] if kept else [])


def test_resume_needs_a_folder(run):
    result = evaluate(run, "--resume")
    assert result.exit_code == 2
    assert "--resume: of scenes goes with -o FOLDER" in one_line(result)
