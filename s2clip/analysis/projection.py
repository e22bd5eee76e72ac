"""Principal axes: high-dimensional features on two axes, or as the colours of a picture."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from s2clip.errors import reject


class PrincipalAxes:
    """Directions of largest variance of vectors that come in parts: Σ x and Σ x xᵀ are kept, in float64.

    axes = eigenvectors of (1/n) Σ (x - μ)(x - μ)ᵀ, largest first; each points to where its largest entry is positive,
    so that the same vectors give the same picture.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, vectors: Tensor) -> "PrincipalAxes":
        """vectors [...,C], all of one C."""
        rows = vectors.reshape(-1, vectors.shape[-1]).double()
        if self._sum is None:
            self._sum, self._products = rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1], rows.shape[1])
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows
        return self

    def solve(self, axes: int) -> tuple[Tensor, Tensor, Tensor]:
        """(μ [C], axes [C,axes] with zeros where there are no more, share of the variance on each [axes])."""
        if self._sum is None or self.count < 2:
            reject("vectors", "at least two", self.count)
        mean = self._sum / self.count
        values, vectors = torch.linalg.eigh(self._products / self.count - torch.outer(mean, mean))
        values, vectors = values.clamp(min=0).flip(0), vectors.flip(1)
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        kept = min(axes, len(values), self.count - 1)
        directions = vectors.new_zeros(len(values), axes)
        directions[:, :kept] = vectors[:, :kept]
        share = values.new_zeros(axes)
        share[:kept] = values[:kept] / values.sum().clamp(min=1e-300)
        return mean, directions, share


def project(vectors: Tensor, axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [N,C] on their principal axes: (points [N,axes], share of the variance on each axis), float64."""
    mean, directions, share = PrincipalAxes().add(vectors).solve(axes)
    points = (vectors.double() - mean) @ directions
    return points.cpu().numpy(), share.cpu().numpy()


def principal_colours(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Feature maps [h,w,C] of one C as colours, float64 [h,w,3] sRGB in 0..1: what looks alike is alike.

    The first three principal axes of all maps together, each cut at its 1st and 99th percentile, become lightness,
    blue to yellow and green to magenta: in grey print, and to eyes that do not tell red from green, the two larger
    ones are still there.
    """
    axes = PrincipalAxes()
    for one in maps:
        axes.add(one)
    mean, directions, _ = axes.solve(3)
    points = [((one.double() - mean) @ directions).cpu().numpy() for one in maps]
    low, high = np.percentile(np.concatenate([one.reshape(-1, 3) for one in points]), [1, 99], axis=0)
    span = np.where(high > low, high - low, 1)
    return [_colours(np.clip((one - low) / span, 0, 1)) for one in points]


def _colours(places: np.ndarray) -> np.ndarray:
    """[...,3] in 0..1 → sRGB by way of Oklab (Ottosson 2020): L from 0.25 to 0.93, b and a within ±0.13 and ±0.09."""
    light = 0.25 + 0.68 * places[..., 0]
    yellow = 0.26 * (places[..., 1] - 0.5)
    magenta = 0.18 * (places[..., 2] - 0.5)
    lab = np.stack([light, magenta, yellow], -1)
    cones = (lab @ _LAB_TO_CONES.T) ** 3
    linear = np.clip(cones @ _CONES_TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


_LAB_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
