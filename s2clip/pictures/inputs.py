"""What a command line names: the pictures behind paths, folders and patterns."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from s2clip.pictures.images import SUFFIXES


def expand(sources: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """(pictures in the order given, each once; (source, reason) of what names none).

    A folder stands for the pictures right in it, by suffix and name; a pattern (`*`, `**`) for what matches.
    """
    pictures: list[Path] = []
    failures: list[tuple[str, str]] = []
    for source in sources:
        try:
            found, reason = _behind(source)
        except (OSError, ValueError) as error:
            found, reason = [], getattr(error, "strerror", None) or str(error)
        pictures += found
        if not found:
            failures.append((source, reason))
    unique = {_name(path): path for path in reversed(pictures)}
    return [path for path in pictures if unique.pop(_name(path), None)], failures


def _name(path: Path) -> str:
    """The same for two spellings of one path; links to one file are several pictures, as a Hub snapshot has them."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _behind(source: str) -> tuple[list[Path], str]:
    path = Path(source)
    if path.is_dir():
        return _pictures_in(path), "no pictures in this folder"
    if path.exists():
        return [path], ""
    if glob.has_magic(source):
        matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
        return [match for match in matches if not match.is_dir()], "nothing matches"
    return [], "no such file"


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir())
