"""Choose the class colours of `s2clip.results.colours`: `python tools/palette.py` prints the table.

Greedy: every colour is the one whose smallest distance to all before it is largest, where a distance is the smallest of
four, in CAM02-UCS as seen with three cones and with full protanopia, deuteranopia and tritanopia (the model of Machado,
Oliveira and Fernandes 2009). So the first n are a good choice of n for every n. Needs colorspacious; two minutes.
"""

import numpy as np
from colorspacious import cspace_convert

VISIONS = ("", "protanomaly", "deuteranomaly", "tritanomaly")
START = ((68, 119, 170), (204, 187, 68))  # Tol's blue and yellow
KEPT_OFF = ((255, 255, 255), (0, 0, 0))  # borders, ignored pixels and text
LEVELS = np.linspace(0, 255, 41).round().astype(int)
CHROMA, LIGHTNESS = (0.18, 0.85), (24, 93)


def seen(colours: np.ndarray) -> np.ndarray:
    """[V,N,3]: CAM02-UCS coordinates of sRGB colours 0..255 under each vision."""
    spaces = ["sRGB255" if not name else {"name": "sRGB1+CVD", "cvd_type": name, "severity": 100} for name in VISIONS]
    views = []
    for space in spaces:
        given = colours / (1 if space == "sRGB255" else 255)
        linear = cspace_convert(given, space, "sRGB1")
        views.append(cspace_convert(np.clip(linear, 0, 1), "sRGB1", "CAM02-UCS"))
    return np.array(views)


def candidates() -> np.ndarray:
    """[N,3]: a cube of colours without the palest, the darkest and the greyest."""
    cube = np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS, indexing="ij"), -1).reshape(-1, 3)
    lightness, chroma = seen(cube)[0][:, 0], np.ptp(cube, axis=1) / 255
    return cube[(lightness > LIGHTNESS[0]) & (lightness < LIGHTNESS[1]) & (chroma > CHROMA[0]) & (chroma < CHROMA[1])]


def choose(count: int = 255) -> np.ndarray:
    """uint8 [count,3]."""
    cube = candidates()
    places = seen(cube)
    nearest = np.full(len(cube), np.inf)
    chosen = [np.array(colour) for colour in START]

    def keep_off(colour: np.ndarray) -> None:
        distance = np.linalg.norm(places - seen(colour[None].astype(float)), axis=-1).min(0)
        np.minimum(nearest, distance, out=nearest)

    for colour in (*KEPT_OFF, *START):
        keep_off(np.array(colour))
    while len(chosen) < count:
        chosen.append(cube[nearest.argmax()])
        keep_off(chosen[-1])
    return np.array(chosen, np.uint8)


def main() -> None:
    """Print the table, and the smallest distance among the first n."""
    table = choose()
    words = [bytes(colour.tolist()).hex() for colour in table]
    for start in range(0, len(words), 15):
        print(" ".join(words[start : start + 15]))
    places = seen(table.astype(float))
    for count in (13, 21, 40, 60, 150, 255):
        gaps = np.linalg.norm(places[:, :count, None] - places[:, None, :count], axis=-1) + 1e9 * np.eye(count)
        print(
            f"# first {count}: "
            + ", ".join(f"{name or 'all'} {gap:.1f}" for name, gap in zip(VISIONS, gaps.min((1, 2)), strict=True))
        )


if __name__ == "__main__":
    main()
