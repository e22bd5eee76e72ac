"""The benches run on a machine without a GPU: baselines give the ops' outputs, programs say what they cannot do."""

import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

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
from stages import Count, Load

from s2clip import ops
from s2clip.stopwatch import Stopwatch
from s2clip.testing import normal, probabilities

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = (
    cases.attention_case("", 2, 2, 33, 16, ("qq", "kk", "vv")),
    cases.affinity_case("", 2, (9, 7), (5, 4), 48),
    cases.components_case("", (31, 40), 5, 2),
    cases.classify_case("", 5, 8, (4, 6), (31, 40)),
    cases.merge_case("", 6, 5, (31, 40), low=32),
    cases.entropy_case("", 2, 24, (7, 9)),
)
GPU_LIBRARIES = {"colorcc", "cucim"}


def every_provider():
    return [
        pytest.param(case, name, id=f"{case.op}-{name}")
        for case in SMALL
        for name, provider in providers.PROVIDERS[case.op].items()
        if provider.needs not in GPU_LIBRARIES
    ]


@pytest.mark.parametrize(("case", "name"), every_provider())
def test_every_provider_computes_the_op(case, name):
    """Compiled formulations run in eager mode here."""
    arguments = case.make(CPU, torch.float32)
    output = timing.call(providers.PROVIDERS[case.op][name].run, arguments)
    assert providers.disagreement(case.op, arguments, output, providers.truth(case.op, arguments)) == ""


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.op)
def test_another_output_is_noticed(case):
    arguments = case.make(CPU, torch.float32)
    wrong = providers.truth(case.op, arguments)
    if isinstance(wrong, list):
        wrong = [(*wrong[0][:2], wrong[0][2] + 1, *wrong[0][3:]), *wrong[1:]]
    elif isinstance(wrong, tuple):
        wrong = (wrong[0].roll(1), wrong[1])
    else:
        wrong = wrong * 1.05
    assert providers.disagreement(case.op, arguments, wrong, providers.truth(case.op, arguments))


def test_no_rounding_reaches_the_threshold_of_the_affinity_case():
    """Half precision would cut other pairs otherwise, and the outputs would not be comparable."""
    (features, _), _ = cases.affinity_case("", 2, (42, 42), (21, 21), 768).make(CPU, torch.bfloat16)
    unit = torch.nn.functional.normalize(features.float().flatten(1, 2), dim=-1)
    cosines = unit @ unit.mT
    threshold = 1.2 * cosines.mean((1, 2), keepdim=True)
    assert ((cosines - threshold).abs() < 0.01).float().mean() == 0
    assert 0.05 < (cosines > threshold).float().mean() < 0.5


def run_quietly(monkeypatch, capsys, program, *arguments):
    """What a program prints where there is no GPU, with no row written anywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(results, "append", lambda *_: pytest.fail("a CPU's row was stored"))
    assert program.main(arguments) == 0
    return capsys.readouterr().out


def test_compare_says_what_it_cannot_measure_and_measures_the_rest(monkeypatch, capsys):
    small = next(case for case in SMALL if case.op == "affinity_attention")
    monkeypatch.setattr(cases, "here", lambda: [small])
    lines = run_quietly(monkeypatch, capsys, compare, "--seconds", "0", "--without", "autotuned").splitlines()
    assert "no GPU" in lines[0]
    assert "affinity_attention, compiled: not measured (needs a GPU)" in lines
    measured = [line for line in lines if line.endswith("on a CPU")]
    assert [line.split(", ")[3].split(":")[0] for line in measured] == ["s2clip", "proxyclip"]


def test_compare_goes_on_after_a_provider_that_fails(monkeypatch, capsys):
    small = next(case for case in SMALL if case.op == "spatial_entropy")

    def too_much(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory\nand a long story")

    table = {
        "s2clip": providers.Provider("s2clip", ops.spatial_entropy),
        "big": providers.Provider("careful", too_much),
    }
    table["eager"] = providers.PROVIDERS["spatial_entropy"]["eager"]
    monkeypatch.setattr(cases, "here", lambda: [small])
    monkeypatch.setitem(providers.PROVIDERS, "spatial_entropy", table)
    printed = run_quietly(monkeypatch, capsys, compare, "--seconds", "0")
    assert "big: not measured (CUDA out of memory)\n" in printed
    assert "eager: " in printed.split("big: not measured")[1]


def test_compare_stops_at_its_budget_and_resumes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(cases, "here", lambda: [case for case in SMALL if case.op == "spatial_entropy"])
    assert "2 pairs are left, for --resume" in run_quietly(monkeypatch, capsys, compare, "--budget", "-1")
    shared = machine.setup()
    done = {"op": "spatial_entropy", "shape": "", "dtype": "float32", "provider": "eager", "commit": shared["commit"]}
    monkeypatch.setattr(results, "read", lambda *_: [done])
    assert "1 pairs are left" in run_quietly(monkeypatch, capsys, compare, "--budget", "-1", "--resume")


@pytest.mark.parametrize("pipeline", ["proxyclip", "proxyclip+sam", "trident+sam"])
def test_pipelines_give_the_published_label_maps(pipeline, tmp_path, monkeypatch):
    """Two independent statements of a method, on the same models: other code, other order, other memory."""
    few = dataclasses.replace(models.RECIPES["tiny"], short_side=96)
    monkeypatch.setitem(models.RECIPES, "tiny", few)
    loaded = models.load("tiny", "tiny-dino", "sam-tiny", "pretrained", CPU)
    setting = models.SETTINGS["reduced"]._replace(size=(96, 128))
    pair = pipelines.build(pipeline, "reduced", setting, loaded, tmp_path)
    ours, theirs = pair.ours(pair.paths), pair.theirs(pair.paths)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape == (96, 128)
        assert len(one.unique()) > 2
        assert (one != other).float().mean() <= 0.001 + 0.01 * ("+" in pipeline)


def test_a_pipeline_with_other_labels_is_not_timed(tmp_path):
    def side(value):
        return lambda paths: [torch.full((4, 4), value) for _ in paths]

    pair = pipelines.Pair("proxyclip", "tiny", "published", side(0), side(1), [tmp_path])
    row = pipelines.measure(pair, torch.float32, 0, random.Random(0))
    assert "call" not in row
    assert "100.00% of the labels differ" in row["disagreement"]


def test_random_models_are_spread_and_their_words_are_parted():
    """As initialised, patches have cosines of 0.98: one label everywhere, and a threshold that cuts everything."""
    from small_models import small_clip, small_vfm

    loaded = models.Models(small_clip(), small_vfm())
    loaded.vfm.model.norm.bias.data += 20
    models.spread(loaded)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(loaded.vfm.features(images).flatten(0, 2), dim=-1)
    assert (unit @ unit.T).mean() < 0.7
    vectors = torch.nn.functional.normalize(normal(50, 16), dim=-1)
    chosen = models.farthest(vectors, 8)
    assert (chosen @ chosen.T).triu(1).max() < 0.5 < (vectors @ vectors.T).triu(1).max()


def test_counts_belong_to_the_innermost_stage():
    watch = Stopwatch()
    left, right = normal(8, 16), normal(16, 4)
    with stages.marked(), Count() as count, torch.inference_mode():
        with watch("outer"):
            product = left @ right
            with watch("inner"):
                torch.nn.functional.linear(product, right).relu_()
            product.view(-1)
        product + 1
    assert count.loads["outer"] == Load(1, 4 * (8 * 16 + 16 * 4 + 8 * 4), 0.0, 2 * 8 * 16 * 4)
    assert count.loads["inner"].flops == 2 * 8 * 4 * 16
    assert count.loads["inner"].operators == 2
    assert count.loads[stages.ELSEWHERE].operators == 1
    assert list(watch.milliseconds()) == ["inner", "outer"]
    assert stages.current() == stages.ELSEWHERE


def test_our_ops_count_their_arithmetic():
    with Count() as count:
        ops.recombined_attention(*(normal(1, 2, 33, 16) for _ in range(3)), terms=("qq", "kk"))
        ops.classify_pixels(probabilities(1, 5, 4, 4), (20, 30))
    work = cases.attention_case("", 1, 2, 33, 16, ("qq", "kk")).work(torch.float32)
    work_of_pixels = 2 * cases.LANES_PER_CLASSIFIED * 5 * 20 * 30
    assert count.loads[stages.ELSEWHERE].single_flops == work.tensor_flops + work_of_pixels


def program(name):
    """By its path: the standard library has a module `profile`."""
    specification = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_profile_of_a_stream(monkeypatch, capsys, tmp_path):
    profile_program = program("profile")
    monkeypatch.setattr(profile_program, "ROUNDS", 1)
    few = dataclasses.replace(models.RECIPES["tiny"], short_side=64)
    monkeypatch.setitem(models.RECIPES, "tiny", few)
    monkeypatch.setattr(machine, "ceilings", lambda: machine.Ceilings(1e12, 1e12, 1e10, "made up"))
    arguments = ["--model", "tiny", "--refine", "sam", "--setting", "reduced", "--pictures", "2"]
    profile_program.main([*arguments, "--trace", str(tmp_path / "traces")])
    printed = capsys.readouterr().out
    for stage in ("clip", "vfm", "affinity", "classify", "sam_encoder", "decoder", "merge", "sum of stages"):
        assert printed.count(f"\n{stage} ") == 2, stage  # one picture, and the stream
    assert "NVIDIA GeForce RTX 4090" in printed
    assert "165.2" in printed
    assert printed.count("\n3. ") == 2  # the three largest costs, named
    trace = json.loads((tmp_path / "traces" / "stream.json").read_text())
    assert {"stage clip", "stage merge"} <= {event.get("name") for event in trace["traceEvents"]}


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--pictures", "0"], "--pictures: expected"), (["--marks-only"], "needs a GPU")]
)
def test_profile_refuses_what_it_cannot_do(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=message):
        program("profile").main(arguments)


@pytest.mark.long
def test_the_bench_command_on_any_machine(tmp_path):
    """`pytest bench/ --benchmark-only`, two of its entries: the import of torch is most of this test's time."""
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-k", "spatial_entropy"]
    command += ["-p", "no:cacheprovider", f"--benchmark-json={tmp_path / 'rows.json'}"]
    command += ["--benchmark-max-time=0.05", "--benchmark-min-rounds=1"]  # what is measured is looked at elsewhere
    # Of its own: pytest-benchmark measures nothing in what looks like a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["benchmarks"]
    assert {row["name"] for row in rows} == {"s2clip", "eager"}
    for row in rows:
        assert row["group"] == "spatial_entropy B1 C768 21x21 float32"
        assert {"kind", "device", "flops", "bytes"} <= set(row["extra_info"])


@pytest.mark.parametrize("name", ["compare", "pipelines", "profile"])
def test_programs_leave_the_standard_librarys_profile_alone(name, monkeypatch):
    """`cProfile` imports `profile`, and torch.compile imports `cProfile`; Python puts a script's folder first."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    assert "bench" in PathFinder.find_spec("profile", sys.path).origin
    program(name)
    assert "bench" not in PathFinder.find_spec("profile", sys.path).origin
