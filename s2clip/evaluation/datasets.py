"""The eight benchmarks as lists of (picture, annotation), from the folders that people already have.

dataset = open_dataset("voc21", "data/VOCdevkit")
dataset[0].image_path, dataset.annotation(0), dataset.classes, dataset.background
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from s2clip.errors import DatasetError
from s2clip.evaluation import doubts
from s2clip.evaluation.benchmarks import DATASETS, IGNORE, Benchmark, benchmark, resolve_name
from s2clip.evaluation.folders import Scan, find_root, problems, scan, wrong_count
from s2clip.evaluation.label_tables import class_table, look_up
from s2clip.pictures.label_maps import picture_size, read_label_map

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DATASETS", "IGNORE", "Dataset", "Sample", "benchmark", "open_dataset", "resolve_name"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One picture of a data set. `name` is unique in it and holds no slash."""

    name: str
    image_path: Path
    annotation_path: Path


@dataclass(frozen=True)
class Dataset(Sequence):
    """Pictures of a benchmark in a fixed order: the split file's, else by name."""

    facts: Benchmark
    root: Path
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @property
    def background(self) -> int | None:
        return self.facts.background

    @functools.cached_property
    def _table(self) -> np.ndarray:
        return class_table(self.facts)

    @functools.cached_property
    def _doubts(self) -> doubts.Doubts:
        return doubts.of_annotations(self.facts)

    def annotation(self, index: int) -> "Tensor":
        """Class ids int64 [H,W] of picture `index`, 255 where it does not count. The file is read once.

        Raises:
            DatasetError: missing or damaged, a label that the data set does not have, or another size than the
                picture's; one line with the file and what to do.
        """
        import torch

        return torch.from_numpy(self.labels(self.samples[index]).astype(np.int64))

    def labels(self, sample: Sample) -> np.ndarray:
        """The same as uint8, without a copy to 64 bits."""
        values = read_label_map(sample.annotation_path)
        height, width = picture_size(sample.image_path)
        if values.shape != (height, width):
            raise DatasetError(
                f"{sample.annotation_path}: expected {width}x{height}, the size of {sample.image_path}, received "
                f"{values.shape[1]}x{values.shape[0]}; the two are of different releases: unpack both again"
            )
        low, high = self.facts.values
        self._doubts.look(sample.annotation_path, values)
        if self.facts.name in doubts.NEVER_255 and (values == IGNORE).any():
            odd = (
                f"holds {IGNORE}, where {self.facts.title} marks no class by 0: its labels look shifted by one already"
            )
            self._doubts.say(sample.annotation_path, odd)
        try:
            return look_up(values, self._table)
        except ValueError as error:
            wrong = f"expected labels {low} to {high} or {IGNORE}, received {error}"
            raise DatasetError(f"{sample.annotation_path}: {wrong}; {self._label_fix}") from None

    @property
    def _label_fix(self) -> str:
        """What helps against labels that the data set does not have."""
        if self.facts.convert:
            return f"convert it again: s2clip convert {self.facts.convert} --data {self.root} --overwrite"
        return f"it is not of {self.facts.title}: {self.facts.download}"


def open_dataset(name: str, root: str | Path) -> Dataset:
    """The data set `name` (hyphens and capitals are fine) below `root`: its own folder or one that holds it.

    A number of pictures other than the official one is a warning.

    Raises:
        ValueError: unknown name; the valid ones are listed.
        DatasetError: a folder, the split file, a picture or an annotation is missing; one line naming it and the fix.
    """
    facts = benchmark(name)
    found = scan(facts, find_root(facts, root))
    for problem in problems(found):
        raise DatasetError(str(problem))
    for problem in wrong_count(found):
        logger.warning("%s", problem)
    return dataset_of(found)


def dataset_of(found: Scan) -> Dataset:
    """The pictures of a scan that have both files."""
    pictures, annotations = found.pictures.files, found.annotations.files
    names = [name for name in found.names if name in pictures and name in annotations]
    return Dataset(found.facts, found.root, tuple(Sample(name, pictures[name], annotations[name]) for name in names))
