"""Class lists as people write them: one parser for all notations, and remarks on what is seldom meant."""

import ast
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from s2clip.errors import first_few, reject
from s2clip.values import counted

COMMAS = ",，、،﹐︐﹑"
"""What parts classes, beside line ends and tabs: commas of all scripts."""
SEMICOLONS = ";；؛"
"""What parts the words of a class."""
SHOWN = 20
"""Classes of a list in its line."""
BULLETS = "-*•–"
"""What a line of a list may begin with."""
HINT = "commas part classes, semicolons words of one class"

_PARTS = f"[{COMMAS}\t\n]"
_PIECE = re.compile(rf"[ ]*(?:([\"'])(.*?)\1[ ]*(?={_PARTS}|$)|“([^”]*)”[ ]*(?={_PARTS}|$)|([^{COMMAS}\t\n]*))")
_NUMBERED = re.compile(r"(\d{1,5})[.):]\s+(\S.*)")
_DOTTED = re.compile(r"\s\.(?:\s|$)|\.\s.*\.$")


def parse_classes(text: str) -> list[str]:
    """ "sky, house; hut, tree" → ["sky", "house; hut", "tree"].

    Commas of any script, tabs and line ends part classes; where there are none, "|" or the dots of "sky . tree ." do. A
    list of JSON or Python is read as such, quotes around a name are left out, and what they hold is not parted.
    `ValueError` where "," and "|" are both there: one of them parts words, and nobody knows which.
    """
    text = visible(text).strip()
    if text[:1] in ("[", "(") and (found := _literal(text)) is not None:
        return found
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1].strip()
    if text[:1] == "{" and text[-1:] == "}":
        reject("classes", "a list, whose order gives the ids", text)
    text = re.sub(rf"[{COMMAS}]?\s*[\r\n]+\s*", "\n", text)
    pieces = _pieces(text)
    if "\n" in text:
        pieces = _unmarked(pieces)
    if len(pieces) > 1:
        if any("|" in piece for piece in pieces):
            reject("classes", f"one sign between names ({HINT})", f"{text!r}, with ',' and '|'")
        return pieces
    if "|" in text:
        return [piece.strip() for piece in text.split("|")]
    if _DOTTED.search(text):
        return [piece.strip() for piece in re.split(r"\s*\.(?:\s+|$)", text) if piece.strip()]
    return pieces


def read_classes(path: str | Path) -> list[str]:
    """A class file: one class per line, "a; b" for words of one; blank lines and lines starting with # are skipped.

    A single line, or JSON, is read as `parse_classes` reads it.
    """
    text = visible(Path(path).read_text(encoding="utf-8-sig"))
    if text.strip()[:1] == "[" and (found := _literal(text.strip())) is not None:
        return found
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    return parse_classes(lines[0]) if len(lines) == 1 else _unmarked(lines)


def visible(text: str) -> str:
    """Without marks of byte order and blanks of no width, which pages and editors leave in a text."""
    return re.sub("[\ufeff\u200b\u2060]", "", text)


def _unmarked(lines: list[str]) -> list[str]:
    """Lines without the dashes, dots or numbers that each of them begins with.

    `ValueError` for numbers that do not count up by one from 0 or 1: the place in the list gives the id, not they.
    """
    for bullet in BULLETS:
        if len(lines) > 1 and all(line.startswith(f"{bullet} ") for line in lines):
            return [line[1:].strip() for line in lines]
    found = [_NUMBERED.match(line) for line in lines]
    if len(lines) < 2 or not all(found):
        return lines
    numbers = [int(one[1]) for one in found if one]
    if numbers not in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        reject("classes", "numbers that count up from 0 or 1, as the place gives the id", first_few(lines, 3))
    return [one[2] for one in found if one]


def entries_of(classes: object) -> list:
    """The entries of a string or of anything that has an order. `ValueError` for sets and mappings."""
    if isinstance(classes, str):
        return parse_classes(classes)
    if isinstance(classes, set | frozenset | Mapping | bytes) or not hasattr(classes, "__iter__"):
        kind = "dict" if isinstance(classes, Mapping) else type(classes).__name__
        reject("classes", "a list, whose order gives the ids", f"a {kind}")
    return list(classes)


def key(word: str) -> str:
    """Equal for words that differ in blanks, case or Unicode's normal form alone, which a tokenizer does not see."""
    return " ".join(unicodedata.normalize("NFKC", word).split()).casefold()


def understood(classes: Sequence[str]) -> str:
    """ "3 classes: 0 sky, 1 house; hut, 2 tree"."""
    shown = first_few([f"{index} {name}" for index, name in enumerate(classes)], SHOWN)
    return f"{counted(len(classes), 'class')}: {shown}"


def remarks(classes: Sequence[str], *, every_pixel: bool = True) -> list[str]:
    """One line for each thing in a list that is seldom meant. every_pixel: a single class is given all of them."""
    said = []
    if len(classes) == 1 and every_pixel:
        said.append(f"classes: the single class {classes[0]!r} is given every pixel; {HINT}")
    numbers = [name for name in classes if name.isdigit()]
    if numbers and len(numbers) < len(classes):
        said.append(f"classes: {first_few(numbers, 4)}: numbers among the names, as of a table; expected names alone")
    holding = [repr(name) for name in classes if re.search(f"[{COMMAS}|\t\n]", name)]
    if holding and len(classes) > 1:
        said.append(
            f"classes: {first_few(holding, 3)}: one class each, in whose names a comma stands; an entry of a "
            "list is one class"
        )
    elif holding:
        said = [f"classes: {holding[0]} is a single class, with a comma in its name; an entry of a list is one class"]
    return said


def equal_words(words: Sequence[str], rows: Tensor, context_length: int | None = None) -> list[str]:
    """One line for each group of words whose rows [Q,C] are the same to the bit, and why they are."""
    groups: dict[bytes, list[str]] = {}
    for word, row in zip(words, rows.cpu().numpy(), strict=False):
        groups.setdefault(row.tobytes(), []).append(word)
    said = []
    for group in groups.values():
        names = list({key(word): word for word in group}.values())
        if len(names) > 1:
            long = len({name[:40] for name in names}) == 1 and min(map(len, names)) >= 40
            why = f"it reads no further than {context_length} tokens" if long else "it reads no difference between them"
            said.append(
                f"classes: {first_few([repr(name[:60]) for name in names], 4)} have the same vector, the model "
                f"cannot tell them apart ({why}); the first of them gets the pixels of all"
            )
    return said


def _literal(text: str) -> list[str] | None:
    """A list of JSON or Python; of lists inside, words of one class. None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | tuple):
            return ["; ".join(map(str, one)) if isinstance(one, list | tuple) else one for one in found]
    return None


def _pieces(text: str) -> list[str]:
    """What stands between commas, tabs and line ends, without quotes."""
    pieces, place = [], 0
    while True:
        found = _PIECE.match(text, place)
        assert found is not None, "the pattern takes an empty piece, too"
        pieces.append(next((part for part in (found[2], found[3], found[4]) if part is not None), "").strip())
        if found.end() >= len(text):
            return pieces
        place = found.end() + 1
