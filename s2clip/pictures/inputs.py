"""What a command line names: the pictures behind paths, folders and patterns, and what of a folder is left out."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from s2clip.errors import first_few
from s2clip.files import place
from s2clip.pictures.suffixes import SUFFIXES
from s2clip.values import counted

KINDS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"), "RAW"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"), "video"),
    ".vrt": "mosaic of rasters",
    **dict.fromkeys((".jxl", ".svg", ".psd", ".exr", ".hdr", ".tga", ".ico", ".dcm", ".pdf"), "other picture format"),
}
"""What people take for pictures in a folder and what is not read."""
SHOWN = 4


class Found(NamedTuple):
    """What the words of a command line stand for."""

    pictures: list[Path]
    """In the order given, each once."""
    names: list[Path]
    """What each may be called in the output: its file's name, or its way below a folder that was walked."""
    failures: list[tuple[str, str]]
    """(source, reason) of what names no picture."""
    skipped: list[str]
    """A line for each folder that holds more than pictures, and for results that are no pictures."""


def no_results(folder: Path) -> Collection[str]:
    """Nothing in the folder was written by us."""
    return ()


def find(
    sources: Sequence[str],
    *,
    recursive: bool = False,
    output: Path | None = None,
    results: Callable[[Path], Collection[str]] = no_results,
) -> Found:
    """A folder stands for the pictures right in it, or in all folders below too, by suffix and name; a pattern (`*`,
    `**`) for what matches. Hidden files do not count.

    results: real paths of the files that an earlier run wrote into a folder: they are no pictures where folders and
    patterns are listed, and those in `output` never are.
    """
    written = _Written(output, results)
    pictures: list[Path] = []
    names: list[Path] = []
    failures: list[tuple[str, str]] = []
    skipped: list[str] = []
    for source in sources:
        own = 0
        try:
            listed, reason, note = _behind(source, recursive)
            if os.path.isdir(source) or not os.path.lexists(source):
                kept = [one for one in listed if not written.anywhere(one[0])]
            else:
                kept = [one for one in listed if not written.here(one[0])]
            own = len(listed) - len(kept)
        except (OSError, ValueError) as error:
            kept, reason, note = [], getattr(error, "strerror", None) or str(error), ""
        if own:
            what = "1 result of an earlier run" if own == 1 else f"{own} results of earlier runs"
            note = f"{note}, {what}" if note else what
        if note:
            skipped.append(f"skipped in {source}: {note}")
        pictures += [picture for picture, _ in kept]
        names += [name for _, name in kept]
        if not kept and not own:
            failures.append((source, reason))
    unique: dict[str, tuple[Path, Path]] = {}
    for picture, name in zip(pictures, names, strict=True):
        unique.setdefault(place(picture), (picture, name))
    return Found([one for one, _ in unique.values()], [name for _, name in unique.values()], failures, skipped)


def expand(sources: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """(pictures, failures) of `find`."""
    found = find(sources)
    return found.pictures, found.failures


class _Written:
    """Which files an earlier run wrote."""

    def __init__(self, output: Path | None, results: Callable[[Path], Collection[str]]) -> None:
        self._results = results
        self._folders: dict[Path, Collection[str]] = {}
        self._output = self._of(output) if output is not None else ()

    def here(self, picture: Path) -> bool:
        return bool(self._output) and os.path.realpath(picture) in self._output

    def anywhere(self, picture: Path) -> bool:
        own = [written for parent in picture.parents if (written := self._of(parent))]
        return self.here(picture) or any(os.path.realpath(picture) in written for written in own)

    def _of(self, folder: Path) -> Collection[str]:
        if folder not in self._folders:
            self._folders[folder] = self._results(folder)
        return self._folders[folder]


def _behind(source: str, recursive: bool) -> tuple[list[tuple[Path, Path]], str, str]:
    """((picture, name) .., why there may be none, what was left out)."""
    path = Path(source)
    if "://" in source:
        return [], "addresses are not fetched; download the picture and give its path", ""
    if path.is_dir():
        listed, note = _in_folder(path, recursive)
        return listed, "no pictures in this folder", note
    if path.exists():
        return [(path, Path(path.name))], "", ""
    if glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
        return [(match, Path(match.name)) for match in matches if not match.is_dir()], "nothing matches", ""
    return [], "no such file", ""


def _in_folder(folder: Path, recursive: bool) -> tuple[list[tuple[Path, Path]], str]:
    listed: list[tuple[Path, Path]] = []
    others: Counter[str] = Counter()
    folders: list[str] = []
    heif = find_spec("pillow_heif") is not None
    for path in _walk(folder, recursive):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            folders.append(path.name)
        elif path.suffix.lower() in SUFFIXES or (heif and KINDS.get(path.suffix.lower()) == "HEIC"):
            listed.append((path, path.relative_to(folder) if recursive else Path(path.name)))
        elif path.suffix.lower() in KINDS:
            others[f"{KINDS[path.suffix.lower()]} ({path.suffix.lower()})"] += 1
    notes = [f"{count} {kind}" for kind, count in sorted(others.items())]
    if folders:
        hint = "a link" if recursive else "--recursive takes them"
        notes.append(f"{counted(len(folders), 'folder')} ({first_few(folders, SHOWN)}; {hint})")
    return listed, ", ".join(notes)


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files in order, then folders, or what is in them; a linked folder is not entered, it may lead in a circle."""
    below = sorted(folder.iterdir())
    for path in below:
        inside = recursive and path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
        if inside:
            yield from _walk(path, recursive)
        else:
            yield path
