"""What the scenes are made of: classes, the palettes they may have, and where things stand."""

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
GROUND = (WATER, GRASS, SAND, ROCK, FIELD, SNOW)
THINGS = (HOUSE, TREE, BOAT, CAR, BALLOON, SHEEP)
HOME = {  # where a thing usually stands; two in five scenes ignore it, so that the ground does not give the thing away
    HOUSE: (GRASS, FIELD, SNOW, SAND),
    TREE: (GRASS, FIELD, SNOW, ROCK),
    BOAT: (WATER,),
    CAR: (SAND, FIELD, ROCK, GRASS),
    BALLOON: (SKY,),
    SHEEP: (GRASS, FIELD, SNOW),
}
