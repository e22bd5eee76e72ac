"""Polygons into the files that maps are made of: GeoPackage by pyogrio, GeoJSON by hand, both piece by piece."""

import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from s2clip.files import whole_file, writing, written_by_others
from s2clip.results.geo.polygons import Region
from s2clip.results.geo.tiles import Ground

AT_ONCE = 2000
EQUAL_AREA = "EPSG:6933"
"""A reference system of the whole earth in which areas are true, for rasters in degrees."""


def write_layers(
    regions: Iterable[Region],
    ground: Ground,
    names: Sequence[str],
    *,
    gpkg: Path | None,
    geojson: Path | None,
    work: Path | None = None,
) -> int:
    """Write the polygons, each with class_id, class, score (mean confidence) and its area; returns their number.

    The area is `area_m2`, square metres, of the plane of a projected reference system or of the ellipsoid under one in
    degrees; `area_px`, pixels, where the raster lies nowhere. GeoJSON is in WGS 84, as RFC 7946 asks, where it can be.
    work: a folder on the same disk for what is not finished; None: the files' own.
    """
    count = 0
    temporary = (work or gpkg.parent) / f".{secrets.token_hex(8)}.gpkg" if gpkg is not None else None
    try:
        with ExitStack() as stack:
            text = stack.enter_context(whole_file(geojson)) if geojson is not None else None
            if text is not None:
                text.write(b'{"type": "FeatureCollection", "features": [')
            batches = _batches(regions, ground)
            for shapes, rows in batches:
                fields = _fields(rows, names, ground)
                if temporary is not None and gpkg is not None:
                    with written_by_others(gpkg):
                        _append(temporary, shapes, fields, ground, new=not count)
                if text is not None:
                    lines = _features(shapes, fields, ground)
                    text.write((",\n" if count else "\n").encode() + ",\n".join(lines).encode())
                count += len(rows)
            if temporary is not None and gpkg is not None and not count:
                with written_by_others(gpkg):
                    _append(temporary, [], _fields([], names, ground), ground, new=True)
            if text is not None:
                text.write(b"\n]}\n")
        if temporary is not None and gpkg is not None:
            with writing(gpkg):
                os.replace(temporary, gpkg)
    finally:
        if temporary is not None:
            for end in ("", "-journal", "-wal", "-shm"):
                temporary.with_name(temporary.name + end).unlink(missing_ok=True)
    return count


def _batches(regions: Iterable[Region], ground: Ground) -> Iterator[tuple[Any, list[tuple[int, float, float]]]]:
    """(shapes on the map, (class, score, area) of each)."""
    import shapely

    remaining = iter(regions)
    while batch := list(islice(remaining, AT_ONCE)):
        shapes = shapely.transform([one.shape for one in batch], _to_map(ground))
        areas = _areas(shapes, batch, ground)
        yield shapes, [(one.class_index, one.score, area) for one, area in zip(batch, areas, strict=True)]


def _to_map(ground: Ground) -> Callable[[np.ndarray], np.ndarray]:
    a, b, c, d, e, f = tuple(ground.transform)[:6]
    return lambda xy: xy @ np.array([[a, d], [b, e]]) + (c, f)


def _areas(shapes: Any, batch: Sequence[Region], ground: Ground) -> list[float]:
    import shapely

    if ground.crs is None:
        return [float(one.pixels) for one in batch]
    if ground.crs.is_projected:
        areas = shapely.area(shapes) * ground.crs.linear_units_factor[1] ** 2
    else:
        areas = shapely.area(_moved(shapes, ground.crs, EQUAL_AREA))
    return [float(area) for area in areas]


def _moved(shapes: Any, crs: Any, target: str) -> Any:
    """The shapes in another reference system."""
    import shapely
    from rasterio.warp import transform

    return shapely.transform(shapes, lambda xy: np.stack(transform(crs, target, xy[:, 0], xy[:, 1]), axis=1))


def _fields(rows: Sequence[tuple[int, float, float]], names: Sequence[str], ground: Ground) -> dict[str, np.ndarray]:
    area = "area_px" if ground.crs is None else "area_m2"
    return {
        "class_id": np.array([row[0] for row in rows], np.int32),
        "class": np.array([names[row[0]] for row in rows], object),
        "score": np.array([round(row[1], 4) for row in rows], np.float64),
        area: np.array([round(row[2], 4) for row in rows], np.float64),
    }


def _append(path: Path, shapes: Any, fields: dict[str, np.ndarray], ground: Ground, *, new: bool) -> None:
    import shapely
    from pyogrio.raw import write

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # a raster that lies nowhere has none
        write(
            path,
            np.array(shapely.to_wkb(shapes), object),
            list(fields.values()),
            list(fields),
            layer="labels",
            driver="GPKG",
            geometry_type="Polygon",
            crs=None if ground.crs is None else ground.crs.to_wkt(),
            append=not new,
        )


def _features(shapes: Any, fields: dict[str, np.ndarray], ground: Ground) -> Iterator[str]:
    import shapely

    if ground.crs is not None:
        shapes = _moved(shapes, ground.crs, "OGC:CRS84")
    values = [column.tolist() for column in fields.values()]
    for shape, *row in zip(shapely.to_geojson(shapes), *values, strict=True):
        properties = json.dumps(dict(zip(fields, row, strict=True)), ensure_ascii=False, allow_nan=False)
        yield f'{{"type": "Feature", "properties": {properties}, "geometry": {shape}}}'
