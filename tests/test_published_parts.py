"""Parts of CLIPSurgery and SC-CLIP: which blocks, which patches are anomalous, feature surgery."""

import pytest
import torch
import torch.nn.functional as F
from dense_published import GRID, dense_anomalies, dense_repair, dense_surgery
from small_models import picture, small_clip

from s2clip.published.clipsurgery import feature_surgery, heat_maps, surgery_tokens
from s2clip.published.scclip import Blocks, ScClip, largest_norms, repair, strange_neighbourhoods
from s2clip.published.two_paths import resolve_depth


@pytest.fixture(scope="module")
def clip():
    return small_clip().double()


@pytest.fixture(scope="module")
def images():
    return torch.stack([picture(48, 80, seed) for seed in (3, 4)]).double() / 255


# Which blocks


def test_published_depths_and_those_of_smaller_models():
    assert [resolve_depth(None, layers) for layers in (12, 24, 32, 6, 2, 1)] == [6, 6, 6, 6, 2, 1]
    assert resolve_depth(5, 6) == 5
    with pytest.raises(ValueError, match=r"extension\.depth: expected at most the model's 6 blocks, received 7"):
        resolve_depth(7, 6)


def test_published_blocks_of_sc_clip_and_those_of_other_models():
    """B/16: outputs 8, 3 and 3..9, counted from 0, ρ 0.3; L/14: 16, 6 and 8..18, ρ 0.1."""
    method = ScClip()
    assert method.resolve_blocks(12) == Blocks(repaired=9, late=4, first=4, last=10)
    assert method.resolve_blocks(24) == Blocks(repaired=17, late=7, first=9, last=19)
    assert method.resolve_blocks(6) == Blocks(repaired=4, late=2, first=2, last=5)
    assert [method.resolve_residual_cls(layers) for layers in (6, 12, 24, 32)] == [0.3, 0.3, 0.1, 0.1]
    for layers in range(2, 40):
        blocks = method.resolve_blocks(layers)
        assert min(blocks) >= 1
        assert max(blocks) < layers
        assert blocks.first <= blocks.last
    with pytest.raises(
        ValueError, match=r"extension\.blocks: expected blocks 1\.\.5 of a model with 6, received \(3, "
    ):
        ScClip(blocks=(3, 2, 1, 6)).resolve_blocks(6)


# Parts of SC-CLIP


def test_anomalies_are_those_of_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 60, 24, generator=generator)
    patches[0, 17] *= 6
    for neighbors in (1, 5, 30, 100):
        strange = strange_neighbourhoods(patches, neighbors, 0.05)
        for own, expected in zip(strange, patches, strict=True):
            assert set(own.nonzero().flatten().tolist()) == dense_anomalies(expected.double(), neighbors)
    assert strange[0, 17]
    assert strange.sum(1).tolist() == [3, 3]


def test_ten_of_196_patches_are_anomalous_either_way():
    patches = torch.randn(1, 196, 24, generator=torch.Generator().manual_seed(1))
    assert strange_neighbourhoods(patches, 30, 0.05).sum() == 10
    strange = largest_norms(patches, 0.05)
    assert strange.sum() == 10
    norms = patches[0].norm(dim=1)
    assert norms[strange[0]].min() > norms[~strange[0]].max()


@pytest.mark.parametrize("count", [1, 2, 60])
def test_equal_patches_are_not_anomalous(count):
    patches = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(2)).expand(2, count, 24)
    assert not strange_neighbourhoods(patches, 30, 0.05).any()


def test_repair_takes_sound_neighbours_only():
    patches = torch.randn(1, 60, 5, generator=torch.Generator().manual_seed(3))
    strange = torch.zeros(1, 60, dtype=torch.bool)
    strange[0, [0, 1, 10, 11, 25, 59]] = True  # patch 0 has no sound neighbour
    repaired = repair(patches, strange, GRID)
    expected = dense_repair(patches[0], set(strange[0].nonzero().flatten().tolist()))
    torch.testing.assert_close(repaired[0], expected)
    assert torch.equal(repaired[0, 0], patches[0, 0])
    assert torch.equal(repaired[:, ~strange[0]], patches[:, ~strange[0]])


# Feature surgery


def test_feature_surgery_is_the_published_product_form(clip, images):
    """Element-wise: ẑ_i ∘ t_t times w_t, less its mean over the prompts, summed over the channels."""
    text = F.normalize(torch.randn(4, clip.embed_dim, generator=torch.Generator().manual_seed(4)), dim=1)
    with torch.inference_mode():
        tokens, grid = surgery_tokens(images, clip)
        assert grid == GRID
        received = feature_surgery(tokens, text)
        for own, maps, image in zip(tokens, received, images, strict=True):
            path, trained = dense_surgery(clip, image)
            dense = clip.head(torch.cat([trained[:1], path[1:]]))
            dense = dense / dense.norm(dim=1, keepdim=True)
            torch.testing.assert_close(own, dense)
            weights = torch.softmax(2 * dense[0] @ text.double().T, 0)
            weights = weights / weights.mean()
            product = dense[1:, None, :] * text * weights[:, None]
            torch.testing.assert_close(maps, (product - product.mean(1, keepdim=True)).sum(-1), atol=2e-6, rtol=0)


def test_a_single_prompt_is_compared_with_the_empty_one():
    tokens, text, empty = (
        F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(5)), dim=-1)
        for shape in ((1, 4, 8), (1, 8), (8,))
    )
    expected = torch.tensor([[[float(token @ text[0] - token @ empty)] for token in tokens[0, 1:]]])
    torch.testing.assert_close(feature_surgery(tokens, text, empty=empty), expected)
    with pytest.raises(ValueError, match="empty: expected the text vector of the empty string, for a single prompt"):
        feature_surgery(tokens, text)


def test_heat_maps_span_0_to_1_for_every_prompt(clip, images):
    text = F.normalize(torch.randn(3, clip.embed_dim, generator=torch.Generator().manual_seed(6)), dim=1)
    maps = heat_maps(images, clip, text)
    assert maps.shape == (2, 3, 48, 80)
    assert (maps.flatten(2).amin(2) < 0.1).all()
    assert (maps.flatten(2).amax(2) > 0.9).all()
    assert maps.min() >= 0
    assert maps.max() <= 1
    with torch.inference_mode():
        tokens, _ = surgery_tokens(images[:1], clip)
        peak = feature_surgery(tokens, text)[0, :, 1].argmax()
    row, column = divmod(int(peak), 10)
    assert maps[0, 1, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].max() == maps[0, 1].max()
