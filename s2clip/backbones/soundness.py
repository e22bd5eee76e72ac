"""Damage in files of weights, found before it becomes a model: by checksums where a file has them, else by values.

A PyTorch file is a zip whose entries have a CRC-32, which torch does not look at. Our own safetensors carry one for
every tensor; the format itself has none, so of other people's only what is not finite can be told.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2clip.errors import WeightsError, first_few

CONFIG = "config"
NAMES_SHOWN = 4
PIECE = 1 << 20
FOLDER = 0x10
"""The attribute of a folder in a zip."""


def checksums(tensors: Mapping[str, Tensor], config: str) -> str:
    """JSON {name: CRC-32 of the tensor's bytes}, and of the configuration's text under `CONFIG`."""
    found = {CONFIG: zlib.crc32(config.encode())}
    found |= {name: zlib.crc32(_bytes(tensor)) for name, tensor in tensors.items()}
    return json.dumps(found)


def check_checksums(name: str, path: Path, tensors: Mapping[str, Tensor], config: str, expected: str) -> None:
    """`WeightsError` naming the tensors that are not what `checksums` saw."""
    there, here = json.loads(expected), json.loads(checksums(tensors, config))
    differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if differing:
        raise _damaged(name, path, differing)


def check_finite(name: str, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """`WeightsError` naming the tensors that hold NaN or, masks of attention aside, infinities."""
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not key.endswith("attn_mask") and not _finite(tensor)
    ]
    if bad:
        raise WeightsError(f"{name}: {path} is damaged: not finite: {first_few(bad, NAMES_SHOWN)}; download it again")


def check_archive(name: str, path: Path) -> None:
    """`WeightsError` naming the tensors whose bytes in a PyTorch file are not those that were saved.

    Files saved without checksums (`torch.serialization.set_crc32_options(False)`) tell nothing.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.filename.endswith("/")]
        bad = [entry.filename for entry in entries if not _intact(archive, entry)]
        if not bad or len(bad) == len(entries) > 1:
            return
        names: dict[str, list[str]] = {}
        with contextlib.suppress(Exception):  # the list of names may be what is damaged
            (index,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
            for tensor, storage in _storages(_Names(archive.open(index)).load()):
                names.setdefault(storage, []).append(tensor)
    raise _damaged(name, path, [tensor for entry in bad for tensor in names.get(entry.rsplit("/", 1)[-1], [entry])])


def _damaged(name: str, path: Path, tensors: list[str]) -> WeightsError:
    shown = first_few(tensors, NAMES_SHOWN)
    return WeightsError(f"{name}: {path} is damaged: the checksum is wrong of {shown}; get the file again")


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _finite(tensor: Tensor) -> bool:
    low, high = tensor.aminmax()  # NaN passes through
    return bool(low.isfinite() & high.isfinite())


def _intact(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    if entry.external_attr & FOLDER:  # torch would leave the memory of its tensor as it is
        return False
    try:
        with archive.open(entry) as file:
            while file.read(PIECE):
                pass
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, zlib.error):
        return False
    return True


class _StandIn(dict):
    """In place of whatever a pickle names: remembers what it was made of, and runs nothing."""

    def __init__(self, *made_of: Any) -> None:
        super().__init__()
        self.made_of = made_of

    def __setstate__(self, state: object) -> None:
        pass


class _Names(pickle.Unpickler):
    """Reads which tensor lies in which entry, without a class or function of the file's own choice."""

    def find_class(self, module: str, name: str) -> type:
        return _StandIn

    def persistent_load(self, storage: Any) -> str:
        return str(storage[2])


def _storages(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(tensor's name, its storage's key)."""
    if isinstance(value, _StandIn) and value.made_of:
        first = value.made_of[0]
        if isinstance(first, str):
            yield name, first
        else:
            yield from _storages(first, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _storages(one, f"{name}.{key}" if name else str(key))
