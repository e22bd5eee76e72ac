"""Region ids of pictures: SAM's automatic masks against segment_anything's generator, folders, arrays, the program."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from small_models import picture, small_clip, small_sam, small_vfm

from s2clip import Segmenter, scenes
from s2clip.backbones.sam import encode_images, load_sam
from s2clip.cli import main
from s2clip.errors import DatasetError
from s2clip.pictures.reading import Failure
from s2clip.published.catalogue import get_method
from s2clip.refinement import automatic
from s2clip.refinement.automatic import AutomaticMasks, Masks, SamRegions, generate_masks, paint, resolve_automatic
from s2clip.refinement.regions import FolderRegions, region_source

LENIENT = AutomaticMasks(points_per_side=9, iou_threshold=0.2, stability_threshold=0.3, offset=0.8, box_overlap=0.6)


def published(sam, pixels, settings):
    """segment_anything's masks by falling predicted IoU; the picture fills its frame, so that nothing is resized."""
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings.points_per_side,
        points_per_batch=7,
        pred_iou_thresh=settings.iou_threshold,
        stability_score_thresh=settings.stability_threshold,
        stability_score_offset=settings.offset,
        box_nms_thresh=settings.box_overlap,
    )
    found = generator.generate(pixels.permute(1, 2, 0).numpy())
    return sorted(found, key=lambda mask: -mask["predicted_iou"])


class TestAutomaticMasks:
    @pytest.mark.parametrize("seed", [300, 301])
    @pytest.mark.parametrize("chunk", [5, 64])
    def test_are_those_of_segment_anything(self, seed, chunk, monkeypatch):
        """Of the tiny SAM, on pictures that fill its frame's width: neither side resizes them."""
        monkeypatch.setattr(automatic, "POINTS", chunk)
        sam = load_sam("sam-tiny")
        frame = sam.image_encoder.img_size
        monkeypatch.setattr(automatic, "PIXELS", chunk * frame**2)
        pixels = torch.from_numpy(scenes.generate(seed, (frame * 3 // 4, frame))[0]).permute(2, 0, 1)
        assert max(pixels.shape) == frame
        expected = published(sam, pixels, LENIENT)
        masks, input_size = generate_masks(sam, pixels, LENIENT)
        assert len(masks.area) == len(expected) > 5
        full = torch.cat(list(automatic.at_full_size(masks.logits, input_size, tuple(pixels.shape[1:]), sam)))
        for row, mask in enumerate(expected):
            assert (full[row] > 0).ne(torch.from_numpy(mask["segmentation"])).sum() <= 2
            assert float(masks.predicted_iou[row]) == pytest.approx(mask["predicted_iou"], abs=1e-4)
            assert float(masks.stability[row]) == pytest.approx(mask["stability_score"], abs=1e-2)
            assert int(masks.area[row]) == pytest.approx(mask["area"], abs=2)
            x, y, width, height = mask["bbox"]
            assert masks.boxes[row].tolist() == pytest.approx([x, y, x + width, y + height], abs=1)

    def test_small_masks_lie_on_large_ones_unless_published(self):
        logits = torch.full((2, 8, 8), -4.0)
        logits[0, 2:4, 2:4] = 4
        logits[1, 1:7, 1:7] = 4
        nothing = torch.zeros(2)
        masks = Masks(logits, nothing, nothing, torch.zeros(2, 4), torch.tensor([4, 36]))
        sam = small_sam()
        sam.image_encoder.img_size = 8
        assert paint(masks, sam, (8, 8), (8, 8), False)[2:4, 2:4].unique().tolist() == [2]
        hidden = paint(masks, sam, (8, 8), (8, 8), True)
        assert hidden.unique().tolist() == [0, 2]
        assert int((hidden == 2).sum()) == 36

    def test_no_mask_is_no_region(self):
        source = SamRegions(small_sam(), replace(LENIENT, iou_threshold=1e6))
        assert not source(picture(30, 41)).any()

    def test_the_embedding_is_there_for_a_refinement(self, monkeypatch):
        sam, calls = small_sam(), []
        source = SamRegions(sam, LENIENT)
        encode = sam.image_encoder.forward
        monkeypatch.setattr(sam.image_encoder, "forward", lambda frame: calls.append(1) or encode(frame))
        pixels = picture(48, 64)
        source(pixels)
        with torch.inference_mode():
            encode_images(sam, pixels[None].float() / 255)
        assert len(calls) == 1

    def test_on_the_tiny_sam(self):
        """Scene 300: regions of some size, and most of them of one class."""
        pixels, labels = scenes.generate(300)
        source = SamRegions(load_sam("sam-tiny"), resolve_automatic("sam-tiny", {"iou_threshold": 0.4}), "sam-tiny")
        ids = source(torch.from_numpy(pixels).permute(2, 0, 1))
        assert ids.shape == labels.shape
        assert ids.max() >= 2
        pure = sum(np.bincount(labels[ids == index]).max() for index in ids[ids > 0].unique())
        assert pure > 0.6 * int((ids > 0).sum())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"points_per_side": 0}, r"AutomaticMasks\.points_per_side: expected a whole number >= 1, received 0"),
            ({"stability_threshold": 2}, r"AutomaticMasks\.stability_threshold: expected a number in 0\.\.1"),
            ({"points": 3}, r"region_options: expected the fields points_per_side, .*, received 'points'"),
        ],
    )
    def test_settings_that_make_no_sense(self, options, message):
        with pytest.raises(ValueError, match=message):
            resolve_automatic("sam-vit-b", options)


def halves(height, width):
    ids = np.zeros((height, width), np.uint8)
    ids[:, width // 2 :] = 7
    return ids


@pytest.fixture
def folder(tmp_path):
    """Pictures and the ids of their regions; one of them has none, and one is of another size."""
    regions = tmp_path / "regions"
    regions.mkdir()
    for index, size in enumerate([(40, 60), (30, 33), (50, 20), (20, 20)]):
        pixels = picture(*size, seed=index).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    Image.fromarray(halves(40, 60)).save(regions / "0.png")
    Image.fromarray(halves(30, 33).astype(np.uint16) * 100).save(regions / "1.png")
    Image.fromarray(halves(20, 50)).save(regions / "2.png")
    return tmp_path


class TestFolders:
    def test_ids_as_they_stand_in_the_file(self, folder):
        source = FolderRegions(folder / "regions")
        ids = source(picture(40, 60), str(folder / "0.png"))
        assert ids.dtype == torch.int64
        assert torch.equal(ids, torch.from_numpy(halves(40, 60)).long())
        assert source(picture(30, 33), "elsewhere/1.jpg").unique().tolist() == [0, 700]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("3.jpg", r"regions/3\.png: no regions for 3\.jpg; write the ids"),
            ("2.jpg", r"regions/2\.png: expected 20x50 pixels as in 2\.jpg, received 50x20"),
            (None, r"a picture without a path"),
        ],
    )
    def test_what_cannot_be_used_is_one_line(self, folder, name, message):
        with pytest.raises(DatasetError, match=message) as caught:
            FolderRegions(folder / "regions")(picture(50, 20), name)
        assert "\n" not in str(caught.value)

    def test_a_picture_without_regions_fails_alone(self, folder):
        segmenter = small_segmenter(region_source(folder / "regions"))
        results = list(segmenter.stream([folder / f"{index}.png" for index in range(4)], on_error="record"))
        assert [isinstance(result, Failure) for result in results] == [False, False, True, True]

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"regions: expected 'sam' or a folder of PNGs with region ids, received"):
            Segmenter.from_pretrained("tiny", method="corrclip", regions=tmp_path / "none")


def small_segmenter(regions):
    method = get_method("corrclip", short_side=40, crop=32, stride=16, templates="plain")
    made = Segmenter(small_clip(), vfm=small_vfm(), method=method, regions=regions)
    return made.set_classes(["red", "green", "blue"])


def test_an_array_and_a_function_are_regions(folder):
    ids, image = halves(40, 60), folder / "0.png"
    expected = small_segmenter(region_source(folder / "regions"))(image).segmentation
    for regions in (ids, torch.from_numpy(ids), lambda pixels, source: torch.from_numpy(ids)):
        assert torch.equal(small_segmenter(region_source(regions))(image).segmentation, expected)
    with pytest.raises(ValueError, match=r"regions: expected integers \[H,W\] = \[30, 33\]"):
        small_segmenter(region_source(ids))(folder / "1.png")


class TestTiny:
    """The embedded models, end to end."""

    def test_true_regions_help(self):
        pixels, labels = scenes.generate(301)
        image, truth = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)
        segmenter = Segmenter.from_pretrained("tiny", method="corrclip", regions=truth + 1)
        right = (segmenter.set_classes(scenes.CLASSES)(image).segmentation == truth).float().mean()
        assert right > 0.97

    def test_sam_is_shared_with_the_refinement(self):
        options = {"points_per_side": 3}
        segmenter = Segmenter.from_pretrained(
            "tiny", method="corrclip", regions="sam", region_options=options, refine="sam"
        )
        assert segmenter.regions.sam is segmenter.refiner.sam
        assert segmenter.settings["regions"]["points_per_side"] == 3
        assert segmenter.settings["regions"]["sha256"] == segmenter.refiner.sam.fingerprint.sha256

    def test_methods_without_regions_load_no_sam(self):
        segmenter = Segmenter.from_pretrained("tiny", method="naclip", regions="sam")
        assert segmenter.regions is None
        assert segmenter._models.sam is None

    def test_program(self, folder):
        arguments = ["segment", str(folder / "0.png"), str(folder / "3.png"), "--classes", "sky, tree"]
        arguments += ["--method", "corrclip", "--regions", str(folder / "regions"), "-o", str(folder / "out"), "-q"]
        outcome = CliRunner().invoke(main, arguments)
        assert outcome.exit_code == 1  # 3.png has no regions
        assert "no regions for" in outcome.output
        run = json.loads((folder / "out" / "run.json").read_text())
        assert run["settings"]["regions"] == str(folder / "regions")
        assert (folder / "out" / "0.png").is_file()
