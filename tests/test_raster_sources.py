"""What rasters come in: mosaics of many files, pictures that a tag turns. And disks that are full meanwhile."""

import os
import resource
import signal

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import tifffile
from test_rasters import UTM, labels_of, noise, run, segment, write

from s2clip.errors import ImageError, OutputError
from s2clip.pictures.samples import turned
from s2clip.pictures.windows import Box
from s2clip.rasters import Raster, is_raster
from s2clip.results.geo.tiles import Tiles

SOURCE = """<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{band}</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>
<DstRect xOff="{left}" yOff="0" xSize="{width}" ySize="{height}"/></SimpleSource>"""


def mosaic(path, picture, cut):
    """Two GeoTIFFs side by side, and the description that lays them out."""
    _, height, width = picture.shape
    parts = {"left.tif": (0, cut), "right.tif": (cut, width)}
    sources = ["", "", ""]
    for file, (left, right) in parts.items():
        place = UTM["transform"] * rasterio.Affine.translation(left, 0)
        write(path.parent / file, picture[:, :, left:right], transform=place)
        for band in range(3):
            sources[band] += SOURCE.format(file=file, band=band + 1, width=right - left, height=height, left=left)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band + 1}">{sources[band]}</VRTRasterBand>' for band in range(3)
    )
    ground = ", ".join(map(repr, UTM["transform"].to_gdal()))
    head = f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:25832</SRS>'
    path.write_text(f"{head}<GeoTransform>{ground}</GeoTransform>{bands}</VRTDataset>")
    return path


def test_a_mosaic_gets_the_labels_of_the_whole(tmp_path):
    picture = noise(150, 170)
    segment(write(tmp_path / "whole.tif", picture), tmp_path)
    found = mosaic(tmp_path / "mosaic.vrt", picture, 70)
    assert is_raster(found, 1 << 60)
    segment(found, tmp_path)
    assert np.array_equal(labels_of(tmp_path / "mosaic.labels.tif"), labels_of(tmp_path / "whole.labels.tif"))
    with rasterio.open(tmp_path / "mosaic.labels.tif") as file:
        assert (file.crs, file.transform) == (rasterio.CRS.from_epsg(25832), UTM["transform"])


@pytest.mark.parametrize("pipe", ["photo.png", "mosaic.vrt", "left.tif"])
def test_a_pipe_is_not_waited_for(tmp_path, pipe):
    found = mosaic(tmp_path / "mosaic.vrt", noise(20, 30), 10)
    (tmp_path / pipe).unlink(missing_ok=True)
    os.mkfifo(tmp_path / pipe)
    assert not is_raster(tmp_path / pipe, 1)
    if pipe == "left.tif":
        with pytest.raises(ImageError, match=r"left\.tif of it is no file"):
            Raster(found)


def test_a_mosaic_is_gone_on_with_unless_a_part_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mosaic(tmp_path / "mosaic.vrt", noise(90, 100), 40)
    started, start = [], Tiles.start
    monkeypatch.setattr(Tiles, "start", lambda tiles, resume: started.append(tiles) or start(tiles, resume))
    command = ("mosaic.vrt", "--window", "64", "--overlap", "16", "--format", "cog", "--resume")
    for times in (1, 1, 2):
        result = run(*command)
        assert result.exit_code == 0, result.output
        assert len(started) == times
        if "done before" in result.stderr:
            write(tmp_path / "right.tif", noise(90, 60, seed=1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("left.tif", "gone.tif"), "gone.tif of it cannot be read: no such file|No such file"),
        (lambda text: text.replace("left.tif", "/vsicurl/http://x/y.tif"), "cannot be read"),
        (lambda text: text.replace("left.tif", "mosaic.vrt"), "mosaic.vrt of it is no TIFF"),
        (lambda text: text.replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"'), "computes its pixels"),
        (lambda text: text.replace("SimpleSource", "KernelFilteredSource"), "of kind KernelFilteredSource is not read"),
        (lambda text: text[:-20], "cannot be read as a virtual raster"),
    ],
    ids=["missing", "server", "nested", "computed", "filtered", "cut"],
)
def test_what_is_no_mosaic_of_files_is_one_line(tmp_path, change, reason):
    path = mosaic(tmp_path / "mosaic.vrt", noise(90, 100), 40)
    path.write_text(change(path.read_text()))
    with pytest.raises(ImageError, match=reason) as error:
        Raster(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_picture_is_turned_as_its_tag_says(tmp_path, orientation):
    stored = noise(70, 90).transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    upright = turned(stored, orientation)
    with Raster(tmp_path / "a.tif") as raster:
        assert (raster.height, raster.width) == upright.shape[:2]
        box = Box(5, 11, 42, 60)
        picture, valid = raster.read(box)
        assert np.array_equal(picture, upright[box.top : box.bottom, box.left : box.right])
        assert valid.shape == picture.shape[:2]
        assert np.array_equal(raster.reduced(1000)[0], upright)


def test_what_lies_on_the_ground_stays_as_stored_and_says_so(tmp_path, caplog):
    stored = noise(70, 90).transpose(1, 2, 0)
    ground = [(33550, "d", 3, (0.2, 0.2, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 412000.0, 5600000.0, 0.0), True)]
    tags = [*ground, (274, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=tags)
    with Raster(tmp_path / "a.tif") as raster:
        assert np.array_equal(raster.read(Box(0, 0, 70, 90))[0], stored)
    assert "lies on the ground as stored; its orientation tag (6) is not heeded" in caplog.text


FORMATS = ("cog", "confidence", "gpkg", "geojson", "overlay")


@pytest.mark.parametrize("most", [2_000, 8_000, 20_000, 40_000, 90_000])
def test_a_disk_without_room_leaves_nothing_half_written(tmp_path, most):
    """No file may grow further: what a full disk does to whoever writes, GDAL included."""
    path = write(tmp_path / "a.tif", noise(200, 220))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(OutputError) as error:
            segment(path, tmp_path / "out", *FORMATS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(error.value)
    assert "cannot write there" in str(error.value)
    for name in (".labels.tif", ".confidence.tif"):
        if (tmp_path / f"out/a{name}").exists():
            assert labels_of(tmp_path / f"out/a{name}").shape == (200, 220)
    assert not [one for one in (tmp_path / "out").rglob("*") if one.name.startswith(".")]
    record = segment(path, tmp_path / "out", *FORMATS, resume=True)  # with room again it goes on
    assert sorted(map(os.path.basename, record["files"].values())) == sorted(
        one.name for one in (tmp_path / "out").iterdir() if not one.name.endswith(".aux.xml")
    )


@pytest.mark.parametrize("lost", ["the end", "labels", "an overview"])
def test_labels_that_a_full_disk_lost_in_silence_do_not_appear(tmp_path, monkeypatch, lost):
    """GDAL has closed the copy by then and raised nothing."""
    path = write(tmp_path / "a.tif", noise(700, 600))
    copy = rasterio.shutil.copy

    def losing(source, target, **options):
        copy(source, target, **options)
        if lost == "the end":
            os.truncate(target, os.path.getsize(target) - 8)
            return
        with tifffile.TiffFile(target) as file:
            (pixels, reduced) = file.pages
            place = (reduced if lost == "an overview" else pixels).dataoffsets[0]
        with open(target, "r+b") as file:
            file.seek(place + 10)
            file.write(bytes(20))

    with monkeypatch.context() as patch:
        patch.setattr(rasterio.shutil, "copy", losing)
        with pytest.raises(OutputError, match=r"a\.labels\.tif: cannot write there: "):
            segment(path, tmp_path / "out", "cog", window=700)
    assert {one.name for one in (tmp_path / "out").iterdir()} == {"a.windows"}
    segment(path, tmp_path / "out", "cog", window=700, resume=True)
    assert labels_of(tmp_path / "out/a.labels.tif").shape == (700, 600)
