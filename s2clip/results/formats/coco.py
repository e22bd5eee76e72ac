"""One COCO file for a whole run: annotations.coco.json."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any, ClassVar

from s2clip.results.formats.dataset import Dataset
from s2clip.results.formats.pictures import name_in_set
from s2clip.results.formats.pieces import pieces
from s2clip.results.formats.run_lengths import coco_counts
from s2clip.version import __version__

if TYPE_CHECKING:
    from s2clip.files import Together
    from s2clip.results.segmented import Segmented


class CocoDataset(Dataset):
    """Ids of images, annotations and categories count from 1; a category's `class_id` is the value in the label PNG."""

    file = "annotations.coco.json"
    packages: ClassVar = {"pycocotools": "coco"}

    def start(self) -> None:
        self._images = self.spool()
        self._annotations = self.spool()

    def add(self, result: Segmented, stem: str, files: Together) -> None:
        from pycocotools import mask as rle

        height, width = result.segmentation.shape
        image_id = self.pictures + 1
        rows: list[dict[str, Any]] = []
        for piece in pieces(result, self.per):
            size = {"size": [height, width], "counts": coco_counts(piece, height, width)}
            rows.append(
                {
                    "id": self.annotations + len(rows) + 1,
                    "image_id": image_id,
                    "category_id": piece.class_index + 1,
                    "segmentation": {
                        "size": [height, width],
                        "counts": rle.frPyObjects(size, height, width)["counts"].decode("ascii"),
                    },
                    "area": piece.area,
                    "bbox": [piece.x, piece.y, piece.mask.shape[1], piece.mask.shape[0]],
                    "iscrowd": 0,
                    "score": round(piece.score, 6),
                }
            )
        image = {"id": image_id, "file_name": name_in_set(result, stem), "height": height, "width": width}
        self._images.append(json.dumps(image))
        self._annotations.append(*(json.dumps(row, allow_nan=False) for row in rows))
        self.annotations += len(rows)

    def finish(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        info = {
            "description": "segmented by s2clip",
            "version": __version__,
            "date_created": now.isoformat("T", "seconds"),
        }
        categories = [{"id": index + 1, "name": name, "class_id": index} for index, name in enumerate(self.names)]
        head = json.dumps({"info": info, "licenses": [], "categories": categories})
        with self.whole(self.file) as handle:
            handle.write(head[:-1].encode() + b', "images": [')
            self._images.copy_to(handle)
            handle.write(b'], "annotations": [')
            self._annotations.copy_to(handle)
            handle.write(b"]}\n")
