"""Formats of other people's tools: a small file for each.

    from s2clip.results.formats import DATASETS, open_datasets

A format of a whole run is a `Dataset`: pictures are put into it one by one, and its files appear whole at the end.

In: `Result`, by the fields of `Segmented`. Out: their files and objects. `Result` itself is not imported here, and a
format's own library only where it is written.
"""

from collections.abc import Sequence
from pathlib import Path

from s2clip.results.formats.coco import CocoDataset
from s2clip.results.formats.cvat import CvatDataset
from s2clip.results.formats.dataset import Dataset
from s2clip.results.formats.label_studio import LabelStudioDataset
from s2clip.results.formats.yolo import YoloDataset

DATASETS: dict[str, type[Dataset]] = {
    "coco-dataset": CocoDataset,
    "yolo": YoloDataset,
    "label-studio": LabelStudioDataset,
    "cvat": CvatDataset,
}


def open_datasets(
    formats: Sequence[str], folder: Path, classes: Sequence[str], per: str = "region"
) -> dict[str, Dataset]:
    """An empty data set for each of `formats` that is one of a whole run."""
    return {name: DATASETS[name](folder, classes, per) for name in formats if name in DATASETS}
