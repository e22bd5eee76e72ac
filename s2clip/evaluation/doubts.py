"""Label maps that can be read and may still not mean what their numbers say: remarks, no errors.

A palette contradicts its numbers where its colours are those of a known palette in another order, as a picture of
colours that was reduced to a palette has them. Numbers look shifted by one where the annotation's class k is mostly
given k+1 or k-1: two conventions, 0 for the first class and 0 for no class.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from s2clip.evaluation.benchmarks import IGNORE, Benchmark
from s2clip.pictures.label_maps import read_palette
from s2clip.results.colours import class_colours

logger = logging.getLogger(__name__)

SHOWN = 3
"""Files of a kind that are named; the others are like them."""
NEVER_255 = ("ade20k",)
"""Data sets whose files mark pixels of no class by 0 alone."""
MOST, LEAST_CLASSES = 0.5, 2
"""Of the annotation's classes that must be given their neighbour's number before a shift is spoken of."""


class Doubts:
    """What looks wrong in the label maps of one folder, each kind said of the first few files."""

    def __init__(self, palettes: Mapping[str, np.ndarray], high: int) -> None:
        """palettes: colours [n,3] by number, as whose they are known; high: the highest number that is a class."""
        self._palettes, self._high = palettes, high
        self._said = 0
        self._lock = threading.Lock()

    def look(self, path: Path, values: np.ndarray) -> None:
        """Say what is odd about a file with these numbers."""
        palette = read_palette(path)
        if palette is not None and values.dtype == np.uint8:
            odd = palette_doubt(np.flatnonzero(np.bincount(values.ravel())), palette, self._palettes, self._high)
            if odd:
                self.say(path, odd)

    def say(self, path: Path, odd: str) -> None:
        with self._lock:
            self._said += 1
            said = self._said
        if said <= SHOWN:
            logger.warning("%s: %s%s", path, odd, "; others like it are not named" if said == SHOWN else "")


def of_annotations(facts: Benchmark) -> Doubts:
    """By the numbers in a data set's files."""
    return Doubts(_palettes(facts, 0), facts.values[1])


def of_predictions(facts: Benchmark | None, classes: int) -> Doubts:
    """By class ids, in a data set's own colours, in ours, or in Pascal VOC's."""
    ours = {"s2clip's palette": class_colours(min(classes, 255))}
    shift = 0 if facts is None else facts.values[0] + int(facts.reduce_zero_label)
    known = {} if facts is None else _palettes(facts, shift)
    return Doubts({**known, "Pascal VOC's palette": voc_palette(), **ours}, classes - 1)


def palette_doubt(used: np.ndarray, palette: np.ndarray, known: Mapping[str, np.ndarray], high: int) -> str | None:
    """Why the palette [n,3] of a file that uses these numbers contradicts them; None where it does not."""
    used = used[used != IGNORE]
    if not len(used) or used.max() >= len(palette):
        return None
    shown = [tuple(map(int, palette[number])) for number in used]
    wrong = ""
    for name, colours in known.items():
        owners: dict[tuple[int, ...], int] = {}
        for number, colour in enumerate(colours.tolist()):
            owners.setdefault(tuple(colour), number)
        meant = [
            int(number) if number < len(colours) and tuple(colours[number].tolist()) == colour else owners.get(colour)
            for number, colour in zip(used, shown, strict=True)
        ]
        if meant == used.tolist():
            return None
        if None not in meant and not wrong:
            wrong = _contradiction(used, meant, f"the colour of {{}} in {name}")
    shades = [colour[0] if len(set(colour)) == 1 else None for colour in shown]
    if not wrong and all(shade is not None and (shade <= high or shade == IGNORE) for shade in shades):
        pairs = zip(used.tolist(), shades, strict=True)
        if any(0 < shade <= high and shade != number for number, shade in pairs):
            wrong = _contradiction(used, shades, "the shade {}")
    return wrong or None


def shift_doubt(matrix: Tensor) -> str | None:
    """What a confusion matrix [true, given] says of numbers that are off by one; None where nothing does."""
    counts = matrix.numpy()
    total, same = counts.sum(), np.trace(counts)
    for step in (1, -1):
        moved = np.trace(counts, offset=step)
        rows = np.flatnonzero(counts.sum(1))
        rows = rows[(rows + step >= 0) & (rows + step < len(counts))]
        followed = (counts[rows].argmax(1) == rows + step).sum()
        if len(rows) >= LEAST_CLASSES and followed >= MOST * len(rows) and moved > same:
            return (
                f"the given ids look shifted by one: the annotation's {'plus' if step > 0 else 'minus'} one at "
                f"{100 * moved / total:.0f} % of the pixels, equal at {100 * same / total:.0f} %; one of them may have "
                "been saved with 0 for no class, where here 0 is the first class and 255 is none"
            )
    return None


def voc_palette() -> np.ndarray:
    """uint8 [256,3]: bits 0, 1, 2 of a number are the highest of red, green and blue, bits 3, 4, 5 the next ones."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for band in range(3):
            if 3 * bit + band < 8:
                colours[:, band] |= (numbers >> (3 * bit + band) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def _palettes(facts: Benchmark, shift: int) -> dict[str, np.ndarray]:
    if facts.palette is None:
        return {}
    colours = voc_palette() if facts.palette == "voc" else np.array(facts.palette, np.uint8)
    return {f"the palette of {facts.title}": colours[shift:]}


def _contradiction(used: np.ndarray, meant: list, what: str) -> str:
    number, other = next((one, two) for one, two in zip(used.tolist(), meant, strict=True) if one != two)
    return (
        f"its palette contradicts its numbers: {number} has {what.format(other)}; the numbers count here, and may have "
        "been given out anew when the picture was reduced to a palette"
    )
