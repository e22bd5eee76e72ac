"""Text of any script by the fonts that this machine has: no boxes for letters that a font lacks.

Pillow's own font first; letters it lacks by the first installed font that has them; letters that none has in Latin
letters (anyascii), which is said once.
"""

import functools
import itertools
import logging
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import regex
from anyascii import anyascii
from PIL import ImageDraw, ImageFont, features

logger = logging.getLogger(__name__)

SUFFIXES = (".ttf", ".otf", ".ttc")
PLAIN_LAST = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "serif", "condensed", "narrow")
NO_CHARACTER = "\U0010ffff"  # is in no font: drawn as the box
INVISIBLE = ("Cf", "Cc", "Zs", "Zl", "Zp")  # joiners, spaces; variation selectors are Mn and looked for by number


def font_folders() -> list[Path]:
    """Where this system keeps fonts."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local / "Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    shared = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
    own = Path(os.environ.get("XDG_DATA_HOME", home / ".local/share"))
    return [*(Path(folder) / "fonts" for folder in shared if folder), own / "fonts", home / ".fonts"]


@functools.cache
def font_files(folders: tuple[Path, ...] | None = None) -> tuple[Path, ...]:
    """Installed fonts, upright sans-serif ones of normal weight first."""
    found = []
    for folder in font_folders() if folders is None else folders:
        for here, _, names in os.walk(folder):
            found += [Path(here) / name for name in names if name.lower().endswith(SUFFIXES)]
    return tuple(sorted(set(found), key=lambda path: (_fancy(path.stem), path.stem, str(path))))


def _fancy(stem: str) -> int:
    """How far a font is from plain letters."""
    name = stem.lower().replace("sansserif", "")
    return sum(word in name for word in PLAIN_LAST) + (0 if "sans" in name else 1)


class Letters:
    """Text of one size in pixels: its length, and the drawing of it.

    folders: where fonts are looked for; default: those of the system.
    """

    def __init__(self, size: int, folders: Sequence[Path] | None = None) -> None:
        self.size = size
        self._folders = None if folders is None else tuple(folders)
        own = _opened(None, size)
        assert own is not None, "Pillow brings this font"
        self._first = own
        self.ascent, self.descent = self._first.getmetrics()

    def length(self, text: str) -> float:
        """Width of the text in pixels."""
        return sum(font.getlength(part) for font, part in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, **how: Any) -> None:
        """The text with its left, middle or right ("l", "m", "r") end and half its height at `place`.

        how: fill, stroke_width and stroke_fill of `ImageDraw.text`.
        """
        x = place[0] - self.length(text) * {"l": 0, "m": 0.5, "r": 1}[anchor]
        baseline = place[1] + (self.ascent - self.descent) / 2
        for font, part in self._runs(text):
            draw.text((x, baseline), part, font=font, anchor="ls", **how)
            x += font.getlength(part)

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Neighbouring letters of one font, from left to right."""
        clusters = regex.findall(r"\X", unicodedata.normalize("NFC", text))
        runs: list[tuple[ImageFont.FreeTypeFont, str]] = []
        for found, group in itertools.groupby(clusters, lambda cluster: _font_of(cluster, self._folders)):
            run = "".join(group)
            if found is None:
                runs.append((self._first, _in_latin(run)))
            else:
                runs.append((_opened(found.path, self.size) or self._first, run))
        return runs[::-1] if clusters and _leftward(clusters[0]) else runs


class _Found(NamedTuple):
    path: Path | None  # None: Pillow's own


@functools.lru_cache(maxsize=65536)
def _font_of(cluster: str, folders: tuple[Path, ...] | None) -> _Found | None:
    """The first font that has these letters."""
    if _leftward(cluster) and not features.check("fribidi"):
        return None
    return next((_Found(path) for path in (None, *font_files(folders)) if covers(path, cluster)), None)


def covers(path: Path | None, cluster: str) -> bool:
    """Whether the font has a sign of its own for every visible character; `path` None: Pillow's own font."""
    font = _opened(path, 16)
    if font is None:
        return False
    box = _drawn(font, NO_CHARACTER)
    return all(_drawn(font, letter) != box for letter in cluster if _visible(letter))


@functools.lru_cache(maxsize=1024)
def _opened(path: Path | None, size: int) -> ImageFont.FreeTypeFont | None:
    """None for a damaged font, and for one of bitmaps in other sizes, as colour emoji are."""
    try:
        font = ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
    except OSError:
        return None
    return font if isinstance(font, ImageFont.FreeTypeFont) else None


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _visible(letter: str) -> bool:
    return unicodedata.category(letter) not in INVISIBLE and not 0xFE00 <= ord(letter) <= 0xFE0F


def _leftward(text: str) -> bool:
    """Whether the text starts from the right, as Arabic and Hebrew do."""
    return bool(text) and unicodedata.bidirectional(text[0]) in ("R", "AL")


@functools.cache
def _in_latin(text: str) -> str:
    seen = [letter for letter in text if _visible(letter) and not unicodedata.category(letter).startswith("M")]
    latin = "".join(anyascii(letter) or f"U+{ord(letter):04X}" for letter in seen)
    logger.warning("no installed font has %r: drawn as %s; fonts such as Noto Sans have it", text, latin)
    return latin
