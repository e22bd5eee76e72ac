"""One file per tiny model: fp16 tensors, and in the safetensors header what is needed to build it and how it was made.

The header maps `config` to the architecture's keyword arguments, `training` to a summary of the run, and `crc32` to the
checksums of the tensors and of `config`, all JSON.
"""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from s2clip.backbones.soundness import check_checksums, checksums
from s2clip.backbones.weights import fill
from s2clip.errors import WeightsError
from s2clip.files import whole_file, writable_folder


def write_model(path: Path, model: nn.Module, config: dict[str, Any], training: dict[str, Any]) -> None:
    """Write `model`'s tensors in fp16 with `config` and `training` in the header; whole or not at all."""
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    header = {"config": json.dumps(config), "training": json.dumps(training)}
    header["crc32"] = checksums(tensors, header["config"])
    content = save(tensors, header)
    writable_folder(path.parent)
    with whole_file(path) as handle:
        handle.write(content)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """`{"config": ..., "training": ...}` of a file written by `write_model`. Raises `WeightsError`."""
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if "config" not in header:
        raise WeightsError(f"{path}: no file of an embedded model: its header has no config")
    return {key: json.loads(text) for key, text in header.items() if key != "crc32"}


def read_tensors(path: Path, name: str = "tiny") -> dict[str, Tensor]:
    """The file's tensors by name, in fp32. `WeightsError` naming those that are damaged."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        header = file.metadata() or {}
    if "crc32" in header:
        check_checksums(name, path, tensors, header.get("config", ""), header["crc32"])
    return {key: tensor.float() for key, tensor in tensors.items()}


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
            fill(model, read_tensors(path, name), name, path)
    return model.eval().requires_grad_(False)
