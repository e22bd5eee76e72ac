"""The CPU's own forms of ops against the definitions they stand for."""

import pytest
import torch

from s2clip import ops
from s2clip.kernels import cpu, reference
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
