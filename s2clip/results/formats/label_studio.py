"""Label Studio: label-studio.json, tasks whose predictions are brush masks; label-studio.xml, the labelling set-up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from s2clip.results.colours import class_colours
from s2clip.results.formats.dataset import Dataset
from s2clip.results.formats.pictures import name_in_set
from s2clip.results.formats.pieces import pieces
from s2clip.results.formats.run_lengths import label_studio_rle
from s2clip.version import __version__

if TYPE_CHECKING:
    from s2clip.files import Together
    from s2clip.results.segmented import Segmented

BRUSH, IMAGE = "label", "image"  # names of the tags in the set-up


def prediction(result: Segmented, *, per: str = "class", brush: str = BRUSH, image: str = IMAGE) -> dict[str, Any]:
    """What Label Studio takes as a prediction for one task: a brush mask per class, or per region.

    brush, image: the names of the <BrushLabels> and <Image> tags in the project's labelling set-up.
    """
    height, width = result.segmentation.shape
    rows = [
        {
            "id": f"s2clip-{number}",
            "type": "brushlabels",
            "from_name": brush,
            "to_name": image,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(piece.score, 6),
            "value": {
                "format": "rle",
                "rle": label_studio_rle(piece.full(height, width)),
                "brushlabels": [result.classes[piece.class_index].split(";")[0].strip()],
            },
        }
        for number, piece in enumerate(pieces(result, per), 1)
    ]
    score = float(result.confidence.float().mean()) if result.confidence.numel() else 0.0
    return {"model_version": f"s2clip {__version__}", "score": round(score, 6), "result": rows}


def labelling_config(names: list[str]) -> str:
    """The set-up that these predictions fit, in the overlay's colours."""
    colours = class_colours(len(names)).tolist()
    labels = "\n".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>'
        for name, colour in zip(names, colours, strict=True)
    )
    return f"""<View>
  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>
  <BrushLabels name="{BRUSH}" toName="{IMAGE}">
{labels}
  </BrushLabels>
</View>
"""


class LabelStudioDataset(Dataset):
    """A task per picture, whose `image` is the picture's name: put the address that it is served under before it."""

    file = "label-studio.json"

    def start(self) -> None:
        self._tasks = self.spool()

    def add(self, result: Segmented, stem: str, files: Together) -> None:
        task = {"data": {IMAGE: name_in_set(result, stem)}, "predictions": [prediction(result, per=self.per)]}
        self._tasks.append(json.dumps(task, allow_nan=False))

    def finish(self) -> None:
        with self.whole("label-studio.xml") as handle:
            handle.write(labelling_config(self.names).encode())
        with self.whole(self.file) as handle:
            handle.write(b"[")
            self._tasks.copy_to(handle)
            handle.write(b"]\n")
