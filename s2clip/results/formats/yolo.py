"""A YOLO segmentation data set: yolo/data.yaml, yolo/images/, yolo/labels/ with a polygon a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from s2clip.results.formats.dataset import Dataset
from s2clip.results.formats.pictures import picture_png
from s2clip.results.formats.pieces import pieces

if TYPE_CHECKING:
    from s2clip.files import Together
    from s2clip.results.segmented import Segmented


class YoloDataset(Dataset):
    """Class ids are those of the label PNG. YOLO knows polygons only: a hole is cut open by a line to the outline."""

    file = "yolo"
    packages: ClassVar = {"cv2": "yolo"}

    def start(self) -> None:
        """The files of a picture are its own."""

    def add(self, result: Segmented, stem: str, files: Together) -> None:
        height, width = result.segmentation.shape
        lines = []
        for piece in pieces(result, self.per):
            for polygon in polygons(piece.mask):
                # A quarter into the pixel: readers that round and readers that cut off find the same one.
                places = (polygon + (piece.x, piece.y) + 0.25) / (width, height)
                lines.append(f"{piece.class_index} " + " ".join(f"{value:.7g}" for value in places.ravel()))
        content = picture_png(result)
        files.add(self.below(f"yolo/labels/{stem}.txt"), "".join(f"{line}\n" for line in lines).encode())
        files.add(self.below(f"yolo/images/{stem}.png"), content)

    def finish(self) -> None:
        import yaml

        data = {"path": ".", "train": "images", "val": "images", "nc": len(self.names), "names": self.names}
        with self.whole("yolo/data.yaml") as handle:
            handle.write(yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode())


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines [n,2] (x, y) through the outermost pixels of a mask, three points at least."""
    import cv2

    outlines, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for number, (outline, relation) in enumerate(
        zip(outlines, tree.reshape(-1, 4) if len(outlines) else (), strict=True)
    ):
        if relation[3] >= 0:
            continue  # a hole
        points = outline[:, 0]
        for hole, above in zip(outlines, tree.reshape(-1, 4), strict=True):
            if above[3] == number:
                points = _cut_open(points, hole[:, 0])
        found.append(np.concatenate([points, np.repeat(points[-1:], max(0, 3 - len(points)), 0)]))
    return found


def _cut_open(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The outline, by the shortest way to the hole, around it and back."""
    away = np.square(outline[:, None].astype(np.int64) - hole[None]).sum(-1)
    here, there = divmod(int(away.argmin()), len(hole))
    around = np.roll(hole, -there, 0)
    return np.concatenate([outline[: here + 1], around, around[:1], outline[here:]])
