"""One file per tiny model: fp16 tensors, and in the safetensors header what is needed to build it and how it was made.

The header maps `config` to the architecture's keyword arguments and `training` to a summary of the run, both JSON.
"""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def write_model(path: Path, model: nn.Module, config: dict[str, Any], training: dict[str, Any]) -> None:
    """Write `model`'s tensors in fp16 with `config` and `training` in the header; whole or not at all."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"config": json.dumps(config), "training": json.dumps(training)})
    partial.chmod(0o644)  # the writer leaves 0600
    partial.replace(path)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """`{"config": ..., "training": ...}` of a file written by `write_model`."""
    with safe_open(path, "pt") as file:
        return {key: json.loads(text) for key, text in file.metadata().items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name, in fp32."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a mapping)


def load_model(path: Path | None, name: str, build: Any, *, random: bool) -> nn.Module:
    """`build(config)` of the file's header with its weights, or with reproducible random ones; eval, frozen, fp32.

    path: the file, `None` for the one embedded as `s2clip/data/tiny/<name>.safetensors`.
    The global random state is left as it was: constructors draw initial weights, and importing a library's model must
    not change what the caller draws next.
    """
    with as_file(files("s2clip.data") / "tiny" / f"{name}.safetensors") as embedded:
        path = path or embedded
        config = read_header(path)["config"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build(config)
        if not random:
            model.load_state_dict(read_tensors(path))
    return model.eval().requires_grad_(False)
