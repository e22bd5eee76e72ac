"""How many Triton kernels one picture launches, counted by the launchers themselves on tensors without memory."""

import pytest
import torch

from s2clip import ops
from s2clip.encoding.features import aggregate, hierarchical_tokens, level_scores
from s2clip.kernels import affinity_attention, classify_pixels, recombined_attention, spatial_entropy
from s2clip.methods import METHODS

WINDOWS, TOKENS, GRID, FINE, WIDTH = 2, 441, (21, 21), (42, 42), 768  # ViT-B/16 and DINO B/8 at 336


class Grids(list):
    def __getitem__(self, grid):
        self.append(grid)
        return lambda *_, **__: None


@pytest.fixture
def grids(monkeypatch):
    """The grid of every launch; ops run their launchers, on tensors without memory."""
    seen = Grids()
    for module in (affinity_attention, classify_pixels, recombined_attention, spatial_entropy):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, seen)
    for name in ("affinity_attention", "progressive_affinity", "recombined_attention", "spatial_entropy"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *given, op=op, **named: op(*given, **named, backend="triton"))
    return seen


def half(*shape):
    return torch.empty(shape, dtype=torch.float16, device="meta")


@pytest.mark.parametrize(("name", "smoothing", "total"), [("s2clip", 0, 8), ("s2clip-source", 3, 12)])
def test_a_method_with_levels_launches_few_kernels_for_a_voc_picture(name, smoothing, total, grids):
    """2 for entropy and 2 for recombination, 3 for the fusion and 1 more where the levels have a share, 1 for the
    decision; the progression was 75 when every level recomputed the similarities of those before it."""
    method = METHODS[name]
    assert method.uses_levels
    levels = half(7, WINDOWS, 1 + TOKENS, WIDTH)
    maps = levels[:, :, 1:].unflatten(2, GRID)
    scores = level_scores(maps, method.tau)
    hierarchical_tokens(maps, scores, method)
    assert len(grids) == 2 + smoothing
    query = half(WINDOWS, 12, 1 + TOKENS, 64)
    for _ in range(2):
        ops.recombined_attention(query, query, query, terms=method.terms)
    aggregate(maps[0], half(WINDOWS, *FINE, WIDTH), maps, scores.softmax(1), method)
    words = torch.empty(21, dtype=torch.int64, device="meta")
    classify_pixels.launch(half(1, 21, 42, 56), (375, 500), 40.0, words, 21, 0.0, 0)
    assert len(grids) == total


def test_proxyclip_launches_4_kernels_for_a_voc_picture(grids):
    """6 once: unit rows, P, the result, whose programs fold their own rows, and the decision."""
    method = METHODS["proxyclip"]
    aggregate(half(WINDOWS, *GRID, WIDTH), half(WINDOWS, *FINE, WIDTH), None, None, method)
    words = torch.empty(21, dtype=torch.int64, device="meta")
    classify_pixels.launch(half(1, 21, 42, 56), (375, 500), 40.0, words, 21, 0.0, 0)
    assert len(grids) == 4
