"""The program in this process, and pictures for it."""

from PIL import Image

from s2clip import scenes

CLASSES = "sky, water; sea, grass, house"


def paint(path, seed=0, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenes.generate(seed, size)[0]).save(path)
    return path


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def one_line(result):
    """The error of a usage or environment failure: click prints a usage hint before it."""
    return next(line for line in result.stderr.splitlines() if line.startswith("Error: "))
