"""Positional tables on other grids: the published formulas, read-only, checked."""

import numpy as np
import pytest
import torch

from s2clip.backbones.positions import resample_positions


def cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def meta_axis(old: int, new: int) -> np.ndarray:
    """[new, old]: row i reads around (i + ½)/s − ½ with s = (new + 0.1)/old, the border repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        position = (i + 0.5) * old / (new + 0.1) - 0.5
        first = int(np.floor(position)) - 1
        for source in range(first, first + 4):
            matrix[i, min(max(source, 0), old - 1)] += cubic(np.array(position - source))
    return matrix


@pytest.mark.parametrize("grid", [(21, 21), (7, 28), (32, 20), (3, 5), (1, 40)])
def test_meta_positions_follow_the_published_formula(grid):
    table = torch.randn(196, 6, generator=torch.Generator().manual_seed(0))
    rows, columns = meta_axis(14, grid[0]), meta_axis(14, grid[1])
    expected = np.einsum("ip,jq,pqd->ijd", rows, columns, table.double().reshape(14, 14, 6).numpy())
    received = resample_positions(table, (14, 14), grid, "meta")
    # Places up to 14 are right to 1e-6 in fp32, and neighbours of the table up to 7 apart.
    np.testing.assert_allclose(received.numpy(), expected.reshape(-1, 6), rtol=0, atol=2e-5)


def test_grid_shape_decides_not_the_number_of_tokens():
    table = torch.randn(196, 6, generator=torch.Generator().manual_seed(0))
    for interp in ("meta", "timm", "bilinear"):
        assert torch.equal(resample_positions(table, (14, 14), (14, 14), interp), table)
        wide = resample_positions(table, (14, 14), (7, 28), interp)
        assert wide.shape == table.shape
        assert (wide - table).abs().max() > 0.5


def test_bilinear_positions_are_weighted_means_of_their_neighbours():
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))  # 2x3
    received = resample_positions(table, (2, 3), (4, 3), "bilinear").view(4, 3, 4)
    rows = table.view(2, 3, 4)
    for row, (first, share) in enumerate([(0, 0.0), (0, 0.25), (0, 0.75), (0, 1.0)]):
        torch.testing.assert_close(received[row], rows[first] * (1 - share) + rows[1] * share)


def test_positions_are_read_only_and_checked():
    table = torch.randn(36, 4)
    before = table.clone()
    first = resample_positions(table, (6, 6), (9, 4), "meta")
    resample_positions(table, (6, 6), (3, 3), "meta")
    assert torch.equal(table, before)
    assert torch.equal(first, resample_positions(table, (6, 6), (9, 4), "meta"))
    with pytest.raises(ValueError, match=r"pos_embed_interp: expected one of meta, .*, received 'nearest'"):
        resample_positions(table, (6, 6), (9, 4), "nearest")
    with pytest.raises(ValueError, match=r"table: expected 5·6 rows, received 36"):
        resample_positions(table, (5, 6), (9, 4), "meta")
