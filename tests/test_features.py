"""The parts of the features, each by a property of its own; `test_methods` has the whole."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from small_models import picture, small_clip, small_vfm

from s2clip import ops
from s2clip.encoding.features import (
    aggregate,
    gaussian_bias,
    hierarchical_tokens,
    level_scores,
    patch_features,
    recombine,
)
from s2clip.published.catalogue import METHODS, get_method
from s2clip.stopwatch import Stopwatch

GRID = (4, 7)


@pytest.fixture(scope="module")
def clip():
    return small_clip().double()


def maps_of(count, seed=0, batch=2, width=12):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *GRID, width, generator=generator) for _ in range(count)]


def test_clip_is_the_last_block_as_trained(clip):
    x = torch.randn(2, 1 + 28, clip.width, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        expected = clip.block(x, clip.layers - 1)[:, 1:]
        torch.testing.assert_close(recombine(clip, x, METHODS["clip"], GRID), expected, rtol=1e-5, atol=1e-5)


def test_without_the_cls_token_it_has_no_influence(clip):
    x = torch.randn(1, 1 + 28, clip.width, generator=torch.Generator().manual_seed(0)).double()
    other = torch.cat([-x[:, :1], x[:, 1:]], 1)
    for name in ("clearclip", "naclip", "sclip"):
        method = METHODS[name]
        apart = dataclasses.replace(method, cls_token=False)
        with torch.inference_mode():
            assert not torch.allclose(recombine(clip, x, method, GRID), recombine(clip, other, method, GRID), atol=1e-4)
            assert torch.equal(recombine(clip, x, apart, GRID), recombine(clip, other, apart, GRID))


def test_gaussian_bias():
    bias = gaussian_bias((2, 3), 2.0, cls_token=True)
    assert bias.shape == (7, 7)
    assert bias[0].abs().sum() == bias[:, 0].abs().sum() == 0
    patches = bias[1:, 1:]
    assert torch.equal(patches, patches.T)
    assert torch.equal(patches.diagonal(), torch.ones(6))
    assert patches[0, 5].item() == pytest.approx(math.exp(-(1**2 + 2**2) / 8))  # (0,0) to (1,2)
    assert torch.equal(gaussian_bias((2, 3), 2.0, cls_token=False), patches)


def test_ordered_levels_weigh_more():
    """A map with a bright square has less spatial entropy than noise; τ sets how much that counts."""
    noise, ordered = maps_of(2)
    ordered = ordered * 0.01
    ordered[:, 1:3, 2:4] += 5
    weights = level_scores(torch.stack([noise, ordered]), 1.0).softmax(1)
    assert weights.shape == (2, 2)
    assert (weights[:, 1] > weights[:, 0]).all()
    sharp, flat = (level_scores(torch.stack([noise, ordered]), tau).softmax(1)[:, 1] for tau in (0.01, 100.0))
    assert (sharp > 0.999).all()
    assert (flat < 0.51).all()


def test_plain_hierarchy_is_the_weighted_sum():
    maps, scores = maps_of(3), torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])
    method = get_method("s2clip-source", progressive=False)
    weights = scores.softmax(1)
    expected = sum(weights[:, level, None, None, None] * maps[level] for level in range(3))
    torch.testing.assert_close(hierarchical_tokens(torch.stack(maps), scores, method), expected)


def test_progressive_levels_see_no_deeper_one():
    """The first level is smoothed by itself alone, the second by the first two: deeper maps do not reach back."""
    maps, scores, method = maps_of(3), torch.zeros(2, 3), METHODS["s2clip-source"]
    smooth = {"beta": method.beta, "gamma": method.gamma}
    expected = (
        ops.affinity_attention(maps[0], maps[0], **smooth)
        + ops.affinity_attention(maps[:2], maps[1], **smooth)
        + ops.affinity_attention(maps, maps[2], **smooth)
    ) / 3
    torch.testing.assert_close(hierarchical_tokens(torch.stack(maps), scores, method), expected, rtol=1e-5, atol=1e-5)


def test_a_level_that_all_but_vanishes_is_no_nan():
    maps, scores = maps_of(3), torch.tensor([[-1e4, 0.0, -1e4], [0.0, -1e4, -1e4]])
    tokens = hierarchical_tokens(torch.stack(maps), scores, METHODS["s2clip-source"])
    assert tokens.isfinite().all()


def test_the_affinity_mixes_vfm_and_levels_by_their_shares():
    """λ and (1-λ)ω, the levels resampled to the VFM's finer grid, the weights different in the two windows."""
    value, level, other = maps_of(3)
    proxy = torch.randn(2, 8, 14, 5, generator=torch.Generator().manual_seed(9))
    weights = torch.tensor([[0.25, 0.75], [0.6, 0.4]])
    method = get_method("s2clip", vfm_weight=0.3, beta=0.5)
    actual = aggregate(value, proxy, torch.stack([level, other]), weights, method)
    assert actual.shape == (2, 8, 14, 12)
    for window in range(2):
        similarity = 0
        for features, weight in ((proxy, 0.3), (level, 0.7 * weights[window, 0]), (other, 0.7 * weights[window, 1])):
            resized = F.interpolate(features[window : window + 1].permute(0, 3, 1, 2), (8, 14), mode="bilinear")
            unit = F.normalize(resized[0].flatten(1), dim=0)
            similarity = similarity + weight * unit.T @ unit
        shifted = method.gamma * (similarity - 0.5 * similarity.mean())
        attention = shifted.masked_fill(shifted < 0, -math.inf).softmax(-1)
        resized = F.interpolate(value[window : window + 1].permute(0, 3, 1, 2), (8, 14), mode="bilinear")[0].flatten(1)
        torch.testing.assert_close(actual[window].flatten(0, 1), attention @ resized.T, rtol=1e-4, atol=1e-5)


def test_models_are_asked_for_what_a_method_uses_only(clip):
    """No VFM pass without a share of it, and no levels where nothing uses them."""
    images, watch = picture(32, 56)[None] / 255, Stopwatch()
    with torch.inference_mode():
        patch_features(images, get_method("s2clip", mu=0.0, vfm_weight=None), clip, None, watch)
        assert set(watch.milliseconds()) == {"clip", "recombination"}
        patch_features(images, get_method("s2clip", mu=0.0, vfm_weight=1.0), clip, small_vfm(), watch)
        assert set(watch.milliseconds()) == {"clip", "recombination", "vfm", "affinity"}


def test_low_precision_follows_full_precision():
    """bf16 backbones (fp16's CPU stand-in) give the fp32 features to a few per cent."""
    full, low = small_clip(), small_clip().to(torch.bfloat16)
    images = picture(32, 56)[None] / 255
    for name in ("sclip", "naclip", "s2clip"):
        method = get_method(name, **({"vfm_weight": 0.0} if name == "s2clip" else {}))
        with torch.inference_mode():
            expected, actual = patch_features(images, method, full), patch_features(images, method, low)
        assert actual.dtype == torch.bfloat16
        assert F.cosine_similarity(actual.float(), expected, dim=1).mean() > 0.98
