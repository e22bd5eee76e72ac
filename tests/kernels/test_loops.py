"""Loops found in machine code, their trips and cost, and the budgets that hold the shipped kernels to them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2clip.kernels.budgets import BUDGETS
from s2clip.kernels.machine_code import loops, parse
from s2clip.kernels.source_loops import places, trips
from s2clip.kernels.units import GPUS, cost, unit_of

NESTED = """
.text.kernel:
	//## File "/somewhere/fold.py", line 10
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
	//## File "/somewhere/tiles.py", line 3 inlined at "/somewhere/fold.py", line 12
	//## File "/somewhere/fold.py", line 12
        /*0010*/                   LDG.E.U16 R2, [R4.64] ;
.L_x_0:
        /*0020*/                   FFMA R2, R2, R3, R2 ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
        /*0040*/                   ISETP.NE.AND P1, PT, R7, RZ, PT ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   STG.E [R4.64], R2 ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2) ;
"""


def opcodes(code, indices):
    return [code.instructions[index].opcode for index in sorted(indices)]


def test_a_loop_inside_a_loop_is_its_own_and_the_end_of_the_program_is_none():
    code = parse(NESTED)
    outer, inner = loops(code)
    assert opcodes(code, outer.own) == ["LDG.E.U16", "ISETP.NE.AND", "BRA"]
    assert opcodes(code, inner.body) == opcodes(code, inner.own) == ["FFMA", "BRA"]
    assert (outer.parent, inner.parent) == (None, 0)
    assert inner.body < outer.body


def test_an_instruction_keeps_the_lines_it_was_inlined_from():
    code = parse(NESTED)
    assert code.instructions[0].lines == (("fold.py", 10),)
    assert code.instructions[1].lines == (("tiles.py", 3), ("fold.py", 12))


# One header, left in the middle and closed twice; the jump over an else and the one to the exit close nothing.
TWO_BACK_EDGES = """
        /*0000*/               @P2 BRA `(.L_x_9) ;
.L_x_3:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/               @P0 BRA `(.L_x_4) ;
        /*0030*/                   MUFU.EX2 R3, R3 ;
        /*0040*/                   BRA.U !UP0, `(.L_x_3) ;
.L_x_4:
        /*0050*/               @P3 EXIT ;
        /*0060*/                   HGMMA.64x32x16.F32 R24, gdesc[UR8], R24 ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_9:
        /*0080*/                   EXIT ;
"""


def test_back_edges_to_one_header_are_one_loop():
    code = parse(TWO_BACK_EDGES)
    (loop,) = loops(code)
    assert loop.header == 1
    assert loop.body == frozenset(range(1, 8))


# Entered at two places: neither label dominates the other's jump, so there is no header and no loop.
ENTERED_TWICE = """
        /*0000*/               @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0010*/                   FADD R1, R1, R2 ;
.L_x_1:
        /*0020*/                   FMUL R1, R1, R2 ;
        /*0030*/               @P1 BRA `(.L_x_0) ;
        /*0040*/                   EXIT ;
"""


def test_a_jump_back_is_a_loop_only_from_below_its_target():
    assert loops(parse(ENTERED_TWICE)) == []
    assert loops(parse("")) == []


@pytest.mark.parametrize(
    ("text", "unit", "arch", "busy", "asked"),
    [
        ("HMMA.16816.F32 R4, R8, R12, R4", "tensor", 89, {"tensor": 32}, 0),
        ("HMMA.16816.F32 R4, R8, R12, R4", "tensor", 80, {"tensor": 8}, 0),
        ("HGMMA.64x32x16.F32 R24, gdesc[UR8], R24", "tensor", 90, {"tensor": 16}, 0),
        ("FFMA R1, R2, R3, R4", "fp32", 89, {"fma": 1}, 0),
        ("FFMA R1, R2, R3, R4", "fp32", 80, {"fma": 2}, 0),
        ("IMAD.WIDE R2, R3, 0x2, R4", "integer", 90, {"fma": 1, "multiply": 2}, 0),
        ("ISETP.GE.AND P0, PT, R1, R2, PT", "integer", 89, {"alu": 2}, 0),
        ("MUFU.EX2 R1, R2", "special", 89, {"special": 8}, 0),
        ("LDS.128 R4, [R8]", "shared", 89, {"load/store": 16}, 0),
        ("LDSM.16.MT88.4 R4, [R8]", "shared", 89, {"load/store": 16}, 0),
        ("LDG.E.U16 R4, [R8.64]", "global", 89, {"load/store": 4}, 64),
        ("LDGSTS.E.BYPASS.128 [R4], [R8.64]", "global", 89, {"load/store": 16}, 512),
        ("RED.E.ADD.64.STRONG.GPU [R4.64], R8", "global", 89, {"load/store": 8}, 256),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "barrier", 89, {}, 0),
        ("UIADD3 UR4, UR4, 0x1, URZ", "issue", 89, {}, 0),
        ("BRA `(.L_x_1)", "issue", 89, {}, 0),
    ],
)
def test_cost_of_an_instruction(text, unit, arch, busy, asked):
    (instruction,) = parse(f"        /*0000*/    {text} ;").instructions
    assert unit_of(instruction) == unit
    (gpu,) = (gpu for gpu in GPUS if gpu.arch == arch)
    found = cost(instruction, gpu)
    assert dict(found.busy) == {"issue": 1} | busy
    assert found.bytes == asked


def test_trips_come_from_the_head_of_the_loop():
    assert trips("range(0, tokens, BLOCK_N)", {"tokens": 442, "BLOCK_N": 32}) == 14
    assert trips("range(levels if PROGRESSIVE else 1)", {"levels": 7, "PROGRESSIVE": False}) == 1
    with pytest.raises(NameError):
        trips("range(first, last)", {})


def test_places_follow_the_calls_into_this_package():
    from s2clip.kernels import affinity_kernels

    with open(affinity_kernels.__file__, encoding="utf-8") as file:
        source = file.read().splitlines()
    helper = next(n for n, line in enumerate(source, 1) if "squares += total * total" in line)
    call = next(n for n, line in enumerate(source, 1) if "mean = _mean_of_level" in line)
    found = places((("standard.py", 1), ("affinity_kernels.py", helper), ("affinity_kernels.py", call)))
    assert [place.head for place in found if place.kind == "for"] == [
        "range(levels if PROGRESSIVE else 1)",
        "range(0, channels, PARTS)",
    ]
    assert found[-1].calls == (("affinity_kernels.py", call),)


SHARES = """
import json, sys
from s2clip.kernels import budgets, loops, workloads
from s2clip.kernels.units import GPUS

wanted = {(name, arch) for name, arch in budgets.BUDGETS}
found = {
    f"{each.operator} {each.name}|{gpu.arch}": loops.json_of(loops.predicted(each, gpu))
    for each in workloads.workloads()
    for gpu in GPUS
    if (f"{each.operator} {each.name}", gpu.arch) in wanted
}
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """In a process that compiles, for two architectures; every configuration is for the compile gate."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folder = tmp_path_factory.mktemp("loops")
    done = subprocess.run(
        [sys.executable, "-c", SHARES], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: f"{budget[0]} sm_{budget[1]}")
def test_no_loop_is_slower_than_its_budget(budget, predictions):
    name, arch = budget
    row = predictions[f"{name}|{arch}"]
    most, reason = BUDGETS[budget]
    kernels = [(each["kernel"], round(each["seconds"] * 1e6, 1), each["bound"]) for each in row["kernels"]]
    assert row["microseconds"] <= most, f"budget: {reason}; now {kernels}"


@pytest.mark.long
def test_every_loop_of_every_predicted_kernel_is_counted(predictions):
    for name, row in predictions.items():
        assert row["launches"] >= len(row["kernels"]) > 0
        for kernel in row["kernels"]:
            assert kernel["seconds"] > 0, name
            assert kernel["problem"] == "", name
            for loop in kernel["loops"]:
                assert loop["instructions"] == loop["units"]["issue"] > 1, (name, kernel["kernel"])


@pytest.mark.long
def test_the_documented_table_is_what_the_model_says(predictions):
    """Ten per cent of room: versions of Triton order instructions in their own ways."""
    page = (Path(__file__).parents[2] / "docs" / "profiling.md").read_text(encoding="utf-8")
    documented = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and f"{cells[0]}|89" in predictions:
            documented |= {f"{cells[0]}|89": float(cells[1]), f"{cells[0]}|90": float(cells[3])}
    assert documented == {name: pytest.approx(row["microseconds"], rel=0.1) for name, row in predictions.items()}
