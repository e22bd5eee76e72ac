"""Where label maps come from: a `Segmenter`, or files that any other method has saved."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2clip.errors import DatasetError, S2ClipError
from s2clip.evaluation.metrics import IGNORE
from s2clip.evaluation.pictures import Item, one_line
from s2clip.evaluation.protocol import machine
from s2clip.images import DAMAGE, MAX_PIXELS
from s2clip.result import Result

INDEXED = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Answer:
    """Labels [H,W] of one picture, or why there are none."""

    labels: Tensor | None = None
    error: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    result: Result | None = None


class SegmenterAnswers:
    """A segmenter whose classes are set, asked batch by batch."""

    needs_pixels = True

    def __init__(self, segmenter: Any) -> None:
        self.segmenter = segmenter
        self.max_pixels = segmenter.max_pixels
        self.device = segmenter.device

    @property
    def settings(self) -> dict[str, Any]:
        settings = {name: value for name, value in self.segmenter.settings.items() if name != "device"}
        return {
            "prompts": list(self.segmenter.classes),
            **settings,
            "machine": machine(self.device),
        }

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        """One answer per item. Where a batch fails as a whole, its pictures are tried one by one."""
        pictures = [item.pixels for item in items]
        try:
            return [_answer(result) for result in self.segmenter.stream(pictures, batch_size=len(pictures))]
        except (S2ClipError, ValueError, RuntimeError, MemoryError) as error:
            if len(items) == 1:
                return [Answer(error=one_line(error))]
        return [answer for item in items for answer in self([item])]


def _answer(result: Result) -> Answer:
    return Answer(result.segmentation, timings=dict(result.timings), result=result)


class SavedAnswers:
    """Label maps `<name>.png` in a folder: palette or grey, value = class id; 16 bit where 255 classes do not suffice.

    Raises:
        DatasetError: no folder, or none of its files has the name of a picture of the data set.
    """

    needs_pixels = False
    max_pixels = MAX_PIXELS
    device = torch.device("cpu")

    def __init__(self, folder: Path, dataset: Any) -> None:
        self.folder, self.classes = Path(folder), len(dataset.classes)
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

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        return [self._read(item) for item in items]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def _read(self, item: Item) -> Answer:
        path = self._path(item.name)
        try:
            with Image.open(path) as image:
                if image.mode not in INDEXED:
                    return Answer(error=f"{path}: expected one class id per pixel (L, P or 16 bit), got {image.mode}")
                ids = np.array(image)
        except FileNotFoundError:
            return Answer(error=f"{path}: no prediction for this picture")
        except DAMAGE as error:
            return Answer(error=f"{path}: cannot be read: {one_line(error)}")
        if ids.shape != tuple(item.target.shape):
            expected = f"{item.target.shape[1]}x{item.target.shape[0]}, the size of the annotation"
            return Answer(error=f"{path}: expected {expected}, received {ids.shape[1]}x{ids.shape[0]}")
        given = ids[item.target.numpy() != IGNORE]
        if given.size and not 0 <= given.min() <= given.max() < self.classes:
            expected = f"class ids 0 to {self.classes - 1} wherever the annotation counts"
            return Answer(error=f"{path}: expected {expected}, received {given.min()} to {given.max()}")
        return Answer(torch.from_numpy(ids.astype(np.int64)))
