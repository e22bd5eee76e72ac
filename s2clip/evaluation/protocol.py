"""What a figure was computed under, complete enough to compute it again, and the refusal to mix two of them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s2clip.errors import OutputError
from s2clip.evaluation.metrics import IGNORE
from s2clip.evaluation.records import FOLDER
from s2clip.files import write_json
from s2clip.results.sidecars import versions
from s2clip.values import differences

FILE = "protocol.json"
FREE = ("root",)  # where the data lie may change between runs
SHOWN = 3


def describe(
    dataset: Any, settings: Mapping[str, Any], *, batch_size: int, source: str | None = None
) -> dict[str, Any]:
    """protocol.json: the data set and its pictures, the settings of what answers, the versions of the packages.

    source: where the settings come from, as a preset tells it.
    """
    facts = dataclasses.asdict(dataset.facts) if hasattr(dataset, "facts") else {}
    names = "\n".join(dataset[index].name for index in range(len(dataset)))
    return {
        "dataset": {
            "name": dataset.name,
            "root": str(getattr(dataset, "root", "")),
            "pictures": len(dataset),
            "names_sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
            "classes": list(dataset.classes),
            "background": dataset.background,
            "ignored": IGNORE,
            **{name: facts[name] for name in ("title", "split", "layout", "values", "reduce_zero_label") if facts},
        },
        **settings,
        "batch_size": batch_size,
        "source": source,
        "versions": versions(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on beside versions: kind of device, or threads of a CPU."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    return {"device": device.type, "threads": torch.get_num_threads()}


def settle(folder: Path, protocol: Mapping[str, Any]) -> None:
    """Write the protocol into a new folder, or hold it against the one that is there.

    Raises:
        OutputError: the folder holds results of another protocol; names what differs.
    """
    path = folder / FILE
    if path.exists():
        compare(folder, load(folder), protocol)
        return
    if (folder / FOLDER).exists():
        raise OutputError(f"{folder}: holds records without {FILE}, so nobody knows of what; choose another folder")
    write_json(path, protocol)


def compare(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """`OutputError` naming the settings that differ between the protocol in `folder` and this one."""
    differing = list(differences(there, json.loads(json.dumps(here)), FREE))
    if differing:
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise OutputError(
            f"{folder}: holds results of other settings: {'; '.join(differing[:SHOWN])}{more}; "
            "choose another folder with -o, or repeat those settings"
        )


def load(folder: Path) -> dict[str, Any]:
    """The protocol of a result folder. `OutputError` where it is not there or cannot be read."""
    path = folder / FILE
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise OutputError(f"{folder}: no result folder, {FILE} is missing") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {error}; remove the folder and evaluate again") from None
