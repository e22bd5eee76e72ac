"""CVAT for images 1.1: cvat.xml, masks of every picture, to be uploaded into a task that holds the same pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from s2clip.results.colours import class_colours
from s2clip.results.formats.dataset import Dataset
from s2clip.results.formats.pictures import name_in_set
from s2clip.results.formats.pieces import pieces
from s2clip.results.formats.run_lengths import row_counts

if TYPE_CHECKING:
    from s2clip.files import Together
    from s2clip.results.segmented import Segmented


class CvatDataset(Dataset):
    """A mask element per region or class: run lengths of its box, row by row."""

    file = "cvat.xml"

    def start(self) -> None:
        self._images = self.spool(b"\n")

    def add(self, result: Segmented, stem: str, files: Together) -> None:
        height, width = result.segmentation.shape
        name = quoteattr(name_in_set(result, stem))
        lines = [f'  <image id="{self.pictures}" name={name} width="{width}" height="{height}">']
        for piece in pieces(result, self.per):
            tall, wide = piece.mask.shape
            runs = ", ".join(map(str, row_counts(piece.mask)))
            lines.append(
                f'    <mask label={quoteattr(self.names[piece.class_index])} source="auto" occluded="0" rle="{runs}" '
                f'left="{piece.x}" top="{piece.y}" width="{wide}" height="{tall}" z_order="0"/>'
            )
        self._images.append("\n".join([*lines, "  </image>"]))

    def finish(self) -> None:
        colours = class_colours(len(self.names)).tolist()
        labels = "\n".join(
            f"      <label><name>{escape(name)}</name><color>#{bytes(colour).hex()}</color><type>mask</type>"
            "<attributes/></label>"
            for name, colour in zip(self.names, colours, strict=True)
        )
        head = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task><name>s2clip</name><size>{self.pictures}</size><mode>annotation</mode><labels>
{labels}
    </labels></task>
  </meta>
"""
        with self.whole(self.file) as handle:
            handle.write(head.encode())
            self._images.copy_to(handle)
            handle.write(b"\n</annotations>\n")
