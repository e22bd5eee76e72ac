"""The references against formulas written another way, other libraries, and examples small enough to check by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s2clip.kernels import reference
from s2clip.testing import (
    assert_labels_equal_by_margin,
    assert_within_budget,
    computed_in_own_dtype,
    integers,
    normal,
    probabilities,
)

pytestmark = pytest.mark.usefixtures("poisoned")

DOUBLE = torch.float64


def one_by_one(op, *batched, **shared):
    """The op on each image alone, put together again."""
    parts = [op(*(tensor[i : i + 1] for tensor in batched), **shared) for i in range(batched[0].shape[0])]
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))


class TestPrecision:
    """References compute in at least fp32, keep fp64, and give back what they document."""

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_dtypes_of_results(self, dtype):
        at_least = torch.promote_types(dtype, torch.float32)
        query = normal(1, 2, 5, 16, dtype=dtype)
        assert reference.recombined_attention(query, query, query, ("qk",), (1.0,), 0.25, None).dtype == dtype
        maps, weights = normal(1, 2, 3, 4, dtype=dtype), torch.ones(1, 1)
        assert reference.affinity_attention((maps,), maps, weights, 1.2, 3.0, None).dtype == dtype
        words = torch.arange(2)
        assert reference.class_scores(maps, (5, 6), 40.0, words, 2).dtype == dtype
        labels, confidence = reference.classify_pixels(maps, (5, 6), 40.0, words, 2, 0.0, 0)
        assert (labels.dtype, confidence.dtype) == (torch.int32, at_least)
        assert reference.spatial_entropy(maps).dtype == at_least

    def test_half_precision_is_not_computed_in_half(self):
        query, key, value = (normal(1, 2, 63, 32, seed=seed, dtype=torch.float16) for seed in range(3))
        arguments = (query, key, value, ("qk", "kk"), (0.5, 0.5), 0.2, None)
        result = reference.recombined_attention(*arguments)
        assert_within_budget(result, reference.recombined_attention, *arguments, factor=0.5)
        with computed_in_own_dtype():
            assert not torch.equal(reference.recombined_attention(*arguments), result)


class TestRecombinedAttention:
    def test_single_terms_are_scaled_dot_product_attention(self):
        tokens = {name: normal(2, 3, 7, 16, seed=seed, dtype=DOUBLE) for seed, name in enumerate("qkv")}
        bias = normal(7, 7, seed=9, dtype=DOUBLE)
        for term in ("qk", "kq", "qq", "kk", "vv", "qv", "vk"):
            result = reference.recombined_attention(*tokens.values(), (term,), (1.0,), 0.3, bias)
            left, right = (tokens[name] for name in term)
            expected = F.scaled_dot_product_attention(left, right, tokens["v"], attn_mask=bias, scale=0.3)
            torch.testing.assert_close(result, expected)

    def test_is_the_weighted_sum_of_its_terms(self):
        query, key, value = (normal(2, 3, 7, 16, seed=seed, dtype=DOUBLE) for seed in range(3))
        one = [reference.recombined_attention(query, key, value, (t,), (1.0,), 0.25, None) for t in ("qq", "kv")]
        both = reference.recombined_attention(query, key, value, ("qq", "kv"), (0.7, -0.2), 0.25, None)
        torch.testing.assert_close(both, 0.7 * one[0] - 0.2 * one[1])

    def test_one_token_attends_to_itself(self):
        value = normal(2, 3, 1, 16)
        assert torch.equal(reference.recombined_attention(value, value, value, ("vv",), (1.0,), 0.25, None), value)

    def test_batch_plays_no_part(self):
        query, key, value = (normal(3, 2, 63, 16, seed=seed) for seed in range(3))
        rest = {"terms": ("qk", "kk"), "weights": (0.5, 0.5), "scale": 0.25, "bias": None}
        alone = one_by_one(reference.recombined_attention, query, key, value, **rest)
        assert torch.equal(reference.recombined_attention(query, key, value, **rest), alone)

    def test_nan_stays_in_its_image(self):
        query = normal(2, 1, 5, 16)
        query[0, 0, 3, 2] = math.nan
        result = reference.recombined_attention(query, query, query, ("qq",), (1.0,), 0.25, None)
        assert result[0].isnan().all()
        assert result[1].isfinite().all()


class TestAffinityAttention:
    def test_is_the_published_formula_on_one_image(self):
        features, value = normal(1, 4, 5, 8, dtype=DOUBLE), normal(1, 2, 3, 6, seed=1, dtype=DOUBLE)
        unit = F.normalize(features.view(20, 8), dim=1)
        similarity = unit @ unit.T
        raised = 3.0 * (similarity - 1.2 * similarity.mean())
        raised[raised < 0] = -math.inf
        resized = F.interpolate(value.permute(0, 3, 1, 2), (4, 5), mode="bilinear").flatten(2)[0].T
        expected = (raised.softmax(1) @ resized).view(1, 4, 5, 6)
        weights = torch.ones(1, 1, dtype=DOUBLE)
        torch.testing.assert_close(reference.affinity_attention((features,), value, weights, 1.2, 3.0, None), expected)

    def test_closed_forms_that_kernels_use(self):
        """mean S = Σ_s w_s ‖mean f̂^s‖² and S_ii is the largest entry of its row."""
        maps = [normal(1, 6, 6, 8, dtype=DOUBLE), normal(1, 6, 6, 5, seed=1, dtype=DOUBLE)]
        unit = [F.normalize(m.flatten(0, 2), dim=1) for m in maps]
        mean = sum(w * u.mean(0).square().sum() for w, u in zip((0.3, 0.7), unit, strict=True))
        arguments = (maps, normal(1, 3, 3, 4, dtype=DOUBLE), torch.tensor([[0.3, 0.7]], dtype=DOUBLE), 1.2, 3.0)
        torch.testing.assert_close(
            reference.affinity_attention(*arguments, None), reference.affinity_attention(*arguments, mean[None])
        )

    def test_flat_image_is_finite_where_peers_give_nan(self):
        value = normal(1, 3, 4, 5, dtype=DOUBLE)
        flat = torch.ones(1, 3, 4, 8, dtype=DOUBLE)
        result = reference.affinity_attention((flat,), value, torch.ones(1, 1), 1.2, 3.0, None)
        torch.testing.assert_close(result, value)  # every entry lies under 1.2 of the mean: only the diagonal is left

    def test_zero_vectors_are_finite(self):
        features = normal(1, 3, 4, 8)
        features[0, 1] = 0
        value = normal(1, 3, 4, 5)
        assert reference.affinity_attention((features,), value, torch.ones(1, 1), 1.2, 3.0, None).isfinite().all()

    def test_weights_differ_per_image_and_batch_plays_no_part(self):
        maps = [normal(3, 4, 4, 8), normal(3, 4, 4, 5, seed=1)]
        value, weights = normal(3, 2, 2, 6), torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
        result = reference.affinity_attention(maps, value, weights, 1.2, 3.0, None)
        for i in range(3):
            one = [m[i : i + 1] for m in maps]
            alone = reference.affinity_attention(one, value[i : i + 1], weights[i : i + 1], 1.2, 3.0, None)
            assert torch.equal(result[i : i + 1], alone)
        first = reference.affinity_attention(maps[:1], value, torch.ones(3, 1), 1.2, 3.0, None)
        torch.testing.assert_close(result[0], first[0])

    def test_nan_feature_spoils_its_image_alone(self):
        features = normal(2, 3, 3, 8)
        features[1, 0, 0, 0] = math.nan
        result = reference.affinity_attention((features,), normal(2, 3, 3, 4), torch.ones(2, 1), 1.2, 3.0, None)
        assert result[0].isfinite().all()
        assert result[1].isnan().all()


SIZES = [
    *(((1, 1), (1, 1)), ((3, 5), (7, 11)), ((7, 6), (3, 4))),
    *(((5, 5), (5, 5)), ((2, 9), (61, 9)), ((4, 4), (1, 97))),
]


class TestPixels:
    @pytest.mark.parametrize(("low", "high"), SIZES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_scores_equal_the_chain_of_torch_functions(self, low, high, dtype):
        logits = normal(2, 6, *low, dtype=dtype)
        words = torch.tensor([2, 0, 0, 4, 2, 1])
        probability = (3.0 * F.interpolate(logits, high, mode="bilinear", align_corners=False)).softmax(1)
        zero = torch.zeros_like(probability[:, 0])
        classes = [[probability[:, word] for word in range(6) if words[word] == index] for index in range(5)]
        expected = torch.stack([torch.stack(own).amax(0) if own else zero for own in classes], 1)
        result = reference.class_scores(logits, high, 3.0, words, 5)
        torch.testing.assert_close(result, expected, rtol=0, atol=4 * torch.finfo(dtype).eps * logits.abs().max() * 3)
        labels, confidence = reference.classify_pixels(logits, high, 3.0, words, 5, 0.0, 0)
        assert torch.equal(labels, result.argmax(1).int())
        assert torch.equal(confidence, result.amax(1))
        assert_labels_equal_by_margin(labels, expected.argmax(1).int(), expected, margin=1e-5)

    def test_strips_of_any_height_give_the_same(self, monkeypatch):
        logits, words = normal(2, 4, 9, 7), torch.tensor([0, 1, 1, 2])
        whole = reference.class_scores(logits, (31, 23), 40.0, words, 3)
        for rows in (1, 2, 7, 30):
            monkeypatch.setattr(reference, "CHUNK", rows * 4 * 23)
            torch.testing.assert_close(
                reference.class_scores(logits, (31, 23), 40.0, words, 3), whole, rtol=0, atol=1e-6
            )

    def test_full_resolution_logits_are_never_held(self, monkeypatch):
        largest = 0
        resize = reference._resize

        def watched(maps, size):
            nonlocal largest
            largest = max(largest, maps.shape[0] * size[0] * size[1])
            return resize(maps, size)

        monkeypatch.setattr(reference, "CHUNK", 1000)
        monkeypatch.setattr(reference, "_resize", watched)
        reference.classify_pixels(normal(2, 4, 9, 7), (100, 50), 40.0, torch.arange(4), 4, 0.0, 0)
        assert largest <= 1000
        labels = torch.zeros(1, 40, 50, dtype=torch.int64)
        largest, regions = 0, 20
        index = torch.arange(regions) % 4
        scores = probabilities(1, 4, 5, 6)
        reference.merge_masks(normal(regions, 8, 8), index, index * 0, scores, labels, (30, 32), 32)
        assert largest <= 40 * 50  # one map of one region

    def test_first_class_wins_ties_and_threshold_gives_background(self):
        logits = torch.zeros(1, 3, 2, 2)
        words = torch.arange(3)
        labels, confidence = reference.classify_pixels(logits, (4, 4), 40.0, words, 3, 0.0, 2)
        assert (labels == 0).all()
        torch.testing.assert_close(confidence, torch.full((1, 4, 4), 1 / 3))
        assert (reference.classify_pixels(logits, (4, 4), 40.0, words, 3, 0.34, 255)[0] == 255).all()
        assert (reference.classify_pixels(logits, (4, 4), 40.0, words, 3, 0.33, 255)[0] == 0).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_logit_is_never_a_class(self, value):
        logits = normal(2, 3, 4, 4)
        logits[0, 2, 1, 1] = value
        labels, confidence = reference.classify_pixels(logits, (8, 8), 40.0, torch.arange(3), 3, 0.9, 0)
        assert torch.equal(labels == -1, confidence.isnan())
        assert (labels[0, 2:4, 2:4] == -1).all()
        assert (labels[0, 6:, 6:] >= 0).all()
        assert (labels[1] >= 0).all()

    def test_batch_plays_no_part(self):
        rest = {"size": (13, 11), "scale": 40.0, "class_index": torch.tensor([0, 1, 1, 2]), "classes": 3}
        logits = normal(3, 4, 5, 6)
        together = reference.class_scores(logits, **rest)
        assert torch.equal(together, one_by_one(reference.class_scores, logits, **rest))


def merged_with_full_maps(mask_logits, class_index, image_index, scores, labels, input_size, padded_size):
    """The published order of things, with all maps at once: masks, sigmoids, one score map per class."""
    size = labels.shape[1:]
    batch, classes = scores.shape[:2]
    padded = F.interpolate(mask_logits[:, None], (padded_size, padded_size), mode="bilinear")
    logits = F.interpolate(padded[..., : input_size[0], : input_size[1]], size, mode="bilinear")[:, 0]
    probability = F.interpolate(scores, size, mode="bilinear")
    quality = torch.zeros(batch, classes, *size, dtype=scores.dtype)
    for b in range(batch):
        for c in range(classes):
            own = logits[(class_index == c) & (image_index == b)]
            if len(own):
                quality[b, c] = (own > 0).any(0) * own.sigmoid().amax(0) * probability[b, c]
    best, label = quality.max(1)
    return torch.where(best > 0, label, labels), best


class TestMergeMasks:
    @pytest.mark.parametrize(
        ("side", "padded", "valid", "size"),
        [
            (8, 32, (24, 32), (15, 20)),
            (16, 16, (16, 16), (16, 16)),
            (4, 64, (64, 10), (7, 50)),
            (9, 32, (1, 32), (1, 9)),
        ],
    )
    def test_equals_the_formula_on_full_maps(self, side, padded, valid, size):
        class_index, image_index = integers(3, 9, seed=1), integers(2, 9, seed=2)
        arguments = (
            *(normal(9, side, side, dtype=DOUBLE), class_index, image_index),
            *(probabilities(2, 3, 5, 6, dtype=DOUBLE), integers(3, 2, *size, seed=3), valid, padded),
        )
        labels, score = reference.merge_masks(*arguments)
        expected_labels, expected_score = merged_with_full_maps(*arguments)
        torch.testing.assert_close(score, expected_score)
        assert torch.equal(labels, expected_labels.int())

    def test_old_label_stays_where_no_mask_is(self):
        old = integers(5, 1, 6, 6)
        scores = torch.full((1, 2, 6, 6), 0.5)
        masks = torch.full((1, 4, 4), -1.0)
        labels, score = reference.merge_masks(masks, torch.tensor([1]), torch.tensor([0]), scores, old, (8, 8), 8)
        assert torch.equal(labels, old.int())
        assert not score.any()
        nothing = reference.merge_masks(masks[:0], *(torch.zeros(2, 0, dtype=torch.int64)), scores, old, (8, 8), 8)
        assert torch.equal(nothing[0], old.int())

    def test_first_class_wins_ties(self):
        masks, index = torch.ones(2, 4, 4), torch.tensor([1, 0])
        arguments = (torch.full((1, 2, 3, 3), 0.5), torch.full((1, 6, 6), 7), (8, 8), 8)
        assert not reference.merge_masks(masks, index, torch.zeros_like(index), *arguments)[0].any()

    def test_regions_out_of_range_are_skipped_and_nan_is_marked(self):
        masks = torch.ones(3, 4, 4)
        masks[2] = math.nan
        old = torch.full((2, 6, 6), 7)
        index, image = torch.tensor([5, 0, 1]), torch.tensor([0, -1, 1])
        labels, score = reference.merge_masks(masks, index, image, torch.full((2, 2, 3, 3), 0.5), old, (8, 8), 8)
        assert (labels[0] == 7).all()
        assert (labels[1] == -1).all()
        assert score[1].isnan().all()


class TestSpatialEntropy:
    def test_follows_algorithm_1_line_by_line(self):
        features = normal(1, 3, 4, 5, dtype=DOUBLE)
        flat = features[0].flatten(1).numpy()
        sigma = np.sqrt(((flat - flat.mean(1, keepdims=True)) ** 2).mean(1, keepdims=True))
        epsilon = max(sigma.min() * 1e-2, 1e-6)
        standard = (flat - flat.mean(1, keepdims=True)) / (sigma + epsilon)
        power = np.exp(standard - standard.max(1, keepdims=True))
        p = np.maximum(power / (power.sum(1, keepdims=True) + epsilon), epsilon)
        p /= p.sum(1, keepdims=True)
        assert reference.spatial_entropy(features).item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-12)

    def test_constant_maps_have_the_entropy_of_the_uniform_distribution(self):
        assert reference.spatial_entropy(torch.full((2, 3, 4, 5), 8.0)).tolist() == pytest.approx([math.log(20)] * 2)

    def test_a_peak_has_less_entropy_than_noise(self):
        maps = normal(1, 4, 9, 9)
        peaked = torch.zeros(1, 4, 9, 9)
        peaked[..., 4, 4] = 1
        assert reference.spatial_entropy(peaked) < reference.spatial_entropy(maps) < math.log(81)

    def test_shift_changes_nothing_and_large_deviations_saturate(self):
        """ε grows with σ: where 10⁻²·min σ is above every P, all are clamped to it, and the entropy is log N."""
        maps = normal(2, 4, 9, 9, dtype=DOUBLE)
        torch.testing.assert_close(reference.spatial_entropy(maps + 5), reference.spatial_entropy(maps))
        assert reference.spatial_entropy(1000 * maps).tolist() == pytest.approx([math.log(81)] * 2)

    def test_not_finite_becomes_zero_for_that_image_alone(self):
        maps = normal(3, 4, 5, 5)
        maps[1, 2, 3, 3] = math.nan
        result = reference.spatial_entropy(maps)
        assert result[1] == 0
        assert torch.equal(result[[0, 2]], reference.spatial_entropy(maps[[0, 2]]))
        assert result[0] > 0
