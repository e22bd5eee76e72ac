"""A picture being painted with its label map, and the noise that textures are made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2clip.scenes.world import CLASS_PALETTES, PALETTES

Array = NDArray[np.floating]  # fp32: the type is that of what numpy's stubs infer
Mask = NDArray[np.bool_]


@dataclass
class Canvas:
    image: Array  # [H, W, 3] in 0..255
    labels: NDArray[np.uint8]  # [H, W]
    x: Array  # [1, W] pixel centres, in short sides
    y: Array  # [H, 1]
    rng: np.random.Generator

    @classmethod
    def blank(cls, height: int, width: int, rng: np.random.Generator) -> "Canvas":
        short = min(height, width)
        x = ((np.arange(width, dtype=np.float32) + 0.5) / short)[None, :]
        y = ((np.arange(height, dtype=np.float32) + 0.5) / short)[:, None]
        return cls(np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.uint8), x, y, rng)

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in short sides."""
        height, width = self.labels.shape
        return height / min(height, width), width / min(height, width)


def choose_palette(rng: np.random.Generator, kind: int) -> str:
    return str(rng.choice(CLASS_PALETTES[kind]))


def paint(
    canvas: Canvas, rows: slice, columns: slice, mask: Mask, kind: int, texture: Array | float, palette: str
) -> None:
    dark, light = (np.asarray(colour, np.float32) for colour in PALETTES[palette])
    image = canvas.image[rows, columns]
    mask = np.broadcast_to(mask, image.shape[:2])
    mix = np.broadcast_to(np.asarray(texture, np.float32), mask.shape)[mask]
    image[mask] = dark + (light - dark) * np.clip(mix, -0.15, 1.15)[:, None]
    canvas.labels[rows, columns][mask] = kind


def noise(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Smooth value noise in [0, 1] with one random value per unit cell; x [.., W] and y [H, ..] broadcast."""
    table = rng.random((64, 64), dtype=np.float32)
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    right, down = x - column, y - row
    right, down = right * right * (3 - 2 * right), down * down * (3 - 2 * down)
    column, row = column & 63, row & 63
    next_column, next_row = (column + 1) & 63, (row + 1) & 63
    top = table[row, column] * (1 - right) + table[row, next_column] * right
    bottom = table[next_row, column] * (1 - right) + table[next_row, next_column] * right
    return top + (bottom - top) * down


def curve(rng: np.random.Generator, x: Array, frequency: float) -> Array:
    """Smooth curve in [-1, 1] over x, with ``frequency`` bends per short side."""
    return 2 * noise(rng, x * frequency, np.zeros((1, 1), np.float32)) - 1


def facets(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Flat-shaded cells of a jittered grid (one per unit cell), each with its own shade and slope, in [0, 1]."""
    jitter = rng.random((3, 32, 32), dtype=np.float32)
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), 9.0, np.float32)
    shade = np.zeros_like(nearest)
    for right in (-1, 0, 1):
        for down in (-1, 0, 1):
            i, j = (row + down) & 31, (column + right) & 31
            dx = x - (column + right + jitter[0, i, j])
            dy = y - (row + down + jitter[1, i, j])
            distance = dx * dx + dy * dy
            closer = distance < nearest
            nearest = np.where(closer, distance, nearest)
            shade = np.where(closer, jitter[2, i, j] + 0.35 * (dx - dy), shade)
    return shade
