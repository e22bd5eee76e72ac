"""Weights inside models: read without running code from the file, compared name by name, fingerprinted.

    weights="pretrained"   a file in cache_dir or the usual caches, else a download (`s2clip.backbones.checkpoints`)
    weights="random"       the real architecture with reproducible noise, for tests and benches
    weights=PATH           this file

Files are read by safetensors or by `torch.load(weights_only=True)`. OpenAI publishes CLIP as a TorchScript archive,
which can hold code: one is opened only if its sha256 is a published one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2clip.backbones.checkpoints import CHECKPOINTS, find, first_line
from s2clip.backbones.model_table import say_licence
from s2clip.backbones.soundness import check_archive, check_finite
from s2clip.errors import WeightsError

logger = logging.getLogger(__name__)

NAMES_SHOWN = 4  # of missing, unexpected and misshapen tensors in an error


class Fingerprint:
    """sha256 that says which weights were used, computed when first asked for.

    source: a file (its bytes), a module (its tensors by name), or a fixed text such as "random".
    """

    def __init__(self, source: Path | nn.Module | str) -> None:
        self._source = source
        self._sha256 = source if isinstance(source, str) else ""

    @property
    def sha256(self) -> str:
        if not self._sha256:
            is_file = isinstance(self._source, Path)
            self._sha256 = sha256_file(self._source) if is_file else sha256_tensors(self._source.state_dict())
        return self._sha256


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def private_random_state(seed: int = 0) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and leave the caller's random state as it was.

    Constructors draw initial weights even when a checkpoint replaces them. `torch.manual_seed` would reseed CUDA too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def load(
    name: str,
    build: Callable[[], nn.Module],
    weights: str | Path = "pretrained",
    *,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> tuple[nn.Module, Fingerprint]:
    """(`build()` with the weights of `CHECKPOINTS[name]`, on the CPU; their fingerprint).

    adapt: from the published tensor names to those of the model.
    Raises WeightsError for weights that are missing, unreadable, altered or another model's.
    """
    if weights == "random":
        warn_random(name)
        with private_random_state():
            return build(), Fingerprint("random")
    say_licence(name)
    if weights == "pretrained":
        path = find(name, cache_dir=cache_dir, local_files_only=local_files_only)
        fingerprint = Fingerprint(path)
        _check_published_sha256(name, path, fingerprint)
    else:
        path = existing_file(name, weights)
        fingerprint = Fingerprint(path)
    logger.info("%s: loaded from %s", name, path)
    tensors = adapt(read_tensors(name, path, fingerprint))
    with private_random_state():
        model = build()
    fill(model, tensors, name, path)
    return model, fingerprint


def load_tiny(name: str, part: str, weights: str | Path, loader: Callable) -> tuple[object, Fingerprint]:
    """(`loader(random=..., [path=...])`, fingerprint) of an embedded model; part is "clip", "dino" or "sam"."""
    if weights == "random":
        warn_random(name)
        return loader(random=True), Fingerprint("random")
    if weights != "pretrained":
        path = existing_file(name, weights)
        return _call_tiny(name, path, lambda: loader(random=False, path=path)), Fingerprint(path)
    logger.info("%s: embedded in the package", name)
    with as_file(files("s2clip.data") / "tiny" / f"{part}.safetensors") as path:
        loaded = _call_tiny(name, path, lambda: loader(random=False))
        fingerprint = Fingerprint(path)
        _ = fingerprint.sha256  # a wheel inside an archive unpacks this file for the length of the block
    return loaded, fingerprint


def _call_tiny(name: str, path: Path, call: Callable[[], object]) -> object:
    try:
        return call()
    except WeightsError:
        raise
    except Exception as error:  # a header that is damaged builds anything
        raise WeightsError(f"{name}: cannot load {path}: {first_line(error)}") from error


def warn_random(name: str) -> None:
    """Say loudly that the output of `name` means nothing."""
    logger.warning("%s: RANDOM WEIGHTS, the output means nothing (weights='random' is for tests and benches)", name)


def existing_file(name: str, path: str | Path) -> Path:
    """`path` as a Path; WeightsError where there is no such file."""
    if not Path(path).is_file():
        raise WeightsError(f"{name}: weights: expected 'pretrained', 'random' or a file, received {str(path)!r}")
    return Path(path)


def read_tensors(name: str, path: Path, fingerprint: Fingerprint) -> dict[str, Tensor]:
    """Tensors by name in a .safetensors file or a PyTorch checkpoint, on the CPU. Raises WeightsError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            return _read_torchscript(name, path, fingerprint)
        if zipfile.is_zipfile(path):
            check_archive(name, path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise some twenty kinds over damaged files
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{name}: cannot read {path}: truncated, or no safetensors or PyTorch weights. "
            f"Delete it and download it again. ({first_line(error)})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise WeightsError(f"{name}: {path} holds {type(checkpoint).__name__}, expected tensors by name")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def fill(model: nn.Module, tensors: dict[str, Tensor], name: str, path: Path) -> None:
    """Copy `tensors` into `model`: same names, same shapes, or WeightsError naming the file and what differs."""
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{key} is {list(tensors[key].shape)}, expected {list(expected[key].shape)}"
        for key in sorted(expected.keys() & tensors.keys())
        if tensors[key].shape != expected[key].shape
    ]
    differences = [("missing", missing), ("unexpected", unexpected), ("shape", misshapen)]
    if any(entries for _, entries in differences):
        lines = [f"{name}: {path} holds another model's weights"]
        lines += [f"  {title}: {_some(entries)}" for title, entries in differences if entries]
        raise WeightsError("\n".join(lines))
    check_finite(name, path, tensors)
    model.load_state_dict(tensors)


def _some(entries: list[str]) -> str:
    rest = len(entries) - NAMES_SHOWN
    return ", ".join(entries[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _check_published_sha256(name: str, path: Path, fingerprint: Fingerprint) -> None:
    checkpoint = CHECKPOINTS[name]
    is_published_file = bool(checkpoint.url) and checkpoint.url.endswith(f"/{path.name}")
    if is_published_file and checkpoint.sha256 and not fingerprint.sha256.startswith(checkpoint.sha256):
        raise WeightsError(
            f"{name}: {path} is truncated or altered: sha256 is {fingerprint.sha256}, published is "
            f"{checkpoint.sha256}. Delete it and download it again."
        )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def _read_torchscript(name: str, path: Path, fingerprint: Fingerprint) -> dict[str, Tensor]:
    if fingerprint.sha256 not in {checkpoint.sha256 for checkpoint in CHECKPOINTS.values()}:
        raise WeightsError(
            f"{name}: {path} is a TorchScript archive, which can hold code, and its sha256 {fingerprint.sha256} "
            f"is none of the published ones: save its state_dict as .safetensors"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; the published files are not going to change
        return torch.jit.load(path, map_location="cpu").state_dict()
