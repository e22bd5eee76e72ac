"""A result's files: what other tools will read, written whole or not at all."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from s2clip.errors import OutputError
from s2clip.files import whole_file, writable_folder
from s2clip.results.colours import class_colours
from s2clip.results.result import Result, check_formats
from s2clip.results.visualize import overlay

CLASSES = ("sky", "house; hut", "tree")


def make_result(height=5, width=7, classes=CLASSES, **changes):
    generator = torch.Generator().manual_seed(0)
    fields = {
        "segmentation": torch.randint(len(classes), (height, width), generator=generator),
        "confidence": torch.rand(height, width, generator=generator),
        "classes": classes,
        "image": torch.randint(256, (3, height, width), generator=generator).to(torch.uint8),
        "source": "photos/a.jpg",
        "timings": {"total": 1.5},
        "settings": {"method": "s2clip"},
    }
    return Result(**{**fields, **changes})


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_label_png_is_a_palette_picture_of_ids(tmp_path):
    result = make_result()
    paths = result.save(tmp_path, ("png",))
    assert paths == {"png": tmp_path / "a.png"}
    image = opened(tmp_path / "a.png")
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), result.segmentation.numpy())
    assert image.getpalette() == [*class_colours(255).ravel().tolist(), 255, 255, 255]


def test_ids_without_a_class_are_written_as_ignored(tmp_path):
    segmentation = torch.tensor([[0, 255, 2]])
    make_result(1, 3, segmentation=segmentation).save(tmp_path, ("png",))
    assert np.asarray(opened(tmp_path / "a.png")).tolist() == [[0, 255, 2]]


@pytest.mark.parametrize(("count", "mode"), [(255, "P"), (256, "I;16")])
def test_more_than_255_classes_need_16_bits(tmp_path, count, mode):
    classes = tuple(f"class {index}" for index in range(count))
    segmentation = torch.tensor([[0, 100, count - 1, count]])
    make_result(1, 4, classes=classes, segmentation=segmentation).save(tmp_path, ("png", "overlay"))
    image = opened(tmp_path / "a.png")
    ignored = 255 if mode == "P" else 65535
    assert image.mode == mode
    assert np.asarray(image).tolist() == [[0, 100, count - 1, ignored]]
    assert json.loads((tmp_path / "classes.json").read_text())["ignore"] == ignored


def test_npz_needs_no_pickle(tmp_path):
    result = make_result()
    result.save(tmp_path, ("npz",))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["labels"], result.segmentation.numpy())
        assert stored["labels"].dtype == np.uint8
        assert stored["confidence"].dtype == np.float16
        assert np.allclose(stored["confidence"], result.confidence.numpy(), atol=5e-4)
        assert stored["classes"].tolist() == list(CLASSES)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")  # of rle.decode
def test_coco_masks_decode_to_the_segmentation(tmp_path):
    from pycocotools import mask as rle

    result = make_result(6, 9)
    result.save(tmp_path, ("coco",))
    document = json.loads((tmp_path / "a.coco.json").read_text())
    assert document["images"] == [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 9}]
    assert [row["name"] for row in document["categories"]] == list(CLASSES)
    covered = np.zeros((6, 9), int)
    for row in document["annotations"]:
        mask = rle.decode(row["segmentation"]).astype(bool)
        expected = result.segmentation.numpy() == row["category_id"]
        assert np.array_equal(mask, expected)
        assert row["area"] == expected.sum()
        assert row["score"] == pytest.approx(result.confidence.numpy()[expected].mean(), abs=1e-5)
        covered += mask
    assert (covered == 1).all()


def test_coco_documents_serve_as_ground_truth(tmp_path):
    from pycocotools.coco import COCO

    make_result(6, 9).save(tmp_path, ("coco",))
    truth = COCO(str(tmp_path / "a.coco.json"))
    truth.info()  # this, and loadRes before 2.0.11, read the key "info"
    assert "info" in truth.dataset
    found = [
        {key: row[key] for key in ("image_id", "category_id", "segmentation", "score")} for row in truth.anns.values()
    ]
    assert len(truth.loadRes(found).anns) == len(CLASSES)


@pytest.mark.parametrize("void", [-1, -100, 255])
def test_pixels_of_no_class_are_in_no_share_and_no_region(tmp_path, void):
    segmentation = torch.tensor([[0, 0, 1], [void, void, 1]])
    result = make_result(2, 3, segmentation=segmentation)
    assert result.shares == {"sky": 2 / 6, "house; hut": 2 / 6, "tree": 0}
    assert result.regions.class_index.tolist() == [0, 1]
    assert result.regions.area.tolist() == [2, 2]
    result.save(tmp_path, ("png", "overlay", "coco", "npz"))
    assert np.asarray(opened(tmp_path / "a.png")).tolist() == [[0, 0, 1], [255, 255, 1]]


def test_sidecars_say_what_the_ids_are_and_how_they_were_made(tmp_path):
    result = make_result(background=0)
    result.save(tmp_path)
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert classes["classes"][1] == {
        "id": 1,
        "name": "house; hut",
        "words": ["house", "hut"],
        "colour": class_colours(3)[1].tolist(),
    }
    assert classes["background"] == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"] == {"method": "s2clip"}
    assert run["versions"]["torch"] == torch.__version__.split("+")[0]
    assert run["images"][0]["source"] == "photos/a.jpg"
    assert (run["images"][0]["height"], run["images"][0]["width"]) == (5, 7)
    assert sum(run["images"][0]["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.overlay.png", "a.png", "classes.json", "run.json"]


def test_shares_count_pixels_and_leave_ignored_ones_out():
    shares = make_result(1, 4, segmentation=torch.tensor([[0, 0, 2, 255]])).shares
    assert shares == {"sky": 0.5, "house; hut": 0.0, "tree": 0.25}


def test_regions_are_the_connected_parts():
    segmentation = torch.tensor([[0, 0, 1], [2, 2, 1], [0, 2, 2]])
    confidence = torch.tensor([[0.5, 0.25, 0.75], [0.5, 0.5, 0.25], [0.125, 0.5, 1.0]])
    regions = make_result(3, 3, segmentation=segmentation, confidence=confidence).regions
    assert regions.class_index.tolist() == [0, 1, 2, 0]
    assert regions.area.tolist() == [2, 2, 4, 1]
    assert regions.box.tolist() == [[0, 0, 1, 0], [2, 0, 2, 1], [0, 1, 2, 2], [0, 2, 0, 2]]
    assert regions.point.tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert regions.score.tolist() == pytest.approx([0.375, 0.5, 0.625, 0.125], abs=1e-4)


def test_the_picture_itself_is_never_replaced(tmp_path):
    source = tmp_path / "a.png"
    Image.new("RGB", (7, 5)).save(source)
    before = source.read_bytes()
    with pytest.raises(ValueError, match="is the picture itself"):
        make_result(source=str(source)).save(tmp_path)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_errors_name_what_is_valid(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected some of png, .*, cvat, received 'jpeg'"):
        make_result().save(tmp_path, ("png", "jpeg"))
    with pytest.raises(ValueError, match="without image"):
        make_result(image=None).save(tmp_path)
    monkeypatch.setattr("s2clip.results.result.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 's2clip\[coco\]'"):
        check_formats("coco")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file stands"):
        make_result().save(tmp_path / "file")
    with pytest.raises(OutputError, match="a file stands"):
        writable_folder(tmp_path / "file" / "below")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail():
        with whole_file(path) as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        make_result().save(tmp_path, ("png",))
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (96, 128), (1, 5000), (5000, 1), (3000, 2000), (700, 500)])
def test_overlay_has_a_size_for_eyes(height, width):
    segmentation = torch.zeros(height, width, dtype=torch.int64)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    picture = overlay(image, segmentation, CLASSES, legend=False)
    if min(height, width) > 1:
        assert 500 <= max(picture.size) <= 2048
        assert picture.width / picture.height == pytest.approx(width / height, rel=0.01)
    with_legend = overlay(image, segmentation, CLASSES)
    assert with_legend.height > picture.height
    assert with_legend.width >= picture.width


def test_overlay_tints_by_class_and_draws_borders():
    segmentation = torch.zeros(800, 800, dtype=torch.int64)
    segmentation[:, 400:] = 1
    segmentation[600:] = 255
    image = torch.full((3, 800, 800), 100, dtype=torch.uint8)
    pixels = np.asarray(overlay(image, segmentation, CLASSES, opacity=0.5, legend=False, names=False)).astype(int)
    colours = class_colours(2).astype(int)
    assert np.abs(pixels[100, 100] - (100 + colours[0]) / 2).max() <= 1
    assert np.abs(pixels[100, 700] - (100 + colours[1]) / 2).max() <= 1
    assert (pixels[700, 100] == 100).all()
    bright = (pixels > 200).all(axis=2)
    assert bright[100].sum() == 1
    assert bright[100, 399:401].any()
    assert bright[:600, 100].sum() == 1 - bright[600, 100]
