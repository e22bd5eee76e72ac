"""What the files beside results say of them, and the refusal to put results of other classes or settings among them."""

import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

from s2clip import lines
from s2clip.errors import OutputError
from s2clip.files import write_json
from s2clip.results.colours import class_colours
from s2clip.values import differences
from s2clip.version import __version__

CLASSES, RUN, MANIFEST = "classes.json", "run.json", "manifest.jsonl"
LINE = (
    *("source", "height", "width", "files", "shares", "timings_ms"),
    *("path", "stem", "source_state", "bytes", "settings_sha256"),
)
PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "open_clip_torch", "timm", "segment-anything")
SHOWN = 3
FREE = ("device",)  # the same settings on another device give the same labels but for rounding


def identity(settings: Mapping[str, Any], classes: Sequence[str], background: int | None) -> dict[str, Any]:
    """What all results of a folder have in common, as JSON values."""
    kept = {name: value for name, value in settings.items() if name not in FREE}
    common: dict[str, Any] = json.loads(
        json.dumps({"classes": list(classes), "background": background, "settings": kept})
    )
    return common


def digest(common: Mapping[str, Any]) -> str:
    """sha256 of what results have in common, in hexadecimal."""
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()


def read_identity(folder: Path) -> dict[str, Any] | None:
    """What the results in a folder have in common; None where it holds none. `OutputError` where nobody can tell."""
    classes, run = (_read(folder / name) for name in (CLASSES, RUN))
    if classes is None and run is None:
        if (folder / MANIFEST).exists():
            raise OutputError(
                f"{folder}: holds {MANIFEST} without {RUN}, so nobody knows of what; choose another folder"
            )
        return None
    try:
        names = [row["name"] for row in (classes or {"classes": []})["classes"]]
        return identity((run or {}).get("settings", {}), names, (classes or {}).get("background"))
    except (KeyError, TypeError, AttributeError):
        raise OutputError(f"{folder}: its {CLASSES} or {RUN} is not ours; choose another folder") from None


def check_same(folder: Path, here: Mapping[str, Any], replacing: Collection[str] = ()) -> None:
    """`OutputError` naming what differs, where the folder holds results of other classes or settings.

    replacing: real paths of the files to be written; where these are all that it holds, nothing old would remain.
    """
    there = read_identity(folder)
    differing = [] if there is None else list(differences(there, here))
    if differing and not (replacing and written_in(folder) <= set(replacing)):
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise OutputError(
            f"{folder}: holds results of other settings: {'; '.join(differing[:SHOWN])}{more}; "
            "choose another folder, or repeat those settings"
        )


def read_manifest(folder: Path) -> Iterator[dict[str, Any]]:
    """The whole lines, oldest first; the end of a killed run is none."""
    try:
        records = list(lines.read(folder / MANIFEST, LINE, consequence="such pictures count as not done"))
    except OSError:
        return
    for record in records:
        if isinstance(record.get("bytes"), dict):
            yield record


def read_images(folder: Path) -> list[dict[str, Any]]:
    """The pictures that run.json tells of."""
    run = _read(folder / RUN) or {}
    images = run.get("images") if isinstance(run, dict) else None
    return [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []


def written_in(folder: Path) -> set[str]:
    """Real paths of the files that runs wrote into a folder, as far as it tells."""
    if not (folder / RUN).is_file():
        return set()
    names = [name for record in read_manifest(folder) for name in record["bytes"]]
    try:
        files = [file for one in read_images(folder) for file in one.get("files", {}).values()]
    except OutputError:
        files = []
    beside = [folder / Path(file).name for file in files if not os.path.lexists(file)]
    return {os.path.realpath(path) for path in (*(folder / name for name in names), *files, *beside)}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); choose another folder") from None


def write_classes(folder: str | PathLike[str], classes: Sequence[str], background: int | None = None) -> Path:
    """classes.json: id, name, words and colour of every class, the background's id and the value of ignored pixels."""
    palette = class_colours(len(classes))
    rows = [
        {
            "id": index,
            "name": name,
            "words": [word.strip() for word in name.split(";")],
            "colour": palette[index].tolist(),
        }
        for index, name in enumerate(classes)
    ]
    path = Path(folder) / "classes.json"
    write_json(path, {"classes": rows, "background": background, "ignore": 255 if len(classes) <= 255 else 65535})
    return path


def write_run(
    folder: str | PathLike[str], settings: Mapping[str, Any], images: Sequence[Mapping[str, Any]], **more: Any
) -> Path:
    """run.json: how the label maps of a folder were made, enough to make them again."""
    path = Path(folder) / "run.json"
    write_json(path, {"settings": dict(settings), "versions": versions(), "images": list(images), **more})
    return path


def versions() -> dict[str, str | None]:
    """Installed versions of what a result depends on; None where a package is absent."""
    found: dict[str, str | None] = {"s2clip": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
