"""Label maps that lie somewhere on the ground: rasters and polygons for geographic information systems (extra `geo`).

In: labels and confidence, a window at a time. Out: cloud-optimised GeoTIFF, GeoPackage, GeoJSON. Nothing here holds a
whole raster, and no model is imported.
"""

FORMATS = {
    "cog": ".labels.tif",
    "confidence": ".confidence.tif",
    "gpkg": ".labels.gpkg",
    "geojson": ".labels.geojson",
    "overlay": ".overlay.png",
}
"""Formats of rasters and the ends of their files' names."""
