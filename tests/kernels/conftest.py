"""Where there is a GPU, kernels run on it: launchers that tests call with CPU tensors take them there and back."""

from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from s2clip.kernels import affinity_attention, classify_pixels, merge_masks, spatial_entropy

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
