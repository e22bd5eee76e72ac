"""A file name for each result of several pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

from s2clip.results.result import FORMATS


def name_outputs(pictures: Sequence[Path], folder: Path, formats: Sequence[str]) -> list[str]:
    """A stem for each picture: its own, or with -2, -3 .. where a result's file would meet another's.

    Raises:
        ValueError: a result would replace one of the pictures.
    """
    sources = {os.path.realpath(path) for path in pictures}
    taken: set[str] = set()
    stems = []
    for picture in pictures:
        number = 1
        while True:
            stem = picture.stem if number == 1 else f"{picture.stem}-{number}"
            files = {str(folder / f"{stem}{FORMATS[name]}") for name in formats}
            if taken.isdisjoint(file.casefold() for file in files):
                break
            number += 1
        for file in files:
            if os.path.realpath(file) in sources:
                raise ValueError(f"-o {folder}: the result {file} would replace a picture; choose another folder")
        taken |= {file.casefold() for file in files}
        stems.append(stem)
    return stems
