"""The quarter of an hour on a GPU, rehearsed: what would run, in what time, with what a bare machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "tests" / "gpu"


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.syspath_prepend(GPU)
    import plan

    yield plan
    sys.modules.pop("plan", None)


def call(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=600)


class Clock:
    """Time that passes only by what steps take."""

    def __init__(self, **takes):
        self.now, self.takes, self.allotted = 0.0, takes, {}

    def __call__(self):
        return self.now

    def run(self, step, seconds):
        self.allotted[step.name] = seconds
        taken = self.takes.get(step.name, 0.0)
        self.now += min(taken, seconds)
        return "ok" if taken <= seconds else "stopped"


def test_a_part_keeps_its_limit_and_what_comes_first_keeps_its_share(plan):
    part = plan.Part("", 100.0, tuple(plan.Step(name, (), 60.0) for name in "abcd"))
    clock, told = Clock(a=60.0, b=1e9, c=5.0), []
    done = plan.conduct(part, clock.run, clock, told.append)
    assert clock.allotted == {"a": 60.0, "b": 40.0}
    assert [(each.name, each.status) for each in done] == [
        ("a", "ok"),
        ("b", "stopped"),
        ("c", "not run"),
        ("d", "not run"),
    ]
    assert told == done
    assert clock.now == part.limit


def test_time_that_one_step_leaves_goes_to_the_next(plan):
    part = plan.Part("", 100.0, (plan.Step("a", (), 60.0), plan.Step("b", (), 90.0)))
    clock = Clock(a=20.0, b=80.0)
    assert [each.status for each in plan.conduct(part, clock.run, clock, lambda _: None)] == ["ok", "ok"]
    assert clock.allotted == {"a": 60.0, "b": 80.0}


def test_both_calls_fit_in_the_quarter_of_an_hour(plan):
    """Seven minutes and six: two minutes are left for a machine to start."""
    assert plan.PARTS["check"].limit <= 420
    assert plan.PARTS["measure"].limit <= 360
    for name in plan.DEFAULT:
        part = plan.PARTS[name]
        assert sum(step.seconds for step in part.steps) <= part.limit, name
        assert all(step.rehearsal or step.host_may_lack for step in part.steps), name


@pytest.mark.long
def test_a_rehearsal_collects_and_names_everything_without_what_a_bare_machine_lacks(plan, tmp_path):
    done = call(GPU / "run", "--rehearse", "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    steps = [step for name in plan.DEFAULT for step in plan.PARTS[name].steps]
    assert [each["name"] for each in summary] == [step.name for step in steps]
    assert [each["seconds"] for each in summary] == [step.seconds for step in steps]
    for part in ("tests/gpu/test_ops_on_device.py::", "tests/gpu/test_pipeline_on_device.py::"):
        assert part in (tmp_path / "out" / "ops-and-pipeline.log").read_text()
    assert "tests/kernels/test_layouts.py::" in (tmp_path / "out" / "kernels-own-tests.log").read_text()
    pairs = [line.split(",")[0] for line in (tmp_path / "out" / "ops.log").read_text().splitlines()]
    claimed = [pair for pair in dict.fromkeys(pairs) if pair in (*plan.CLAIMED, "recombined_attention")]
    assert tuple(claimed) == (*plan.CLAIMED, "recombined_attention")
    assert "pipeline proxyclip, VOC" in (tmp_path / "out" / "pipelines.log").read_text()
    assert not list((tmp_path / "out").glob("scratch/site/**/__pycache__"))


def test_what_is_hidden_is_not_found(tmp_path):
    """The rehearsal would be worth nothing if what is installed here could be imported."""
    code = (
        "import importlib.util as u; print(u.find_spec('cc3d'), u.find_spec('skimage') is not None)\nimport open_clip"
    )
    done = call("-c", code, PYTHONPATH=str(GPU / "hidden"), S2CLIP_ABSENT="cc3d,open_clip")
    assert done.stdout == "None True\n"
    assert "No module named 'open_clip'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["everything"], 2, "received everything"),
        (["--carried", "nowhere"], 2, "expected the folder that tests/gpu/pack made; received nowhere"),
        (["check"], 3, "no GPU"),
    ],
)
def test_wrong_calls_are_told(arguments, status, message, tmp_path):
    done = call(GPU / "run", *arguments, "--out", tmp_path / "out", PATH="")
    assert done.returncode == status
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


PIP = """
import pathlib, sys
arguments = sys.argv
folder = pathlib.Path(arguments[arguments.index("--dest") + 1])
for pin in [one for one in arguments if "==" in one]:
    (folder / (pin.replace("==", "-") + "-py3-none-any.whl")).write_bytes(bytes({size}))
"""


def pack(tmp_path, size):
    """`tests/gpu/pack` with a pip that needs no registry."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text(PIP.format(size=size))
    (tmp_path / "pip" / "__init__.py").touch()
    return call(GPU / "pack", "--out", tmp_path / "carried", PYTHONPATH=str(tmp_path))


def test_the_carried_folder_holds_pinned_wheels_and_the_commit(tmp_path):
    done = pack(tmp_path, 10)
    assert done.returncode == 0, done.stderr
    carried = {file.name for file in (tmp_path / "carried").iterdir()}
    names = [line for line in (GPU / "carried.txt").read_text().splitlines() if line[0] != "#"]
    assert len(carried) == len(names) + 1
    assert all(any(file.startswith(f"{name}-") for file in carried) for name in names)
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert (tmp_path / "carried" / "COMMIT").read_text().startswith(commit or "unknown")


def test_a_folder_too_large_to_carry_is_not_made(tmp_path):
    done = pack(tmp_path, 12 << 20)
    assert done.returncode == 1
    assert "more than the 64 MiB that can be carried" in done.stderr
    assert not (tmp_path / "carried").exists()
