"""Orthophotos: read and labelled by windows, written for maps; read back by GDAL, through rasterio and pyogrio."""

import ctypes
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import shapes
from rasterio.transform import Affine, from_origin

from s2clip import cli, scenes
from s2clip.errors import ImageError
from s2clip.pictures.raster_grid import cells
from s2clip.rasters import Raster, Rendering, segment_raster
from s2clip.results.geo.polygons import regions

CLASSES = ("dark", "green; lime", "bright & wide")
UTM = {"crs": "EPSG:25832", "transform": from_origin(412000.37, 5600000.81, 0.2, 0.2)}


class ByWindow:
    """Stands in for a segmenter: a label goes by the pixel, by its neighbours and by the whole window."""

    classes = CLASSES

    def __init__(self):
        self.seen = 0

    def stream(self, pictures, batch_size, workers):
        for picture in pictures:
            self.seen += 1
            grey = picture.float().mean(0)
            near = torch.nn.functional.avg_pool2d(grey[None], 9, 1, 4, count_include_pad=False)[0]
            labels = (near > grey.mean()).long() + (grey > 1.2 * grey.mean()).long()
            yield SimpleNamespace(segmentation=labels, confidence=grey / 255)


def noise(height, width, seed=0):
    """uint8 [H,W,3]: smooth patches, so that regions are larger than windows."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * 255).byte().numpy()


def write(path, bands, **profile):
    bands = np.asarray(bands)
    profile = {**UTM, "driver": "GTiff", "dtype": bands.dtype.name, "count": len(bands), **profile}
    if profile["crs"] is None:
        del profile["crs"], profile["transform"]
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with rasterio.open(path, "w", height=bands.shape[1], width=bands.shape[2], **profile) as file:
        file.write(bands)
    return path


def labels_of(path):
    with rasterio.open(path) as file:
        return file.read(1)


def segment(path, folder, *formats, rendering=None, segmenter=None, **options):
    options = {"window": 64, "overlap": 16, **options}
    with Raster(path, *([rendering] if rendering else [])) as raster:
        return segment_raster(segmenter or ByWindow(), raster, folder, formats or ("cog",), **options)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(-999, 999), st.integers(-999, 999), st.integers(0, 15))
def test_cores_cover_the_raster_once_and_lie_in_their_windows(height, width, row, column, half):
    covered = np.zeros((height, width), int)
    for cell in cells(height, width, window=64, overlap=2 * half, anchor=(row, column)):
        core, window = cell.core, cell.window
        covered[core.top : core.bottom, core.left : core.right] += 1
        assert window.top <= core.top
        assert window.bottom >= core.bottom
        assert window.left <= core.left
        assert window.right >= core.right
        assert window.size == (min(64, height), min(64, width))
        for near, far, first, last, size in (
            (core.top, core.bottom, window.top, window.bottom, height),
            (core.left, core.right, window.left, window.right, width),
        ):
            assert near - first >= half or first == 0
            assert last - far >= half or last == size
    assert (covered == 1).all()


def test_a_cut_of_a_raster_gets_the_labels_of_the_whole_away_from_its_border(tmp_path):
    picture = noise(300, 340)
    whole = write(tmp_path / "whole.tif", picture)
    top, left, height, width = 37, 61, 230, 250
    place = UTM["transform"] * Affine.translation(left, top)
    part = picture[:, top : top + height, left : left + width]
    segment(whole, tmp_path)
    segment(write(tmp_path / "cut.tif", part, transform=place), tmp_path)
    expected = labels_of(tmp_path / "whole.labels.tif")[top : top + height, left : left + width]
    found = labels_of(tmp_path / "cut.labels.tif")
    inside = np.s_[64:-64, 64:-64]
    assert len(np.unique(expected[inside])) == 3
    assert np.array_equal(found[inside], expected[inside])
    # and the windows are what makes it so: on a grid of the cut's own they lie elsewhere
    moved = UTM["transform"] * Affine.translation(left + 7, top + 5)
    segment(write(tmp_path / "moved.tif", part, transform=moved), tmp_path)
    assert not np.array_equal(labels_of(tmp_path / "moved.labels.tif")[inside], expected[inside])


def test_labels_lie_where_the_raster_lies_with_colours_names_and_no_data(tmp_path):
    picture = noise(600, 700).clip(1)
    picture[:, :90] = 0
    record = segment(write(tmp_path / "a.tif", picture, nodata=0), tmp_path, "cog", "confidence")
    with rasterio.open(tmp_path / "a.labels.tif") as file:
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(25832), UTM["transform"])
        assert file.nodata == 255
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1) == [2]
        assert [file.tags(1)[f"class_{index}"] for index in range(3)] == list(CLASSES)
        labels = file.read(1)
        assert file.colormap(1)[1][:3] == (204, 187, 68)
    assert (labels[:90] == 255).all()
    assert (labels[90:] < 3).all()
    assert category_names(tmp_path / "a.labels.tif") == ["dark", "green", "bright & wide"]
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert record["shares"]["dark"] == pytest.approx((labels == 0).sum() / (510 * 700), abs=1e-6)
    assert record["raster"]["valid_pixels"] == 510 * 700
    with rasterio.open(tmp_path / "a.confidence.tif") as file:
        found = file.read(1, masked=True) * file.scales[0]
    assert found.mask[:90].all()
    assert np.abs(found - picture.mean(0) / 255)[90:].max() <= 0.002 + 1e-6
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.confidence.tif",
        "a.labels.tif",
        "a.labels.tif.aux.xml",
        "a.tif",
    ]


def category_names(path):
    """Names of the values, as GDAL gives them to every program; rasterio does not pass them on."""
    libraries = Path(rasterio.__file__).parent.parent / "rasterio.libs"
    gdal = ctypes.CDLL(str(next(libraries.glob("libgdal*"))))
    gdal.GDALOpen.restype = gdal.GDALGetRasterBand.restype = ctypes.c_void_p
    gdal.GDALGetRasterBand.argtypes = [ctypes.c_void_p, ctypes.c_int]
    gdal.GDALGetRasterCategoryNames.argtypes = gdal.GDALClose.argtypes = [ctypes.c_void_p]
    gdal.GDALGetRasterCategoryNames.restype = ctypes.POINTER(ctypes.c_char_p)
    file = gdal.GDALOpen(str(path).encode(), 0)
    gdal.GDALGetGeoTransform(ctypes.c_void_p(file), (ctypes.c_double * 6)())  # reads the file beside it, too
    names = gdal.GDALGetRasterCategoryNames(gdal.GDALGetRasterBand(file, 1))
    found = []
    while names[len(found)] is not None:
        found.append(names[len(found)].decode())
    gdal.GDALClose(file)
    return found


def test_more_than_255_classes_take_16_bits(tmp_path):
    segmenter = ByWindow()
    segmenter.classes = tuple(f"class {index}" for index in range(300))
    segment(write(tmp_path / "a.tif", noise(80, 90)), tmp_path, segmenter=segmenter)
    with rasterio.open(tmp_path / "a.labels.tif") as file:
        assert (file.dtypes, file.nodata) == (("uint16",), 65535)


@pytest.mark.parametrize("crs", ["EPSG:25832", "EPSG:4326", None])
def test_polygons_are_those_of_the_whole_label_raster(tmp_path, crs):
    place = {
        "EPSG:25832": UTM["transform"],
        "EPSG:4326": from_origin(7.5, 50.5, 1e-5, 1e-5),
        None: Affine.identity(),
    }[crs]
    picture = noise(150, 170).clip(1)
    picture[:, 60:100, 20:50] = 0
    path = write(tmp_path / "a.tif", picture, nodata=0, crs=crs, transform=place)
    segment(path, tmp_path, "cog", "gpkg", "geojson")
    labels = labels_of(tmp_path / "a.labels.tif")
    expected = list(shapes(labels, mask=labels != 255, connectivity=4, transform=place))
    area = "area_px" if crs is None else "area_m2"
    for name in ("a.labels.gpkg", "a.labels.geojson"):
        meta, _, geometry, fields = pyogrio.raw.read(tmp_path / name)
        assert list(meta["fields"]) == ["class_id", "class", "score", area]
        rows = dict(zip(meta["fields"], fields, strict=True))
        assert sorted(rows["class_id"]) == sorted(value for _, value in expected)
        assert set(rows["class"]) <= {"dark", "green", "bright & wide"}
        found = shapely.from_wkb(geometry)
        assert shapely.is_valid(found).all()
        if name.endswith("gpkg"):
            assert meta["crs"] == crs
            same = {shapely.geometry.shape(shape).normalize().wkt for shape, _ in expected}
            assert {one.normalize().wkt for one in found} == same
        elif crs == "EPSG:25832":
            west, south, east, north = shapely.total_bounds(found)
            assert 7.7 < west < east < 7.8
            assert 50.5 < south < north < 50.6
    pixel = {"EPSG:25832": 0.04, "EPSG:4326": 1.11266 * 0.70946, None: 1.0}[crs]
    assert rows[area].sum() == pytest.approx((labels != 255).sum() * pixel, rel=2e-3)
    assert (rows["score"] > 0).all()


def test_the_score_of_a_region_is_the_mean_confidence_over_all_tiles():
    generator = np.random.default_rng(0)
    labels, confidence = generator.integers(0, 2, (50, 60)), generator.integers(0, 251, (50, 60))
    whole = list(regions([(0, cell(0, 0, 50, 60), lambda: (labels, confidence))], 255, 250))
    tiles = [
        (
            row,
            box,
            lambda b=box: (labels[b.top : b.bottom, b.left : b.right], confidence[b.top : b.bottom, b.left : b.right]),
        )
        for row in range(5)
        for box in [cell(10 * row, 12 * column, 10 * row + 10, 12 * column + 12) for column in range(5)]
    ]
    pieces = list(regions(tiles, 255, 250))
    summary = [sorted((one.class_index, one.pixels, round(one.score, 9)) for one in found) for found in (whole, pieces)]
    assert summary[0] == summary[1]
    assert sum(one.shape.area for one in pieces) == 50 * 60


def cell(*sides):
    from s2clip.pictures.windows import Box

    return Box(*sides)


def test_bands_and_sixteen_bits(tmp_path):
    picture = noise(80, 90)
    deep = np.stack([picture[2], picture[1], picture[0], 255 - picture[0]]).astype(np.uint16) * 16 + 1000
    path = write(tmp_path / "deep.tif", deep)
    with Raster(path, Rendering((3, 2, 1), ranges=((1000, 1000 + 16 * 255),))) as raster:
        box = next(cells(80, 90, window=128, overlap=0)).window
        assert np.array_equal(raster.read(box)[0], picture.transpose(1, 2, 0))
    with Raster(path, Rendering((4,))) as raster:
        low, high = raster.ranges[0]
        assert (low, high) == tuple(np.percentile(deep[3], (2, 98)))
        shown = raster.read(box)[0]
    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown.min(), shown.max()) == (0, 255)
    with Raster(path) as raster:
        assert raster.bands == (1, 2, 3)


def test_what_has_no_value_is_no_colour(tmp_path):
    heights = np.linspace(-5, 5, 80 * 90, dtype=np.float32).reshape(1, 80, 90)
    heights[0, 10, 10] = np.nan
    box = next(cells(80, 90, window=128, overlap=0)).window
    with Raster(write(tmp_path / "heights.tif", heights)) as raster:
        picture, valid = raster.read(box)
    assert not valid[10, 10]
    assert valid.sum() == 80 * 90 - 1
    assert abs(int(picture[10, 10, 0]) - 127) < 3  # the mean of the others
    numbers = np.zeros((1, 80, 90), np.uint8)
    numbers[0, :, 45:] = 3
    path = write(tmp_path / "palette.tif", numbers, photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 3: (200, 100, 50, 255)})
    with Raster(path) as raster:
        assert raster.read(box)[0][5, [5, 80]].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_a_run_that_was_stopped_goes_on_by_windows(tmp_path):
    class Stopping(ByWindow):
        def stream(self, *arguments, **options):
            for number, result in enumerate(super().stream(*arguments, **options)):
                if number == 5:
                    raise KeyboardInterrupt
                yield result

    path = write(tmp_path / "a.tif", noise(200, 220))
    with pytest.raises(KeyboardInterrupt):
        segment(path, tmp_path / "two", segmenter=Stopping())
    second = ByWindow()
    record = segment(path, tmp_path / "two", segmenter=second, resume=True)
    assert record["raster"]["windows_from_before"] == 5
    assert second.seen == record["raster"]["windows"] - 5
    segment(path, tmp_path / "one")
    assert np.array_equal(labels_of(tmp_path / "one/a.labels.tif"), labels_of(tmp_path / "two/a.labels.tif"))
    for other in ({"overlap": 8}, {"resume": False}):  # of other windows, or not asked for: nothing is taken over
        with pytest.raises(KeyboardInterrupt):
            segment(path, tmp_path / "two", segmenter=Stopping())
        record = segment(path, tmp_path / "two", **{"resume": True, **other})
        assert record["raster"]["windows_from_before"] == 0


def test_a_raster_that_is_damaged_or_turned_is_one_line(tmp_path):
    path = write(tmp_path / "a.tif", noise(200, 220), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = b"\1" * 4000
    (tmp_path / "bad.tif").write_bytes(data)
    with pytest.raises(ImageError, match=r"bad\.tif: cannot be read as a raster") as error:
        segment(tmp_path / "bad.tif", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*.tif"))


# The command line


@pytest.fixture
def ground(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = scenes.generate(3, (96, 128))[0].transpose(2, 0, 1)
    write(tmp_path / "scene.tif", picture)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(
        cli.main, ["segment", "--classes", "sky, water; sea, grass", "--method", "clip", "-q", *map(str, arguments)]
    )


def test_the_command_segments_pictures_and_rasters_and_resumes(ground):
    rasterio.shutil.copy("scene.tif", "photo.png", driver="PNG")
    result = run("photo.png", "scene.tif", "--format", "png,cog,gpkg,overlay", "--window", "64", "--overlap", "16")
    assert result.exit_code == 0, result.output
    files = {path.name for path in Path("out").iterdir()}
    assert files >= {"photo.png", "photo.overlay.png", "scene.labels.tif", "scene.labels.gpkg", "scene.overlay.png"}
    assert "scene.png" not in files
    assert labels_of("out/scene.labels.tif").shape == (96, 128)
    record = json.loads(Path("out/run.json").read_text())["images"][1]
    assert record["raster"]["crs"] == "EPSG:25832"
    before = Path("out/scene.labels.tif").stat().st_mtime_ns
    again = run("scene.tif", "--format", "cog,gpkg", "--window", "64", "--overlap", "16", "--resume")
    assert "1 of 1 pictures were done before" in again.stderr
    assert Path("out/scene.labels.tif").stat().st_mtime_ns == before
    assert run("scene.tif", "--resume", "--window", "48", "--overlap", "16").exit_code == 0  # other windows: again
    assert Path("out/scene.labels.tif").stat().st_mtime_ns != before


def test_which_files_are_rasters(ground):
    plain = np.repeat(noise(96, 128), 1, axis=0)
    write(ground / "plain.tif", plain, crs=None)
    assert run("plain.tif", "-o", "a").exit_code == 0
    assert (ground / "a/plain.png").exists()
    assert run("plain.tif", "-o", "b", "--max-megapixels", "0.01").exit_code == 0  # larger than that
    assert (ground / "b/plain.labels.tif").exists()
    as_picture = run("scene.tif", "-o", "c", "--format", "png")
    assert "scene.tif would lose the place on the ground; --format cog,overlay keeps it" in as_picture.stderr
    assert (ground / "c/scene.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("photo.png", "--window", "64"), 2, "--window: is of rasters"),
        (("photo.png", "--format", "cog"), 2, "--format cog: is of rasters"),
        (("scene.tif", "--bands", "1,2,9"), 1, "numbers from 1 to 3"),
        (("scene.tif", "--range", "9,3"), 2, "--range: expected LOW,HIGH with LOW under HIGH, received 9,3"),
        (("scene.tif", "--range", "wide"), 2, "--range: expected LOW,HIGH"),
        (("scene.tif", "--percentile", "2,101"), 2, "--percentile: expected LOW,HIGH from 0 to 100"),
        (("scene.tif", "--window", "64", "--overlap", "40"), 2, "--overlap: expected an even number"),
        (("scene.tif", "--format", "cogs"), 2, "gpkg"),
    ],
)
def test_what_is_wrong_is_one_line(ground, arguments, code, message):
    rasterio.shutil.copy("scene.tif", "photo.png", driver="PNG")
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_without_the_extra_one_line_names_it(ground, monkeypatch):
    from s2clip.pictures import rasters

    monkeypatch.setattr(rasters, "find_spec", lambda name: None)
    result = run("scene.tif")
    assert result.exit_code == 3
    assert "pip install 's2clip[geo]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert run("scene.tif", "--format", "png").exit_code == 0
