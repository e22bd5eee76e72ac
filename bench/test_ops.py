"""`pytest bench/ --benchmark-only`: every op against what others run in its place, outputs compared before timing.

CUDA: all shapes, fp16 and bf16. CPU: the reduced shapes in fp32, where the op is its torch reference; those figures are
ratios of one run on one machine and no claim about a GPU. Groups are op, shape and dtype; names are providers.
"""

import cases
import machine
import pytest
import torch

DEVICE = machine.device()
DTYPES = (torch.float16, torch.bfloat16) if DEVICE.type == "cuda" else (torch.float32,)
# Components and merged masks hold labels and fp32 scores: one dtype is enough for the first, the masks follow DTYPES.
RUNS = [
    pytest.param(case, dtype, id=f"{case.op}-{case.shape}-{dtype}".replace("torch.", "").replace(" ", "_"))
    for case in cases.CASES
    for dtype in DTYPES
    if (case.reduced or DEVICE.type == "cuda") and not (case.op == "components" and dtype != DTYPES[0])
]


@pytest.mark.parametrize("provider", ["s2clip", "careful", "published"])
@pytest.mark.parametrize(("case", "dtype"), RUNS)
def test_op(benchmark, case, dtype, provider):
    arguments = case.make(DEVICE, dtype)
    run = cases.PROVIDERS[case.op][provider]
    ours = cases.PROVIDERS[case.op]["s2clip"]
    with torch.inference_mode():
        problem = cases.disagreement(
            case, arguments, run(*arguments[0], **arguments[1]), ours(*arguments[0], **arguments[1])
        )
        assert not problem, f"{provider} and s2clip: {problem}"

        def timed():
            run(*arguments[0], **arguments[1])
            machine.finish()

        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            timed()
            benchmark.extra_info["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        benchmark.group = f"{case.op} {case.shape} {str(dtype).removeprefix('torch.')}"
        benchmark.name = provider
        benchmark.extra_info |= {"flops": case.flops, "bytes": case.bytes(dtype), "device": machine.name()}
        benchmark.pedantic(timed, rounds=20 if DEVICE.type == "cuda" else 5, warmup_rounds=2)
        floor = machine.floor_seconds(case.flops, case.bytes(dtype))
        if floor is not None:
            benchmark.extra_info["share_of_floor"] = floor / benchmark.stats.stats.median
