"""Small painted landscapes with exact label maps: the world the embedded models were trained on.

``generate(seed)`` paints one scene: two to four kinds of ground or sky with wavy borders, and up to three things on
them. Colour alone never decides a class, because every palette belongs to at least two classes; texture (ripples,
blades, grains, facets, furrows, drifts) and shape do. Every class is missing from more than half of the scenes: a
picture-caption contrast teaches nothing about what is in nearly all of them.

A scene is drawn in coordinates relative to its sides, so one seed at two sizes of equal aspect shows the same content,
up to its pixel noise.

Held-out scenes: training draws its seeds from ``FIRST_TRAINING_SEED`` upwards, so any smaller seed was never seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASSES: tuple[str, ...] = (
    "sky",
    "water; sea",
    "grass; meadow",
    "sand; beach",
    "rock; mountain",
    "field; farmland",
    "snow",
    "house; hut",
    "tree",
    "boat; ship",
    "car",
    "balloon",
    "sheep; lamb",
)
"""One entry a class; ``;`` parts the words that mean the same."""

DEFAULT_SIZE: tuple[int, int] = (96, 128)
FIRST_TRAINING_SEED: int = 1_000_000_000

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Two colours each, dark and light; a texture in [0, 1] mixes them.
PALETTES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "azure": ((70, 130, 190), (155, 205, 238)),
    "navy": ((28, 45, 95), (80, 108, 170)),
    "dusk": ((205, 120, 100), (248, 205, 155)),
    "slate": ((95, 110, 130), (168, 178, 188)),
    "teal": ((30, 95, 100), (100, 175, 165)),
    "leaf": ((40, 100, 35), (128, 182, 75)),
    "olive": ((80, 92, 35), (168, 170, 85)),
    "straw": ((165, 135, 60), (232, 208, 125)),
    "beige": ((180, 152, 112), (238, 218, 180)),
    "ochre": ((145, 90, 45), (210, 155, 95)),
    "soil": ((80, 52, 35), (145, 105, 75)),
    "ash": ((85, 85, 88), (165, 163, 156)),
    "charcoal": ((38, 38, 44), (100, 98, 100)),
    "pearl": ((190, 198, 212), (252, 252, 253)),
    "ice": ((150, 185, 215), (238, 247, 253)),
    "rose": ((212, 175, 182), (252, 234, 230)),
    "cream": ((205, 190, 155), (252, 243, 220)),
    "brick": ((130, 50, 40), (205, 105, 78)),
    "wine": ((110, 25, 50), (195, 75, 95)),
    "gold": ((195, 135, 30), (252, 208, 85)),
}

CLASS_PALETTES: tuple[tuple[str, ...], ...] = (
    ("azure", "navy", "dusk", "slate", "pearl", "ice", "rose"),  # sky
    ("azure", "navy", "dusk", "slate", "teal", "ice"),  # water
    ("leaf", "olive", "straw", "teal"),  # grass
    ("beige", "straw", "ochre", "dusk", "rose", "cream"),  # sand
    ("ash", "slate", "ochre", "soil", "beige", "charcoal"),  # rock
    ("soil", "olive", "leaf", "straw", "ochre"),  # field
    ("pearl", "ice", "rose"),  # snow
    ("brick", "cream", "beige", "ash", "ochre", "wine"),  # house
    ("leaf", "olive", "teal", "brick", "gold"),  # tree
    ("pearl", "brick", "navy", "gold", "charcoal", "cream"),  # boat
    ("brick", "wine", "navy", "gold", "teal", "charcoal", "azure"),  # car
    ("brick", "wine", "navy", "gold", "azure", "pearl"),  # balloon
    ("pearl", "cream", "charcoal", "ash"),  # sheep
)

SKY, WATER, GRASS, SAND, ROCK, FIELD, SNOW, HOUSE, TREE, BOAT, CAR, BALLOON, SHEEP = range(len(CLASSES))
_GROUND = (WATER, GRASS, SAND, ROCK, FIELD, SNOW)
_THINGS = (HOUSE, TREE, BOAT, CAR, BALLOON, SHEEP)
_HOME = {  # where a thing usually stands; two in five scenes ignore it, so that the ground does not give the thing away
    HOUSE: (GRASS, FIELD, SNOW, SAND),
    TREE: (GRASS, FIELD, SNOW, ROCK),
    BOAT: (WATER,),
    CAR: (SAND, FIELD, ROCK, GRASS),
    BALLOON: (SKY,),
    SHEEP: (GRASS, FIELD, SNOW),
}


def generate(seed: int, size: tuple[int, int] | None = None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Paint the scene of a seed.

    Args:
        seed: any integer from 0; below ``FIRST_TRAINING_SEED`` the scene was never trained on.
        size: (height, width) in pixels, each at least 1; ``DEFAULT_SIZE`` if None.

    Returns:
        image uint8 [H, W, 3], RGB; labels int64 [H, W], indices into ``CLASSES``, every pixel labelled.

    Raises:
        ValueError: if the seed is negative or a side is below 1.
    """
    height, width = DEFAULT_SIZE if size is None else size
    if height < 1 or width < 1:
        raise ValueError(f"size: expected two sides of at least 1 pixel, received {(height, width)}")
    if seed < 0:
        raise ValueError(f"seed: expected an integer from 0, received {seed}")
    rng = np.random.default_rng([0x5CE9E, seed])
    canvas = _Canvas.blank(height, width, rng)
    _lay_ground(canvas)
    _place_things(canvas)
    return _light(canvas), canvas.labels.astype(np.int64)


def visible_classes(labels: NDArray[np.integer], minimum_share: float = 0.0) -> list[int]:
    """Classes that hold at least one pixel and at least ``minimum_share`` of the pixels, in ascending order."""
    share = np.bincount(labels.ravel(), minlength=len(CLASSES)) / max(labels.size, 1)
    return [index for index in range(len(CLASSES)) if share[index] > 0 and share[index] >= minimum_share]


@dataclass
class _Canvas:
    image: Array  # [H, W, 3] in 0..255
    labels: NDArray[np.uint8]  # [H, W]
    x: Array  # [1, W] pixel centres, in short sides
    y: Array  # [H, 1]
    rng: np.random.Generator

    @classmethod
    def blank(cls, height: int, width: int, rng: np.random.Generator) -> "_Canvas":
        short = min(height, width)
        x = ((np.arange(width, dtype=np.float32) + 0.5) / short)[None, :]
        y = ((np.arange(height, dtype=np.float32) + 0.5) / short)[:, None]
        return cls(np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.uint8), x, y, rng)

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width in short sides."""
        height, width = self.labels.shape
        return height / min(height, width), width / min(height, width)


# --- noise -----------------------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, x: Array, y: Array) -> Array:
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


def _curve(rng: np.random.Generator, x: Array, frequency: float) -> Array:
    """Smooth curve in [-1, 1] over x, with ``frequency`` bends per short side."""
    return 2 * _noise(rng, x * frequency, np.zeros((1, 1), np.float32)) - 1


def _facets(rng: np.random.Generator, x: Array, y: Array) -> Array:
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


# --- textures of the ground: coordinates in short sides -> mix of the two palette colours, nominally in [0, 1] --------


def _sky_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    clouds = _noise(rng, x * rng.uniform(1.5, 3), y * rng.uniform(4, 6))
    return 0.15 + 0.45 * y + 0.5 * clouds * clouds


def _water_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase = rng.uniform(11, 16) * y + rng.uniform(0.8, 1.4) * _noise(rng, x * 4, y * 5)
    glitter = _noise(rng, x * 7, y * 42)
    return 0.42 + 0.3 * np.sin(2 * np.pi * phase) + 0.5 * (glitter - 0.5)


def _grass_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    lean = rng.uniform(-0.3, 0.3)
    blades = _noise(rng, (x + lean * y) * rng.uniform(32, 42), y * rng.uniform(6, 9))
    return 1.25 * blades - 0.3 + 0.35 * _noise(rng, x * 3, y * 3)


def _sand_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    grains = _noise(rng, x * 44, y * 44)
    dunes = _noise(rng, x * 2, y * 4)
    return 0.35 + 0.35 * dunes + 0.5 * (grains > 0.74) - 0.5 * (grains < 0.27)


def _rock_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    frequency = rng.uniform(6, 9)
    return 0.9 * _facets(rng, x * frequency, y * frequency) + 0.05


def _field_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    angle = rng.choice([-1, 1]) * rng.uniform(0.5, 1.05)  # 29 to 60 degrees: neither ripples nor blades
    across = x * np.sin(angle) + y * np.cos(angle) + 0.03 * _curve(rng, x, 3)
    saw = (across * rng.uniform(9, 13)) % 1
    return 0.1 + 0.9 * np.where(saw < 0.6, saw / 0.6, (1 - saw) / 0.4) ** 1.5


def _snow_texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
    x_drifts, y_drifts = x * rng.uniform(4, 5), y * rng.uniform(7, 9)
    seed = rng.integers(2**32)
    lit = _noise(np.random.default_rng(seed), x_drifts, y_drifts)
    dark = _noise(np.random.default_rng(seed), x_drifts + 0.35, y_drifts + 0.55)
    sparkle = _noise(rng, x * 40, y * 40) > 0.9
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


def _lay_ground(canvas: _Canvas) -> None:
    rng = canvas.rng
    count = int(rng.choice([2, 3, 4], p=[0.35, 0.45, 0.2]))
    layered = rng.random() < 0.65
    kinds = [int(kind) for kind in rng.permutation(_GROUND)[:count]]
    if layered and rng.random() < 0.68:
        kinds[0] = SKY
    regions = _layers(canvas, kinds) if layered else _patchwork(canvas, count)
    for index, kind in enumerate(kinds):
        mask = regions == index
        rows = np.flatnonzero(mask.any(axis=1))
        if not rows.size:
            continue
        rows = slice(rows[0], rows[-1] + 1)
        texture = _TEXTURES[kind](rng, canvas.x, canvas.y[rows])
        _paint(canvas, rows, slice(None), mask[rows], kind, texture, _palette(rng, kind))


def _layers(canvas: _Canvas, kinds: list[int]) -> NDArray[np.int64]:
    """Bands from the horizon to the feet, borders wavy and tilted; rock under sky rises in peaks."""
    rng, (height, width) = canvas.rng, canvas.extent
    shares = 0.6 + rng.random(len(kinds))
    borders = np.cumsum(shares / shares.sum())[:-1]
    regions = np.zeros(canvas.labels.shape, np.int64)
    for index, border in enumerate(borders):
        tilt = rng.uniform(-0.14, 0.14) * (2 * canvas.x / width - 1)
        line = border + tilt + rng.uniform(0.02, 0.07) * _curve(rng, canvas.x, rng.uniform(2, 4))
        if kinds[index] == SKY and kinds[index + 1] == ROCK:
            position = canvas.x * rng.uniform(1.2, 2.2) + rng.random()
            heights = rng.random(64, dtype=np.float32)
            cell = np.floor(position).astype(np.int32) & 63
            peak = 1 - np.abs(2 * (position - np.floor(position)) - 1)
            line = line - 0.28 * peak * (0.4 + 0.6 * heights[cell])
        regions = np.where(canvas.y / height > line, index + 1, regions)
    return regions


def _patchwork(canvas: _Canvas, count: int) -> NDArray[np.int64]:
    """The land from above: one cell around each of ``count`` points, borders warped."""
    rng, (height, width) = canvas.rng, canvas.extent
    x = canvas.x + 0.25 * (_noise(rng, canvas.x * 3, canvas.y * 3) - 0.5)
    y = canvas.y + 0.25 * (_noise(rng, canvas.x * 3, canvas.y * 3) - 0.5)
    turn = rng.uniform(0, 2 * np.pi)
    distances = []
    for index in range(count):
        angle = turn + 2 * np.pi * (index + rng.uniform(-0.2, 0.2)) / count
        centre_x = width * (0.5 + rng.uniform(0.2, 0.4) * np.cos(angle))
        centre_y = height * (0.5 + rng.uniform(0.2, 0.4) * np.sin(angle))
        distances.append((x - centre_x) ** 2 + (y - centre_y) ** 2)
    return np.argmin(np.stack(distances), axis=0)


# --- things: local coordinates x right, y down, about [-1, 1] -> parts (mask, texture, palette), painted in order ---

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
    leaves = _noise(rng, x * 5 + 20, y * 5 + 20)
    shade = 0.15 + 0.9 * leaves * leaves - 0.25 * (x + y)
    yield (np.abs(x) < 0.16) & (y > 0.2) & (y < 0.98), 0.5 - 2 * x, "soil"
    if rng.random() < 0.5:
        tier = ((y + 0.98) / 1.5 * 3) % 1
        half = 0.16 + 0.5 * (y + 0.98) / 1.5 + 0.22 * (tier - 0.5)
        yield (np.abs(x) < half) & (y > -0.98) & (y < 0.52), shade - 0.3 * (tier > 0.8), palette
    else:
        rim = _noise(rng, 3 * np.arctan2(y + 0.25, x) / np.pi * 3 + 12, np.zeros((1, 1), np.float32))
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


def _place_things(canvas: _Canvas) -> None:
    rng = canvas.rng
    count = int(rng.choice([0, 1, 2, 3], p=[0.05, 0.3, 0.4, 0.25]))
    kinds = [int(kind) for kind in rng.permutation(_THINGS)[:count]]
    scale = {0: 0.0, 1: 0.29, 2: 0.25, 3: 0.22}[count]
    taken: list[tuple[float, float, float, float]] = []
    for kind in kinds:
        half = scale * rng.uniform(0.8, 1.3) * np.asarray(_SHAPES[kind])
        taken.append(_spot(canvas, kind, half, taken))
    for kind, box in sorted(zip(kinds, taken, strict=True), key=lambda pair: pair[1][0] + pair[1][2]):  # far first
        _draw_thing(canvas, kind, *box)


def _spot(
    canvas: _Canvas, kind: int, half: NDArray[np.float64], taken: list[tuple[float, float, float, float]]
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
        cost = 0.0 if astray or canvas.labels[row, column] in _HOME[kind] else 1.0
        for y, x, half_y, half_x in taken:
            inside_y = max(0.0, (half[0] + half_y - abs(place[0] - y)) / half[0])
            inside_x = max(0.0, (half[1] + half_x - abs(place[1] - x)) / half[1])
            cost += 2 * inside_y * inside_x
        if cost < best_cost:
            best, best_cost = place, cost
    return float(best[0]), float(best[1]), float(half[0]), float(half[1])


def _draw_thing(canvas: _Canvas, kind: int, y: float, x: float, half_y: float, half_x: float) -> None:
    rng = canvas.rng
    palette = _palette(rng, kind)
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
        _paint(canvas, rows, columns, mask, kind, texture, name)


def _palette(rng: np.random.Generator, kind: int) -> str:
    return str(rng.choice(CLASS_PALETTES[kind]))


def _paint(
    canvas: _Canvas, rows: slice, columns: slice, mask: Mask, kind: int, texture: Array | float, palette: str
) -> None:
    dark, light = (np.asarray(colour, np.float32) for colour in PALETTES[palette])
    image = canvas.image[rows, columns]
    mask = np.broadcast_to(mask, image.shape[:2])
    mix = np.broadcast_to(np.asarray(texture, np.float32), mask.shape)[mask]
    image[mask] = dark + (light - dark) * np.clip(mix, -0.15, 1.15)[:, None]
    canvas.labels[rows, columns][mask] = kind


def _light(canvas: _Canvas) -> NDArray[np.uint8]:
    """Exposure, tint, a slope of light across the picture, and grain."""
    rng, (height, width) = canvas.rng, canvas.extent
    exposure = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    slope = (
        1 + rng.uniform(-0.12, 0.12) * (2 * canvas.x / width - 1) + rng.uniform(-0.1, 0.1) * (2 * canvas.y / height - 1)
    )
    image = canvas.image * slope[..., None].astype(np.float32) * exposure.astype(np.float32)
    image += rng.uniform(1, 6) * rng.standard_normal(canvas.labels.shape, dtype=np.float32)[..., None]
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
