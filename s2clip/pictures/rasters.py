"""Orthophotos and other rasters of any size, a window at a time, by rasterio (extra `geo`).

A raster is a TIFF that says where it lies, or one with more pixels than a picture may have, or a mosaic of TIFFs
(.vrt). What a pixel means is decided once for the whole raster, never by window: bands, the values that become black
and white, where there is none.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2clip.errors import ImageError, MissingExtraError, reject
from s2clip.pictures import tiff, virtual_rasters
from s2clip.pictures.decoding import TIFF_MARKS, opened
from s2clip.pictures.samples import turned
from s2clip.pictures.windows import Box

logger = logging.getLogger(__name__)

PERCENTILES = (2.0, 98.0)
SEEN = 1024
"""Longer side, in pixels, of the reduced raster that percentiles are taken of."""
CACHE = 64
"""MB that GDAL keeps of decoded blocks; its own default is a twentieth of the machine's memory."""
STRIP = 512
"""Rows that are read at once where the whole raster is reduced, a tile of most files."""
SIDEWAYS = (5, 6, 7, 8)
"""Values of the orientation tag whose rows are the picture's columns."""
PHASE = 0.25
"""Origins are whole pixels or half ones, as programs count them; a cut between those tells the same of both."""


class Rendering(NamedTuple):
    """How samples become colours."""

    bands: tuple[int, ...] | None = None
    """One or three, counted from 1; None: red, green and blue as the file names them, else the first three, or one."""
    ranges: tuple[tuple[float, float], ...] | None = None
    """Values of black and white, one pair or one for each band; None: 0 and 255 of bytes, else percentiles."""
    percentiles: tuple[float, float] | None = None
    """Of the valid pixels of each band, over the whole raster; None: 2 and 98 where they are needed."""


AS_IT_SAYS = Rendering()


def is_raster(path: str | os.PathLike, max_pixels: int) -> bool:
    """Whether a file is a TIFF with a geotransform or more than `max_pixels` pixels, or a virtual raster; False for
    what cannot be read."""
    if virtual_rasters.is_virtual(path):
        return True
    try:
        with opened(os.fspath(path)) as handle:
            if handle.read(4) not in TIFF_MARKS:
                return False
            found = tiff.directory(handle, os.fstat(handle.fileno()).st_size, any_kind=True)
    except Exception:  # damaged as any file may be: whoever reads it says so
        return False
    return found.georeferenced or found.width * found.height > max_pixels or _has_world_file(Path(path))


def _has_world_file(path: Path) -> bool:
    return any(path.with_suffix(suffix).is_file() for suffix in (".tfw", ".tifw", ".wld"))


def require_rasterio() -> None:
    """Raises MissingExtraError, which names the extra."""
    if find_spec("rasterio") is None or find_spec("pyogrio") is None:
        raise MissingExtraError(
            "rasters need rasterio and pyogrio: pip install 's2clip[geo]'; --format png reads a small one as a picture"
        )


@contextmanager
def _said(name: str) -> Iterator[None]:
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ImageError(f"{name}: cannot be read as a raster: {reason.replace(name, 'the file')[:150]}") from None


class Raster:
    """An open raster; a context manager.

    Attributes:
        height, width: in pixels, upright.   crs: of rasterio, or None.   transform: (column, row) → map, an
            `affine.Affine`.   files: what it is read from, a mosaic and its parts.
        anchor: (row, column) of the first pixel in the grid of all pixels of this size that the map's origin begins.
        bands, ranges: what `rendering` came to; ranges None: bytes as they stand.
    """

    def __init__(self, path: str | os.PathLike, rendering: Rendering = AS_IT_SAYS) -> None:
        """Raises ImageError for a file that cannot be used, MissingExtraError, ValueError for a wrong rendering."""
        require_rasterio()
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning

        self.name = os.fspath(path)
        parts = virtual_rasters.files_of(path) if virtual_rasters.is_virtual(path) else []
        self.files = (Path(path), *parts)
        self._environment = rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_VRT_ENABLE_PYTHON="NO")
        with self._environment, _said(self.name), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._file = rasterio.open(self.name, driver="VRT" if parts else "GTiff")
        try:
            self._settle(rendering)
        except BaseException:
            self._file.close()
            raise

    def _settle(self, rendering: Rendering) -> None:
        file = self._file
        self.height, self.width, self.crs, self.transform = file.height, file.width, file.crs, file.transform
        self._orientation = self._turned()
        if self._orientation in SIDEWAYS:
            self.height, self.width = self.width, self.height
        self.anchor = _anchor(file.transform)
        self.bands = _bands(file, rendering.bands)
        self._colours = self._palette()
        types = {file.dtypes[band - 1] for band in self.bands}
        if any(one.startswith("complex") for one in types):
            raise ImageError(f"{self.name}: complex numbers have no colours")
        self.ranges = None
        if self._colours is None and not (types == {"uint8"} and rendering[1:] == (None, None)):
            self.ranges = self._ranges(rendering)

    def _turned(self) -> int:
        """The value of the orientation tag by which pixels are turned upright. Where the ground says which way is up
        the tag is not heeded, as no program for maps does."""
        if len(self.files) > 1:
            return 1
        with open(self.name, "rb") as handle:
            found = tiff.directory(handle, os.fstat(handle.fileno()).st_size, any_kind=True).orientation
        if found in (0, 1) or (self.crs is None and self.transform.is_identity):
            return found
        logger.warning("%s: lies on the ground as stored; its orientation tag (%d) is not heeded", self.name, found)
        return 1

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [h,w,3], bool [h,w] whether there is a value); pixels without one get the mean of the others."""
        from rasterio.windows import Window

        box = _as_stored(box, (self.height, self.width), self._orientation)
        return self._upright(window=Window(box.left, box.top, box.right - box.left, box.bottom - box.top))

    def reduced(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """The whole raster as `read` gives it, at most `longest` pixels a side, every so many pixels one."""
        return self._upright(out_shape=reduced_size(self._file.height, self._file.width, longest))

    def _upright(self, **place: Any) -> tuple[np.ndarray, np.ndarray]:
        picture, valid = self._render(**place)
        if self._orientation in (0, 1):
            return picture, valid
        return np.ascontiguousarray(turned(picture, self._orientation)), turned(valid, self._orientation)

    def _render(self, **place: Any) -> tuple[np.ndarray, np.ndarray]:
        values, valid = self._samples(**place)
        if self._colours is not None:
            picture = self._colours[values[0]]
        elif self.ranges is None:
            picture = np.stack(list(values), axis=-1)
        else:
            scaled = [_scaled(band, low, high) for band, (low, high) in zip(values, self.ranges, strict=True)]
            picture = np.stack(scaled, axis=-1)
        if picture.shape[-1] == 1:
            picture = np.repeat(picture, 3, axis=-1)
        if not valid.all():
            mean = picture[valid].mean(0).round().astype(np.uint8) if valid.any() else np.uint8(127)
            picture[~valid] = mean
        return picture, valid

    def _samples(self, window: Any = None, out_shape: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(samples [S,h,w], bool [h,w] whether all bands have a value)."""
        with self._environment, _said(self.name):
            if out_shape is None:
                return self._read(window=window)
            if self._file.overviews(self.bands[0]):
                return self._read(out_shape=(len(self.bands), *out_shape))
            return self._thinned(*out_shape)

    def _thinned(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Every so many rows and columns one, from strips that are read once.

        GDAL's own way had read 20 GB of a 0.8 GB file of 20,000 x 20,000 pixels without overviews, and was not done.
        """
        from rasterio.windows import Window

        rows = (np.arange(height) * self._file.height + self._file.height // 2) // height
        columns = (np.arange(width) * self._file.width + self._file.width // 2) // width
        strips = rows // STRIP
        parts = []
        for strip in np.unique(strips):
            own = rows[strips == strip]
            place = Window(0, int(own[0]), self._file.width, int(own[-1] - own[0]) + 1)
            values, valid = self._read(window=place)
            parts.append((values[:, own - own[0]][..., columns], valid[own - own[0]][:, columns]))
        return np.concatenate([one for one, _ in parts], 1), np.concatenate([one for _, one in parts])

    def _read(self, **where: Any) -> tuple[np.ndarray, np.ndarray]:
        values = self._file.read(list(self.bands), **where)
        valid = (self._file.read_masks(list(self.bands), **where) != 0).all(0)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(0)
        return values, valid

    def _palette(self) -> np.ndarray | None:
        """uint8 [256 or 65536, 3] of a raster whose samples are numbers of colours."""
        if len(self.bands) != 1 or self._file.colorinterp[self.bands[0] - 1].name != "palette":
            return None
        table = np.zeros((1 << (8 * np.dtype(self._file.dtypes[self.bands[0] - 1]).itemsize), 3), np.uint8)
        for number, colour in self._file.colormap(self.bands[0]).items():
            table[number] = colour[:3]
        return table

    def _ranges(self, rendering: Rendering) -> tuple[tuple[float, float], ...]:
        count = len(self.bands)
        if rendering.ranges is not None:
            if len(rendering.ranges) not in (1, count):
                reject("range", f"one pair LOW,HIGH or {count}", len(rendering.ranges))
            return rendering.ranges * (count // len(rendering.ranges))
        values, valid = self._samples(out_shape=reduced_size(self._file.height, self._file.width, SEEN))
        if not valid.any():
            raise ImageError(f"{self.name}: holds no valid pixel")
        found = []
        for number, band in zip(self.bands, values, strict=True):
            low, high = np.percentile(band[valid], rendering.percentiles or PERCENTILES).tolist()
            if not low < high:
                raise ImageError(f"{self.name}: band {number} is {low:g} nearly everywhere; give --range LOW,HIGH")
            found.append((low, high))
        return tuple(found)


def reduced_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """(height, width) with the longer side at most `longest`."""
    factor = min(1.0, longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def check_rendering(rendering: Rendering) -> None:
    """Raises ValueError for what no raster can be shown by."""
    if rendering.bands is not None and (len(rendering.bands) not in (1, 3) or min(rendering.bands) < 1):
        reject("bands", "one band or three, counted from 1", ",".join(map(str, rendering.bands)))
    if rendering.ranges is not None and rendering.percentiles is not None:
        raise ValueError("range: and percentile say the same; give one of them")
    for low, high in rendering.ranges or ():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            reject("range", "LOW,HIGH with LOW under HIGH", f"{low:g},{high:g}")
    if rendering.percentiles is not None and not 0 <= rendering.percentiles[0] < rendering.percentiles[1] <= 100:
        reject("percentile", "LOW,HIGH from 0 to 100", "{:g},{:g}".format(*rendering.percentiles))


def _bands(file: Any, asked: Sequence[int] | None) -> tuple[int, ...]:
    if asked is not None:
        if max(asked) > file.count:
            reject("bands", f"numbers from 1 to {file.count}, which {file.name} has", ",".join(map(str, asked)))
        return tuple(asked)
    kinds = [one.name for one in file.colorinterp]
    if all(kind in kinds for kind in ("red", "green", "blue")):
        return tuple(kinds.index(kind) + 1 for kind in ("red", "green", "blue"))
    colours = [number for number, kind in enumerate(kinds, 1) if kind != "alpha"]
    return tuple(colours[:3]) if len(colours) >= 3 else tuple(colours[:1] or [1])


def _as_stored(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where the pixels of a box of the upright raster of `size` are stored: `samples.turned` the other way round."""
    (height, width), (top, left, bottom, right) = size, box
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    return Box(left, top, right, bottom) if orientation in SIDEWAYS else Box(top, left, bottom, right)


def _anchor(transform: Any) -> tuple[int, int]:
    """The first pixel's place in the grid; (0, 0) of a raster without one, or one that is turned on the map."""
    if transform.is_identity or transform.b or transform.d:
        return 0, 0
    return math.floor(transform.f / transform.e + PHASE), math.floor(transform.c / transform.a + PHASE)


def _scaled(band: np.ndarray, low: float, high: float) -> np.ndarray:
    """round(255·(v - low)/(high - low)), cut to 0..255; NaN gives 0."""
    number = np.float32 if band.dtype.itemsize < 4 else np.float64
    scaled = np.subtract(band.astype(number), low) * (255 / (high - low))
    return np.nan_to_num(scaled, nan=0.0).clip(0, 255).round().astype(np.uint8)
