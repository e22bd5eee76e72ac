"""The compiled rivals are compiled: whole, and for every size. Traced without a GPU, all but the code generation."""

import providers
import pytest
import timing
import torch
from baselines.tools import forget_compiled
from test_bench_programs import CPU, SMALL

COMPILED = [
    pytest.param(case, provider.run, id=f"{case.op}-{name}")
    for case in SMALL
    for name, provider in providers.PROVIDERS[case.op].items()
    if hasattr(provider.run, "__wrapped__")
]


@pytest.mark.parametrize(("case", "function"), COMPILED)
def test_rivals_compile_whole(case, function):
    """Traced without a GPU; only the code generator is left out. A break in the graph would be an error."""
    arguments = case.make(CPU, torch.float32)
    traced = torch.compile(function.__wrapped__, dynamic=False, fullgraph=True, backend="eager")
    forget_compiled()
    with torch.inference_mode():
        output = timing.call(traced, arguments)
    assert providers.disagreement(case.op, arguments, output, providers.truth(case.op, arguments)) == ""


def test_rivals_are_compiled_for_every_size():
    traced = torch.compile(lambda x: x + 1, dynamic=False, fullgraph=True, backend="eager")

    def many(before):
        for size in range(2, 14):
            before()
            traced(torch.zeros(size))

    many(forget_compiled)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        many(lambda: None)
    forget_compiled()
