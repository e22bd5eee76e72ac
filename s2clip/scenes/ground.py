"""Ground and sky: bands from the horizon to the feet or land from above, each kind with its texture.

A texture maps coordinates in short sides to a mix of the two palette colours, nominally in [0, 1].
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from s2clip.scenes.canvas import Array, Canvas, choose_palette, curve, facets, noise, paint
from s2clip.scenes.world import GROUND, ROCK, SKY


def _sky_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    clouds = noise(rng, x * rng.uniform(1.5, 3), y * rng.uniform(4, 6))
    return 0.15 + 0.45 * y + 0.5 * clouds * clouds


def _water_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase = rng.uniform(11, 16) * y + rng.uniform(0.8, 1.4) * noise(rng, x * 4, y * 5)
    glitter = noise(rng, x * 7, y * 42)
    return 0.42 + 0.3 * np.sin(2 * np.pi * phase) + 0.5 * (glitter - 0.5)


def _grass_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    lean = rng.uniform(-0.3, 0.3)
    blades = noise(rng, (x + lean * y) * rng.uniform(32, 42), y * rng.uniform(6, 9))
    return 1.25 * blades - 0.3 + 0.35 * noise(rng, x * 3, y * 3)


def _sand_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    grains = noise(rng, x * 44, y * 44)
    dunes = noise(rng, x * 2, y * 4)
    return 0.35 + 0.35 * dunes + 0.5 * (grains > 0.74) - 0.5 * (grains < 0.27)


def _rock_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    frequency = rng.uniform(6, 9)
    return 0.9 * facets(rng, x * frequency, y * frequency) + 0.05


def _field_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    angle = rng.choice([-1, 1]) * rng.uniform(0.5, 1.05)  # 29 to 60 degrees: neither ripples nor blades
    across = x * np.sin(angle) + y * np.cos(angle) + 0.03 * curve(rng, x, 3)
    saw = (across * rng.uniform(9, 13)) % 1
    return 0.1 + 0.9 * np.where(saw < 0.6, saw / 0.6, (1 - saw) / 0.4) ** 1.5


def _snow_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    x_drifts, y_drifts = x * rng.uniform(4, 5), y * rng.uniform(7, 9)
    seed = rng.integers(2**32)
    lit = noise(np.random.default_rng(seed), x_drifts, y_drifts)
    dark = noise(np.random.default_rng(seed), x_drifts + 0.35, y_drifts + 0.55)
    sparkle = noise(rng, x * 40, y * 40) > 0.9
    return 0.6 + 1.1 * (lit - dark) + 0.4 * sparkle


_TEXTURES: tuple[Callable[[np.random.Generator, Array, Array], Array], ...] = (
    _sky_texture,
    _water_texture,
    _grass_texture,
    _sand_texture,
    _rock_texture,
    _field_texture,
    _snow_texture,
)


def lay_ground(canvas: Canvas) -> None:
    rng = canvas.rng
    count = int(rng.choice([2, 3, 4], p=[0.35, 0.45, 0.2]))
    layered = rng.random() < 0.65
    kinds = [int(kind) for kind in rng.permutation(GROUND)[:count]]
    if layered and rng.random() < 0.68:
        kinds[0] = SKY
    regions = _layers(canvas, kinds) if layered else _patchwork(canvas, count)
    for index, kind in enumerate(kinds):
        mask = regions == index
        painted = np.flatnonzero(mask.any(axis=1))
        if not painted.size:
            continue
        rows = slice(painted[0], painted[-1] + 1)
        texture = _TEXTURES[kind](rng, canvas.x, canvas.y[rows])
        paint(canvas, rows, slice(None), mask[rows], kind, texture, choose_palette(rng, kind))


def _layers(canvas: Canvas, kinds: list[int]) -> NDArray[np.int64]:
    """Bands from the horizon to the feet, borders wavy and tilted; rock under sky rises in peaks."""
    rng, (height, width) = canvas.rng, canvas.extent
    shares = 0.6 + rng.random(len(kinds))
    borders = np.cumsum(shares / shares.sum())[:-1]
    regions = np.zeros(canvas.labels.shape, np.int64)
    for index, border in enumerate(borders):
        tilt = rng.uniform(-0.14, 0.14) * (2 * canvas.x / width - 1)
        line = border + tilt + rng.uniform(0.02, 0.07) * curve(rng, canvas.x, rng.uniform(2, 4))
        if kinds[index] == SKY and kinds[index + 1] == ROCK:
            position = canvas.x * rng.uniform(1.2, 2.2) + rng.random()
            heights = rng.random(64, dtype=np.float32)
            cell = np.floor(position).astype(np.int32) & 63
            peak = 1 - np.abs(2 * (position - np.floor(position)) - 1)
            line = line - 0.28 * peak * (0.4 + 0.6 * heights[cell])
        regions = np.where(canvas.y / height > line, index + 1, regions)
    return regions


def _patchwork(canvas: Canvas, count: int) -> NDArray[np.int64]:
    """The land from above: one cell around each of ``count`` points, borders warped."""
    rng, (height, width) = canvas.rng, canvas.extent
    x = canvas.x + 0.25 * (noise(rng, canvas.x * 3, canvas.y * 3) - 0.5)
    y = canvas.y + 0.25 * (noise(rng, canvas.x * 3, canvas.y * 3) - 0.5)
    turn = rng.uniform(0, 2 * np.pi)
    distances = []
    for index in range(count):
        angle = turn + 2 * np.pi * (index + rng.uniform(-0.2, 0.2)) / count
        centre_x = width * (0.5 + rng.uniform(0.2, 0.4) * np.cos(angle))
        centre_y = height * (0.5 + rng.uniform(0.2, 0.4) * np.sin(angle))
        distances.append((x - centre_x) ** 2 + (y - centre_y) ** 2)
    return np.argmin(np.stack(distances), axis=0)
