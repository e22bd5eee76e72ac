"""How published code resizes, pads and places windows: `round_pixels` and `pad_multiple`, and who has them."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_models import picture, small_clip, small_vfm

from s2clip import Segmenter
from s2clip.encoding.features import patch_features
from s2clip.evaluation.benchmarks import DATASETS
from s2clip.evaluation.presets import preset
from s2clip.pictures.windows import resize
from s2clip.published.catalogue import METHODS, get_method
from s2clip.words.text import TextEncoder

WORDS = ["sky", "house", "sea", "tree"]
WHOLE = {"short_side": None, "long_side": None, "crop": None}


@pytest.mark.parametrize(
    ("old", "new"), [((91, 123), (48, 64)), ((96, 128), (160, 213)), ((375, 500), (336, 448)), ((5, 300), (34, 2048))]
)
def test_rounded_pixels_are_opencvs(old, new):
    image = picture(*old)
    expected = cv2.resize(image.permute(1, 2, 0).numpy(), new[::-1], interpolation=cv2.INTER_LINEAR)
    levels = resize(image, new, rounded=True).mul(255).round().permute(1, 2, 0).numpy()
    assert (levels == expected).all()


def test_rounding_reaches_the_windows_and_pamr_not_the_default():
    image = picture(60, 90)
    fields = {"short_side": 48, "long_side": None, "crop": None}
    plain, rounded = (
        Segmenter(small_clip(), method=get_method("naclip", round_pixels=on, **fields)).encode(image)
        for on in (False, True)
    )
    whole = cv2.resize(image.permute(1, 2, 0).numpy(), (72, 48), interpolation=cv2.INTER_LINEAR)
    whole = torch.from_numpy(whole).permute(2, 0, 1)
    same = Segmenter(small_clip(), method=get_method("naclip", **fields)).encode(whole)
    torch.testing.assert_close(rounded.features, same.features, rtol=0, atol=1e-5)
    assert (plain.features - rounded.features).abs().max() > 1e-4
    edges = {"pamr_iterations": 3, "pamr_dilations": (1, 2)}
    labels = [
        Segmenter(small_clip(), method=get_method("naclip", round_pixels=on, **fields, **edges)).set_classes(WORDS)
        for on in (False, True)
    ]
    maps = [one.scores(one.encode(image)).whole((60, 90)) for one in labels]
    assert 0 < (maps[0] - maps[1]).abs().max() < 0.2


def test_clipers_pictures_are_pillows():
    image = picture(60, 90)
    method = get_method("cliper", short_side=48, round_pixels=True)
    resized = method.extension.prepare(image, method, 8).permute(1, 2, 0).numpy() * 255
    pillow = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((72, 48), Image.Resampling.BICUBIC))
    assert np.abs(resized - resized.round()).max() < 1e-4
    difference = np.abs(resized - pillow)
    assert difference.max() < 1.01
    assert (difference > 0.5).mean() < 0.01  # Pillow's weights have 22 bits


@pytest.mark.parametrize("size", [(45, 61), (40, 63), (16, 71)])
def test_a_floored_grid_is_stretched_over_the_picture(size):
    """As NACLIP's code on whole pictures: the convolution drops the rest, the upsampling fills the picture."""
    clip, image = small_clip(), picture(*size)
    method = get_method("naclip", pad_multiple=1, **WHOLE)
    segmenter = Segmenter(clip, method=method).set_classes(WORDS)
    text = TextEncoder(clip)(WORDS)
    rows, columns = size[0] // 8, size[1] // 8
    seen = image[None, :, : rows * 8, : columns * 8].float() / 255
    features = patch_features(seen, METHODS["naclip"], clip)
    unit = F.normalize(clip.head(features.movedim(1, -1)), dim=-1)
    cosines = F.interpolate((unit @ text.T).movedim(-1, 1), size, mode="bilinear", align_corners=False)[0]
    expected = (method.logit_scale * cosines).softmax(0)
    encoded = segmenter.encode(image)
    torch.testing.assert_close(segmenter.scores(encoded).whole(size), expected, rtol=0, atol=1e-5)
    padded = Segmenter(clip, method=get_method("naclip", **WHOLE)).encode(image)
    assert padded.features.shape[-2:] == (-(-size[0] // 8), -(-size[1] // 8))


@pytest.mark.parametrize("patch", [8, 16])
def test_windows_padded_to_56_as_proxyclips(patch):
    """150x40 becomes 168x56; CLIP's patches of 16 leave 8 pixels out right and below, those of DINO none."""
    clip, vfm, image = small_clip(patch=patch), small_vfm(), picture(150, 40)
    method = get_method("proxyclip", pad_multiple=56, **WHOLE)
    segmenter = Segmenter(clip, vfm=vfm, method=method).set_classes(WORDS)
    window = clip.mean[..., None, None].flatten()[:, None, None].expand(3, 168, 56).clone()
    window[:, 9:159, 8:48] = image.float() / 255
    seen = window[None, :, : 168 // patch * patch, : 56 // patch * patch]
    states, grid = clip.hidden_states(seen)
    value = clip.project_attention(clip.project_value(states[-1]))[:, 1:].mT.unflatten(2, grid)
    value = F.interpolate(value, (42, 14), mode="bilinear").flatten(2).mT[0]
    unit = F.normalize(vfm.features(window[None]).flatten(1, 2)[0], dim=-1)
    similarity = (unit @ unit.T - 1.2 * (unit @ unit.T).mean()) * 3
    kept = (similarity >= 0) | torch.eye(len(unit), dtype=torch.bool)
    attention = similarity.masked_fill(~kept, float("-inf")).softmax(-1)
    joint = F.normalize(clip.head(attention @ value), dim=-1)
    cosines = (TextEncoder(clip)(WORDS) @ joint.T).unflatten(1, (42, 14))
    cosines = F.interpolate(cosines[None], (168, 56), mode="bilinear")[0][:, 9:159, 8:48]
    expected = (method.logit_scale * cosines).softmax(0)
    torch.testing.assert_close(segmenter.scores(segmenter.encode(image)).whole((150, 40)), expected, rtol=0, atol=2e-5)


def test_less_than_a_patch_is_refused():
    segmenter = Segmenter(small_clip(), method=get_method("naclip", pad_multiple=1, **WHOLE))
    with pytest.raises(ValueError, match=r"picture: expected at least one patch of 8 pixels .* received \(5, 90\)"):
        segmenter.encode(picture(5, 90))


@pytest.mark.parametrize(
    "fields", [{"pad_multiple": 0}, {"pad_multiple": 56, "merge": "splice"}, {"round_pixels": 1}, {"pad_multiple": 8.0}]
)
def test_values_that_mean_nothing_are_refused(fields):
    with pytest.raises(ValueError, match=r"Method\.(pad_multiple|round_pixels): expected"):
        get_method("proxyclip", **fields)
    with pytest.raises(ValueError, match=r"pad_multiple: expected None for gem"):
        get_method("gem", pad_multiple=8)


@pytest.mark.parametrize("dataset", DATASETS)
def test_presets_of_published_rows_have_the_published_geometry(dataset):
    rounded = {name for name in METHODS if preset(name, dataset).resolve("ViT-B-16").round_pixels}
    assert rounded == {"sclip", "clearclip", "naclip", "proxyclip", "corrclip", "scclip", "cliper", "trident"}
    padded = {name: preset(name, dataset).resolve("ViT-B-16").pad_multiple for name in METHODS}
    expected = {"naclip": 1, "proxyclip": 56, "corrclip": 56}
    assert padded == dict.fromkeys(METHODS) | expected
    sliding = {"voc21": 336, "context60": 224, "context59": 224, "coco_object": 224}
    assert preset("cliper", dataset).resolve("ViT-B-16").extension.sliding_crop == sliding.get(dataset)
    assert preset("cliper", dataset, "ViT-L-14").resolve("ViT-L-14").extension.sliding_crop is None
