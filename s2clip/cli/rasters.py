"""Orthophotos and other large rasters of `s2clip segment`: which files are some, their options, their turn."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import bar, say
from s2clip.cli.lists import numbers_option
from s2clip.cli.options import decorated, gathered
from s2clip.errors import ImageError, first_few
from s2clip.results.geo import FORMATS

if TYPE_CHECKING:
    from s2clip.results.folder import OutputFolder
    from s2clip.segmenter import Segmenter

logger = logging.getLogger(__name__)

ONLY_RASTERS = tuple(name for name in FORMATS if name != "overlay")
DEFAULT = ("cog", "overlay")
_OPTIONS = ("bands", "value_range", "percentile", "window", "overlap")


def raster_options(command: Callable) -> Callable:
    """How rasters are read, handed to the command as one dictionary `raster_settings`."""
    options = [
        numbers_option("--bands", metavar="R,G,B", help="Of a raster, counted from 1; default: as it names them."),
        click.option("--range", "value_range", metavar="LOW,HIGH", help="A raster's values of black and white."),
        click.option(
            "--percentile", metavar="LOW,HIGH", help="Or these percentiles of it; default above 8 bits: 2,98."
        ),
        click.option("--window", type=int, help="Pixels of a raster that are segmented at once; default 512."),
        click.option("--overlap", type=int, help="Pixels that neighbouring windows share; default 128."),
    ]
    return decorated(gathered(command, "raster_settings", _OPTIONS), options)


class Rasters:
    """What of a command line is about rasters.

    settings: of `raster_options`. formats: as asked for; asked: whether they were given, or are the default.
    Raises ValueError for values that no raster can be read with.
    """

    def __init__(self, settings: dict[str, Any], formats: Sequence[str], asked: bool, max_pixels: int) -> None:
        from s2clip.pictures.raster_grid import check_windows
        from s2clip.pictures.rasters import Rendering, check_rendering
        from s2clip.rasters import OVERLAP, WINDOW

        self._given = [name for name in _OPTIONS if settings[name] not in (None, ())]
        self.rendering = Rendering(
            settings["bands"] or None,
            _pairs("--range", settings["value_range"]),
            (_pairs("--percentile", settings["percentile"]) or [None])[0],
        )
        check_rendering(self.rendering)
        self.window = WINDOW if settings["window"] is None else settings["window"]
        overlap = min(OVERLAP, self.window // 4 // 2 * 2) if settings["overlap"] is None else settings["overlap"]
        self.overlap = overlap
        check_windows(self.window, self.overlap)
        self._asked, self._max_pixels = asked, max_pixels
        self.only = [name for name in formats if name in ONLY_RASTERS] if asked else []
        self.formats = tuple(name for name in formats if name in FORMATS) if asked else DEFAULT

    def among(self, pictures: Sequence[Path]) -> list[Path]:
        """The files that are rasters. Raises ValueError for options or formats that only rasters have a use for, where
        there is none."""
        from s2clip.pictures.rasters import is_raster

        found = [one for one in pictures if is_raster(one, self._max_pixels)]
        as_pictures = self._asked and not self.only
        if as_pictures and found:
            what = f"formats of pictures: {first_few(found, 3)} would lose the place on the ground"
            say(f"{what}; --format {','.join(DEFAULT)} keeps it", err=True)
            found = []
        if pictures and not found and (self._given or self.only):
            option = f"--format {self.only[0]}" if self.only else f"--{self._given[0].replace('value_range', 'range')}"
            raise ValueError(f"{option}: is of rasters (a TIFF with a place on the ground, a VRT), and there is none")
        return found

    def record(self) -> dict[str, Any]:
        """What was asked for, as JSON values."""
        return {
            "bands": self.rendering.bands and list(self.rendering.bands),
            "ranges": self.rendering.ranges and [list(pair) for pair in self.rendering.ranges],
            "percentiles": self.rendering.percentiles and list(self.rendering.percentiles),
            "window": self.window,
            "overlap": self.overlap,
        }

    def done(self, folder: "OutputFolder", raster: Path) -> bool:
        """Whether an earlier run of the same settings wrote all its files."""
        from s2clip.pictures.virtual_rasters import files_of, is_virtual

        before = folder.record_of(raster)
        if before is None or before.get("asked") != self.record() or not folder.has(raster, self.formats):
            return False
        try:
            return before.get("parts", []) == _states(files_of(raster) if is_virtual(raster) else ())
        except (ImageError, OSError):
            return False

    def segment(
        self,
        segmenter: "Segmenter",
        raster: Path,
        folder: "OutputFolder",
        stem: str,
        *,
        resume: bool,
        names: bool,
        show_progress: bool,
    ) -> dict[str, Any]:
        """Segment one; returns its record."""
        from s2clip.rasters import Raster, segment_raster

        with Raster(raster, self.rendering) as opened:
            states = _states(opened.files)
            plan = {"settings": folder.digest, "source_state": states}
            record = segment_raster(
                segmenter,
                opened,
                folder.path,
                self.formats,
                stem=stem,
                window=self.window,
                overlap=self.overlap,
                resume=resume,
                plan=plan,
                names=names,
                progress=bar(show_progress),
            )
        return {**record, "asked": self.record(), "parts": states[1:]}


def _states(files: Iterable[Path]) -> list[list[int]]:
    """What tells a file from the one that it was."""
    return [[found.st_size, found.st_mtime_ns] for found in map(os.stat, files)]


def _pairs(option: str, text: str | None) -> tuple[tuple[float, float], ...] | None:
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    most = 1 if option == "--percentile" else 3
    if len(numbers) not in {2 * count for count in range(1, most + 1)}:
        raise ValueError(f"{option}: expected LOW,HIGH{' or a pair for each band' * (most > 1)}, received {text!r}")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def usable_formats(formats: Iterable[str], asked: bool) -> list[str]:
    """The formats of pictures among them."""
    return [name for name in formats if not asked or name not in ONLY_RASTERS]
