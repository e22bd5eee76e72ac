"""Look a data set over before a long run: files, counts, labels, sizes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2clip.errors import DatasetError
from s2clip.evaluation.benchmarks import IGNORE, Benchmark, benchmark
from s2clip.evaluation.datasets import Dataset, Sample, dataset_of
from s2clip.evaluation.folders import find_root, problems, scan, wrong_count
from s2clip.evaluation.parallel import in_threads
from s2clip.pictures.label_maps import picture_size

SAMPLES = 32
SHOWN = 5

Progress = Callable[[Sequence[Sample]], Iterable[Sample]]


@dataclass
class Check:
    """What was found. `counts`: files by kind; `pixels` [256]: how often each class id occurs in what was read."""

    facts: Benchmark
    root: Path
    counts: dict[str, int] = field(default_factory=dict)
    read: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: list[str] = field(default_factory=list)

    @property
    def absent(self) -> list[str]:
        """Classes that have no pixel in what was read."""
        return [name for index, name in enumerate(self.facts.classes) if not self.pixels[index]]

    def record(self) -> dict[str, Any]:
        """The check as JSON values."""
        total = int(self.pixels.sum())
        return {
            "dataset": self.facts.name,
            "root": str(self.root),
            "official_pictures": self.facts.images,
            "counts": self.counts,
            "read": self.read,
            "ignored_share": round(int(self.pixels[IGNORE]) / total, 4) if total else None,
            "absent_classes": self.absent,
            "problems": self.problems,
        }


def check(name: str, root: str | Path, *, full: bool = False, progress: Progress = iter) -> Check:
    """All that is wrong with the data set `name` below `root`; seconds, or with `full` every file is read.

    Raises `ValueError` for an unknown name, and for nothing that is wrong with the data.
    """
    facts = benchmark(name)
    try:
        found = scan(facts, find_root(facts, root))
    except DatasetError as error:
        return Check(facts, Path(root), problems=[str(error)])
    result = Check(facts, found.root, problems=[str(problem) for problem in problems(found)])
    dataset = dataset_of(found)
    result.counts = {
        "pictures": len(found.pictures.files),
        "annotations": len(found.annotations.files),
        "named": len(found.names),
        "complete": len(dataset),
    }
    if not result.problems:
        result.problems += [str(problem) for problem in wrong_count(found)]
    _read_samples(result, dataset, full, progress)
    return result


def _read_samples(result: Check, dataset: Dataset, full: bool, progress: Progress) -> None:
    step = 1 if full else max(len(dataset) // SAMPLES, 1)
    samples = dataset.samples[::step]
    bad: list[str] = []
    for error, pixels in in_threads(partial(_read, dataset), samples, progress):
        result.read += 1
        result.pixels += pixels
        bad += [error] if error else []
    result.problems += bad[:SHOWN]
    if len(bad) > SHOWN:
        result.problems.append(f"{dataset.root}: {len(bad) - SHOWN} more files like these; the same helps")


def _read(dataset: Dataset, sample: Sample) -> tuple[str | None, np.ndarray]:
    try:
        labels = dataset.labels(sample)
        picture_size(sample.image_path, decode=True)
    except DatasetError as error:
        return str(error), np.zeros(256, np.int64)
    return None, np.bincount(labels.ravel(), minlength=256)
