"""The picture of a result in a data set: its name there, its bytes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from s2clip.results.segmented import Segmented


def name_in_set(result: Segmented, stem: str) -> str:
    """The file's own name; its whole path where another picture has that name, `stem`.png where there is no file."""
    if result.source is None:
        return f"{stem}.png"
    path = Path(result.source)
    return path.name if path.stem == stem else path.as_posix()


def picture_png(result: Segmented) -> bytes:
    """The picture as it lies under the label map, upright, in RGB.

    Raises:
        ValueError: the result was made without image.
    """
    if result.image is None:
        raise ValueError("formats: 'yolo' needs the picture, and this result was made without image")
    buffer = BytesIO()
    Image.fromarray(result.image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
