"""When an op goes past torch's dispatcher, and that whoever listens to the dispatcher still hears of it."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from s2clip import ops
from s2clip.ops import entropy, registry
from s2clip.testing import normal

OP = entropy._spatial_entropy
NAME = "s2clip::spatial_entropy"


@pytest.fixture
def direct(monkeypatch):
    """The way of CUDA tensors for those of the CPU; the calls that went past the dispatcher."""
    calls = []

    def kernel(*arguments):
        calls.append(arguments)
        return OP.by_torch(*arguments)

    monkeypatch.setitem(OP._by_kind, "cpu", kernel)
    return calls


class Heard(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("state", [torch.no_grad, torch.inference_mode])
def test_nothing_stands_between_a_plain_call_and_its_kernel(direct, state):
    maps = normal(2, 8, 3, 4)
    with state():
        found = ops.spatial_entropy(maps)
    assert len(direct) == 1
    assert torch.equal(found, ops.spatial_entropy(maps, backend="torch"))


def test_gradients_are_refused_as_ever(direct):
    maps = normal(2, 8, 3, 4).requires_grad_()
    found = ops.spatial_entropy(maps)
    assert not direct
    with pytest.raises(RuntimeError, match="autograd"):
        found.sum().backward()


def test_what_counts_operators_counts_this_one(direct):
    with torch.no_grad(), Heard() as heard:
        ops.spatial_entropy(normal(2, 8, 3, 4))
    assert f"{NAME}" in [name.removesuffix(".default") for name in heard.names]
    assert not direct


def test_a_profile_names_it(direct):
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        ops.spatial_entropy(normal(2, 8, 3, 4))
    assert NAME in {event.key for event in seen.key_averages()}
    assert not direct


def test_fake_tensors_and_vmap_never_reach_the_kernel(direct):
    with torch.no_grad():
        with FakeTensorMode() as mode:
            maps = torch.empty(2, 8, 3, 4)
        assert ops.spatial_entropy(maps).fake_mode is mode
        assert not registry.nobody_listens(maps)
        seen = []
        torch.vmap(lambda tensor: seen.append(registry.nobody_listens(tensor)) or tensor)(normal(2, 3))
    assert seen == [False]
    assert not direct


def test_gpu_tensors_go_that_way():
    """The table's entry of a CUDA tensor is the kernel's launcher."""
    for name in ("recombined_attention", "affinity_attention"):
        op = getattr(ops.attention, f"_{name}")
        assert op._by_kind["cuda"] is op.by_triton
