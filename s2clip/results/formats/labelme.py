"""labelme: STEM.labelme.json, a mask per region beside the picture that it belongs to."""

from __future__ import annotations

import base64
import json
import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from s2clip.results.formats.pieces import pieces

if TYPE_CHECKING:
    from s2clip.results.segmented import Segmented

VERSION = "5.5.0"
"""Of the file's form."""


def labelme_bytes(result: Segmented, folder: Path) -> bytes:
    """The JSON of one picture; `imagePath` leads from `folder` to the source, without one the picture is inside."""
    height, width = result.segmentation.shape
    shapes: list[dict[str, Any]] = [
        {
            "label": result.classes[piece.class_index].split(";")[0].strip(),
            "shape_type": "mask",
            "points": [[piece.x, piece.y], [piece.x + piece.mask.shape[1] - 1, piece.y + piece.mask.shape[0] - 1]],
            "mask": _png(piece.mask.astype(np.uint8)),
            "group_id": None,
            "description": f"score {piece.score:.3f}",
            "flags": {},
        }
        for piece in pieces(result)
    ]
    if result.source is not None:
        path, data = Path(os.path.relpath(result.source, folder)).as_posix(), None
    elif result.image is not None:
        path, data = "result.png", _png(result.image.permute(1, 2, 0).cpu().numpy())
    else:
        raise ValueError("formats: 'labelme' needs the picture, and this result was made without image")
    document: dict[str, Any] = {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": path, "imageData": data}
    return json.dumps(document | {"imageHeight": height, "imageWidth": width}, allow_nan=False).encode()


def _png(pixels: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
