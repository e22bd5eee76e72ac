"""The CPU's own forms of ops against the definitions they stand for."""

import pytest
import torch

from s2clip import ops
from s2clip.kernels import reference
from s2clip.ops import cpu
from s2clip.testing import integers, normal, probabilities

SHAPES = {  # side of the masks, padded size, valid area, picture, scores
    "wide": (16, 64, (48, 64), (45, 60), (22, 30)),
    "no second resize": (8, 32, (32, 32), (32, 32), (32, 32)),
    "tall, odd scores": (16, 64, (64, 10), (70, 11), (9, 4)),
    "first resize downwards": (32, 16, (12, 16), (40, 30), (40, 30)),
    "one row": (9, 32, (1, 32), (1, 50), (1, 7)),
    "second resize downwards": (8, 64, (64, 60), (7, 9), (14, 18)),
}


def merging(shape, dtype=torch.float64, regions=9, batch=2, classes=3):
    side, padded, valid, size, scores = SHAPES[shape]
    return (
        *(2 * normal(regions, side, side, dtype=dtype), integers(classes, regions, seed=1)),
        *(integers(batch, regions, seed=2), probabilities(batch, classes, *scores, dtype=dtype)),
        *(integers(5, batch, *size, seed=3), valid, padded),
    )


class TestMergeMasks:
    @pytest.mark.parametrize("tile", [4, 256])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_the_definition(self, shape, tile, monkeypatch):
        monkeypatch.setattr(cpu, "TILE", tile)
        arguments = merging(shape)
        labels, score = cpu.merge_masks(*arguments)
        expected, expected_score = reference.merge_masks(*arguments)
        torch.testing.assert_close(score, expected_score)
        assert torch.equal(labels, expected)
        assert labels.dtype == torch.int32

    def test_small_masks_far_apart(self):
        """One positive logit each, in the corners and the middle: the taps reach a few pixels, and no tile more."""
        masks = torch.full((5, 16, 16), -3.0, dtype=torch.float64)
        for region, (y, x) in enumerate([(0, 0), (0, 15), (11, 0), (11, 15), (6, 7)]):
            masks[region, y, x] = 4
        _, index, image, *rest = merging("wide", regions=5)
        labels, score = cpu.merge_masks(masks, index, image, *rest)
        expected, expected_score = reference.merge_masks(masks, index, image, *rest)
        assert torch.equal(labels, expected)
        torch.testing.assert_close(score, expected_score)
        assert 0 < score.count_nonzero() < score.numel() / 8

    def test_first_class_wins_ties_whatever_the_order(self):
        masks, index = torch.ones(3, 4, 4), torch.tensor([2, 1, 2])
        arguments = (torch.full((1, 3, 3, 3), 0.5), torch.full((1, 6, 6), 7), (8, 8), 8)
        assert (cpu.merge_masks(masks, index, torch.zeros_like(index), *arguments)[0] == 1).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_cpu_tensors_run_it_and_backend_torch_the_definition(self, dtype, monkeypatch):
        made, plain = [], cpu.LinearResize
        monkeypatch.setattr(cpu, "LinearResize", lambda *arguments: made.append(1) or plain(*arguments))
        *tensors, valid, padded = merging("wide", dtype=dtype)
        expected = ops.merge_masks(*tensors, input_size=valid, padded_size=padded, backend="torch")
        assert not made
        labels, score = ops.merge_masks(*tensors, input_size=valid, padded_size=padded)
        assert made
        torch.testing.assert_close(score, expected[1], atol=1e-6, rtol=1e-5)
        assert (labels == expected[0]).float().mean() > 0.999

    def test_work_is_bounded_by_the_masks(self, monkeypatch):
        """No tile is made where no logit is positive."""
        made, tile = [], cpu.LinearResize.tile
        monkeypatch.setattr(
            cpu.LinearResize, "tile", lambda self, plane, *place: made.append(place) or tile(self, plane, *place)
        )
        masks, *rest = merging("wide", dtype=torch.float32)
        cpu.merge_masks(-masks.abs(), *rest)
        assert not made
        masks = -masks.abs()
        masks[3, 5, 5] = 1.0
        cpu.merge_masks(masks, *rest)
        ((rows, columns),) = made
        assert rows.stop - rows.start < 12
        assert columns.stop - columns.start < 12


def affinity(sizes, maps=3, batch=2, dtype=torch.float64):
    (height, width), value = sizes
    features = [normal(batch, height, width, 6 + 2 * index, dtype=dtype, seed=index) + 0.3 for index in range(maps)]
    weights = probabilities(batch, maps, dtype=dtype)
    return features, normal(batch, *value, 5, dtype=dtype, seed=9), weights / weights.sum(1, keepdim=True)


class TestAffinityAttention:
    @pytest.mark.parametrize("sizes", [((6, 9), (3, 4)), ((6, 9), (6, 9)), ((1, 7), (1, 1)), ((4, 4), (6, 5))])
    @pytest.mark.parametrize("maps", [1, 3])
    @pytest.mark.parametrize("mean", [None, 0.1])
    def test_is_the_definition(self, sizes, maps, mean):
        arguments = affinity(sizes, maps)
        mean = None if mean is None else torch.tensor([mean, -mean], dtype=torch.float64)
        expected = reference.affinity_attention(*arguments, 1.2, 3.0, mean)
        output = cpu.affinity_attention(*arguments, 1.2, 3.0, mean)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-12)

    def test_cuts_and_keeps_as_the_definition(self):
        """Equal vectors at β = 1 score 0, which stays; above it only the diagonal does."""
        features, value, weights = torch.ones(1, 3, 3, 4), normal(1, 3, 3, 2), torch.ones(1, 1)
        mean = torch.ones(1)
        everything = cpu.affinity_attention([features], value, weights, 1.0, 3.0, mean)
        torch.testing.assert_close(everything, value.mean((1, 2), keepdim=True).expand_as(value))
        torch.testing.assert_close(cpu.affinity_attention([features], value, weights, 1.2, 3.0, mean), value)

    def test_zeros_and_nan(self):
        features, value, weights = affinity(((4, 5), (2, 3)))
        features[0][0, 1, 1] = 0
        expected = reference.affinity_attention(features, value, weights, 1.2, 3.0, None)
        torch.testing.assert_close(cpu.affinity_attention(features, value, weights, 1.2, 3.0, None), expected)
        features[1][1, 2, 2, 0] = torch.nan
        output = cpu.affinity_attention(features, value, weights, 1.2, 3.0, None)
        assert output[1].isnan().all()
        torch.testing.assert_close(output[0], expected[0])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_dtypes_and_empty_maps(self, dtype):
        features, value, weights = affinity(((6, 6), (3, 3)), dtype=dtype)
        output = cpu.affinity_attention(features, value, weights.float(), 1.2, 3.0, None)
        expected = reference.affinity_attention(features, value, weights.float(), 1.2, 3.0, None)
        assert output.dtype == dtype
        torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-3)
        nothing = [one[:0] for one in features], value[:0], weights[:0]
        assert cpu.affinity_attention(*nothing, 1.2, 3.0, None).shape == (0, 6, 6, 5)

    def test_is_what_the_op_runs_on_the_cpu(self, monkeypatch):
        features, value, weights = affinity(((4, 5), (2, 3)), batch=1, dtype=torch.float32)
        together = ops.affinity_attention(features, value, weights=weights)
        plain = ops.affinity_attention(features, value, weights=weights, backend="torch")
        torch.testing.assert_close(together, plain)
        assert torch.equal(together, cpu.affinity_attention(features, value, weights, 1.2, 3.0, None))


class TestClassifyPixels:
    @pytest.mark.parametrize("strip", [1, 1 << 19])
    @pytest.mark.parametrize("words", [(0, 1, 2, 3), (2, 0, 0, 1, 1, 1, 3), (0, 0, 2, 5)])
    @pytest.mark.parametrize("threshold", [0.0, 0.4])
    def test_is_the_definition(self, words, threshold, strip, monkeypatch):
        monkeypatch.setattr(cpu, "STRIP", strip)
        logits = probabilities(2, len(words), 5, 7, dtype=torch.float64)
        arguments = logits, (23, 17), 6.0, torch.tensor(words), max(words) + 1, threshold, 9
        labels, confidence = cpu.classify_pixels(*arguments)
        expected, best = reference.classify_pixels(*arguments)
        assert torch.equal(labels, expected)
        assert labels.dtype == torch.int32
        assert len(labels.unique()) > 2
        torch.testing.assert_close(confidence, best)

    def test_the_first_class_wins_ties(self):
        logits = torch.zeros(1, 3, 2, 2)
        labels, _ = cpu.classify_pixels(logits, (2, 2), 40.0, torch.tensor([2, 0, 1]), 3, 0.0, -1)
        assert (labels == 0).all()

    def test_is_what_the_op_runs_on_the_cpu(self):
        logits = normal(1, 4, 6, 6)
        labels, confidence = ops.classify_pixels(logits, (20, 31), scale=3.0)
        expected = cpu.classify_pixels(logits, (20, 31), 3.0, torch.arange(4), 4, 0.0, 0)
        assert torch.equal(labels, expected[0])
        assert torch.equal(confidence, expected[1])
