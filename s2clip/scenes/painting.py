"""From a seed to a picture and its label map."""

import numpy as np
from numpy.typing import NDArray

from s2clip.scenes.canvas import Canvas
from s2clip.scenes.ground import lay_ground
from s2clip.scenes.things import place_things
from s2clip.scenes.world import CLASSES, DEFAULT_SIZE


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
    canvas = Canvas.blank(height, width, rng)
    lay_ground(canvas)
    place_things(canvas)
    return _light(canvas), canvas.labels.astype(np.int64)


def visible_classes(labels: NDArray[np.integer], minimum_share: float = 0.0) -> list[int]:
    """Classes that hold at least one pixel and at least ``minimum_share`` of the pixels, in ascending order."""
    share = np.bincount(labels.ravel(), minlength=len(CLASSES)) / max(labels.size, 1)
    return [index for index in range(len(CLASSES)) if share[index] > 0 and share[index] >= minimum_share]


def _light(canvas: Canvas) -> NDArray[np.uint8]:
    """Exposure, tint, a slope of light across the picture, and grain."""
    rng, (height, width) = canvas.rng, canvas.extent
    exposure = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    slope = (
        1 + rng.uniform(-0.12, 0.12) * (2 * canvas.x / width - 1) + rng.uniform(-0.1, 0.1) * (2 * canvas.y / height - 1)
    )
    image = canvas.image * slope[..., None].astype(np.float32) * exposure.astype(np.float32)
    image += rng.uniform(1, 6) * rng.standard_normal(canvas.labels.shape, dtype=np.float32)[..., None]
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
