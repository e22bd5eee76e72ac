"""Results as the objects that other libraries work with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from s2clip.errors import MissingExtraError
from s2clip.results.formats.pieces import pieces

if TYPE_CHECKING:
    from supervision import Detections

    from s2clip.results.segmented import Segmented


def to_supervision(result: Segmented, per: str = "region") -> Detections:
    """`supervision.Detections` with masks bool [R,H,W], class ids, scores and `data["class_name"]`."""
    try:
        import supervision
    except ImportError as error:
        raise MissingExtraError("to_supervision needs supervision: pip install 's2clip[supervision]'") from error
    height, width = result.segmentation.shape
    found = list(pieces(result, per))
    boxes = [(one.x, one.y, one.x + one.mask.shape[1] - 1, one.y + one.mask.shape[0] - 1) for one in found]
    names = [result.classes[one.class_index].split(";")[0].strip() for one in found]
    return supervision.Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        mask=np.array([one.full(height, width) for one in found], bool).reshape(-1, height, width),
        confidence=np.array([one.score for one in found], np.float32),
        class_id=np.array([one.class_index for one in found], int),
        data={"class_name": np.array(names, dtype=np.str_)},
    )


def to_transformers(result: Segmented) -> list[dict[str, Any]]:
    """What the image-segmentation pipeline of transformers gives: score, label and mask (mode L, 0 or 255) by class."""
    height, width = result.segmentation.shape
    return [
        {
            "score": one.score,
            "label": result.classes[one.class_index].split(";")[0].strip(),
            "mask": Image.fromarray(one.full(height, width).astype(np.uint8) * 255),
        }
        for one in pieces(result, "class")
    ]
