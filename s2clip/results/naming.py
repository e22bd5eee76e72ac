"""A file name for each result of several pictures: whatever the order in which they were listed, and on every run."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from s2clip.files import place
from s2clip.results.result import FORMATS

NONE: Mapping[str, str] = MappingProxyType({})


def name_outputs(
    pictures: Sequence[Path],
    folder: Path,
    *,
    names: Sequence[Path] | None = None,
    known: Mapping[str, str] = NONE,
) -> list[str]:
    """A stem for each picture, which may hold folders: a result's files are `folder/STEM.*`.

    The picture's own stem where no two meet (capitals aside, as on some disks). Where they do, all of them keep their
    suffix if they come from one folder ("a.jpg", "a.png"), else what their folders differ in ("one/a", "two/a").

    Args:
        names: what each picture may be called, its own name by default.
        known: place (`s2clip.files.place`) → stem of pictures that have results in the folder; they keep theirs.

    Raises:
        ValueError: a result would replace one of the pictures.
    """
    names = [Path(picture.name) for picture in pictures] if names is None else names
    sources = [place(picture) for picture in pictures]
    levels = [0] * len(pictures)
    stems = [known.get(source) or _plain(name) for source, name in zip(sources, names, strict=True)]
    fixed = [source in known for source in sources]
    taken = {file for source, stem in known.items() for file in _files(stem)}
    while groups := _meeting(stems, fixed, taken):
        for group in groups:
            root = os.path.commonpath([os.path.dirname(sources[one]) for one in group])
            together = len({os.path.dirname(sources[one]) for one in group}) == 1 and len(group) > 1
            for one in group:
                if not fixed[one]:
                    levels[one] += 1
                    stems[one] = _longer(levels[one], sources[one], names[one], root, together)
    real = {os.path.realpath(picture) for picture in pictures}
    for stem in stems:
        for file in (str(folder / f"{stem}{suffix}") for suffix in FORMATS.values()):
            if os.path.realpath(file) in real:
                raise ValueError(f"-o {folder}: the result {file} would replace a picture; choose another folder")
    return stems


def _plain(name: Path) -> str:
    return str(name.with_suffix("")) if name.suffix else str(name)


def _files(stem: str) -> list[str]:
    return [f"{stem}{suffix}".casefold() for suffix in FORMATS.values()]


def _meeting(stems: Sequence[str], fixed: Sequence[bool], taken: set[str]) -> list[list[int]]:
    """Pictures some of whose files would be one, in groups; those of `taken` have one already."""
    owners: dict[str, list[int]] = defaultdict(list)
    for one, stem in enumerate(stems):
        if not fixed[one]:
            for file in _files(stem):
                owners[file].append(one)
    groups = {tuple(own) for file, own in owners.items() if len(own) > 1 or file in taken}
    merged: list[set[int]] = []
    for group in groups:
        touching = [one for one in merged if one & set(group)]
        merged = [one for one in merged if one not in touching] + [set(group).union(*touching)]
    return [sorted(group) for group in merged]


def _longer(level: int, source: str, name: Path, root: str, together: bool) -> str:
    """More of the picture's path the higher the level; the last one is of the whole path, and meets no other."""
    below = Path(os.path.relpath(source, root))
    if level == 1:
        return str(name) if together else _plain(below if len(below.parts) > 1 else _with_folder(source))
    if level == 2:
        return str(below if len(below.parts) > 1 else _with_folder(source))
    return f"{name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}"


def _with_folder(source: str) -> Path:
    parent = Path(source).parent.name
    return Path(parent, Path(source).name) if parent else Path(Path(source).name)
