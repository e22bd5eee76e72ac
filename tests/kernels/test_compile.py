"""The compile gate, and what it cannot see by itself.

Everything that compiles runs in a process of its own, without TRITON_INTERPRET: under the interpreter Triton has no
compiler. All configurations for all architectures take minutes: `slow`, and a row of make test-everywhere that CI runs.
Those of the pipeline's shapes are held to the limits by test_loops.py each time.
"""

import json
import os
import subprocess
import sys

import pytest

from s2clip.kernels import inspect
from s2clip.kernels.inspect import ARCHITECTURES, occupancy, operators, problem
from s2clip.kernels.tiles import SHIPPED_ARCHITECTURES


def run(*arguments, tmp_path):
    """Python in a fresh process that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    done = run("-m", "s2clip.kernels.inspect", "--json", tmp_path=tmp_path_factory.mktemp("gate"))
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_every_configuration_keeps_the_limits(rows):
    broken = [f"{row['kernel']} {row['config']} sm_{row['arch']}: {row['problem']}" for row in rows if row["problem"]]
    assert not broken, "\n".join(broken)


@pytest.mark.long
def test_every_operator_is_compiled_for_every_architecture(rows):
    assert tuple(ARCHITECTURES) == SHIPPED_ARCHITECTURES
    assert {(row["op"], row["arch"]) for row in rows} == {(op, arch) for op in operators() for arch in ARCHITECTURES}


@pytest.mark.long
def test_figures_are_those_of_a_compiled_kernel(rows):
    for row in rows:
        assert 0 < row["registers"] <= 255, row
        assert 0 < row["occupancy"] <= 1, row
    # Three accumulators of 64 channels cannot live in few registers, nor their tiles in no shared memory.
    fused = [
        row
        for row in rows
        if row["op"] == "recombined_attention"
        and row["config"].startswith("T3 D64 fp16 ")
        and "recombined" in row["kernel"]
    ]
    assert fused
    assert all(row["registers"] > 100 and row["shared"] > 16_384 for row in fused)


SPILLS = """
import s2clip.kernels.inspect as inspect
from s2clip.kernels import recombined_attention as module

tiles = module.Configuration(128, 64, 4, 2)  # three accumulators of 32 rows per warp
module.configuration = lambda *sizes: tiles
names = [case.name for case in inspect.cases("recombined_attention", 89)]
row = inspect.measure("recombined_attention", 89, names.index("T3 D64 fp16 N442"))
assert row.spills > 0 and "spilled" in row.problem, row
"""

ROWS = """
import re
import s2clip.kernels.inspect as inspect

# A tile of 32 x 64 halves gives each of 128 threads 16 bytes at a time, one of 32 x 16 only 8 in all.
for arch, head_dim, sizes in ((80, 64, {16}), (90, 80, {8, 16})):
    cases = {case.name: case for case in inspect.cases("recombined_attention", arch)}
    case = cases[f"T2 D{head_dim} fp16 N442"]
    asm = inspect.compile_case(case, arch).asm
    layouts = re.findall(r"#ttg.nvidia_mma<.*warpsPerCTA = \\[(\\d+), (\\d+)\\]", asm["ttgir"])
    assert layouts and set(layouts) == {(str(case.num_warps), "1")}, layouts
    copies = re.findall(r"cp\\.async\\.\\w+\\.shared\\.global \\[.*\\], \\[.*\\], (0x\\w+|\\d+)", asm["ptx"])
    assert {int(size, 0) for size in copies} == sizes, copies
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(SPILLS, id="a spill is seen and named"),
        pytest.param(ROWS, id="attention keeps rows within warps and copies tiles in wide pieces"),
    ],
)
def test_compiler(script, tmp_path):
    done = run("-c", script, tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr


OTHER_HEADS = """
import itertools, sys, torch
import s2clip.kernels.inspect as inspect
from s2clip.kernels import calls, recombined_attention as module

def other_heads():
    for head_dim, count, has_bias in itertools.product((16, 32, 48, 72, 96, 112), (1, 2, 3), (False, True)):
        tokens = calls.meta(1, 1, 577, head_dim, dtype=torch.float16)
        given = (("qq", "kk", "vv")[:count], (1.0,) * count, 0.1, calls.meta(577, 577) if has_bias else None)
        yield f"{head_dim} {count} {has_bias}", lambda given=given, t=tokens: module.launch(t, t, t, *given)

calls._recombined_attention = other_heads
arch = int(sys.argv[1])
indices = range(len(inspect.cases("recombined_attention", arch)))
rows = [inspect.measure("recombined_attention", arch, index) for index in indices]
broken = [row for row in rows if row.problem]
assert not broken, broken
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHIPPED_ARCHITECTURES)
def test_attention_of_every_head_size_keeps_the_limits(arch, tmp_path):
    done = run("-c", OTHER_HEADS, str(arch), tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_fails_when_a_limit_is_broken(monkeypatch, capsys):
    row = inspect.Row("op", "kernel", "config", 89, 255, 120_000, 8, 0.1, problem(89, 120_000, 8))
    monkeypatch.setattr(inspect, "inspect", lambda *chosen: [row])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert inspect.main(["--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert list(printed[0]) == list(inspect.Row._fields)
    assert printed[0]["problem"] == "120000 bytes of shared memory, at most 101376; 8 bytes spilled, none allowed"
    assert inspect.main([]) == 1
    assert "1 configurations, 1 over a limit" in capsys.readouterr().out
    monkeypatch.setattr(inspect, "inspect", lambda *chosen: [row._replace(problem="")])
    assert inspect.main([]) == 0


def test_the_command_refuses_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stopped:
        inspect.main([])
    assert stopped.value.code == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "shared", "spills", "words"),
    [
        (89, 101_376, 0, ""),
        (89, 101_377, 0, "101377 bytes of shared memory, at most 101376"),
        (80, 101_377, 0, "101377 bytes of shared memory, at most 101376"),
        (90, 232_448, 0, ""),
        (90, 232_449, 0, "232449 bytes of shared memory, at most 232448"),
        (120, 0, 4, "4 bytes spilled, none allowed"),
    ],
)
def test_limits(arch, shared, spills, words):
    assert problem(arch, shared, spills) == words


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "num_warps", "expected"),
    [
        (89, 255, 36_864, 4, 2 * 4 / 48),  # registers: 2 warps of 8192 in each quarter
        (80, 32, 0, 4, 1.0),
        (86, 32, 0, 1, 16 / 48),  # blocks: 16
        (89, 40, 51_200, 4, 4 / 48),  # shared memory: 50 KiB and 1 KiB of the system's, twice, exceed 100 KiB
        (90, 40, 73_728, 8, 3 * 8 / 64),
        (120, 168, 0, 4, 3 * 4 / 48),
    ],
)
def test_occupancy(arch, registers, shared, num_warps, expected):
    assert occupancy(arch, registers, shared, num_warps) == pytest.approx(expected)


def test_every_configuration_has_a_name_of_its_own():
    for operator in operators():
        names = [(case.kernel.__name__, case.name) for case in inspect.cases(operator, 90)]
        assert len(set(names)) == len(names) > 0


def test_a_case_names_every_argument():
    case = inspect.cases("spatial_entropy", 89)[0]
    with pytest.raises(ValueError, match="expected the arguments"):
        inspect.compile_case(case._replace(constants={}), 89)


def test_versions_of_triton_are_installed_apart_and_asked_for_in_turn(monkeypatch, tmp_path):
    """A folder per version, filled by pip once; the gate runs in a process that finds it first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    commands = []

    def run(command, env=None, check=False):
        commands.append((command, env))
        if "--target" in command:
            (tmp_path / "s2clip/triton/3.6/triton").mkdir(parents=True)
        return subprocess.CompletedProcess(command, returncode=int(env is not None))

    monkeypatch.setattr(inspect.subprocess, "run", run)
    assert inspect.main(["--triton", "3.6", "--arch", "90", "--quiet", "--jobs", "1"]) == 1
    (installing, _), (gate, environment) = commands
    assert installing[-3:] == ["--target", str(tmp_path / "s2clip/triton/3.6"), "triton==3.6.*"]
    assert gate[1:] == ["-m", "s2clip.kernels.inspect", "--arch=90", "--quiet", "--jobs=1"]
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "s2clip/triton/3.6")
    inspect.main(["--triton", "3.6"])
    assert len(commands) == 3
