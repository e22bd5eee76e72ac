"""Formats of other people's tools, read back by those tools."""

import base64
import importlib
import io
import json
import sys
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from s2clip import cli, scenes
from s2clip.results.formats import DATASETS, open_datasets
from s2clip.results.formats.pieces import pieces
from s2clip.results.formats.run_lengths import coco_counts, label_studio_rle
from s2clip.results.result import Result

CLASSES = ("sky; air", "house & <hut>", "木")
NAMES = ("sky", "house & <hut>", "木")


def make_result(folder, seed=0, size=(40, 53)):
    """A picture in a file, blocks of three classes and ignored pixels, rings with a hole, regions of one pixel."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, (8, 11)).repeat(5, 0).repeat(5, 1)[: size[0], : size[1]]
    labels[4:17, 20:33] = 1
    labels[8:13, 24:29] = 2
    labels[30, 40] = (labels[30, 40] + 1) % 3
    labels[:3, :9] = 255
    pixels = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"a{seed}.png")
    return Result(
        segmentation=torch.from_numpy(labels.astype(np.int64)),
        confidence=torch.from_numpy(generator.random(size, np.float32)),
        classes=CLASSES,
        image=torch.from_numpy(pixels).permute(2, 0, 1),
        source=str(folder / f"a{seed}.png"),
    )


@pytest.fixture
def results(tmp_path):
    return [make_result(tmp_path / "photos", 0), make_result(tmp_path / "photos", 1, (33, 48))]


def written(results, folder, name, per="region"):
    (dataset,) = open_datasets([name], folder, CLASSES, per).values()
    for result in results:
        dataset.put(result, result.source.split("/")[-1][:-4])
    return dataset.close()


def painted(masks, shape):
    """Labels [H,W] from (class, mask) pairs that must not overlap; 255 where there is none."""
    labels = np.full(shape, 255)
    for index, mask in masks:
        assert (labels[mask] == 255).all()
        labels[mask] = index
    return labels


@pytest.mark.parametrize("per", ["region", "class"])
def test_pieces_tile_the_known_pixels(results, per):
    for result in results:
        found = list(pieces(result, per))
        shape = result.segmentation.shape
        labels = painted([(one.class_index, one.full(*shape)) for one in found], shape)
        assert np.array_equal(labels, result.segmentation.numpy())
        for one in found:
            assert one.mask.any(0)[[0, -1]].all()
            assert one.mask.any(1)[[0, -1]].all()
            assert one.score == pytest.approx(result.confidence.numpy()[one.full(*shape)].mean(), abs=1e-6)
        assert len(found) == (3 if per == "class" else sum(result.regions.class_index < 3))


def test_pieces_refuse_other_words(results):
    with pytest.raises(ValueError, match="per: expected region or class, received 'pixel'"):
        list(pieces(results[0], "pixel"))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("per", ["region", "class"])
def test_coco_of_a_run(results, tmp_path, per, capsys):
    from pycocotools.coco import COCO

    path = written(results, tmp_path / "out", "coco-dataset", per)
    coco = COCO(str(path))
    assert set(coco.dataset) == {"info", "licenses", "images", "categories", "annotations"}
    assert [(row["id"], row["name"], row["class_id"]) for row in coco.loadCats(coco.getCatIds())] == [
        (1, "sky", 0),
        (2, "house & <hut>", 1),
        (3, "木", 2),
    ]
    assert sorted(coco.getAnnIds()) == list(range(1, len(coco.dataset["annotations"]) + 1))
    for number, result in enumerate(results, 1):
        assert coco.loadImgs(number)[0]["file_name"] == f"a{number - 1}.png"
        rows = coco.loadAnns(coco.getAnnIds(number))
        masks = [(row["category_id"] - 1, coco.annToMask(row).astype(bool)) for row in rows]
        assert np.array_equal(painted(masks, result.segmentation.shape), result.segmentation.numpy())
        for row, (_, mask) in zip(rows, masks, strict=True):
            y, x = np.nonzero(mask)
            assert row["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert row["area"] == mask.sum()


def test_coco_counts_are_those_of_pycocotools(results):
    from pycocotools import mask as rle

    height, width = results[0].segmentation.shape
    for piece in [*pieces(results[0]), *pieces(results[0], "class")]:
        ours = rle.frPyObjects({"size": [height, width], "counts": coco_counts(piece, height, width)}, height, width)
        assert ours["counts"] == rle.encode(np.asfortranarray(piece.full(height, width), np.uint8))["counts"]


@pytest.mark.parametrize("per", ["region", "class"])
def test_yolo_data_set_is_read_by_supervision(results, tmp_path, per):
    import supervision

    folder = written(results, tmp_path / "out", "yolo", per)
    read = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
    )
    assert read.classes == list(NAMES)
    by_name = {path.split("/")[-1]: (picture, found) for path, picture, found in read}
    for result in results:
        picture, found = by_name[result.source.split("/")[-1]]
        assert np.array_equal(picture[..., ::-1], result.image.permute(1, 2, 0).numpy())
        labels = np.full(result.segmentation.shape, 255)
        for index, mask in zip(found.class_id, found.mask, strict=True):
            labels[mask] = index
        # A cut to a hole is a line of pixels; nothing else may differ.
        assert (labels == result.segmentation.numpy()).mean() > 0.985


def test_yolo_keeps_holes_open():
    import cv2

    from s2clip.results.formats.yolo import polygons

    ring = np.ones((20, 20), bool)
    ring[6:14, 6:14] = False
    (polygon,) = polygons(ring)
    drawn = cv2.fillPoly(np.zeros((20, 20), np.uint8), [polygon.astype(np.int32)], 1).astype(bool)
    assert np.array_equal(drawn, ring)
    assert len(polygons(np.ones((1, 1), bool))[0]) == 3


def test_label_studio_predictions_are_decoded_by_its_converter(results, tmp_path):
    from label_studio_sdk.converter import brush

    path = written(results, tmp_path / "out", "label-studio", "class")
    tasks = json.loads(path.read_text())
    assert [task["data"]["image"] for task in tasks] == ["a0.png", "a1.png"]
    for task, result in zip(tasks, results, strict=True):
        (prediction,) = task["predictions"]
        height, width = result.segmentation.shape
        masks = []
        for row in prediction["result"]:
            assert (row["original_height"], row["original_width"]) == (height, width)
            (label,) = row["value"]["brushlabels"]
            rgba = brush.decode_rle(row["value"]["rle"]).reshape(height, width, 4)
            assert set(np.unique(rgba)) <= {0, 255}
            masks.append((NAMES.index(label), rgba[..., 3] > 0))
        assert np.array_equal(painted(masks, (height, width)), result.segmentation.numpy())


def test_long_runs_of_a_brush_are_split():
    from label_studio_sdk.converter import brush

    mask = np.zeros((300, 400), bool)
    mask[100:290] = True
    assert np.array_equal(brush.decode_rle(label_studio_rle(mask)).reshape(300, 400, 4)[..., 0] > 0, mask)
    rows = [brush.decode_rle(brush.mask2rle(mask * np.uint8(255))), brush.decode_rle(label_studio_rle(mask))]
    assert np.array_equal(*rows)


def test_the_labelling_set_up_names_what_the_predictions_name(results, tmp_path):
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

    written(results, tmp_path / "out", "label-studio")
    config = parse_config((tmp_path / "out/label-studio.xml").read_text())
    assert config["label"]["type"] == "BrushLabels"
    assert config["label"]["to_name"] == ["image"]
    assert config["label"]["labels"] == list(NAMES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("per", ["region", "class"])
def test_cvat_masks_are_read_by_datumaro(results, tmp_path, per):
    from datumaro.plugins.data_formats.cvat.base import CvatBase

    path = written(results, tmp_path / "out", "cvat", per)
    (tmp_path / "out/images").mkdir()
    for result in results:  # where datumaro looks for the pictures
        name = result.source.split("/")[-1]
        (tmp_path / "out/images" / name).write_bytes((tmp_path / "photos" / name).read_bytes())
    read = CvatBase(str(path))
    (categories,) = read.categories().values()
    assert [label.name for label in categories] == list(NAMES)
    for item, result in zip(read, results, strict=True):
        masks = [(one.label, np.asarray(one.image).astype(bool)) for one in item.annotations]
        assert np.array_equal(painted(masks, result.segmentation.shape), result.segmentation.numpy())


@pytest.fixture
def labelme(monkeypatch):
    """labelme's own reader, without the screen and the network that its programs need."""
    for name in ("onnxruntime", "PyQt5", "PyQt5.QtCore", "PyQt5.QtGui", "PyQt5.QtWidgets"):
        monkeypatch.setitem(sys.modules, name, MagicMock(spec=ModuleType, name=name))
        for part in ("QtCore", "QtGui", "QtWidgets"):
            setattr(sys.modules[name], part, MagicMock())
    yield importlib.import_module("labelme")
    for name in [name for name in sys.modules if name.split(".")[0] == "labelme"]:
        monkeypatch.delitem(sys.modules, name)


def test_labelme_reads_masks_and_finds_the_picture(results, tmp_path, labelme):
    (result, _) = results
    path = result.save(tmp_path / "out/deep", ("labelme",))["labelme"]
    read = labelme.LabelFile(str(path))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(read.image_data))), result.image.permute(1, 2, 0).numpy())
    numbers = {name: index + 1 for index, name in enumerate(NAMES)}
    labels, instances = labelme.utils.shapes_to_label(result.segmentation.shape, read.shapes, numbers)
    assert np.array_equal(np.where(labels == 0, 255, labels - 1), result.segmentation.numpy())
    assert instances.max() == len(read.shapes)


def test_labelme_holds_a_picture_that_is_in_no_file(results, tmp_path):
    image = results[0].image
    result = Result(results[0].segmentation, results[0].confidence, CLASSES, image=image)
    document = json.loads(result.save(tmp_path, ("labelme",))["labelme"].read_text())
    inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(document["imageData"]))))
    assert np.array_equal(inside, image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("per", ["region", "class"])
def test_supervision_draws_our_detections(results, per):
    import supervision

    for result in results:
        found = result.to_supervision(per)
        masks = list(zip(found.class_id, found.mask, strict=True))
        assert np.array_equal(painted(masks, result.segmentation.shape), result.segmentation.numpy())
        assert np.array_equal(found.xyxy, supervision.mask_to_xyxy(found.mask))
        assert found.data["class_name"].tolist() == [NAMES[index] for index in found.class_id]
        picture = np.ascontiguousarray(result.image.permute(1, 2, 0).numpy())
        assert not np.array_equal(supervision.MaskAnnotator().annotate(picture.copy(), found), picture)


def test_nothing_known_is_no_detection():
    result = Result(torch.full((4, 5), 255), torch.zeros(4, 5), CLASSES)
    found = result.to_supervision()
    assert (len(found), found.mask.shape) == (0, (0, 4, 5))
    assert result.to_transformers() == []


def test_transformers_dicts_have_the_pipelines_form(results):
    answer = results[0].to_transformers()
    assert [row["label"] for row in answer] == list(NAMES)
    masks = [(index, np.asarray(row["mask"]) == 255) for index, row in enumerate(answer)]
    assert {row["mask"].mode for row in answer} == {"L"}
    assert np.array_equal(painted(masks, results[0].segmentation.shape), results[0].segmentation.numpy())


def test_a_run_that_breaks_off_leaves_no_half_file(results, tmp_path, monkeypatch):
    for name in DATASETS:
        (dataset,) = open_datasets([name], tmp_path / name, CLASSES).values()
        dataset.put(results[0], "a0")
        monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            dataset.close()
        monkeypatch.undo()
        left = [path.name for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert sorted(left) == (["a0.png", "a0.txt"] if name == "yolo" else [])


def test_the_command_writes_one_data_set_for_all_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, seed in (("one", 0), ("two", 1)):
        (tmp_path / folder).mkdir()
        Image.fromarray(scenes.generate(seed, (48, 64))[0]).save(tmp_path / folder / "a.png")
    command = ["segment", "one", "two", "gone.png", "--classes", "sky, grass, house", "--method", "clip", "--json"]
    formats = ",".join(("png", *DATASETS))
    done = CliRunner().invoke(cli.main, [*command, "--format", formats, "--per", "class", "--no-names"])
    assert done.exit_code == 1, done.output
    coco = json.loads((tmp_path / "out/annotations.coco.json").read_text())
    assert [row["file_name"] for row in coco["images"]] == ["one/a.png", "two/a.png"]
    images = (tmp_path / "out/yolo/images").glob("*/*")
    assert sorted(path.parent.name for path in images) == ["one", "two"]
    assert (tmp_path / "out/cvat.xml").is_file()
    assert len(json.loads((tmp_path / "out/label-studio.json").read_text())) == 2
    again = CliRunner().invoke(cli.main, [*command, "--format", "cvat", "--resume"])
    assert again.exit_code == 2
    assert "a data set of the run (cvat) is written in one go" in again.stderr
    files = json.loads(done.stdout)["images"][1]["files"]
    assert files["coco-dataset"] == "out/annotations.coco.json"


@pytest.mark.parametrize("arguments", [("--per", "pixel"), ("--format", "yolov8")])
def test_other_words_are_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    done = CliRunner().invoke(cli.main, ["segment", "a.png", "--classes", "sky", *arguments])
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()
