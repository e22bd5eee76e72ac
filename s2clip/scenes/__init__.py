"""Small painted landscapes with exact label maps: the world the embedded models were trained on.

``generate(seed)`` paints one scene: two to four kinds of ground or sky with wavy borders, and up to three things on
them. Colour alone never decides a class, because every palette belongs to at least two classes; texture (ripples,
blades, grains, facets, furrows, drifts) and shape do. Every class is missing from more than half of the scenes: a
picture-caption contrast teaches nothing about what is in nearly all of them.

A scene is drawn in coordinates relative to its sides, so one seed at two sizes of equal aspect shows the same content,
up to its pixel noise.

Held-out scenes: training draws its seeds from ``FIRST_TRAINING_SEED`` upwards, so any smaller seed was never seen.

In: a seed and a size. Out: uint8 [H,W,3] and labels [H,W]. Numpy is all that is imported here.
"""

from s2clip.scenes.painting import generate, visible_classes
from s2clip.scenes.world import (
    BALLOON,
    BOAT,
    CAR,
    CLASS_PALETTES,
    CLASSES,
    DEFAULT_SIZE,
    FIELD,
    FIRST_TRAINING_SEED,
    GRASS,
    HOUSE,
    PALETTES,
    ROCK,
    SAND,
    SHEEP,
    SKY,
    SNOW,
    TREE,
    WATER,
)

__all__ = [
    "BALLOON",
    "BOAT",
    "CAR",
    "CLASSES",
    "CLASS_PALETTES",
    "DEFAULT_SIZE",
    "FIELD",
    "FIRST_TRAINING_SEED",
    "GRASS",
    "HOUSE",
    "PALETTES",
    "ROCK",
    "SAND",
    "SHEEP",
    "SKY",
    "SNOW",
    "TREE",
    "WATER",
    "generate",
    "visible_classes",
]
