"""Virtual rasters (.vrt): one raster laid out of GeoTIFFs beside each other, as gdalbuildvrt writes it.

GDAL would run programs and ask servers for what a description names; what is read here is a mosaic of local files.
"""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from s2clip.errors import ImageError, first_few
from s2clip.pictures import tiff
from s2clip.pictures.decoding import TIFF_MARKS

MARK = b"<VRTDataset"
MAX_BYTES = 64 << 20
"""Of a description; a mosaic of 100,000 files takes some 50 MB."""
SHOWN = 3
SOURCES = ("SimpleSource", "ComplexSource")
"""What a band of a mosaic is made of: a piece of a file as it is, or with its no-data value left out or scaled."""


def is_virtual(path: str | os.PathLike) -> bool:
    """Whether a file is a description of a raster."""
    path = Path(path)
    try:
        if path.suffix.lower() != ".vrt" or not path.is_file():  # a pipe would be waited for without end
            return False
        with path.open("rb") as handle:
            return MARK in handle.read(256)
    except OSError:
        return False


def files_of(path: str | os.PathLike) -> list[Path]:
    """The GeoTIFFs that a mosaic is laid out of, each once.

    Raises `ImageError`: no mosaic, a file that is missing or no TIFF, or one that an orientation tag turns.
    """
    name, folder = os.fspath(path), Path(path).parent
    try:
        if os.stat(name).st_size > MAX_BYTES:
            raise ImageError(f"{name}: over {MAX_BYTES >> 20} MiB of a description of a raster")
        root = ElementTree.parse(name).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read as a virtual raster: {' '.join(str(error).split())}") from None
    if root.tag != "VRTDataset" or any("subClass" in one.attrib for one in root.iter()):
        raise ImageError(f"{name}: a virtual raster that computes its pixels is not read, a mosaic of files is")
    kinds = {one.tag for band in root.iter("VRTRasterBand") for one in band if one.find("SourceFilename") is not None}
    if other := kinds - set(SOURCES):
        raise ImageError(f"{name}: a virtual raster of kind {first_few(sorted(other), 1)} is not read")
    found: dict[Path, None] = {}
    for source in root.iter("SourceFilename"):
        text = source.text or ""
        found[(folder / text) if source.get("relativeToVRT") == "1" else Path(text)] = None
    if not found:
        raise ImageError(f"{name}: a virtual raster that names no file")
    for one in found:
        _check(name, one)
    return list(found)


def _check(name: str, path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{name}: {path} of it is no file")
        with path.open("rb") as handle:
            if handle.read(4) not in TIFF_MARKS:
                raise ImageError(f"{name}: {path} of it is no TIFF")
            turned = tiff.directory(handle, os.fstat(handle.fileno()).st_size, any_kind=True).orientation
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: {path} of it cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except tiff.Unusable as error:
        raise ImageError(f"{name}: {path} of it cannot be read: {error}") from None
    if turned not in (0, 1):
        raise ImageError(f"{name}: {path} of it is turned by its orientation tag ({turned}), which a mosaic cannot be")
