"""What is analysed: pictures, with a label map each where there is one."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from s2clip import scenes
from s2clip.errors import S2ClipError, reject
from s2clip.pictures.images import MAX_PIXELS, Source, read_image
from s2clip.pictures.inputs import expand

IGNORE = 255
SCENES = 100
"""Scenes looked at where no limit is given."""


class Picture(NamedTuple):
    """One picture of a set."""

    name: str
    pixels: Tensor
    """uint8 [3,H,W], RGB."""
    labels: Tensor | None = None
    """int64 [H,W] class numbers, 255 where nothing is known; None without annotation."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures under one name. They are read while they are walked through, one at a time."""

    name: str
    size: int
    load: Callable[[int], Picture]
    classes: tuple[str, ...] | None = None
    """What the numbers in the label maps mean; None: the pictures have none."""
    background: int | None = None

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Picture]:
        return map(self.load, range(self.size))

    def readable(self, failures: list[tuple[str, str]], indices: Iterable[int] | None = None) -> Iterator[Picture]:
        """The pictures that can be read; of the others (name, reason) goes to `failures`."""
        for index in range(self.size) if indices is None else indices:
            try:
                yield self.load(index)
            except S2ClipError as error:
                name, _, reason = str(error).partition(": ")
                failures.append((name, reason) if reason else (self.name, name))


def scene_pictures(limit: int = SCENES, seed: int = 0) -> PictureSet:
    """Painted scenes with their label maps, the first `limit` of a seed as `s2clip evaluate scenes` counts them."""
    from s2clip.evaluation.scenes import scene_seeds

    seeds = scene_seeds(seed, limit)

    def load(index: int) -> Picture:
        pixels, labels = scenes.generate(seeds[index])
        return Picture(f"scene-{seeds[index]}", torch.from_numpy(pixels).movedim(-1, 0), torch.from_numpy(labels))

    return PictureSet("scenes", limit, load, scenes.CLASSES)


def own_pictures(sources: Sequence[Source], name: str = "pictures", *, max_pixels: int = MAX_PIXELS) -> PictureSet:
    """Pictures without labels: paths, PIL images, arrays or tensors, as `Segmenter` takes them."""

    def load(index: int) -> Picture:
        source = sources[index]
        title = Path(source).stem if isinstance(source, str | Path) else f"{name}-{index}"
        return Picture(title, read_image(source, max_pixels=max_pixels))

    return PictureSet(name, len(sources), load)


def benchmark_pictures(name: str, root: str | Path, limit: int | None = None) -> PictureSet:
    """The pictures and annotations of a benchmark, in its order. Raises as `open_dataset`."""
    from s2clip.evaluation.datasets import open_dataset

    dataset = open_dataset(name, root)
    count = len(dataset) if limit is None else min(limit, len(dataset))

    def load(index: int) -> Picture:
        sample = dataset[index]
        return Picture(sample.name, read_image(sample.image_path), dataset.annotation(index))

    return PictureSet(dataset.name, count, load, dataset.classes, dataset.background)


def find_pictures(
    sources: Sequence[str], *, data: str | Path | None = None, limit: int | None = None, seed: int = 0
) -> tuple[list[PictureSet], list[tuple[str, str]]]:
    """The sets behind the words of a command line, and (source, reason) of those that name no picture.

    "scenes" and the benchmarks' names stand for those (a benchmark needs `data`, its folder), a folder or pattern for
    its pictures, all single pictures together for one set.

    Raises:
        ValueError: a limit below 1, a benchmark without `data`.
        DatasetError: as `open_dataset`.
    """
    from s2clip.evaluation.benchmarks import DATASETS

    if limit is not None and limit < 1:
        reject("limit", "at least 1", limit)
    found: list[PictureSet] = []
    single: list[Path] = []
    failures: list[tuple[str, str]] = []
    for source in dict.fromkeys(sources):
        if source == "scenes":
            found.append(scene_pictures(SCENES if limit is None else limit, seed))
        elif source.lower().replace("-", "_") in DATASETS:
            if data is None:
                reject("data", f"the folder of {source}", None)
            found.append(benchmark_pictures(source, data, limit))
        else:
            pictures, reasons = expand([source])
            failures += reasons
            if pictures == [Path(source)]:
                single += pictures
            elif pictures:
                found.append(own_pictures(pictures[:limit], Path(source).resolve().name))
    if single:
        found.append(own_pictures(single[:limit]))
    return _named_apart(found), failures


def _named_apart(sets: Sequence[PictureSet]) -> list[PictureSet]:
    """Of sets of one name, all but the first get -2, -3 .."""
    counts: Counter[str] = Counter()
    named = []
    for one in sets:
        counts[one.name] += 1
        named.append(one if counts[one.name] == 1 else replace(one, name=f"{one.name}-{counts[one.name]}"))
    return named
