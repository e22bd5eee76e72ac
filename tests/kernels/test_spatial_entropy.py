"""The entropy kernel against its reference. What the interpreter cannot show: exp and log of the GPU's own units."""

import pytest
import torch
from specialisations import compiled, recorded

from s2clip.kernels import reference, spatial_entropy
from s2clip.testing import assert_within_budget, normal

SHAPES = {
    "one position": (2, 3, 1, 1),
    "one channel": (1, 1, 5, 7),
    "prime sizes, several tiles both ways": (2, 37, 17, 19),
    "1 x N": (1, 5, 1, 300),
    "N x 1": (1, 5, 31, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.usefixtures("poisoned")
def test_agrees_with_the_reference_in_double(shape, dtype):
    features = (3 * normal(*shape) + 1).to(dtype)
    result = spatial_entropy.launch(features)
    assert result.dtype == torch.float32
    assert_within_budget(result, reference.spatial_entropy, features)


CHANNELS = {
    "deviations from 1e-7 to 10": lambda maps: maps * torch.logspace(-7, 1, 9)[:, None, None],
    "deviations below 1e-4": lambda maps: maps * torch.logspace(-9, -4.5, 9)[:, None, None],
    "deviations that differ by little": lambda maps: maps * torch.linspace(1, 1.1, 9)[:, None, None],
    "deviations of hundreds": lambda maps: maps * 300,
    "far from zero": lambda maps: maps + 100 * torch.arange(9)[:, None, None],
    "one position far above the others": lambda maps: 0.1 * maps + 30 * (torch.arange(400).view(20, 20) == 77),
    "a fifth of the powers far below": lambda maps: 0.01 * maps + torch.arange(400).view(20, 20).eq(5) * 6.0,
    "constant but for one channel": lambda maps: torch.where(torch.arange(9)[:, None, None] == 4, maps, 2.0),
}


@pytest.mark.parametrize("change", CHANNELS.values(), ids=CHANNELS.keys())
def test_channels_unlike_each_other(change):
    """eps is that of the image: within 1 % of a channel's deviation, or far below it.

    Equal addends, as clamped shares are, round one way: 9 times torch's error with one position far above the others.
    """
    features = change(normal(1, 9, 20, 20))
    assert_within_budget(spatial_entropy.launch(features), reference.spatial_entropy, features, factor=10)


def test_token_maps_are_read_in_their_own_order():
    tokens = normal(2, 6 * 5, 40)
    maps = tokens.view(2, 6, 5, 40).permute(0, 3, 1, 2)
    torch.testing.assert_close(spatial_entropy.launch(maps), spatial_entropy.launch(maps.contiguous()))
    cut = normal(2, 40, 8, 9)[:, 3:, 1:7, 2:]
    torch.testing.assert_close(spatial_entropy.launch(cut), spatial_entropy.launch(cut.contiguous()))


def test_flat_map_has_the_entropy_of_the_uniform_distribution():
    result = spatial_entropy.launch(torch.full((1, 4, 6, 5), 2.5))
    torch.testing.assert_close(result, torch.tensor([30.0]).log())


def test_order_and_shift_change_nothing():
    features = normal(1, 8, 6, 6)
    shuffled = features.flatten(2)[..., torch.randperm(36, generator=torch.Generator().manual_seed(0))].view(1, 8, 6, 6)
    torch.testing.assert_close(spatial_entropy.launch(shuffled), spatial_entropy.launch(features))
    torch.testing.assert_close(spatial_entropy.launch(features - 3), spatial_entropy.launch(features))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_map_has_entropy_zero_and_disturbs_no_other(bad):
    features = normal(2, 3, 4, 5)
    alone = spatial_entropy.launch(features[:1])
    features[1, 1, 2, 3] = bad
    result = spatial_entropy.launch(features)
    assert result[1] == 0
    assert result[0] == alone[0]


def test_empty():
    assert spatial_entropy.launch(torch.zeros(0, 3, 4, 4)).shape == (0,)
    assert torch.equal(spatial_entropy.launch(torch.zeros(2, 0, 4, 4)), torch.zeros(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_500_map_sizes_compile_once_per_memory_order(dtype):
    """Whatever the sizes, channels and alignment; 1x1 maps and single channels included."""
    with recorded(spatial_entropy, 90) as launches:
        for case in range(500):
            batch, channels, height, width = 1 + case % 3, 1 + case % 50, 1 + case % 23, 1 + case % 29
            maps = torch.empty(batch, channels, height, width + case % 2, dtype=dtype)[..., :width]
            tokens = torch.empty(batch, height * width + 1, channels, dtype=dtype)[:, 1:]
            spatial_entropy.launch(maps)
            spatial_entropy.launch(tokens.mT.unflatten(2, (height, width)))
    names = sorted(launch.kernel for launch in launches)
    assert names == [*2 * ["_entropy_kernel"], *2 * ["_moments_kernel"]]
    assert set(launches) <= compiled("spatial_entropy", 90)
