"""Houses, trees, boats, cars, balloons and sheep, and where they stand.

A thing is painted in coordinates of its own, x right, y down, about [-1, 1], as parts (mask, texture, palette) in
order.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from s2clip.scenes.canvas import Array, Canvas, Mask, choose_palette, noise, paint
from s2clip.scenes.world import BALLOON, BOAT, CAR, HOME, HOUSE, SHEEP, THINGS, TREE

Part = tuple[Mask, Array | float, str]


def _house(rng: np.random.Generator, x: Array, y: Array, palette: str) -> Iterator[Part]:
    roof = str(rng.choice(["brick", "charcoal", "soil", "slate", "wine"]))
    eaves = rng.uniform(-0.25, 0.05)
    slope = (y + 0.95) / (eaves + 0.95)
    course = np.floor(y * 9)
    joints = ((y * 9) % 1 < 0.22) | ((x * 5 + 0.5 * (course % 2)) % 1 < 0.12)
    yield (np.abs(x) < 0.82) & (y > eaves - 0.05) & (y < 0.97), np.where(joints, 0.15, 0.75) - 0.15 * x, palette
    yield (np.abs(x) < 0.98 * slope) & (y < eaves + 0.04) & (y > -0.95), 0.35 + 0.4 * ((y * 8) % 1), roof
    yield (np.abs(x - 0.4) < 0.17) & (y > 0.42) & (y < 0.97), 0.1, "soil"
    for centre in (-0.45, 0.0):
        yield (np.abs(x - centre) < 0.15) & (np.abs(y - 0.38) < 0.16), np.where(y < 0.3, 0.9, 0.55), "azure"


def _tree(rng: np.random.Generator, x: Array, y: Array, palette: str) -> Iterator[Part]:
    leaves = noise(rng, x * 5 + 20, y * 5 + 20)
    shade = 0.15 + 0.9 * leaves * leaves - 0.25 * (x + y)
    yield (np.abs(x) < 0.16) & (y > 0.2) & (y < 0.98), 0.5 - 2 * x, "soil"
    if rng.random() < 0.5:
        tier = ((y + 0.98) / 1.5 * 3) % 1
        half = 0.16 + 0.5 * (y + 0.98) / 1.5 + 0.22 * (tier - 0.5)
        yield (np.abs(x) < half) & (y > -0.98) & (y < 0.52), shade - 0.3 * (tier > 0.8), palette
    else:
        rim = noise(rng, 3 * np.arctan2(y + 0.25, x) / np.pi * 3 + 12, np.zeros((1, 1), np.float32))
        radius = np.hypot(x / 0.95, (y + 0.22) / 0.75)
        yield radius < 0.8 + 0.25 * rim, shade, palette


def _boat(rng: np.random.Generator, x: Array, y: Array, palette: str) -> Iterator[Part]:
    sail = str(rng.choice(["pearl", "cream", "gold", "brick", "rose"]))
    depth = (y - 0.42) / 0.5
    planks = 0.35 + 0.3 * ((y * 7) % 1)
    yield (np.abs(x) < 0.06) & (y > -0.97) & (y < 0.5), 0.3, "soil"
    yield (x > 0.06) & (y > -0.93) & (y < 0.32) & (x < 0.1 + 0.75 * (y + 0.93) / 1.25), 0.75 - 0.5 * x, sail
    yield (x < -0.06) & (y > -0.75) & (y < 0.32) & (-x < 0.1 + 0.6 * (y + 0.75) / 1.07), 0.85 + 0.5 * x, sail
    yield (depth > 0) & (depth < 1) & (np.abs(x) < 0.98 - 0.42 * np.maximum(depth, 0) ** 1.5), planks, palette
    yield (depth > 0) & (depth < 0.22) & (np.abs(x) < 0.98), 0.9, palette


def _car(rng: np.random.Generator, x: Array, y: Array, palette: str) -> Iterator[Part]:
    roof = (y + 0.6) / 0.62
    yield (roof > 0) & (roof < 1.05) & (np.abs(x + 0.08) < 0.42 + 0.25 * roof), 0.35, palette
    pane = (roof > 0.22) & (roof < 0.95) & (np.abs(x + 0.08) < 0.33 + 0.25 * roof) & (np.abs(x + 0.08) > 0.06)
    yield pane, 0.95 - 0.5 * roof, "ice"
    body = np.maximum(np.abs(x) / 0.98, np.abs(y - 0.28) / 0.34)
    corner = np.hypot(np.maximum(np.abs(x) - 0.8, 0), np.maximum(np.abs(y - 0.28) - 0.14, 0)) < 0.2
    yield (body < 1) & corner, 0.95 - 0.9 * (y + 0.06), palette
    yield np.hypot(x - 0.88, y - 0.2) < 0.09, 1.0, "gold"
    for centre in (-0.52, 0.52):
        wheel = np.hypot(x - centre, y - 0.6)
        yield wheel < 0.31, np.where(wheel < 0.13, 1.0, 0.1), "charcoal"


def _balloon(rng: np.random.Generator, x: Array, y: Array, palette: str) -> Iterator[Part]:
    second = str(rng.choice(["cream", "gold", "brick", "azure", "pearl"]))
    lower = np.maximum(y + 0.25, 0)
    half = 0.82 * np.sqrt(np.maximum(1 - ((y + 0.25) / 0.72) ** 2, 0)) * (1 - 0.35 * lower)
    inside = (np.abs(x) < half) & (np.abs(y + 0.25) < 0.72)
    meridian = np.arcsin(np.clip(x / np.maximum(half, 1e-3), -1, 1)) / np.pi * rng.integers(5, 8)
    shade = 0.8 - 0.5 * x - 0.25 * y
    yield (np.abs(np.abs(x) - 0.13 - 0.12 * (0.68 - y)) < 0.04) & (y > 0.38) & (y < 0.7), 0.3, "soil"
    yield inside, shade, palette
    yield inside & (np.floor(meridian + 0.5) % 2 == 0), shade, second
    yield (np.abs(x) < 0.23) & (y > 0.66) & (y < 0.98), 0.4 + 0.4 * ((y * 12) % 1), "ochre"


def _sheep(rng: np.random.Generator, x: Array, y: Array, palette: str) -> Iterator[Part]:
    face = "cream" if palette in ("charcoal", "ash") else "charcoal"
    for centre in (-0.55, -0.22, 0.2, 0.5):
        yield (np.abs(x - centre) < 0.09) & (y > 0.3) & (y < 0.97), 0.25, face
    angle = np.arctan2(y, x + 0.1)
    curls = 0.06 * np.abs(np.sin(5.5 * angle))
    radius = np.hypot((x + 0.1) / 0.82, (y + 0.02) / 0.6)
    rings = np.hypot((x * 3.2) % 1 - 0.5, (y * 3.2 + 0.5 * np.floor(x * 3.2)) % 1 - 0.5)
    yield radius < 0.92 + curls, 1.05 - 0.75 * rings - 0.3 * y, palette
    yield np.hypot((x - 0.74) / 0.24, (y + 0.2) / 0.33) < 1, 0.55 - 0.4 * y, face
    yield np.hypot((x - 0.55) / 0.16, (y + 0.42) / 0.09) < 1, 0.2, face


_PAINTERS = {HOUSE: _house, TREE: _tree, BOAT: _boat, CAR: _car, BALLOON: _balloon, SHEEP: _sheep}
_SHAPES = {  # half height and half width relative to the thing's size
    HOUSE: (0.95, 1.0),
    TREE: (1.2, 1.0),
    BOAT: (1.05, 1.0),
    CAR: (0.85, 1.2),
    BALLOON: (1.2, 0.95),
    SHEEP: (0.9, 1.15),
}


def place_things(canvas: Canvas) -> None:
    rng = canvas.rng
    count = int(rng.choice([0, 1, 2, 3], p=[0.05, 0.3, 0.4, 0.25]))
    kinds = [int(kind) for kind in rng.permutation(THINGS)[:count]]
    scale = {0: 0.0, 1: 0.29, 2: 0.25, 3: 0.22}[count]
    taken: list[tuple[float, float, float, float]] = []
    for kind in kinds:
        half = scale * rng.uniform(0.8, 1.3) * np.asarray(_SHAPES[kind])
        taken.append(_spot(canvas, kind, half, taken))
    for kind, box in sorted(zip(kinds, taken, strict=True), key=lambda pair: pair[1][0] + pair[1][2]):  # far first
        _draw_thing(canvas, kind, *box)


def _spot(
    canvas: Canvas, kind: int, half: NDArray[np.float64], taken: list[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """Of twelve places the one with the least overlap, at home if the thing is not astray: centre y, x, halves."""
    rng, extent = canvas.rng, canvas.extent
    astray = rng.random() < 0.4
    places = rng.random((12, 2)) * (np.asarray(extent) - 1.6 * half) + 0.8 * half
    rows, columns = canvas.labels.shape
    best, best_cost = places[0], np.inf
    for place in places:
        foot = place[0] + (0 if kind == BALLOON else 0.8 * half[0])
        row = min(int(foot / extent[0] * rows), rows - 1)
        column = min(int(place[1] / extent[1] * columns), columns - 1)
        cost = 0.0 if astray or canvas.labels[row, column] in HOME[kind] else 1.0
        for y, x, half_y, half_x in taken:
            inside_y = max(0.0, (half[0] + half_y - abs(place[0] - y)) / half[0])
            inside_x = max(0.0, (half[1] + half_x - abs(place[1] - x)) / half[1])
            cost += 2 * inside_y * inside_x
        if cost < best_cost:
            best, best_cost = place, cost
    return float(best[0]), float(best[1]), float(half[0]), float(half[1])


def _draw_thing(canvas: Canvas, kind: int, y: float, x: float, half_y: float, half_x: float) -> None:
    rng = canvas.rng
    palette = choose_palette(rng, kind)
    mirror = rng.choice([-1, 1])
    rows = slice(*np.searchsorted(canvas.y[:, 0], [y - half_y, y + 1.15 * half_y]))
    columns = slice(*np.searchsorted(canvas.x[0], [x - 1.1 * half_x, x + 1.1 * half_x]))
    local_y = (canvas.y[rows] - np.float32(y)) / np.float32(half_y)
    local_x = (canvas.x[:, columns] - np.float32(x)) / np.float32(mirror * half_x)
    parts = list(_PAINTERS[kind](rng, local_x, local_y, palette))
    if kind != BALLOON:
        shadow = np.hypot(local_x / (0.6 if kind == TREE else 1.0), (local_y - 0.97) / 0.14) < 1
        canvas.image[rows, columns][shadow] *= 0.72
    for mask, texture, name in parts:
        paint(canvas, rows, columns, mask, kind, texture, name)
