"""The statistics behind a ratio, what may be stored, and the tables: on rows made by hand."""

import json
import random
import statistics

import compare
import machine
import pytest
import ratios
import results


def figures(ours=1.0, theirs=2.0, low=1.9, high=2.1):
    def spread(value):
        return {"p20": 0.9 * value, "p50": value, "p80": 1.2 * value}

    return {"ours_ms": spread(ours), "theirs_ms": spread(theirs), "ratio": [theirs / ours, low, high], "rounds": 50}


def row(**fields):
    return {
        "op": "classify_pixels",
        "shape": "VOC",
        "dtype": "float16",
        "provider": "eager",
        "kind": "published",
        "gpu": "NVIDIA Test 1",
        "torch": "2.15.0",
        "triton": "3.9.0",
        "commit": "abc",
        "cold": figures(0.02, 0.4),
        "warm": figures(0.01, 0.3),
        "call": figures(0.05, 0.5),
        "percent_of_floor": 41.6,
        "peak_mib": 2.6,
        "theirs_peak_mib": 120.4,
    } | fields


def noisy(mean, spread, rng):
    return lambda: rng.gauss(mean, spread * mean)


def test_the_interval_holds_the_true_ratio_and_shrinks():
    rng = random.Random(1)
    rounds = [(noisy(1.0, 0.05, rng)(), noisy(3.0, 0.05, rng)()) for _ in range(400)]
    median, low, high = ratios.summary(rounds, rng)["ratio"]
    assert low < 3 < high
    assert low <= median <= high
    few = ratios.summary(rounds[:20], rng)["ratio"]
    assert high - low < (few[2] - few[1]) / 2


def test_a_ratio_is_of_pairs_not_of_medians():
    """A machine that slows down by ten midway leaves every pair's ratio as it is."""
    rounds = [(slow * 1.0, slow * 2.0) for slow in (1, 10) for _ in range(10)]
    summary = ratios.summary(rounds, random.Random(0))
    assert summary["ratio"] == [2.0, 2.0, 2.0]
    assert summary["rounds"] == 20
    assert summary["ours_ms"] == {"p20": 1.0, "p50": 10.0, "p80": 10.0}


def test_quantiles_against_the_standard_library():
    values = list(range(1, 101))
    random.Random(0).shuffle(values)
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    for name, expected in (("p20", fifths[0]), ("p50", statistics.median(values)), ("p80", fifths[3])):
        assert ratios.quantiles(values)[name] == pytest.approx(expected, abs=1)
    assert ratios.quantiles([7.0]) == {"p20": 7.0, "p50": 7.0, "p80": 7.0}


def test_sides_alternate_at_random_and_rounds_stop_when_the_ratio_is_known():
    order = []

    def side(name, value):
        return lambda: order.append(name) or value

    rounds = ratios.paired(side("ours", 1.0), side("theirs", 2.0), 60, random.Random(0))
    assert len(rounds) == 3 * ratios.FEWEST  # without noise the ratio is known at once
    assert rounds[0] == (1.0, 2.0)
    firsts = order[::2]
    assert 0.2 < firsts.count("ours") / len(firsts) < 0.8
    assert len(ratios.paired(side("a", 1.0), side("b", 1.0), 0, random.Random(0))) == ratios.LEAST


@pytest.mark.parametrize(("round_takes", "rounds"), [(0.1, 40), (0.2, 20), (1.0, 10), (3.0, 6), (20.0, 3)])
def test_slow_sides_get_fewer_rounds(round_takes, rounds, monkeypatch):
    """Of a ratio that never settles, in 4 seconds; ten rounds may take four times as long."""
    clock, rng = [0.0], random.Random(0)
    monkeypatch.setattr(ratios.time, "perf_counter", lambda: clock[0])

    def side():
        clock[0] += round_takes / 2
        return rng.uniform(1, 3)

    assert len(ratios.paired(side, side, 4, rng)) == pytest.approx(rounds, abs=1)


def test_rows_are_appended_and_read_back(tmp_path):
    first, second = row(), row(provider="compiled", kind="careful")
    for one in (first, second):
        results.append(one, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["NVIDIA_Test_1-2.15.0-3.9.0.jsonl"]
    assert list(results.read(tmp_path)) == [first, second]


def test_no_time_of_a_cpu_is_stored(tmp_path):
    with pytest.raises(ValueError, match="CPU's times are not stored"):
        results.append(row(gpu="cpu"), tmp_path)
    assert not list(tmp_path.iterdir())


BROKEN = {
    '{"op": "half a li': "Unterminated string",
    json.dumps([1, 2]): "not an object",
    json.dumps(row(gpu=None)): "gpu: expected text",
    json.dumps(row(gpu="cpu")): "CPU",
    json.dumps(row(cold=None, warm=None, call=None)): "no figures",
    json.dumps(row(cold={"ratio": [1, 1, 1]})): "cold: expected p20",
    json.dumps(row(call=figures() | {"ratio": [1.0, -1.0, 2.0]})): "call: expected p20",
    json.dumps(row(warm=figures() | {"ratio": [1.0, float("nan"), 2.0]})): "warm: expected p20",
}


@pytest.mark.parametrize("line", BROKEN, ids=BROKEN.values())
def test_a_broken_row_is_named_in_one_line_and_skipped(line, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps(row()), line, json.dumps(row(shape="ADE"))]) + "\n")
    assert [one["shape"] for one in results.read(tmp_path)] == ["VOC", "ADE"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("x.jsonl:2: broken row skipped (")
    assert BROKEN[line] in said[0]


def test_tables_are_of_the_newest_rows():
    old, new = row(cold=figures(1.0, 1.0)), row(cold=figures(0.02, 0.4, 18.5, 21.0), commit="def")
    other = row(op="merge_masks", disagreement="3.00% of the labels differ")
    pipeline = row(
        op="pipeline proxyclip",
        shape="VOC 375x500",
        provider="published",
        cold=None,
        warm=None,
        call=figures(5.0, 40.0),
    )
    text = results.tables([old, other, new, pipeline])
    assert text.splitlines()[0] == (
        "**NVIDIA Test 1** (torch 2.15.0, triton 3.9.0, commit abc; torch 2.15.0, triton 3.9.0, commit def)"
    )
    figures_of_it = "20.0 | 400.0 | 20.00 (18.50 to 21.00) | 30.00 | 10.00 | 42 | 3 / 120 |"
    assert f"| classify_pixels | VOC | float16 | eager | {figures_of_it}" in text
    assert text.count("classify_pixels") == 1
    assert "not the same output: 3.00% of the labels differ" in text
    assert "| proxyclip | VOC 375x500 | float16 | published | 200.0 | 25.0 | 8.00 (1.90 to 2.10) | 3 / 120 |" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (len(results.OP_HEADS) + 1, len(results.PIPELINE_HEADS) + 1)
    assert "no rows are stored" in results.tables([])


def test_the_table_command_reads_stored_rows_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.append(row())
    monkeypatch.setattr(compare, "measure", lambda *_: pytest.fail("measured"))
    compare.main(["--table"])
    assert "classify_pixels" in capsys.readouterr().out


def test_floors_are_those_of_the_slowest_unit():
    ceilings = machine.CEILINGS["NVIDIA GeForce RTX 4090"]
    assert machine.Work(tensor_flops=165.2e12).floor(ceilings) == pytest.approx(1)
    assert machine.Work(tensor_flops=1e12, bytes=2 * 1008e9).floor(ceilings) == pytest.approx(2)
    assert machine.Work(lane_operations=41.3e12).floor(ceilings) == pytest.approx(1)  # 128 SMs, 128 lanes, 2.52 GHz
    assert machine.Work(exponentials=5.2e12).floor(ceilings) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("op", "shape", "microseconds"),
    [
        ("recombined_attention", "B2 H12 N442 D64 T3", 21.8),
        ("recombined_attention", "B1 H12 N4097 D64 T3", 936),
        ("affinity_attention", "B2 42x42 from 21x21 C768", 43),
        ("classify_pixels", "ADE 512x683 Q150 K150", 20),
        ("merge_masks", "Cityscapes 1024x2048 R60 K19", 91),
    ],
)
def test_floors_of_pipeline_shapes_on_a_4090(op, shape, microseconds):
    """Against figures worked out by hand from the same ceilings."""
    import cases
    import torch

    case = next(case for case in cases.CASES if (case.op, case.shape) == (op, shape))
    floor = case.work(torch.float16).floor(machine.CEILINGS["NVIDIA GeForce RTX 4090"])
    assert 1e6 * floor == pytest.approx(microseconds, rel=0.02)
