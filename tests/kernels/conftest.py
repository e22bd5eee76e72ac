"""Where there is a GPU, kernels run on it: launchers that tests call with CPU tensors take them there and back."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from s2clip.kernels import affinity_attention, classify_pixels, merge_masks, spatial_entropy
from s2clip.kernels.inspect import operators

LAUNCHERS = (
    (affinity_attention, "launch"),
    (classify_pixels, "launch"),
    (classify_pixels, "launch_scores"),
    (merge_masks, "launch"),
    (spatial_entropy, "launch"),
)


def moved(launch: Callable, device: torch.device) -> Callable:
    """`launch` on `device` for tensors on the CPU; for others as it is."""

    def on_device(*arguments):
        if any(leaf.device.type != "cpu" for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)):
            return launch(*arguments)
        output = launch(*tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), arguments))
        return tree_map_only(torch.Tensor, torch.Tensor.cpu, output)

    return on_device


@pytest.fixture(autouse=True)
def _kernels_run_on_the_gpu(device, monkeypatch):
    if device.type == "cuda":
        for module, name in LAUNCHERS:
            monkeypatch.setattr(module, name, moved(getattr(module, name), device))


class _Watched:
    """A kernel that reports each launch before it runs, or instead of running."""

    def __init__(self, kernel, report, *, run=True):
        self.kernel, self.report, self.run = kernel, report, run

    def __getitem__(self, grid):
        self.report(grid)
        return self.kernel[grid] if self.run else lambda *_, **__: None


def _watch(monkeypatch, report, *, run):
    for name in operators():
        module = importlib.import_module(f"s2clip.kernels.{name}")
        for key, kernel in list(vars(module).items()):
            if key.endswith("_kernel") and hasattr(kernel, "run"):
                monkeypatch.setattr(module, key, _Watched(kernel, report, run=run))


@pytest.fixture
def launches_seen(monkeypatch):
    """Called with a question: a list that gets its answer at every launch."""

    def watch(question):
        answers = []
        _watch(monkeypatch, lambda _: answers.append(question()), run=True)
        return answers

    return watch


@pytest.fixture
def grids_seen(monkeypatch):
    """The grids that a call launches, on tensors without memory."""
    grids = []
    _watch(monkeypatch, grids.append, run=False)

    def seen(call):
        grids.clear()
        call()
        return list(grids)

    return seen
