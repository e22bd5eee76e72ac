"""Rasters of any size to label rasters and polygons, a window at a time (extra `geo`).

with Raster("scene.tif") as raster:
    segment_raster(segmenter, raster, "out/", formats=("cog", "gpkg"))
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from s2clip.errors import reject
from s2clip.files import whole_file, writable_folder
from s2clip.pictures.raster_grid import Cell, cells, check_windows
from s2clip.pictures.rasters import Raster, Rendering, is_raster
from s2clip.pictures.windows import Box
from s2clip.results.geo import FORMATS
from s2clip.results.geo.layers import write_layers
from s2clip.results.geo.polygons import regions
from s2clip.results.geo.tiles import CERTAIN, Ground, Tiles

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter

__all__ = ["OVERLAP", "WINDOW", "Raster", "Rendering", "is_raster", "segment_raster"]

WINDOW, OVERLAP = 512, 128
OVERLAY = 2048
"""Longer side in pixels of the overlay of a raster."""


def segment_raster(
    segmenter: "Segmenter",
    raster: Raster,
    folder: str | PathLike,
    formats: Sequence[str] = ("cog", "overlay"),
    *,
    stem: str | None = None,
    window: int = WINDOW,
    overlap: int = OVERLAP,
    resume: bool = False,
    batch_size: int = 8,
    plan: Mapping[str, Any] | None = None,
    names: bool = True,
    progress: Callable[[Iterable[Cell]], Iterable[Cell]] = lambda items: items,
) -> dict[str, Any]:
    """Label every pixel that has a value, and write files beside each other in `folder`; returns the run's record.

    Each pixel has the label that the window whose middle is nearest gave it. Windows lie on a grid that belongs to the
    ground, so another extent of the same raster gives the same labels, but within a window's side of its border (and by
    other percentiles, where black and white are not given). Each is segmented as a picture of its own: resized as the
    method says (`short_side`), so a smaller window shows the models more detail and less of what is around it.

    Args:
        segmenter: with its classes set.
        formats: of "cog" (labels, with colours, names and no data where the raster has none), "confidence", "gpkg",
            "geojson" and "overlay" (a reduced picture).
        stem: of the files' names, default the raster's.
        window, overlap: pixels of a window's side, and how many of them neighbours share.
        resume: go on with the windows that an earlier call with the same settings left.
        plan: more that the labels depend on, JSON values.
        names: of the overlay, whether names stand on it.
        progress: wraps the windows, to show how far it is.

    Raises:
        ValueError: unknown format, no classes, a window or overlap that gives no grid.
        ImageError: the raster cannot be read.   OutputError: the folder cannot be written.
    """
    check_windows(window, overlap)
    for name in formats:
        if name not in FORMATS:
            reject("formats", f"some of {', '.join(FORMATS)}", repr(name))
    begin = perf_counter()
    folder, stem = writable_folder(folder), stem or Path(raster.name).stem
    paths = {name: folder / f"{stem}{FORMATS[name]}" for name in formats}
    for path in paths.values():
        writable_folder(path.parent)
        if path.exists() and path.samefile(raster.name):
            raise ValueError(f"folder: {path} is the raster itself; choose another folder or stem")
    ground = Ground(raster.height, raster.width, raster.crs, raster.transform)
    grid: dict[str, Any] = {"window": window, "overlap": overlap, "anchor": raster.anchor}
    described = {"bands": raster.bands, "ranges": raster.ranges, **grid}
    tiles = Tiles(folder / f"{stem}.windows", ground, segmenter.classes, {**described, **(plan or {})})
    tiles.start(resume)
    layout = list(cells(raster.height, raster.width, **grid))
    reused = sum(tiles.path(cell.row, cell.column).exists() for cell in layout) if resume else 0
    _label(segmenter, raster, tiles, iter(progress(layout)), window, batch_size)
    there = [(cell, path) for cell in layout if (path := tiles.path(cell.row, cell.column)).exists()]
    cores = [(path, cell.core) for cell, path in there]
    whole = paths.get("cog", tiles.folder / "labels.tif")
    tiles.whole(cores, whole, band=1)
    if "confidence" in paths:
        tiles.whole(cores, paths["confidence"], band=2)
    if "gpkg" in paths or "geojson" in paths:
        first_words = [name.split(";")[0].strip() for name in segmenter.classes]
        found = regions(_reading(tiles, layout), tiles.void, CERTAIN)
        write_layers(
            found, ground, first_words, gpkg=paths.get("gpkg"), geojson=paths.get("geojson"), work=tiles.folder
        )
    if "overlay" in paths:
        _write_overlay(raster, whole, segmenter.classes, paths["overlay"], names)
    counts = _counts(tiles, [path for path, _ in cores])
    tiles.remove()
    valid = max(int(counts.sum()), 1)
    return {
        "source": raster.name,
        "height": raster.height,
        "width": raster.width,
        "files": {name: str(path) for name, path in paths.items()},
        "shares": {
            name: round(count / valid, 6) for name, count in zip(segmenter.classes, counts.tolist(), strict=True)
        },
        "timings_ms": {"all": round(1000 * (perf_counter() - begin), 3)},
        "raster": {
            **described,
            "crs": None if raster.crs is None else raster.crs.to_string(),
            "windows": len(layout),
            "windows_from_before": reused,
            "valid_pixels": int(counts.sum()),
        },
    }


def _label(
    segmenter: "Segmenter", raster: Raster, tiles: Tiles, layout: Iterator[Cell], window: int, batch_size: int
) -> None:
    """Write the tile of every cell that has none yet and some valid pixel."""
    waiting: deque[tuple[Cell, np.ndarray]] = deque()

    def pictures() -> Iterator[torch.Tensor]:
        for cell in layout:
            if tiles.path(cell.row, cell.column).exists():
                continue
            picture, valid = raster.read(cell.window)
            own = _core(valid, cell)
            if not own.any():
                continue
            waiting.append((cell, own))
            yield torch.from_numpy(_filled(picture, valid, window).transpose(2, 0, 1).copy())

    for result in segmenter.stream(pictures(), batch_size=batch_size, workers=0):
        cell, valid = waiting.popleft()
        labels = _core(result.segmentation.cpu().numpy(), cell)
        confidence = _core(result.confidence.cpu().float().numpy(), cell)
        known = valid & (labels >= 0) & (labels < len(segmenter.classes))
        tiles.write(tiles.path(cell.row, cell.column), np.where(known, labels, tiles.void), confidence)


def _core(values: np.ndarray, cell: Cell) -> np.ndarray:
    top, left = cell.core.top - cell.window.top, cell.core.left - cell.window.left
    height, width = cell.core.size
    return values[top : top + height, left : left + width]


def _filled(picture: np.ndarray, valid: np.ndarray, window: int) -> np.ndarray:
    """Of a raster that is smaller than a window, what is missing at the right and below in the mean colour: the models
    see every raster at one scale."""
    height, width = picture.shape[:2]
    if (height, width) == (window, window):
        return picture
    whole = np.empty((window, window, 3), np.uint8)
    whole[:] = picture[valid].mean(0).round().astype(np.uint8)
    whole[:height, :width] = picture
    return whole


def _reading(tiles: Tiles, layout: Sequence[Cell]) -> Iterator[tuple[int, Box, Callable[[], Any] | None]]:
    for cell in layout:
        path = tiles.path(cell.row, cell.column)
        yield cell.row, cell.core, partial(tiles.read, path) if path.exists() else None


def _counts(tiles: Tiles, paths: Sequence[os.PathLike]) -> np.ndarray:
    """Pixels of each class."""
    total = np.zeros(len(tiles.classes), np.int64)
    for path in paths:
        labels = tiles.read(Path(path))[0]
        total += np.bincount(labels[labels != tiles.void].ravel(), minlength=len(total))
    return total


def _write_overlay(raster: Raster, whole: Path, classes: Sequence[str], path: Path, names: bool) -> None:
    import rasterio

    from s2clip.results.visualize import overlay

    picture, _ = raster.reduced(OVERLAY)
    with rasterio.open(whole, driver="GTiff") as file:
        labels = file.read(1, out_shape=picture.shape[:2])
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    shown = overlay(pixels, torch.from_numpy(labels.astype(np.int64)), classes, names=names)
    encoded = BytesIO()
    shown.save(encoded, "PNG")
    with whole_file(path) as handle:
        handle.write(encoded.getvalue())
