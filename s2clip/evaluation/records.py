"""What a run has done so far, as a log that survives being killed: one line of JSON per batch, never rewritten.

A batch counts when its line is whole and its checksum right (`s2clip.lines`). The result is the sum of the lines, so it
does not matter in how many runs, shards or processes they were written. Line:

    {"crc32": "9c3f01de",
     "pictures": [{"index": 3, "name": "2007_000033", "counts": [[true, given, pixels], ...]},
                  {"index": 4, "name": "2007_000042", "error": "..."}],
     "seconds": 1.25, "stages_ms": {"clip": 300.1, ...}, "peak_mib": {"host": 812.0, "device": 0.0}}
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2clip import lines
from s2clip.files import writing

FOLDER = "records"
KEYS = ("pictures", "seconds", "stages_ms", "peak_mib")


@dataclass(frozen=True)
class Tally:
    """The sum of the records of the pictures asked for.

    done: indices that were scored; failed: {index: (name, reason)} of the others that were tried.
    """

    matrix: Tensor
    done: frozenset[int]
    failed: dict[int, tuple[str, str]]
    seconds: float
    stages_ms: dict[str, float]
    peak_mib: dict[str, float] = field(default_factory=dict)


def append(path: Path, batch: dict[str, Any]) -> None:
    """Add one line and wait until it is on the disk. Raises `OutputError`."""
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    lines.append(path, batch)


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of all shards, in the order of the files' names; damaged ones are said and left out."""
    batches: list[dict[str, Any]] = []
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        batches += lines.read(path, KEYS, consequence="their pictures count as not done", tell_bare=True)
    return batches


def foreign(folder: Path, shard: tuple[int, int]) -> list[Path]:
    """Logs that no other shard of the same split is writing: those of an earlier run."""
    index, count = shard
    others = {shard_path(folder, (other, count)) for other in range(count) if other != index}
    return [path for path in sorted((folder / FOLDER).glob("*.jsonl")) if path not in others]


def shard_path(folder: Path, shard: tuple[int, int]) -> Path:
    index, count = shard
    return folder / FOLDER / f"{index}-of-{count}.jsonl"


def sparse(matrix: Tensor) -> list[list[int]]:
    """The cells of a picture's matrix that are not 0: [[true, given, pixels], ...]."""
    cells = matrix.nonzero()
    return torch.cat([cells, matrix[tuple(cells.T)][:, None]], 1).tolist()


def _sound(batch: Any, classes: int) -> bool:
    """Whether a line holds what `append` was given: JSON that is damaged may still be JSON."""
    try:
        for one in batch["pictures"]:
            cells = [] if "error" in one else one["counts"]
            numbers = [one["index"], *(value for cell in cells for value in cell)]
            if not all(type(value) is int and 0 <= value < 1 << 53 for value in numbers):
                return False
            if not all(len(cell) == 3 and max(cell[:2]) < classes for cell in cells):
                return False
            if not isinstance(one["name"] if "error" in one else "", str):
                return False
        spent = [batch["seconds"], *batch["stages_ms"].values(), *batch["peak_mib"].values()]
        return bool(batch["pictures"]) and all(isinstance(value, int | float) and value >= 0 for value in spent)
    except (KeyError, TypeError, AttributeError):
        return False


def tally(batches: Iterable[dict[str, Any]], classes: int, wanted: Sequence[int]) -> Tally:
    """Add up the records of the `wanted` indices. A picture that was scored twice counts once, the first time; one that
    failed and was scored later has not failed."""
    wanted = frozenset(wanted)
    counts: dict[int, list[list[int]]] = {}
    failed: dict[int, tuple[str, str]] = {}
    seconds, stages, peak = 0.0, {}, {}
    for batch in batches:
        if not _sound(batch, classes):  # a damaged line: its pictures are scored again
            continue
        pictures = [one for one in batch["pictures"] if one["index"] in wanted and one["index"] not in counts]
        for one in pictures:
            if "error" in one:
                failed[one["index"]] = (one["name"], one["error"])
            else:
                counts[one["index"]] = one["counts"]
        share = len(pictures) / len(batch["pictures"])
        seconds += share * batch["seconds"]
        for name, value in batch["stages_ms"].items():
            stages[name] = stages.get(name, 0.0) + share * value
        for name, value in batch["peak_mib"].items():
            peak[name] = max(peak.get(name, 0.0), value)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    cells = torch.tensor([cell for own in counts.values() for cell in own], dtype=torch.int64).view(-1, 3)
    matrix.index_put_((cells[:, 0], cells[:, 1]), cells[:, 2], accumulate=True)
    failed = {index: failed[index] for index in sorted(failed) if index not in counts}
    return Tally(matrix, frozenset(counts), failed, seconds, stages, peak)
