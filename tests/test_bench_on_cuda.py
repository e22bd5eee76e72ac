"""The benches' CUDA branches on a pretended device: rows are complete, and nothing waits inside a capture."""

import dataclasses

import cases
import compare
import machine
import models
import pipelines
import providers
import pytest
import results
import stages
import timing
import torch
from pretended_cuda import Graph, pretend
from test_bench_programs import SMALL, program

from s2clip import ops

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _pretended(monkeypatch, tmp_path):
    pretend(monkeypatch)
    machine.ceilings.cache_clear()
    monkeypatch.setattr(machine, "device", lambda: CPU)
    monkeypatch.setattr(machine, "_seconds", lambda run: 1e-3)
    monkeypatch.setattr(machine, "clocks", lambda: {"utilization.gpu": 50.0, "clocks.sm": 2235.0})
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    yield
    machine.ceilings.cache_clear()


def small_pictures(monkeypatch):
    monkeypatch.setitem(models.SETTINGS, "reduced", models.SETTINGS["reduced"]._replace(size=(96, 128)))
    few_windows = dataclasses.replace(models.RECIPES["tiny"], short_side=96)
    monkeypatch.setitem(models.RECIPES, "tiny", few_windows)


def test_the_4090_has_its_ceilings_and_others_are_measured(monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.zeros(1, 1))
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    assert machine.ceilings().source.startswith("measured at start")
    machine.ceilings.cache_clear()
    pretend(monkeypatch, "NVIDIA GeForce RTX 4090")
    assert machine.ceilings() is machine.CEILINGS["NVIDIA GeForce RTX 4090"]


def test_a_busy_gpu_is_said():
    load, memory = machine.obstacles()
    assert load == "busy GPU: 50 % in use before the first measurement; rows say so"
    assert memory.startswith("busy GPU: 3.0 GiB of its memory belong to other processes")


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_rows_of_ops_are_stored_and_shown(case, monkeypatch, capsys):
    monkeypatch.setitem(machine.CEILINGS, machine.name(), machine.CEILINGS["NVIDIA GeForce RTX 4090"])
    monkeypatch.setattr(cases, "here", lambda: [dataclasses.replace(case, shape="small")])
    missing = ["--without", "colorcc", "--without", "cucim"]
    assert compare.main(["--seconds", "0", *missing]) == 0, capsys.readouterr().out
    rows = list(results.read())
    expected = set(providers.PROVIDERS[case.op]) - {"colorcc", "cucim"}
    assert {row["provider"] for row in rows} == expected
    assert {row["dtype"] for row in rows} == {str(dtype).removeprefix("torch.") for dtype in case.dtypes}
    for row in rows:
        assert {"cold", "warm", "call", "bytes", "percent_of_floor", "peak_mib", "theirs_peak_mib"} <= set(row)
        assert row["obstacles"], "what stood in the way belongs to the row"
    printed = capsys.readouterr().out
    assert "not captured" not in printed
    assert compare.main(["--seconds", "0", "--resume", *missing]) == 0
    assert len(list(results.read())) == len(rows), "measured again what is stored"
    compare.main(["--table"])
    assert "NVIDIA Pretended 1" in capsys.readouterr().out


def test_what_cannot_be_captured_is_timed_from_outside(monkeypatch, capsys):
    def waits(features):
        machine.finish()
        if Graph.capturing:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return ops.spatial_entropy(features)

    monkeypatch.setattr(machine, "finish", lambda: None)
    provider = providers.Provider("careful", waits)
    case = next(case for case in SMALL if case.op == "spatial_entropy")
    timer = compare._device_timer(provider, timing.copies(case.make(CPU, torch.float32), 1e6))
    assert timer() > 0
    assert "not captured, so timed from outside" in capsys.readouterr().out


def test_rows_of_pipelines_are_stored_and_resumed(monkeypatch, capsys):
    monkeypatch.setattr(pipelines, "PICTURES", 1)
    small_pictures(monkeypatch)
    options = ["--model", "tiny", "--setting", "reduced", "--pipeline", "proxyclip", "--seconds", "0"]
    assert pipelines.main([*options, "--budget", "-1"]) == 0
    assert "1 pipelines are left, for --resume" in capsys.readouterr().out
    assert pipelines.main(options) == 0, capsys.readouterr().out
    (row,) = results.read()
    assert (row["op"], row["provider"], row["peak_mib"]) == ("pipeline proxyclip", "published", 1025)
    monkeypatch.setattr(pipelines, "measure", lambda *_: pytest.fail("measured again"))
    assert pipelines.main([*options, "--resume"]) == 0


def test_marks_for_nsys_and_ncu(monkeypatch):
    pushed = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", pushed.append)
    profile = program("profile")
    small_pictures(monkeypatch)
    profile.main(["--model", "tiny", "--setting", "reduced", "--pictures", "1", "--marks-only"])
    assert {"clip", "vfm", "affinity", "classify"} <= set(pushed)


class Event:
    """One of the profiler's, with what `stages` reads."""

    def __init__(self, name, kernels=(), parent=None, microseconds=0.0):
        self.name, self.cpu_parent, self.self_cpu_time_total = name, parent, microseconds
        self.kernels = [torch.autograd.profiler_util.Kernel(kernel, 0, duration) for kernel, duration in kernels]


def test_launches_are_kernels_and_not_the_ranges_around_them():
    """The profiler shows a stage's range on the device, too, as if the stage had launched it."""
    stage = Event("stage clip", [("stage clip", 900.0), ("copy", 5.0)])
    product = Event("aten::mm", [("gemm", 70.0), ("reduce", 10.0)], stage)
    waiting = Event("cudaStreamSynchronize", parent=stage, microseconds=5000.0)
    events = [stage, product, waiting, Event("aten::add", [("add", 1.0)])]
    assert stages.launches(events) == {"clip": 3, stages.ELSEWHERE: 1}
    assert stages.costliest(events, "clip", 1) == [("mm", 0.08)]
