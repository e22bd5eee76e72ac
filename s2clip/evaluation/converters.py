"""Label files of the validation split, made of what the data sets are published as.

Every file is written whole or not at all, and files that are there are left as they are, so an interrupted conversion
is continued by the same command.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2clip.errors import DatasetError, reject
from s2clip.evaluation.benchmarks import IGNORE, Benchmark, benchmark
from s2clip.evaluation.folders import find_root, list_files
from s2clip.evaluation.label_tables import INVALID, look_up
from s2clip.evaluation.parallel import in_threads
from s2clip.evaluation.run_lengths import decode
from s2clip.files import whole_file, writable_folder
from s2clip.pictures.label_maps import read_label_map

CONTEXT_FILE = "trainval_merged.json"
_RAW_CITYSCAPES, _RAW_COCO, _STUFF = "_gtFine_labelIds.png", ".png", "_labelTrainIds.png"


@dataclass(frozen=True)
class Job:
    """One label file and how to make it, uint8 [H,W]."""

    target: Path
    labels: Callable[[], np.ndarray]


@dataclass
class Conversion:
    """What a conversion did. `failed`: one line for each file that could not be made."""

    root: Path
    written: int = 0
    present: int = 0
    failed: list[str] = field(default_factory=list)


def convert(
    name: str,
    root: str | Path,
    *,
    source: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> Conversion:
    """Make the label files of "cityscapes", "coco-object", "coco-stuff" or "context" below `root`.

    Args:
        source: where trainval_merged.json lies, if not in the data set's folder.
        overwrite: make those anew that are there.

    Raises:
        ValueError: unknown name.
        DatasetError: nothing to convert from; one line naming what is missing and where it comes from.
        OutputError: a folder that cannot be written to.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in CONVERTERS:
        reject("convert", f"one of {', '.join(CONVERTERS)}", repr(name))
    if source is not None and key != "context":
        reject("source", "none, as only context is converted from a file of its own", source)
    facts = benchmark({"context": "context60"}.get(key, key))
    result = Conversion(find_root(facts, root))
    jobs = CONVERTERS[key](facts, result.root, source)
    for folder in {job.target.parent for job in jobs}:
        writable_folder(folder)
    waiting = [job for job in jobs if overwrite or not job.target.exists()]
    result.present = len(jobs) - len(waiting)
    for error in in_threads(_write, waiting, progress):
        result.written += error is None
        result.failed += [error] if error else []
    return result


def _write(job: Job) -> str | None:
    try:
        labels = job.labels()
    except DatasetError as error:
        return str(error)
    encoded = BytesIO()
    Image.fromarray(labels).save(encoded, "PNG", compress_level=4)
    with whole_file(job.target) as handle:
        handle.write(encoded.getvalue())
    return None


def _cityscapes(facts: Benchmark, root: Path, source: Path | None) -> list[Job]:
    table = np.full(256, INVALID, np.uint8)
    table[: facts.raw_labels["ids"][-1] + 1] = IGNORE
    table[facts.raw_labels["ids"]] = np.arange(len(facts.classes))
    return list(_mapped(facts, root, _RAW_CITYSCAPES, table, "labels 0 to 33 of the fine annotation"))


def _coco(facts: Benchmark, root: Path, source: Path | None, *, things: bool) -> list[Job]:
    """Of the pixel maps of COCO-Stuff; things alone can be made of converted maps too."""
    missing, count = facts.raw_labels["missing"], facts.raw_labels["count"]
    raw = np.array([label for label in range(count) if label not in missing])
    ranks = np.arange(len(raw))
    present = list_files(root / facts.layout.annotation_folder, _RAW_COCO).files
    converted = things and not any(map(str.isdigit, present)) and any(name.endswith(_STUFF[:-4]) for name in present)
    source_labels = ranks if converted else raw
    table = np.full(256, INVALID, np.uint8)
    table[source_labels] = np.where(ranks < len(facts.classes) - 1, ranks + 1, 0) if things else ranks
    table[IGNORE] = 0 if things else IGNORE
    expected = f"COCO-Stuff's labels, up to {source_labels[-1]} or {IGNORE}"
    return list(_mapped(facts, root, _STUFF if converted else _RAW_COCO, table, expected))


def _mapped(facts: Benchmark, root: Path, suffix: str, table: np.ndarray, expected: str) -> Iterator[Job]:
    """A job for every picture, which looks the raw labels up in a table."""
    layout = facts.layout
    pictures = list_files(root / layout.image_folder, layout.image_suffix, nested=layout.nested)
    raw = list_files(root / layout.annotation_folder, suffix, nested=layout.nested)
    missing = sorted(pictures.files.keys() - raw.files.keys())
    if missing or not pictures.files:
        what = raw.path(missing[0]) if missing else pictures.folder
        more = f", nor those of {len(missing) - 1} other pictures" if len(missing) > 1 else ""
        raise DatasetError(f"{what}: this file is not there{more}; {facts.download}")
    for name in sorted(pictures.files):
        path = raw.files[name]
        yield Job(path.with_name(f"{name}{layout.annotation_suffix}"), partial(_looked_up, path, table, expected))


def _looked_up(path: Path, table: np.ndarray, expected: str) -> np.ndarray:
    try:
        return look_up(read_label_map(path), table)
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"{path}: expected {expected}, received {error}; unpack it again") from None


def _context(facts: Benchmark, root: Path, source: Path | None) -> list[Job]:
    """Of PASCAL in Detail: per picture, the masks of all its annotations in the file's order, later ones on top."""
    path = source or root / CONTEXT_FILE
    images, annotations = _read_detail(path, facts)
    folder, suffix = root / facts.layout.annotation_folder, facts.layout.annotation_suffix
    by_image: dict[Any, list[dict]] = {image["image_id"]: [] for image in images}
    for one in {one["id"]: one for one in annotations}.values():
        if one["image_id"] in by_image:
            by_image[one["image_id"]].append(one)
    split = root / facts.layout.split_file
    writable_folder(split.parent)
    stems = [Path(image["file_name"]).stem for image in images]
    with whole_file(split) as handle:
        handle.write("".join(f"{stem}\n" for stem in stems).encode())
    ids = np.array(facts.raw_labels["ids"])
    return [
        Job(folder / f"{stem}{suffix}", partial(_painted, image, by_image[image["image_id"]], ids, path))
        for stem, image in zip(stems, images, strict=True)
    ]


def _read_detail(path: Path, facts: Benchmark) -> tuple[list[dict], list[dict]]:
    try:
        content = json.loads(path.read_bytes())
        images = [image for image in content["images"] if image["phase"] == facts.split]
        annotations = content["annos_segmentation"]
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; {facts.download}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}), damaged or half a file; {facts.download}") from None
    except (KeyError, TypeError):
        expected = "expected images with a phase and annos_segmentation, as PASCAL in Detail has them"
        raise DatasetError(f"{path}: {expected}; {facts.download}") from None
    if not images:
        raise DatasetError(f"{path}: no image has the phase {facts.split!r}; {facts.download}")
    return images, annotations


def _painted(image: dict, annotations: list[dict], ids: np.ndarray, path: Path) -> np.ndarray:
    size = (image["height"], image["width"])
    raw = np.zeros(size, np.int32)
    try:
        for one in annotations:
            raw[decode(one["segmentation"]["counts"], size)] = one["category_id"]
    except (ValueError, KeyError, TypeError) as error:
        wrong = f"a mask cannot be read ({error}); download it again"
        raise DatasetError(f"{path}: {image['file_name']}: {wrong}") from None
    classes = np.searchsorted(ids, raw).clip(max=len(ids) - 1)
    if (ids[classes] != raw).any():
        unknown = ", ".join(map(str, np.setdiff1d(raw, ids)))
        raise DatasetError(
            f"{path}: {image['file_name']}: expected the categories of the {len(ids)} classes, received {unknown}; "
            f"{CONTEXT_FILE} is the file with merged categories"
        )
    return classes.astype(np.uint8)


CONVERTERS: dict[str, Callable[[Benchmark, Path, Path | None], list[Job]]] = {
    "cityscapes": _cityscapes,
    "coco-object": partial(_coco, things=True),
    "coco-stuff": partial(_coco, things=False),
    "context": _context,
}
