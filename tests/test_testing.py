"""The assertions that kernels are held to have to fail when they should."""

import pytest
import torch

from s2clip.kernels import precision, reference
from s2clip.testing import assert_labels_equal_by_margin, assert_within_budget, layouts, normal, poison


@pytest.fixture
def attention():
    query, key, value = (normal(1, 2, 31, 16, seed=seed, dtype=torch.float16) for seed in range(3))
    arguments = (query, key, value, ("qk",), (1.0,), 0.25, None)
    return reference.recombined_attention(*arguments), reference.recombined_attention, *arguments


def test_budget_passes_the_reference_and_prints_the_numbers(attention, capsys):
    assert_within_budget(*attention)
    assert "error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda result: result * 1.02, "error"),
        (lambda result: result.index_fill(2, torch.tensor([30]), float("nan")), "NaN"),
        (lambda result: result.index_fill(2, torch.tensor([30]), float("inf")), "error"),
        (lambda result: result[..., :15], "shape"),
    ],
    ids=["two per cent", "an unwritten row", "infinity", "shape"],
)
def test_budget_fails(attention, spoil, message):
    result, *rest = attention
    with pytest.raises(AssertionError, match=message):
        assert_within_budget(spoil(result), *rest)


def test_truth_is_computed_in_float64_and_eager_in_the_dtype(attention):
    seen = []

    def specification(query):
        seen.append((query.dtype, precision.at_least_float32(query.dtype)))
        return query

    assert_within_budget(attention[2], specification, attention[2])
    assert seen == [(torch.float64, torch.float64), (torch.float16, torch.float16)]
    assert precision.at_least_float32(torch.float16) == torch.float32


def test_labels_may_differ_where_the_scores_are_close_and_nowhere_else():
    scores = torch.tensor([[0.5, 0.9, 0.3], [0.5 - 1e-6, 0.1, 0.3]]).view(1, 2, 1, 3).expand(1, 2, 100, 3)
    expected = scores.argmax(1)
    close, clear, unknown = expected.clone(), expected.clone(), expected.clone()
    close[0, 0, 0] = 1
    clear[0, 0, 1] = 1
    unknown[0, 0, 0] = -1
    assert_labels_equal_by_margin(close, expected, scores, margin=1e-5)
    for wrong in (clear, unknown):
        with pytest.raises(AssertionError, match="300 labels differ, 1 beyond the margin"):
            assert_labels_equal_by_margin(wrong, expected, scores, margin=1e-5)
    with pytest.raises(AssertionError, match="200 of 300 labels differ, 0 beyond"):
        assert_labels_equal_by_margin(torch.ones_like(expected) * (scores[:, 0] < 0.8), expected, scores, margin=1)
    assert_labels_equal_by_margin(unknown, expected, scores, margin=1e-5, threshold=0.5)


def test_layouts_hold_the_same_values_in_poisoned_surroundings():
    tensor = normal(2, 3, 4)
    for layout in layouts(tensor).values():
        assert torch.equal(layout, tensor)
    assert len({layout.stride() for layout in layouts(tensor).values()}) == 4
    assert layouts(tensor)["offset"].storage_offset() == 5
    assert layouts(tensor)["sliced"]._base.isnan().sum() == 5 * 6 * 7 - 24


@pytest.mark.usefixtures("poisoned")
def test_fresh_memory_of_the_kernels_package_is_poisoned():
    scope = {"__name__": "s2clip.kernels.example", "torch": torch}
    code = "fresh = [torch.empty(3), torch.empty_like(torch.zeros(3).int()), torch.zeros(3).new_empty(2)]"
    exec(code, scope)
    nan, integer, new = scope["fresh"]
    assert nan.isnan().all()
    assert new.isnan().all()
    assert (integer == poison(torch.int32)).all()
