"""Anybody's pictures and label maps as a data set: two folders whose files have the same names."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2clip.errors import DatasetError, first_few, reject
from s2clip.evaluation.datasets import Sample
from s2clip.evaluation.metrics import IGNORE
from s2clip.pictures.label_maps import picture_size, read_label_map
from s2clip.pictures.suffixes import SUFFIXES
from s2clip.values import counted

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".jp2", ".j2k")
SHOWN = 3
GENERIC = ("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "val", "validation", "test", "train")


@dataclass(frozen=True)
class Facts:
    """What the protocol of a run says of the data beside names and classes."""

    title: str
    split: str
    layout: dict[str, Any]
    values: tuple[int, int]
    reduce_zero_label: bool = False


@dataclass(frozen=True)
class OwnData:
    """Pictures with a label map each, by name; see `open_own`."""

    name: str
    root: Path
    classes: tuple[str, ...]
    background: int | None
    samples: tuple[Sample, ...]
    first_id: int = 0
    ignored: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def facts(self) -> Facts:
        layout = {"first_id": self.first_id, "ignored": list(self.ignored)}
        return Facts(self.name, "all", layout, (self.first_id, self.first_id + len(self.classes) - 1))

    def annotation(self, index: int) -> "Tensor":
        """Class ids int64 [H,W], 255 where it does not count.

        Raises:
            DatasetError: damaged, of another size than the picture, or values that are no class; one line.
        """
        import torch

        sample = self.samples[index]
        values = read_label_map(sample.annotation_path).astype(np.int64)
        height, width = picture_size(sample.image_path)
        if values.shape != (height, width):
            raise DatasetError(
                f"{sample.annotation_path}: expected {width}x{height}, the size of {sample.image_path}, received "
                f"{values.shape[1]}x{values.shape[0]}"
            )
        void = (values == IGNORE) | np.isin(values, self.ignored)
        known = (values >= self.first_id) & (values < self.first_id + len(self.classes))
        if (wrong := ~(void | known)).any():
            strange = first_few(np.unique(values[wrong]).tolist(), 5)
            expected = f"{self.first_id} to {self.first_id + len(self.classes) - 1} or {IGNORE}"
            raise DatasetError(
                f"{sample.annotation_path}: expected labels {expected}, received {strange} at "
                f"{100 * wrong.mean():.1f} % of the pixels (--first-id, --ignore-id)"
            )
        return torch.from_numpy(np.where(void, IGNORE, values - self.first_id))


def open_own(
    images: str | Path,
    labels: str | Path,
    classes: Sequence[str],
    *,
    background: int | None = None,
    first_id: int = 0,
    ignored: Sequence[int] = (),
) -> OwnData:
    """Pictures below `images` with the label map of the same name and folder below `labels`.

    Pictures without a label map, and label maps without a picture, are left out with a warning.

    Args:
        classes: class k stands for the value first_id + k of the label maps.
        ignored: values that do not count, beside 255.

    Raises:
        DatasetError: a folder that is not there or holds nothing, two files of one name, or no name in both.
        ValueError: more classes than a label map of bytes can tell apart.
    """
    if not 0 < len(classes) < IGNORE:
        reject("classes", f"1 to {IGNORE - 1}", len(classes))
    if not 0 <= first_id <= 1000:
        reject("first_id", "0 to 1000", first_id)
    pictures, maps = _files(Path(images), "pictures", SUFFIXES), _files(Path(labels), "label maps", SUFFIXES)
    names = sorted(pictures.keys() & maps.keys())
    if not names:
        raise DatasetError(
            f"{labels}: no label map has the name of a picture: {first_few(sorted(maps), 2)} there, "
            f"{first_few(sorted(pictures), 2)} in {images}"
        )
    lossy = [maps[name].name for name in names if maps[name].suffix.lower() in LOSSY]
    if lossy:
        raise DatasetError(f"{labels}: {first_few(lossy, SHOWN)}: such files change labels; expected PNG or TIFF")
    for ours, others, what in (
        (pictures, maps, f"in {images} without a label map in {labels}"),
        (maps, pictures, f"in {labels} without a picture in {images}"),
    ):
        if alone := sorted(ours.keys() - others.keys()):
            logger.warning("left out %s %s: %s", counted(len(alone), "file"), what, first_few(alone, SHOWN))
    samples = tuple(Sample(name.replace("/", "--"), pictures[name], maps[name]) for name in names)
    return OwnData(
        _name(Path(images)), Path(images), tuple(classes), background, samples, first_id, tuple(map(int, ignored))
    )


def _files(folder: Path, what: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files below the folder by their way there without suffix; hidden ones do not count."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: {'is a file, not a folder' if folder.exists() else 'no such folder'} of {what}")
    found: dict[str, Path] = {}
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise DatasetError(f"{path}: {found[key].name} has the same name; which of them is meant?")
            found[key] = path
    if not found:
        raise DatasetError(f"{folder}: holds no {what}")
    return found


def _name(images: Path) -> str:
    """What results are filed under: the folder's name, or that of the one above where it says nothing."""
    path = images.resolve()
    return path.parent.name if path.name.lower() in GENERIC and path.parent.name else path.name or "own"
