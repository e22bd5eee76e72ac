"""`pytest bench/ --benchmark-only`: every op against what others run in its place, outputs compared before timing.

CUDA: all shapes, fp16 and bf16. CPU: the reduced shapes in fp32, where the op is its torch reference; those figures are
ratios of one run on one machine and no claim about a GPU. Groups are op, shape and dtype; names are providers, so that
`pytest-benchmark compare` prints one small table a group.

Times are of single calls up to the end of the stream, launches included. `bench/compare.py` has the device's own time.
"""

import cases
import machine
import providers
import pytest
import torch
from baselines.tools import forget_compiled

DEVICE = machine.device()
RUNS = [
    pytest.param(case, dtype, provider, id="-".join((case.op, case.shape, str(dtype), provider)).replace(" ", "_"))
    for case in cases.here()
    for dtype in case.dtypes
    for provider, how in providers.PROVIDERS[case.op].items()
    if not (how.cuda_only and DEVICE.type == "cpu")
]


@pytest.mark.parametrize(("case", "dtype", "provider"), RUNS)
def test_op(benchmark, case, dtype, provider):
    how = providers.PROVIDERS[case.op][provider]
    if obstacle := how.obstacle():
        pytest.skip(obstacle)
    benchmark.group = f"{case.op} {case.shape} {str(dtype).removeprefix('torch.')}"
    benchmark.name = provider
    forget_compiled()
    arguments = case.make(DEVICE, dtype)
    with torch.inference_mode():
        expected = providers.truth(case.op, arguments)
        problem = providers.disagreement(case.op, arguments, how.run(*arguments[0], **arguments[1]), expected)
        assert not problem, f"{provider} and the published formulation: {problem}"
        del expected

        def timed():
            how.run(*arguments[0], **arguments[1])
            machine.finish()

        work = case.work(dtype)
        benchmark.extra_info |= {
            "kind": how.kind,
            "device": machine.name(),
            "flops": work.tensor_flops or work.lane_operations,
            "bytes": work.bytes,
        }
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            timed()
            benchmark.extra_info["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
        benchmark.pedantic(timed, rounds=20 if DEVICE.type == "cuda" else 3, warmup_rounds=1)
        if DEVICE.type == "cuda":  # a CPU's share of a floor is nobody's measure
            floor = work.floor(machine.ceilings())
            benchmark.extra_info |= {
                "floor_us": floor * 1e6,
                "percent_of_floor": 100 * floor / benchmark.stats["median"],
            }
