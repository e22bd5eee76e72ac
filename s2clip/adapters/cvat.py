"""An auto-annotation function of CVAT (its package cvat-sdk): masks of named classes for a task's frames.

    cvat-cli task auto-annotate TASK --function-module s2clip.adapters.cvat -p classes="str:sky, house, tree"

The labels of the task must have the classes' names (of "house; hut" the first word). From Python:
`cvat_sdk.auto_annotation.annotate_task(client, task_id, create("sky, house, tree"))`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from s2clip.errors import MissingExtraError
from s2clip.results.formats.pieces import pieces
from s2clip.results.formats.run_lengths import row_counts

if TYPE_CHECKING:
    from PIL import Image

    from s2clip.results.result import Result
    from s2clip.segmenter import Segmenter


class Function:
    """What CVAT calls: `spec` names the labels, `detect` gives the shapes of a frame.

    segmenter: with its classes set. per: a mask for every connected "region", or for every "class".
    """

    def __init__(self, segmenter: "Segmenter", per: str = "region") -> None:
        try:
            from cvat_sdk import auto_annotation
        except ImportError:
            raise MissingExtraError("CVAT's functions need its package: pip install cvat-sdk") from None
        self.segmenter, self.per = segmenter, per
        names = [name.split(";")[0].strip() for name in segmenter.classes]
        self.spec = auto_annotation.DetectionFunctionSpec(
            labels=[auto_annotation.label_spec(name, index) for index, name in enumerate(names)]
        )

    def detect(self, context: Any, image: "Image.Image") -> list[Any]:
        """The frame's masks, or polygons where the task asks for those; under its threshold of confidence none."""
        threshold = getattr(context, "conf_threshold", None) or 0.0
        result = self.segmenter(image)
        if getattr(context, "conv_mask_to_poly", False):
            return _polygons(result, self.per, threshold)
        return _masks(result, self.per, threshold)


def _masks(result: "Result", per: str, threshold: float) -> list[Any]:
    from cvat_sdk.auto_annotation import mask

    shapes = []
    for piece in pieces(result, per):
        if piece.score >= threshold:
            height, width = piece.mask.shape
            box = [piece.x, piece.y, piece.x + width - 1, piece.y + height - 1]
            shapes.append(mask(piece.class_index, [*row_counts(piece.mask), *box]))
    return shapes


def _polygons(result: "Result", per: str, threshold: float) -> list[Any]:
    from cvat_sdk.auto_annotation import polygon

    from s2clip.results.formats.yolo import polygons

    shapes = []
    for piece in pieces(result, per):
        if piece.score >= threshold:
            for outline in polygons(piece.mask):
                points = np.add(outline, (piece.x, piece.y)).astype(float).ravel().tolist()
                shapes.append(polygon(piece.class_index, points))
    return shapes


def create(
    classes: str, model: str = "tiny", method: str | None = None, refine: str = "none", per: str = "region"
) -> Function:
    """The function for these classes; what `cvat-cli` calls, with its `-p NAME=str:VALUE`."""
    from s2clip.segmenter import Segmenter

    return Function(Segmenter.from_pretrained(model, method=method, refine=refine).set_classes(classes), per)
