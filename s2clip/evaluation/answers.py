"""Where label maps come from: a `Segmenter`, or files that any other method has saved."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2clip.errors import DatasetError
from s2clip.evaluation import doubts
from s2clip.evaluation.metrics import IGNORE
from s2clip.evaluation.pictures import Item, Reading, one_line
from s2clip.evaluation.protocol import machine
from s2clip.pictures.label_maps import read_label_map
from s2clip.pictures.reading import Failure
from s2clip.results.result import Result


@dataclass(frozen=True, eq=False)
class Answer:
    """Labels [H,W] of one picture, or why there are none."""

    labels: Tensor | None = None
    error: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    result: Result | None = None


class SegmenterAnswers:
    """A segmenter whose classes are set, asked batch by batch."""

    def __init__(self, segmenter: Any) -> None:
        self.segmenter = segmenter
        self.device = segmenter.device
        self.reading = Reading(
            max_pixels=segmenter.max_pixels, max_seconds=segmenter.max_seconds, pin=self.device.type == "cuda"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """For the protocol: prompts, models, method; a device by what it is, not by its number."""
        settings = {name: value for name, value in self.segmenter.settings.items() if name != "device"}
        return {"prompts": list(self.segmenter.classes), **settings, "machine": machine(self.device)}

    def __call__(self, batches: Iterable[list[Item]]) -> Iterator[Answer]:
        """One answer per item, in order; a GPU may be given the next batch before this one is looked at."""
        for outcome in self.segmenter.stream_batches([item.picture for item in items] for items in batches):
            if isinstance(outcome, Failure):
                yield Answer(error=one_line(outcome.error))
            else:
                yield Answer(outcome.segmentation, timings=outcome.timings, result=outcome)


@dataclass(frozen=True)
class AnswersElsewhere:
    """A segmenter in other processes, which score by themselves.

    lines: chunks of indices, and the folder for label PNGs or None → the lines of `records`, in any order and split.
    """

    settings: Mapping[str, Any]
    lines: Callable[[Sequence[Sequence[int]], Path | None], Iterator[dict[str, Any]]]


class SavedAnswers:
    """Label maps `<name>.png` in a folder: palette or grey, value = class id; 16 bit where 255 classes do not suffice.

    Raises:
        DatasetError: no folder, or none of its files has the name of a picture of the data set.
    """

    device = torch.device("cpu")
    reading = Reading(pixels=False)

    def __init__(self, folder: Path, dataset: Any) -> None:
        self.folder, self.classes = Path(folder), len(dataset.classes)
        self._doubts = doubts.of_predictions(getattr(dataset, "facts", None), self.classes)
        if not self.folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; --predictions names the folder of the saved label maps")
        names = [dataset[index].name for index in range(len(dataset))]
        if not any(self._path(name).exists() for name in names):
            raise DatasetError(
                f"{folder}: no label map of {dataset.name}: expected {names[0]}.png and so on, "
                "palette or grey PNGs named as the pictures"
            )

    @property
    def settings(self) -> dict[str, Any]:
        return {"method": {"name": "predictions"}, "predictions": str(self.folder)}

    def __call__(self, batches: Iterable[list[Item]]) -> Iterator[Answer]:
        for items in batches:
            yield from map(self._read, items)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def _read(self, item: Item) -> Answer:
        path = self._path(item.name)
        if item.error is not None:
            return Answer(error=item.error)
        try:
            ids = read_label_map(path, missing="no prediction for this picture", fix="save it again")
        except DatasetError as error:
            return Answer(error=str(error))
        if ids.shape != tuple(item.target.shape):
            expected = f"{item.target.shape[1]}x{item.target.shape[0]}, the size of the annotation"
            return Answer(error=f"{path}: expected {expected}, received {ids.shape[1]}x{ids.shape[0]}")
        given = ids[item.target.numpy() != IGNORE]
        if given.size and not 0 <= given.min() <= given.max() < self.classes:
            expected = f"class ids 0 to {self.classes - 1} wherever the annotation counts"
            shifted = given.max() == self.classes and given.min() >= 0
            hint = (
                "; shifted by one, as where 0 stands for no class? Save ids from 0, and 255 for none" if shifted else ""
            )
            return Answer(error=f"{path}: expected {expected}, received {given.min()} to {given.max()}{hint}")
        self._doubts.look(path, ids)
        return Answer(torch.from_numpy(ids.astype(np.int64)))
