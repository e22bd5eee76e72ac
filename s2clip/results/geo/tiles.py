"""The labels of a raster, kept in a file per window while it is worked on, and made into one GeoTIFF at the end.

A tile is a GeoTIFF of two bands, labels and confidence, that is there whole or not at all: a run that ends early leaves
what it had done. A virtual raster lays them side by side, and GDAL copies that into a cloud-optimised GeoTIFF block by
block, so that memory does not grow with the raster.
"""

import errno
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from s2clip.files import whole_file, writable_folder, write_json, writing, written_by_others
from s2clip.results.colours import class_colours
from s2clip.values import ignored_id

PLAN = "plan.json"
CERTAIN = 250
"""What a confidence of 1 is in a tile and in STEM.confidence.tif, whose scale is 1/250."""
CACHE = 64
"""MB of blocks that GDAL keeps."""


class Extent(Protocol):
    """Pixels of a raster, half open, as `s2clip.pictures.windows.Box`."""

    @property
    def top(self) -> int: ...

    @property
    def left(self) -> int: ...

    @property
    def right(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...


class Ground(NamedTuple):
    """Size and place of a raster."""

    height: int
    width: int
    crs: Any
    """Of rasterio, or None."""
    transform: Any
    """affine.Affine; the identity where it lies nowhere."""


class Tiles:
    """The tiles of one raster in a folder of their own.

    plan: JSON values of all that the labels depend on; tiles of another plan are thrown away.
    """

    def __init__(self, folder: Path, ground: Ground, classes: Sequence[str], plan: Mapping[str, Any]) -> None:
        self.folder, self.ground, self.classes = folder, ground, tuple(classes)
        self.void = ignored_id(len(classes))
        self.dtype = np.dtype(np.uint8 if self.void == 255 else np.uint16)
        self._plan = json.loads(json.dumps(plan))

    def start(self, resume: bool) -> None:
        """Make the folder, or go on with it where it was made by the same plan. Raises `OutputError`."""
        try:
            same = resume and json.loads((self.folder / PLAN).read_bytes()) == self._plan
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(self.folder, ignore_errors=True)
        write_json(writable_folder(self.folder) / PLAN, self._plan)

    def path(self, row: int, column: int) -> Path:
        return self.folder / f"{row}_{column}.tif"

    def write(self, path: Path, labels: np.ndarray, confidence: np.ndarray) -> None:
        """labels [h,w], `void` where there is none; confidence [h,w] in 0..1."""
        from rasterio.io import MemoryFile

        bands = np.stack([labels, np.where(labels == self.void, self.void, (confidence * CERTAIN).round())])
        shape = {"count": 2, "height": labels.shape[0], "width": labels.shape[1], "dtype": self.dtype.name}
        with MemoryFile() as memory:
            with _unplaced(), memory.open(driver="GTiff", compress="deflate", **shape) as file:
                file.write(bands.astype(self.dtype))
            with whole_file(path) as handle:
                handle.write(memory.read())

    def read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """(labels, confidence as it stands in the tile), [h,w]."""
        import rasterio

        with _unplaced(), rasterio.open(path, driver="GTiff") as file:
            labels, confidence = file.read()
        return labels, confidence

    def whole(self, cores: Sequence[tuple[Path, Extent]], path: Path, *, band: int) -> None:
        """A cloud-optimised GeoTIFF of the tiles that are there: band 1, labels with colours and names, or band 2,
        confidence. What no tile holds has no data."""
        import rasterio
        from rasterio.shutil import copy

        virtual = self.folder / f"band-{band}.vrt"
        with writing(virtual):
            virtual.write_text(self._virtual(cores, band), encoding="utf-8")
        temporary = self.folder / f"{secrets.token_hex(8)}.tif"  # goes with the folder where the run is killed
        options = {"COMPRESS": "DEFLATE", "OVERVIEW_RESAMPLING": "MODE" if band == 1 else "AVERAGE", "BLOCKSIZE": 512}
        try:
            with written_by_others(path), rasterio.Env(GDAL_CACHEMAX=CACHE), _unplaced():
                copy(virtual, temporary, driver="COG", BIGTIFF="IF_SAFER", **options)
                _check_copy(virtual, temporary)
            with writing(path):
                os.replace(temporary, path)
            if band == 1:
                with whole_file(path.with_name(f"{path.name}.aux.xml")) as handle:
                    handle.write(self._names().encode())
        finally:
            for left in (temporary, temporary.with_name(f"{temporary.name}.aux.xml")):
                left.unlink(missing_ok=True)

    def remove(self) -> None:
        """The tiles are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _virtual(self, cores: Sequence[tuple[Path, Extent]], band: int) -> str:
        """GDAL's description of a raster put together of others."""
        ground, kind = self.ground, "Byte" if self.void == 255 else "UInt16"
        lines = [f'<VRTDataset rasterXSize="{ground.width}" rasterYSize="{ground.height}">']
        if ground.crs is not None:
            lines.append(f'<SRS dataAxisToSRSAxisMapping="{_axes(ground.crs)}">{escape(ground.crs.to_wkt())}</SRS>')
        if not ground.transform.is_identity:
            numbers = ", ".join(repr(float(value)) for value in ground.transform.to_gdal())
            lines.append(f"<GeoTransform>{numbers}</GeoTransform>")
        lines.append(f'<VRTRasterBand dataType="{kind}" band="1"><NoDataValue>{self.void}</NoDataValue>')
        lines.append(f"<Description>{'class' if band == 1 else 'confidence'}</Description>")
        if band == 1:
            lines.append(self._metadata())
            lines.append(self._palette())
        else:
            lines.append(f"<Scale>{1 / CERTAIN}</Scale>")
        for path, core in cores:
            height, width = core.size
            lines.append(
                f'<SimpleSource><SourceFilename relativeToVRT="1">{escape(path.name)}</SourceFilename>'
                f"<SourceBand>{band}</SourceBand>"
                f'<SourceProperties RasterXSize="{width}" RasterYSize="{height}" DataType="{kind}"/>'
                f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
                f'<DstRect xOff="{core.left}" yOff="{core.top}" xSize="{width}" ySize="{height}"/></SimpleSource>'
            )
        return "\n".join([*lines, "</VRTRasterBand></VRTDataset>"])

    def _metadata(self) -> str:
        items = "".join(
            f"<MDI key={quoteattr(f'class_{index}')}>{escape(name)}</MDI>" for index, name in enumerate(self.classes)
        )
        return f"<Metadata>{items}</Metadata>"

    def _palette(self) -> str:
        """Colours of the ids of bytes; a GeoTIFF of 16 bits has none that programs read."""
        if self.void != 255:
            return ""
        colours = class_colours(len(self.classes)).tolist()
        entries = [f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in colours]
        entries += ['<Entry c1="255" c2="255" c3="255" c4="0"/>'] * (256 - len(entries))
        return f"<ColorInterp>Palette</ColorInterp><ColorTable>{''.join(entries)}</ColorTable>"

    def _names(self) -> str:
        """The file beside a GeoTIFF in which GDAL keeps the names of values."""
        names = "".join(f"<Category>{escape(name.split(';')[0].strip())}</Category>" for name in self.classes)
        band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
        return f"<PAMDataset>{band}</PAMDataset>\n"


def _check_copy(source: Path, copied: Path) -> None:
    """Raise OSError unless every block is there: GDAL may find the disk full as it closes a file, and not say so."""
    import rasterio

    with rasterio.open(source) as before, rasterio.open(copied) as after:
        if before.checksum(1) != after.checksum(1):
            raise OSError(errno.EIO, "what was written is not what was to be written")
        levels = len(after.overviews(1))
    for level in range(levels):
        with rasterio.open(copied, overview_level=level) as reduced:
            reduced.checksum(1)


def _axes(crs: Any) -> str:
    """GeoTIFF's order, first east and then north, whatever the reference system says."""
    return "2,1" if crs.is_geographic else "1,2"


@contextmanager
def _unplaced() -> Iterator[None]:
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
