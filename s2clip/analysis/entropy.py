"""Algorithm 1 for every layer: spatial entropy, and the Gini coefficient and channel correlation it computes beside it.

A channel whose P is one peak has entropy 0 and Gini 1 - 1/N; one that is flat has entropy log N and Gini 0. Channels
that peak at the same places correlate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from s2clip.analysis.layers import check_layers, layer_maps, prepare
from s2clip.analysis.pictures import Picture
from s2clip.errors import reject
from s2clip.kernels.reference import spatial_distribution
from s2clip.shelter import sheltered


class SpatialStatistics(NamedTuple):
    """One number per map, [B] float64."""

    entropy: Tensor
    """H = mean over channels of -Σ_n P_n log P_n, in nats, 0..log N; what `ops.spatial_entropy` gives."""
    gini: Tensor
    """Mean over channels of the Gini coefficient of P, 0 (flat) to 1 - 1/N (one position has it all)."""
    correlation: Tensor
    """ρ = mean over pairs of channels i ≠ j of corr(P_i, P_j), -1/(C-1)..1; 0 for one channel."""


def spatial_statistics(features: Tensor) -> SpatialStatistics:
    """Steps 1 to 23 of Algorithm 1 for maps [B,C,H,W], each on its own; what is not finite becomes 0.

    Two steps are computed otherwise than printed. Step 12, 1 - (2/N)·Σ i·L_i/ΣP with L the running sum, is about
    -2N/3 for a flat channel; here it is the Gini coefficient that its name says, with P sorted upwards

        G = 2·Σ_i i·P_(i) / (N·Σ P) - (N+1)/N.

    Step 15's C x C matrix is not made: with ẑ_i the centred P_i over its norm, Σ_ij corr(P_i, P_j) = ‖Σ_i ẑ_i‖². A
    constant channel, whose correlation is 0/0, counts as uncorrelated.
    """
    if features.ndim != 4 or 0 in features.shape or not features.is_floating_point():
        reject("features", "floats [B,C,H,W], none of them 0", f"{features.dtype} {list(features.shape)}")
    rows = [torch.stack(_of_one(one)) for one in features]
    return SpatialStatistics(*torch.stack(rows, 1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))


def _of_one(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    probability = spatial_distribution(features.contiguous())
    channels, positions = probability.shape
    entropy = -(probability * probability.log()).sum(1).double().mean()

    ranks = torch.arange(1, positions + 1, device=probability.device, dtype=probability.dtype)
    moment = (_sorted(probability) @ ranks).double() / probability.sum(1).double()
    gini = (2 * moment / positions - (positions + 1) / positions).mean()

    centred = probability - probability.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    flat = norms <= 1e-6 * probability.amax(1, keepdim=True)  # rounding alone: the channel is constant
    unit = torch.where(flat, 0.0, centred / norms)
    varied = channels - flat.sum()
    pairs = max(channels * (channels - 1), 1)
    correlation = (unit.sum(0).double().square().sum() - varied) / pairs
    return entropy, gini, correlation


def _sorted(values: Tensor) -> Tensor:
    """Rows sorted upwards. NumPy's vectorised sort takes an eighth of the time of torch's on the CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(1).values


@dataclass(frozen=True, eq=False)
class LayerEntropy:
    """S data sets x L layers; arrays float64 [S,L] unless said otherwise."""

    sets: tuple[str, ...]
    layers: tuple[int, ...]
    entropy: np.ndarray
    """Mean over the pictures of H, nats."""
    deviation: np.ndarray
    """Standard deviation of H over the pictures (of a sample); NaN for one picture."""
    gini: np.ndarray
    correlation: np.ndarray
    ceiling: np.ndarray
    """[S] mean of log N, the H of flat channels."""
    pictures: np.ndarray
    """[S] int64 number of pictures."""

    def rows(self) -> tuple[list[str], list[list]]:
        """Column names and one row per data set and layer."""
        header = ["data", "layer", "entropy_nats", "deviation_nats", "ceiling_nats", "gini", "correlation", "pictures"]
        rows = []
        for i, name in enumerate(self.sets):
            for j, layer in enumerate(self.layers):
                figures = self.entropy[i, j], self.deviation[i, j], self.ceiling[i], self.gini[i, j]
                rows.append([name, layer, *figures, self.correlation[i, j], self.pictures[i]])
        return header, rows


@sheltered()
def layer_entropy(
    sets: Mapping[str, Iterable[Picture]],
    clip,
    *,
    layers: Sequence[int] | None = None,
    short_side: int | None = None,
) -> LayerEntropy:
    """Spatial statistics of CLIP's layers over data sets.

    Args:
        sets: name → pictures; they are walked through once, one at a time.
        clip: `s2clip.backbones.clip.CLIPBackbone`.
        layers: blocks 1..L; None: all.
        short_side: pixels every picture is resized to, whole, ratio kept; None: 336 (tiny: 64), 0: its own size.

    Raises:
        ValueError: a layer that does not exist, or a set without pictures.
    """
    chosen = check_layers(clip, layers)
    means, deviations, ceilings, counts = [], [], [], []
    for name, pictures in sets.items():
        values, logs = [], []
        for picture in pictures:
            maps = layer_maps(clip, prepare(picture.pixels, clip, short_side), chosen)
            found = [torch.stack(spatial_statistics(one.movedim(-1, 1))) for one in maps.values()]
            values.append(torch.cat(found, 1).cpu())
            height, width = maps[chosen[0]].shape[1:3]
            logs.append(math.log(height * width))
        if not values:
            reject("sets", "at least one picture in each", f"none in {name}")
        figures = torch.stack(values)  # [pictures, 3, layers]
        means.append(figures.mean(0).numpy())
        deviations.append(figures[:, 0].std(0).numpy() if len(values) > 1 else np.full(len(chosen), np.nan))
        ceilings.append(np.mean(logs))
        counts.append(len(values))
    entropy, gini, correlation = np.stack(means, 1)
    return LayerEntropy(
        tuple(sets), chosen, entropy, np.stack(deviations), gini, correlation, np.array(ceilings), np.array(counts)
    )
