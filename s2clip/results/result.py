"""What a segmented picture is, and how it is written: label PNG, overlay, COCO, npz, and the two JSON files beside.

Files of a picture named STEM:

    STEM.png           label map at the picture's size: mode P, the overlay's colours, value = class id, 255 = ignored;
                       above 255 classes 16-bit grey, 65535 = ignored
    STEM.overlay.png   for eyes: the picture tinted by class, with a legend
    STEM.coco.json     COCO: one run-length encoded mask per class present (category_id = class id)
    STEM.npz           labels, confidence (float16), classes; loads with allow_pickle=False
    STEM.labelme.json  labelme: a mask per region
    annotations.coco.json, yolo/, label-studio.json, cvat.xml    data sets of a whole run, see `s2clip.results.formats`
    classes.json       names and colours of the ids;   run.json   settings, versions, weight hashes, timings
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageShow
from torch import Tensor

from s2clip.errors import OutputError, first_few, reject
from s2clip.files import Together, writable_folder, writing
from s2clip.names import meant
from s2clip.results.colours import png_palette
from s2clip.results.formats import DATASETS, open_datasets
from s2clip.results.formats.labelme import labelme_bytes
from s2clip.results.formats.objects import to_supervision, to_transformers
from s2clip.results.sidecars import check_same, identity, read_identity, read_images, write_classes, write_run
from s2clip.results.visualize import overlay
from s2clip.shelter import sheltered
from s2clip.version import __version__

if TYPE_CHECKING:
    from supervision import Detections

    from s2clip.ops import Components
    from s2clip.results.refined import Refined

FORMATS = {"png": ".png", "overlay": ".overlay.png", "coco": ".coco.json", "npz": ".npz", "labelme": ".labelme.json"}
IGNORE = 255
COUNTED = 1 << 22
"""Pixels counted at a time: the known ones of 70 megapixels are 560 MB once more."""


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented picture.

    Attributes:
        segmentation: int64 [H,W], class ids 0..K-1, at the size of the picture after EXIF orientation; 255 (65535 where
            255 is a class) for pixels under a threshold without background.
        confidence: float [H,W] in [0,1], score of the class given.
        classes: the K names as they were set, synonyms included ("house; hut").
        background: id that pixels under the threshold were given, or None.
        image: uint8 [3,H,W], RGB; needed by the overlay only.
        source: path of the picture if it came from a file.
        timings: milliseconds by stage.   settings: what was resolved for this run, as JSON values.
        coarse: int64 [H,W], the ids before SAM; None without a refinement.
        refined: SAM's part: prompted regions, predicted IoU, which were accepted; None without a refinement.
    """

    segmentation: Tensor
    confidence: Tensor
    classes: tuple[str, ...]
    background: int | None = None
    image: Tensor | None = None
    source: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    coarse: Tensor | None = None
    refined: "Refined | None" = None

    @cached_property
    def regions(self) -> "Components":
        """Connected regions (8 neighbours) of equal class, in raster order; score is the mean confidence.

        Pixels of no class, 255 or -1 as others mark them, are in no region.
        """
        with sheltered():
            return self._find_regions()

    def _find_regions(self) -> "Components":
        from s2clip import ops

        void = (self.segmentation < 0) | (self.segmentation >= len(self.classes))
        labels, count = ops.label_components(self.segmentation.masked_fill(void, -1), ignore_index=-1)
        # A pixel's confidence is the score of its own class: one score plane serves every class.
        own_score = self.confidence.float()[None, None]
        found = ops.measure_components(labels[None], torch.zeros_like(labels)[None], own_score, count=count.reshape(1))
        x, y = found.point.long().unbind(1)
        return found._replace(class_index=self.segmentation[y, x].to(found.class_index.dtype))

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels by class, in the order of `classes`; ignored pixels belong to no class."""
        labels = self.segmentation.flatten()
        counts = labels.new_zeros(len(self.classes), dtype=torch.int64)
        for some in torch.split(labels, COUNTED):
            counts += torch.bincount(some[(some >= 0) & (some < len(counts))], minlength=len(counts))
        return {name: count / max(labels.numel(), 1) for name, count in zip(self.classes, counts.tolist(), strict=True)}

    def __repr__(self) -> str:
        height, width = self.segmentation.shape
        present = sorted(((share, name) for name, share in self.shares.items() if share), reverse=True)
        shown = first_few([f"{name.split(';')[0].strip()} {100 * share:.0f} %" for share, name in present], 6)
        return f"Result({self.source or 'picture'}, {width}x{height}: {shown or 'no class'})"

    def overlay(self, **options: Any) -> Image.Image:
        """The picture tinted by class, with a legend; `options` as of `s2clip.results.visualize.overlay`.

        Of a result without image the colours of the classes alone.
        """
        if self.image is None:
            blank = torch.full((3, *self.segmentation.shape), 255, dtype=torch.uint8)
            return overlay(blank, self.segmentation, self.classes, **{"opacity": 1.0, **options})
        return overlay(self.image, self.segmentation, self.classes, **options)

    def show(self, **options: Any) -> None:
        """Show the overlay: in the notebook where this runs in one, else in the desktop's viewer of pictures.

        Raises OutputError where there is neither.
        """
        shown = self.overlay(**options)
        shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        if hasattr(shell, "kernel"):
            importlib.import_module("IPython.display").display(shown)
        elif not ImageShow.show(shown, title="s2clip"):
            raise OutputError("show: no viewer of pictures here; result.overlay().save('overlay.png') writes a file")

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a result."""
        return _encoded(self.overlay())

    def save(
        self,
        folder: str | PathLike[str],
        formats: Sequence[str] = ("png", "overlay"),
        *,
        stem: str | None = None,
        sidecars: bool = True,
        names: bool = True,
        per: str = "region",
    ) -> dict[str, Path]:
        """Write the chosen formats into `folder`, each file whole or not at all; returns the paths by format.

        Args:
            formats: of "png", "overlay", "coco", "npz", "labelme", and the data sets "coco-dataset", "yolo",
                "label-studio", "cvat", which then hold this one picture (docs/formats.md).
            stem: name of the files; default the source's own, else "result".
            sidecars: also write classes.json and run.json, which describe all pictures saved into the folder.
            names: of the overlay, whether names stand on the regions.
            per: of the data sets, a mask for every "region" or for every "class".

        Raises:
            ValueError: unknown format; overlay of a result without image; a file that would replace the source.
            OutputError: the folder cannot be written, holds results of other classes or settings that would stay
                there, or pycocotools is not installed.
        """
        formats = check_formats(formats)
        stem = stem or (Path(self.source).stem if self.source else "result")
        paths = self._paths(Path(folder), formats, stem)
        # one of a run's many results leaves the looking for leftovers to the run
        folder = writable_folder(folder, leftovers=sidecars)
        if sidecars:
            common = identity(self.settings, self.classes, self.background)
            check_same(folder, common, [os.path.realpath(path) for path in paths.values()])
        datasets = open_datasets(formats, folder, self.classes, per)
        try:
            with Together() as files:
                self.stage(files, folder, formats, stem, names=names)
                paths |= {name: dataset.put(self, stem, files) for name, dataset in datasets.items()}
            for dataset in datasets.values():
                dataset.close()
        finally:
            for dataset in datasets.values():
                dataset.discard()
        if sidecars:
            record = self.record(paths)
            others = read_images(folder) if read_identity(folder) == common else []
            write_classes(folder, self.classes, self.background)
            others = [one for one in others if one.get("files") != record["files"]]
            write_run(folder, self.settings, [*others, record])
        return paths

    def stage(
        self, files: Together, folder: Path, formats: Sequence[str], stem: str, *, names: bool = True
    ) -> dict[str, Path]:
        """Write the picture's own formats (no data sets) among `files`, with which they appear; returns their paths.

        Raises as `save`.
        """
        paths = self._paths(folder, formats, stem)
        for parent in {path.parent for path in paths.values()} - {folder}:
            writable_folder(parent, leftovers=False)
        for name, path in paths.items():
            files.add(path, self._content(name, path, names))
        return paths

    def _paths(self, folder: Path, formats: Sequence[str], stem: str) -> dict[str, Path]:
        """Where each format goes; ValueError where that cannot be."""
        paths = {name: folder / f"{stem}{FORMATS[name]}" for name in formats if name in FORMATS}
        if "overlay" in formats and self.image is None:
            raise ValueError("formats: 'overlay' needs the picture, and this result was made without image")
        for path in paths.values():
            with writing(path):
                own = self.source and path.exists() and Path(self.source).exists() and path.samefile(self.source)
            if own:
                raise ValueError(f"folder: {path} is the picture itself; choose another folder or stem")
        return paths

    def record(self, paths: Mapping[str, Path]) -> dict[str, Any]:
        """What run.json and `--json` say of this picture."""
        height, width = self.segmentation.shape
        return {
            "source": self.source,
            "height": height,
            "width": width,
            "files": {name: str(path) for name, path in paths.items()},
            "shares": {name: round(share, 6) for name, share in self.shares.items()},
            "timings_ms": {name: round(value, 3) for name, value in self.timings.items()},
        }

    def _labels(self) -> np.ndarray:
        dtype = np.uint8 if len(self.classes) <= 255 else np.uint16
        labels = self.segmentation.cpu().numpy()
        return np.where((labels >= 0) & (labels < len(self.classes)), labels, np.iinfo(dtype).max).astype(dtype)

    def _content(self, name: str, path: Path, names: bool) -> bytes:
        """What stands in the file of a format."""
        return labelme_bytes(self, path.parent) if name == "labelme" else self.to_bytes(name, names=names)

    def to_bytes(self, format: str, *, names: bool = True) -> bytes:
        """The file of a format, "png", "overlay", "coco" or "npz", without writing it; `names` as of `save`."""
        if format not in ("png", "overlay", "coco", "npz"):
            reject("format", "png, overlay, coco or npz", repr(format))
        if format == "overlay":
            return _encoded(self.overlay(names=names))
        content: bytes = getattr(self, f"_{format}_bytes")()
        return content

    def to_supervision(self, per: str = "region") -> "Detections":
        """`supervision.Detections`, one per connected region or per class (extra `supervision`)."""
        return to_supervision(self, per)

    def to_transformers(self) -> list[dict[str, Any]]:
        """As the image-segmentation pipeline of transformers answers: dicts of score, label and mask, one per class."""
        return to_transformers(self)

    def _png_bytes(self) -> bytes:
        image = Image.fromarray(self._labels())
        if image.mode == "L":
            image.putpalette(png_palette())
        return _encoded(image)

    def _npz_bytes(self) -> bytes:
        buffer = BytesIO()
        confidence = self.confidence.cpu().float().numpy().astype(np.float16)
        np.savez_compressed(
            buffer, labels=self._labels(), confidence=confidence, classes=np.array(self.classes, np.str_)
        )
        return buffer.getvalue()

    def _coco_bytes(self) -> bytes:
        import json

        from pycocotools import mask as rle

        labels, confidence = self._labels(), self.confidence.cpu().float().numpy()
        height, width = labels.shape
        annotations: list[dict[str, Any]] = []
        for category in np.unique(labels[labels < len(self.classes)]).tolist():
            mask = labels == category
            encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "category_id": category,
                    "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": [float(value) for value in rle.toBbox(encoded)],
                    "iscrowd": 0,
                    "score": round(float(confidence[mask].mean()), 6),
                }
            )
        file_name = Path(self.source).name if self.source else ""
        document = {
            "info": {"description": "s2clip", "version": __version__},  # pycocotools before 2.0.11 fails without
            "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.classes)],
            "annotations": annotations,
        }
        return json.dumps(document, allow_nan=False).encode()


def check_formats(formats: Sequence[str], others: Sequence[str] = ()) -> tuple[str, ...]:
    """The formats without repetition; ValueError for unknown ones, OutputError where an extra is missing.

    others: formats that are not of pictures, to be named where one is unknown.
    """
    asked = [formats] if isinstance(formats, str) else formats
    formats = tuple(dict.fromkeys(name.casefold() if isinstance(name, str) else name for name in asked))
    valid = (*FORMATS, *DATASETS, *others)
    for name in formats:
        if name not in FORMATS and name not in DATASETS:
            reject("formats", f"some of {', '.join(valid)}", repr(name) + meant(name, valid))
        if name in DATASETS:
            DATASETS[name].check(name)
    if "coco" in formats and find_spec("pycocotools") is None:
        raise OutputError("formats: 'coco' needs pycocotools: pip install 's2clip[coco]'")
    return formats


def _encoded(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
