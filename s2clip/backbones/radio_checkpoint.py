"""NVIDIA's own checkpoints of RADIO: the tower, and the language head that other layouts leave out.

    {"state_dict" or "state_dict_ema": {"base_model.…", "_heads.<number or name of a teacher>.…", …}, "args": Namespace}

`args.teachers` says whose heads the numbers are. Tensors may be written as W = original·s/σ (spectral
reparametrisation, as they were trained); they are multiplied out here.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2clip.backbones import weights as weight_files
from s2clip.backbones.checkpoints import find, first_line
from s2clip.backbones.model_table import say_licence
from s2clip.backbones.weights import Fingerprint
from s2clip.errors import WeightsError

LANGUAGE = re.compile(r"siglip2")
"""Names of the teacher whose summary head is the language head: "siglip2", "siglip2-g"."""
HEAD = "language."
PARAMETRIZED = ".parametrizations."
FLOOR = 0.05
"""What NVIDIA adds to the softplus of its learned scale."""


class LanguageHead(nn.Module):
    """y = W_2 GELU(LN h) + b_2, h = W_1 x + b_1, then h + W GELU(LN h) + b for each inner block: x [...,D] → [...,C].

    The names are NVIDIA's; `inner` blocks of `hidden` width.
    """

    def __init__(self, width: int, outputs: int, hidden: int | None = None, inner: int = 0) -> None:
        super().__init__()
        hidden = hidden or width
        self.outputs = outputs
        self.fc1 = nn.Linear(width, hidden)
        self.blocks = nn.ModuleList(_step(hidden, hidden) for _ in range(inner))
        self.final = _step(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for block in self.blocks:
            x = x + block(x)
        return self.final(x)


def _step(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, outputs))


def read_radio(
    name: str, weights: str | Path, *, cache_dir: str | Path | None, local_files_only: bool
) -> tuple[dict[str, Tensor], Fingerprint, Path]:
    """(tensors of the tower as `radio_model.model.…` and of the head as `language.…`, fingerprint, file).

    Raises WeightsError for a file that is missing, unreadable, of another layout, or without the head.
    """
    say_licence(name)
    if weights == "pretrained":
        path = find(name, cache_dir=cache_dir, local_files_only=local_files_only)
    else:
        path = weight_files.existing_file(name, weights)
    checkpoint = _read(name, path)
    state = next((checkpoint[key] for key in ("state_dict_ema", "state_dict") if checkpoint.get(key)), None)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{name}: {path} is no checkpoint of NVIDIA's: it has no state_dict of tensors")
    state = multiplied_out({key.removeprefix("module."): value for key, value in state.items()})
    teachers = getattr(checkpoint.get("args"), "teachers", None) or []
    names = [str(teacher.get("name", "")) for teacher in teachers]
    prefixes = [
        f"_heads.{part}."
        for number, teacher in enumerate(names)
        if LANGUAGE.match(teacher)
        for part in (number, teacher)
    ]
    tensors = {}
    for key, value in state.items():
        if key.startswith("base_model."):
            tensors["radio_model.model." + key.removeprefix("base_model.")] = value
        for prefix in prefixes:
            if key.startswith(prefix):
                tensors[HEAD + key.removeprefix(prefix)] = value
    if not any(key.startswith(HEAD) for key in tensors):
        has = ", ".join(names) or "none"
        raise WeightsError(f"{name}: {path} holds no language head: expected a teacher siglip2, received {has}")
    return tensors, Fingerprint(path), path


def _read(name: str, path: Path) -> dict[str, Any]:
    """Without running code from the file: beside tensors and plain values only the settings' Namespace is let in."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise some twenty kinds over damaged files
        raise WeightsError(
            f"{name}: cannot read {path}: truncated, or no checkpoint of NVIDIA's. "
            f"Delete it and download it again. ({first_line(error)})"
        ) from error
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{name}: {path} holds {type(checkpoint).__name__}, expected a checkpoint of NVIDIA's")
    return checkpoint


def multiplied_out(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W = original·s/(uᵀ original v) in place of its factors, s = softplus(scale) + 0.05 (scale itself in version 1).

    Packed query, key and value weights are three such matrices, of which the last may be plain.
    """
    plain = {key: value for key, value in state.items() if PARAMETRIZED not in key}
    for key, weight in state.items():
        if not key.endswith(".original"):
            continue
        stem = key.removesuffix(".original")
        own = f"{stem}.0."
        name = stem.replace(PARAMETRIZED, ".")
        if any(other.startswith(f"{own}parts.") for other in state):
            parts = [_scaled(part, state, f"{own}parts.{index}.") for index, part in enumerate(weight.chunk(3))]
            plain[name] = torch.cat(parts)
        else:
            plain[name] = _scaled(weight, state, own)
    return plain


def _scaled(weight: Tensor, state: Mapping[str, Tensor], prefix: str) -> Tensor:
    if f"{prefix}scale" not in state:
        return weight
    scale = state[f"{prefix}scale"].float()
    if int(state.get(f"{prefix}_sn_version", torch.tensor(1))) == 2:
        scale = F.softplus(scale) + FLOOR
    left, right = (state[prefix + name].float() for name in ("_u", "_v"))
    sigma = left @ weight.float() @ right + 1e-6
    return (weight.float() * (scale / sigma)).reshape(weight.shape)


def head_of(tensors: Mapping[str, Tensor], name: str, path: Path) -> LanguageHead:
    """The head of `read_radio`'s tensors, its sizes read from them."""
    own = {key.removeprefix(HEAD): value for key, value in tensors.items() if key.startswith(HEAD)}
    first, last = own.get("fc1.weight"), own.get("final.2.weight")
    if first is None or last is None:
        raise WeightsError(f"{name}: {path} has a language head of another make: {', '.join(sorted(own)[:4])}, …")
    inner = len({key.split(".")[1] for key in own if key.startswith("blocks.")})
    head = LanguageHead(first.shape[1], last.shape[0], first.shape[0], inner)
    weight_files.fill(head, own, name, path)
    return head
