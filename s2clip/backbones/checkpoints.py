"""Where released weights are published, where they lie on this machine, and how one gets to the other.

Looked for, first found wins, in `cache_dir` where given, else in the folders that other tools fill:
    <name>.safetensors or the publisher's file name in the folder itself; the Hugging Face Hub's cache layout.
No socket is opened with `local_files_only=True` or with HF_HUB_OFFLINE=1 in the environment.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shlex
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError
from tqdm import tqdm

from s2clip.backbones.model_table import MODELS
from s2clip.errors import WeightsError
from s2clip.files import at_home, whole_file, writable_folder

logger = logging.getLogger(__name__)

GENERIC = ("model.", "open_clip_")  # beginnings of names that many repositories use
CONNECT_SECONDS = 10.0  # without an answer; a firewall that drops packets must not look like a hang


@dataclass(frozen=True)
class Checkpoint:
    """Where one model's weights are published.

    hub: (repository, file) on the Hugging Face Hub, best first.  url: a direct link, its last part is the file name.
    sha256: of the file behind `url`, whole or its first digits, where the link states it; else "".
    """

    hub: tuple[tuple[str, str], ...] = ()
    url: str = ""
    sha256: str = ""


CHECKPOINTS: dict[str, Checkpoint] = {
    name: Checkpoint(hub=row.files, url=row.url, sha256=row.sha256)
    for rows in MODELS.values()
    for name, row in rows.items()
}


def find(name: str, *, cache_dir: str | Path | None = None, local_files_only: bool = False) -> Path:
    """The file with the weights of `name`, downloaded if that is needed and allowed. Raises WeightsError."""
    path = find_local(name, cache_dir)
    if path is not None:
        return path
    if local_files_only:
        failures = ["not tried: local_files_only is set"]
    elif is_offline():
        failures = ["not tried: HF_HUB_OFFLINE is set"]
    else:
        path, failures = _download(name, cache_dir)
    if path is None:
        raise WeightsError(_missing(name, cache_dir, failures))
    return path


def find_local(name: str, cache_dir: str | Path | None = None) -> Path | None:
    """The file with the weights of `name` on this machine, or `None`; opens no socket."""
    for folder in _folders(cache_dir):
        for filename in _filenames(name):
            if (folder / filename).is_file():
                return folder / filename
    for repository, filename in CHECKPOINTS[name].hub:
        path = huggingface_hub.try_to_load_from_cache(repository, filename, cache_dir=_hub_cache(cache_dir))
        if isinstance(path, str):
            return Path(path)
    return None


def is_offline() -> bool:
    """Whether the environment forbids the network, now or when huggingface_hub was imported."""
    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return now or huggingface_hub.constants.HF_HUB_OFFLINE


def _folders(cache_dir: str | Path | None) -> list[Path]:
    """Folders that hold weight files side by side; by default those of torch.hub (DINO, SAM) and of OpenAI's clip."""
    if cache_dir is not None:
        return [at_home(cache_dir)]
    return [Path(torch.hub.get_dir()) / "checkpoints", at_home("~/.cache/clip")]


def _hub_cache(cache_dir: str | Path | None) -> Path:
    return at_home(huggingface_hub.constants.HF_HUB_CACHE if cache_dir is None else cache_dir)


def _filenames(name: str) -> list[str]:
    """What a file may be called in a folder: our name, its own where that says which model it is."""
    checkpoint = CHECKPOINTS[name]
    own = [file for _, file in checkpoint.hub if not file.startswith(GENERIC)]
    return [f"{name}.safetensors", *own, *([checkpoint.url.rsplit("/", 1)[1]] if checkpoint.url else [])]


def _download(name: str, cache_dir: str | Path | None) -> tuple[Path | None, list[str]]:
    """(file, []) from the first source that has it, else (None, why each failed)."""
    checkpoint = CHECKPOINTS[name]
    failures = []
    for repository, filename in checkpoint.hub:
        url = huggingface_hub.hf_hub_url(repository, filename)
        try:
            # hf_hub_download alone retries for 23 s where there is no network: ask once before.
            huggingface_hub.get_hf_file_metadata(url, timeout=CONNECT_SECONDS)
            path = huggingface_hub.hf_hub_download(
                repository, filename, cache_dir=_hub_cache(cache_dir), etag_timeout=CONNECT_SECONDS
            )
            return Path(path), []
        except EntryNotFoundError as error:
            failures.append(f"{url}: {first_line(error)}")
        except GatedRepoError:
            page = f"https://huggingface.co/{repository}"
            failures.append(f"{url}: for those alone who accepted its licence: do so at {page}, then `hf auth login`")
            break
        except Exception as error:  # its HTTP client's errors share no public base class
            failures.append(f"{url}: {first_line(error)}")
            break
    if checkpoint.url:
        try:
            return _download_url(checkpoint, _folders(cache_dir)[0]), []
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
            failures.append(f"{checkpoint.url}: {first_line(error)}")
    return None, failures


def _download_url(checkpoint: Checkpoint, folder: Path) -> Path:
    """Fetch `checkpoint.url` into `folder`: there when it is whole and of the published sha256, else nothing of it."""
    path = folder / checkpoint.url.rsplit("/", 1)[1]
    digest = hashlib.sha256()
    logger.info("downloading %s to %s", checkpoint.url, path)
    with urllib.request.urlopen(checkpoint.url, timeout=CONNECT_SECONDS) as response:
        expected = int(response.headers.get("Content-Length", 0)) or None
        writable_folder(folder)
        received = 0
        bar = tqdm(total=expected, unit="B", unit_scale=True, desc=path.name, disable=None)
        with whole_file(path) as file, bar:
            while chunk := _received(response):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
            if expected is not None and received != expected:
                raise ValueError(f"connection closed after {received} of {expected} bytes")
            if not digest.hexdigest().startswith(checkpoint.sha256):
                raise ValueError(f"sha256 is {digest.hexdigest()}, published is {checkpoint.sha256}")
    return path


def _received(response: http.client.HTTPResponse) -> bytes:
    """The next part. What the network says is not said of the disk."""
    try:
        return response.read(1 << 20)
    except OSError as error:
        raise ValueError(f"connection lost: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _missing(name: str, cache_dir: str | Path | None, failures: list[str]) -> str:
    checkpoint = CHECKPOINTS[name]
    folders = _folders(cache_dir)
    looked = [str(folder / filename) for folder in folders for filename in _filenames(name)]
    cache = _hub_cache(cache_dir)
    looked += [f"Hugging Face cache {cache}: {repository} {filename}" for repository, filename in checkpoint.hub]
    commands = []
    if checkpoint.hub:
        repository, filename = checkpoint.hub[0]
        option = f" --cache-dir {shlex.quote(str(cache))}" if cache_dir is not None else ""
        commands.append(f"hf download {repository} {filename}{option}")
        commands.append(f"or put a copy of that file at {folders[0] / _filenames(name)[0]}")
    if checkpoint.url:
        prefix = "or " if commands else ""
        target = shlex.quote(str(folders[0] / _filenames(name)[-1]))
        commands.append(f"{prefix}curl --create-dirs -Lo {target} {checkpoint.url}")
    sections = [("looked in", looked), ("download", failures), ("get it", commands)]
    lines = [f"{name}: its weights are not on this machine"]
    lines += [f"  {title + ':':<11}{entry}" for title, entries in sections for entry in entries]
    lines.append("  or use the embedded models, which need no download: --model tiny")
    return "\n".join(lines)
