"""SAM refinement through the Segmenter: results, shared models, anybody's maps."""

import pytest
import torch
import torch.nn.functional as F
from small_models import coarse_map, picture, small_clip, small_sam, small_vfm

from s2clip.backbones.sam import SamFeatures, encode_images
from s2clip.errors import RefinementError
from s2clip.published.catalogue import get_method
from s2clip.refinement import sam
from s2clip.refinement.refiner import Refiner, load_refiner
from s2clip.refinement.settings import Refinement
from s2clip.segmenter import Segmenter

NAMES = ("sky", "house; hut", "tree", "green grass")


@pytest.fixture(scope="module")
def segmenter():
    fields = {"short_side": 40, "crop": 32, "stride": 16, "templates": "plain"}
    refiner = Refiner(
        small_sam(), Refinement(minimal_area=4, coarse_threshold=0.0, sam_iou_threshold=-1e6), name="small"
    )
    made = Segmenter(
        small_clip(), vfm=small_vfm(), refiner=refiner, method=get_method("s2clip", **fields), mix_pictures=False
    )
    return made.set_classes(NAMES)


class TestSegmenter:
    def test_result(self, segmenter):
        result = segmenter(picture(40, 60))
        assert set(result.timings) >= {"sam_encoder", "components", "prompts", "decoder", "merge", "classify"}
        assert result.settings["refine"] == "sam"
        assert result.settings["sam"] == "small"
        assert result.settings["refinement"]["minimal_area"] == 4
        assert result.segmentation.shape == result.coarse.shape == (40, 60)
        assert (result.segmentation != result.coarse).any()
        assert 0 <= result.confidence.min() <= result.confidence.max() <= 1
        assert len(result.refined.predicted_iou) == len(result.refined.regions.box) > 0
        assert result.regions.box.shape[1] == 4
        result.segmentation[0, 0] = 3  # an inference tensor would refuse

    def test_a_picture_is_embedded_once_for_many_words(self, segmenter, monkeypatch):
        calls, embed = [], segmenter.refiner.embed
        monkeypatch.setattr(segmenter.refiner, "embed", lambda image: calls.append(image) or embed(image))
        encoded = segmenter.encode(picture(40, 60))
        first = segmenter.segment(encoded)
        segmenter.segment(encoded, ["cat", "dog"])
        assert len(calls) == 1
        assert torch.equal(first.segmentation, segmenter.segment(encoded).segmentation)

    def test_mixing_pictures_gives_the_same_results(self, segmenter, monkeypatch):
        pictures = [picture(40, 60), picture(33, 20, seed=1)]
        alone = segmenter(pictures)
        monkeypatch.setattr(segmenter._encoder, "mix_pictures", True)
        for one, other in zip(segmenter(pictures), alone, strict=True):
            assert (one.segmentation != other.segmentation).float().mean() < 1e-2
            assert one.timings["decoder"] > 0

    def test_failure_holds_the_coarse_results(self, segmenter, monkeypatch):
        monkeypatch.setattr(sam, "decode", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
        with pytest.raises(RefinementError, match="no room") as caught:
            segmenter(picture(40, 60))
        assert caught.value.coarse[0].segmentation.shape == (40, 60)

    def test_anybodys_map(self, segmenter):
        labels, probability = coarse_map((40, 60), 2)
        result = segmenter.refine(picture(40, 60), labels.to(torch.uint8), probability)
        assert result.classes == tuple(map(str, range(6)))
        assert torch.equal(result.coarse, labels)
        assert (result.segmentation != labels).any()
        low = F.interpolate(probability[None], (20, 30), mode="bilinear")[0]
        assert segmenter.refine(picture(40, 60), labels.numpy(), low.numpy()).segmentation.shape == (40, 60)
        assert segmenter.refine(picture(40, 60), labels % 4, probability[:4]).classes == NAMES

    def test_anybodys_map_must_fit(self, segmenter):
        labels, probability = coarse_map((40, 60), 2)
        for arguments, message in (
            (
                (labels[:-1], probability),
                r"labels: expected integers \[H,W\] = \[40, 60\], received torch.int64 \[39, 60\]",
            ),
            ((labels.float(), probability), "labels: expected integers"),
            ((labels, probability[0]), r"scores: expected floats \[K,h,w\]"),
            ((labels, probability * float("nan")), "scores: expected finite"),
        ):
            with pytest.raises(ValueError, match=message):
                segmenter.refine(picture(40, 60), *arguments)
        plain = Segmenter(segmenter.clip, vfm=segmenter.vfm, method=segmenter.method)
        with pytest.raises(ValueError, match="refine: expected a Segmenter with refine='sam'"):
            plain.refine(picture(40, 60), labels, probability)

    def test_other_options_share_the_models(self, segmenter):
        other = segmenter.with_refinement(use_box=False)
        assert other.refiner.sam is segmenter.refiner.sam
        assert other.settings["refinement"]["use_box"] is False
        assert segmenter.settings["refinement"]["use_box"] is True

    def test_sam_as_features_and_refinement_sees_a_picture_once(self, monkeypatch):
        model = small_sam()
        features = SamFeatures(model, name="sam-tiny")
        refiner = load_refiner("sam-tiny", Refinement(), vfm=features)
        assert refiner.sam is model
        calls, encode = [], model.image_encoder.forward
        monkeypatch.setattr(model.image_encoder, "forward", lambda x: calls.append(x) or encode(x))
        image = picture(48, 64)
        features.features(image[None].float() / 255)
        seen = refiner.embed(image)
        assert len(calls) == 1
        refiner.embed(picture(48, 64, seed=1))
        assert len(calls) == 2
        torch.testing.assert_close(seen.features, encode_images(small_sam(), image[None].float() / 255)[0])
