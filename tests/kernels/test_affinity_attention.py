"""The affinity kernel against its reference.

The interpreter runs programs one after another in fp32: it shows the arithmetic, the masks and the bookkeeping, not the
tensor cores' products of half precision (bf16 tiles are cast to fp32 here), nor races between programs (there are none
to find: every element of every buffer has one writer).
"""

from collections import Counter

import pytest
import torch
from specialisations import recorded
from torch.nn import functional as F

from s2clip.kernels import affinity_attention, affinity_tiles, reference
from s2clip.testing import assert_within_budget

# Rows of the padding hold what was in memory; numpy warns of products with it, a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

BETA, GAMMA = 1.2, 3.0

# (batch, (H, W), (h, w), channels of each map, D): what the row is there for
SHAPES = {
    "one token": (1, (1, 1), (1, 1), (24,), 8),
    "prime sizes, same grid": (2, (5, 7), (5, 7), (24,), 16),
    "value grid two times coarser, two maps": (2, (10, 14), (5, 7), (24, 40), 16),
    "value grid coarser by odd factors, D across a tile": (1, (9, 13), (5, 4), (33,), 70),
    "value grid finer": (1, (6, 5), (9, 11), (16, 8, 8), 20),
    "value grid coarser in one axis only": (1, (12, 4), (3, 5), (16,), 8),
    "several tiles of rows": (2, (17, 9), (3, 5), (130,), 24),
}


def clustered(batch, size, channels, dtype, seed=0):
    """Maps whose cosines lie far from any threshold: each position is one of three directions plus 2 % of noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    member = torch.randint(3, (batch, height, width), generator=generator)
    maps = []
    for count in channels:
        centres = torch.linalg.qr(torch.randn(count, 3, generator=generator)).Q.T * 5
        noise = 0.02 * torch.randn(batch, height, width, count, generator=generator)
        maps.append((centres[member] + noise).to(dtype))
    return maps


def weights_of(batch, maps, seed=1):
    weights = torch.rand(batch, maps, generator=torch.Generator().manual_seed(seed)) + 0.1
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("poisoned")
def test_agrees_with_the_reference_in_double(shape, dtype):
    batch, size, value_size, channels, value_channels = shape
    features = clustered(batch, size, channels, dtype)
    value = torch.randn(batch, *value_size, value_channels, generator=torch.Generator().manual_seed(2)).to(dtype)
    arguments = (features, value, weights_of(batch, len(channels)), BETA, GAMMA, None)
    assert_within_budget(affinity_attention.launch(*arguments), reference.affinity_attention, *arguments)


def test_given_mean_replaces_the_image_mean():
    features = clustered(2, (6, 7), (24,), torch.float32)
    value = torch.randn(2, 6, 7, 8)
    arguments = (features, value, torch.ones(2, 1), BETA, GAMMA, torch.tensor([-0.9, 0.5]))
    result = affinity_attention.launch(*arguments)
    torch.testing.assert_close(result, reference.affinity_attention(*arguments))
    assert not torch.allclose(result, affinity_attention.launch(*arguments[:-1], None))


def test_flat_image_keeps_its_values():
    """All patches alike: mean S = 1 and the threshold beta > 1 removes all but the diagonal (the peers give NaN)."""
    features = [torch.ones(1, 4, 5, 16)]
    value = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(affinity_attention.launch(features, value, torch.ones(1, 1), BETA, GAMMA, None), value)


def test_zero_vectors_are_no_division_by_zero():
    features = clustered(1, (4, 5), (16,), torch.float16)
    features[0][0, 1, 2] = 0
    arguments = (features, torch.randn(1, 4, 5, 8).half(), torch.ones(1, 1), BETA, GAMMA, None)
    expected = reference.affinity_attention(*arguments)
    torch.testing.assert_close(affinity_attention.launch(*arguments), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # inf / inf in the interpreter's NumPy
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_feature_makes_its_image_nan_and_no_other(bad):
    features = clustered(2, (4, 5), (16,), torch.float32)
    features[0][1, 2, 3, 4] = bad
    value = torch.randn(2, 4, 5, 8)
    result = affinity_attention.launch(features, value, torch.ones(2, 1), BETA, GAMMA, None)
    assert result[1].isnan().all()
    assert result[0].isfinite().all()


def test_nan_mean_and_nan_value_propagate():
    features = clustered(1, (4, 5), (16,), torch.float32)
    value = torch.randn(1, 4, 5, 8)
    nan = torch.tensor([float("nan")])
    assert affinity_attention.launch(features, value, torch.ones(1, 1), BETA, GAMMA, nan).isnan().all()
    value[0, 0, 0, 3] = float("nan")
    result = affinity_attention.launch(features, value, torch.ones(1, 1), BETA, GAMMA, None)
    assert result[..., 3].isnan().any()
    assert result[..., :3].isfinite().all()


def test_strips_of_rows_give_what_the_whole_gives(monkeypatch):
    """Where P passes STRIP_BYTES it is made and used strip by strip: here 64 rows of 192 columns at a time."""
    features = clustered(2, (13, 11), (24,), torch.float32)
    value = torch.randn(2, 7, 5, 8)
    arguments = (features, value, torch.ones(2, 1), BETA, GAMMA, None)
    whole = affinity_attention.launch(*arguments)
    assert affinity_attention.strip_plan(143, 4, 64) == (192, 192, 227)
    monkeypatch.setattr(affinity_attention, "STRIP_BYTES", 64 * 192 * 4)
    assert affinity_attention.strip_plan(143, 4, 64) == (192, 64, 1)
    torch.testing.assert_close(affinity_attention.launch(*arguments), whole)


def test_images_held_one_at_a_time_are_bitwise_the_same(monkeypatch):
    features = clustered(3, (6, 7), (24,), torch.float32)
    value = torch.randn(3, 3, 4, 8)
    weights = weights_of(3, 1)
    whole = affinity_attention.launch(features, value, weights, BETA, GAMMA, None)
    for image in range(3):
        one = slice(image, image + 1)
        alone = affinity_attention.launch([features[0][one]], value[one], weights[one], BETA, GAMMA, None)
        assert torch.equal(alone, whole[one])
    monkeypatch.setattr(affinity_attention, "STRIP_BYTES", 64 * 64 * 4)
    assert torch.equal(affinity_attention.launch(features, value, weights, BETA, GAMMA, None), whole)


def test_views_are_read_through_their_strides():
    features = clustered(2, (5, 7), (24,), torch.float32)
    value = torch.randn(2, 8, 3, 4).permute(0, 2, 3, 1)
    turned = [maps.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for maps in features]
    sliced = [torch.cat([maps, maps], -1)[..., :24] for maps in features]
    expected = affinity_attention.launch(features, value.contiguous(), torch.ones(2, 1), BETA, GAMMA, None)
    for views in (turned, sliced):
        assert torch.equal(affinity_attention.launch(views, value, torch.ones(2, 1), BETA, GAMMA, None), expected)


def test_empty_batch_and_empty_value_channels():
    features = [torch.zeros(0, 3, 4, 16)]
    result = affinity_attention.launch(features, torch.zeros(0, 3, 4, 8), torch.ones(0, 1), BETA, GAMMA, None)
    assert result.shape == (0, 3, 4, 8)
    result = affinity_attention.launch(
        [torch.ones(1, 3, 4, 16)], torch.zeros(1, 3, 4, 0), torch.ones(1, 1), BETA, GAMMA, None
    )
    assert result.shape == (1, 3, 4, 0)


# Progressive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_progressive_agrees_with_the_reference_in_double(dtype):
    features = torch.stack([clustered(2, (5, 14), (24,), dtype, seed=seed)[0] for seed in range(3)])
    values = torch.randn(3, 2, 5, 14, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    arguments = (features, values, torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.5, 0.0]]), BETA, GAMMA)
    actual = affinity_attention.launch_progressive(*arguments)
    assert_within_budget(actual, reference.progressive_affinity, *arguments)


def test_progressive_is_a_call_per_level():
    """28 products for 7 levels on their own, 7 here; scores far apart, as a small temperature makes them."""
    features, values = torch.randn(2, 4, 2, 3, 4, 12, generator=torch.Generator().manual_seed(3))
    scores = torch.tensor([[0.0, 3.0, -2.0, 1.0], [-60.0, 0.0, 0.0, -60.0]])
    weights = scores.softmax(1)
    expected = 0
    for level in range(4):
        before = scores[:, : level + 1].softmax(1)
        alone = reference.affinity_attention(features[: level + 1].unbind(0), values[level], before, BETA, GAMMA, None)
        expected = expected + weights[:, level, None, None, None] * alone
    torch.testing.assert_close(
        affinity_attention.launch_progressive(features, values, scores, BETA, GAMMA), expected, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        reference.progressive_affinity(features, values, scores, BETA, GAMMA), expected, rtol=1e-5, atol=1e-5
    )


def test_progressive_strips_give_what_the_whole_gives(monkeypatch):
    features = torch.stack([clustered(2, (9, 8), (16,), torch.float32, seed=seed)[0] for seed in range(2)])
    arguments = (features, torch.randn(2, 2, 9, 8, 8), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), BETA, GAMMA)
    whole = affinity_attention.launch_progressive(*arguments)
    monkeypatch.setattr(affinity_attention, "STRIP_BYTES", 64 * 128 * 4 * 2)
    torch.testing.assert_close(affinity_attention.launch_progressive(*arguments), whole)


# Parts


@pytest.mark.parametrize(("coarse", "fine"), [(1, 1), (1, 5), (3, 7), (4, 4), (21, 42), (37, 64), (5, 3)])
def test_a_fold_table_is_the_resize_read_from_its_coarse_side(coarse, fine):
    first, weights = affinity_tiles.fold_table(coarse, fine)
    resize = torch.zeros(fine, coarse)
    for tap in range(len(weights)):
        resize[first.long() + tap, torch.arange(coarse)] += weights[tap]
    expected = F.interpolate(torch.eye(coarse)[None], size=fine, mode="linear", align_corners=False)[0].T
    assert torch.equal(resize, expected)
    assert (first >= 0).all()
    assert (first + len(weights) <= fine).all()


def test_maps_that_lie_evenly_in_one_memory_are_one_launch(launches_seen):
    """Seven levels and the VFM's map: two launches, not eight."""
    levels, proxy = torch.randn(3, 1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    weights = torch.full((1, 4), 0.25)
    launched = launches_seen(lambda: 1)
    together = affinity_attention.launch([proxy, *levels.unbind(0)], proxy, weights, BETA, GAMMA, None)
    assert len(launched) == 2 + 2
    apart = [proxy, *(level.clone() for level in levels)]
    assert torch.equal(affinity_attention.launch(apart, proxy, weights, BETA, GAMMA, None), together)


def test_the_identities_behind_the_kernel():
    """In float64: the mean's closed form, the diagonal as row maximum, the folded resize."""
    features = torch.randn(1, 30, 12, dtype=torch.float64)
    unit = F.normalize(features, dim=-1)[0]
    similarity = unit @ unit.T
    torch.testing.assert_close(similarity.mean(), unit.mean(0).square().sum(), rtol=0, atol=1e-15)
    shifted = (GAMMA * (similarity - 1)).exp()
    torch.testing.assert_close(shifted / shifted.sum(1, keepdim=True), (GAMMA * similarity).softmax(1))
    resize = F.interpolate(torch.eye(6, dtype=torch.float64).view(6, 1, 2, 3), (5, 6), mode="bilinear").flatten(1).T
    value = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(shifted @ (resize @ value), (shifted @ resize) @ value)


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_500_map_sizes_compile_each_kernel_at_most_three_times(dtype, ratio):
    """Batches, maps and sizes vary; channels are those of a model. Both buckets of tiles, whole maps and strips."""
    value = torch.empty(1, dtype=dtype, device="meta")
    with recorded(affinity_attention, 90) as launches:
        for case in range(500):
            batch, height, width, maps = 1 + case % 3, 1 + case % 83, 1 + case % 67, 1 + case % 6
            if case >= 490:
                height, width = 130 + case % 5, 129 + case % 3
            tokens = torch.empty(batch, 1 + height * width, 48, dtype=dtype, device="meta")[:, 1:]
            features = [tokens.unflatten(1, (height, width))] * maps
            value = torch.empty(batch, -(-height // ratio), -(-width // ratio), 64, dtype=dtype, device="meta")
            weights = torch.empty(batch, maps, device="meta")
            mean = torch.empty(batch, device="meta") if case % 2 else None
            affinity_attention.launch(features, value, weights, 1.2, 3.0, mean)
    counts = Counter(launch.kernel for launch in launches)
    folded = {"folded_mix_kernel"} if ratio == 2 else set()
    assert set(counts) == {"unit_rows_kernel", "affinity_kernel", "mix_kernel"} | folded
    assert max(counts.values()) <= 3, counts
