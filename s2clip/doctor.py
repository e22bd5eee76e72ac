"""What s2clip finds on this machine: versions, the torch-Triton pairing, GPUs, caches, weights. Changes nothing."""

import platform
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from packaging.requirements import Requirement
from packaging.version import Version

from s2clip.backbones.checkpoints import CHECKPOINTS, find_local, is_offline
from s2clip.results.sidecars import versions

OLDEST_TORCH = "2.10"
TINY = ("clip", "dino", "sam")


def examine(cache_dir: str | Path | None = None) -> dict[str, Any]:
    """Everything `s2clip doctor` prints, as JSON values; "problems" holds what keeps s2clip from working."""
    found = {
        "versions": versions(),
        "platform": platform.platform(),
        "triton": _triton(),
        "gpus": _gpus(),
        "cpu_threads": torch.get_num_threads(),
        "caches": _caches(cache_dir),
        "offline": is_offline(),
        "weights": _weights(cache_dir),
    }
    return {**found, "problems": _problems(found)}


def report(found: dict[str, Any]) -> str:
    """`examine`'s findings as text for people."""
    rows = [("versions", ", ".join(f"{name} {version or 'absent'}" for name, version in found["versions"].items()))]
    rows += [("platform", found["platform"]), ("triton", found["triton"]["note"])]
    rows += [("gpu", _gpu_line(gpu)) for gpu in found["gpus"]] or [
        ("gpu", f"none: everything runs on the CPU ({found['cpu_threads']} threads)")
    ]
    rows += [("cache", f"{path} ({'there' if there else 'not there'})") for path, there in found["caches"].items()]
    rows += [("network", "off: HF_HUB_OFFLINE is set" if found["offline"] else "used only to download missing weights")]
    rows += [("weights", f"{name}: {place or 'not here'}") for name, place in found["weights"].items()]
    rows += [("PROBLEM", problem) for problem in found["problems"]] or [("result", "no problem found")]
    titles = [title if index == 0 or rows[index - 1][0] != title else "" for index, (title, _) in enumerate(rows)]
    return "\n".join(f"{title:<10}{text}" for title, (_, text) in zip(titles, rows, strict=True))


def _triton() -> dict[str, Any]:
    """torch is built against one Triton and names it in its metadata: another one is a known source of crashes."""
    wanted = [Requirement(line) for line in metadata.requires("torch") or ()]
    wanted = [need for need in wanted if need.name == "triton" and (need.marker is None or need.marker.evaluate())]
    specifier = str(wanted[0].specifier) if wanted else None
    installed = versions()["triton"]
    if installed is None:
        paired, note = None, "absent: the CPU path works, CUDA tensors need it (torch's Linux wheels bring it)"
    elif not wanted:
        paired, note = None, f"{installed}; torch names none for this platform"
    else:
        paired = Version(installed) in wanted[0].specifier
        note = f"{installed}, torch asks for {specifier}: {'paired' if paired else 'NOT PAIRED'}"
    return {"installed": installed, "torch_requires": specifier, "paired": paired, "note": note}


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    return [
        {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "shared_memory_per_block": properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # not in torch's stub
        }
        for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]


def _gpu_line(gpu: dict[str, Any]) -> str:
    return (
        f"{gpu['name']}, capability {gpu['capability']}, {gpu['memory_gib']} GiB, {gpu['multiprocessors']} "
        f"multiprocessors, {gpu['shared_memory_per_block']:,} bytes of shared memory per block"
    )


def _caches(cache_dir: str | Path | None) -> dict[str, bool]:
    folders = [Path(HF_HUB_CACHE), Path(torch.hub.get_dir()) / "checkpoints"]
    return {str(folder): folder.is_dir() for folder in ([Path(cache_dir)] if cache_dir else folders)}


def _weights(cache_dir: str | Path | None) -> dict[str, str | None]:
    embedded = {f"tiny ({part})": files("s2clip.data") / "tiny" / f"{part}.safetensors" for part in TINY}
    found = {name: "embedded" if path.is_file() else None for name, path in embedded.items()}
    paths = {name: find_local(name, cache_dir) for name in CHECKPOINTS}
    return found | {name: str(path) if path else None for name, path in paths.items()}


def _problems(found: dict[str, Any]) -> list[str]:
    problems = []
    if Version(torch.__version__) < Version(OLDEST_TORCH):
        problems.append(f"torch {torch.__version__} is older than {OLDEST_TORCH}: pip install -U torch")
    if found["triton"]["paired"] is False:
        problems.append(
            f"triton {found['triton']['installed']} is not the one torch was built with: "
            f"pip install 'triton{found['triton']['torch_requires']}'"
        )
    if found["gpus"] and found["triton"]["installed"] is None:
        problems.append("a GPU without Triton: pip install triton, or use --device cpu")
    for name, place in found["weights"].items():
        if name.startswith("tiny") and place is None:
            problems.append(f"the embedded weights of {name} are missing: install s2clip again")
    return problems
