"""What lies in a data set's folders, and what is wrong with it. No file's content is read but the split file's."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from s2clip.errors import DatasetError
from s2clip.evaluation.benchmarks import Benchmark
from s2clip.values import counted


class Problem(NamedTuple):
    """Something that keeps a data set from being read: which file or folder, what about it, what to do."""

    where: Path
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.fix}"


@dataclass(frozen=True)
class Listing:
    """The files of one folder that end in `suffix`, by the name before it; `others` counts the rest by ending."""

    folder: Path
    suffix: str
    nested: bool
    files: dict[str, Path]
    others: Counter

    def path(self, name: str) -> Path:
        """Where the file of this name lies or should lie."""
        return self.files.get(name, self.folder / (name.split("_")[0] if self.nested else "") / f"{name}{self.suffix}")


@dataclass(frozen=True)
class Split:
    """The names of a split file as they stand there; `problem`: what makes it useless, if anything does."""

    path: Path
    names: tuple[str, ...]
    problem: str | None = None


@dataclass(frozen=True)
class Scan:
    """All that a data set's folders hold."""

    facts: Benchmark
    root: Path
    pictures: Listing
    annotations: Listing
    split: Split | None

    @property
    def names(self) -> tuple[str, ...]:
        """The pictures that belong to the data set, in its order, whether they are there or not."""
        if self.split:
            return self.split.names
        return tuple(sorted(self.pictures.files.keys() | self.annotations.files.keys()))

    def missing(self, listing: Listing) -> list[str]:
        return [name for name in self.names if name not in listing.files]

    @property
    def annotation_fix(self) -> str:
        """How to get annotations: convert them where that is how they are made, else download."""
        return self.converting(f"unpack the annotations again, or {self.facts.download}")

    def converting(self, otherwise: str) -> str:
        """The command that makes the annotations, or `otherwise` where they come as they are."""
        if not self.facts.convert:
            return otherwise
        return f"s2clip convert {self.facts.convert} --data {self.root}"


def find_root(facts: Benchmark, given: str | Path) -> Path:
    """The data set's own folder: `given`, or what it is called below it ("VOCdevkit/VOC2012", "VOC2012").

    Raises:
        DatasetError: none of them holds the pictures; the places that were looked at and where to get the data.
    """
    given = Path(given)
    if not given.is_dir():
        reason = "is a file, not a folder" if given.exists() else "no such folder"
        raise DatasetError(f"{given}: {reason}; {facts.title}: {facts.download}")
    layout = facts.layout
    tails = [Path(*Path(root).parts[start:]) for root in layout.roots for start in range(len(Path(root).parts))]
    candidates = list(dict.fromkeys([given, *(given / tail for tail in tails)]))
    for folders in ((layout.image_folder, layout.annotation_folder), (layout.image_folder,)):
        for candidate in candidates:
            if all((candidate / folder).is_dir() for folder in folders):
                return candidate
    looked = ", ".join(str(candidate / layout.image_folder) for candidate in candidates)
    raise DatasetError(f"{given}: no pictures of {facts.title} (looked for {looked}); {facts.download}")


def scan(facts: Benchmark, root: Path) -> Scan:
    """List the folders of a data set; folders that are not there are empty."""
    layout = facts.layout
    return Scan(
        facts,
        root,
        list_files(root / layout.image_folder, layout.image_suffix, nested=layout.nested),
        list_files(root / layout.annotation_folder, layout.annotation_suffix, nested=layout.nested),
        _read_split(root / layout.split_file, layout.image_suffix) if layout.split_file else None,
    )


def list_files(folder: Path, suffix: str, *, nested: bool = False) -> Listing:
    """The files in `folder`, or in the folders right below it; hidden ones do not count."""
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    for path in _files_in(folder, nested):
        if path.name.endswith(suffix):
            files[path.name.removesuffix(suffix)] = path
        else:
            others["".join(path.suffixes[-1:]) or path.name] += 1
    return Listing(folder, suffix, nested, files, others)


def problems(found: Scan) -> Iterator[Problem]:
    """What keeps the data set from being read, the cause before its consequences."""
    facts, split = found.facts, found.split
    pictures, annotations = found.pictures, found.annotations
    download = f"unpack the pictures again, or {facts.download}"
    empty = False
    for listing, fix in ((pictures, download), (annotations, found.annotation_fix)):
        if not listing.files:
            empty = True
            yield Problem(listing.folder, _why_empty(listing), fix)
    if split and split.problem:
        yield Problem(split.path, split.problem, found.converting("take it from the official archive"))
        return
    if empty:
        return
    for kind, listing, fix in (("picture", pictures, download), ("annotation", annotations, found.annotation_fix)):
        if missing := found.missing(listing):
            others = {1: "", 2: ", nor that of one other"}.get(
                len(missing), f", nor those of {len(missing) - 1} others"
            )
            yield Problem(listing.path(missing[0]), f"this {kind} is not there{others}", fix)


def wrong_count(found: Scan) -> Iterator[Problem]:
    """More or fewer pictures than the official split has, as another split's file or half a download leaves them."""
    facts, count = found.facts, len(found.names)
    if count != facts.images:
        where = found.split.path if found.split else found.pictures.folder
        fewer = "figures are not comparable with published ones"
        fix = fewer if count < facts.images else "remove what does not belong"
        yield Problem(where, f"{counted(count, 'picture')}, {facts.title} has {facts.images}", fix)


def _why_empty(listing: Listing) -> str:
    if not listing.folder.is_dir():
        return "no such folder"
    if not listing.others:
        return "an empty folder"
    suffix, count = listing.others.most_common(1)[0]
    return f"no file ends in {listing.suffix} ({count} end in {suffix})"


def _files_in(folder: Path, nested: bool) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if nested and entry.is_dir():
                    yield from _files_in(Path(entry.path), nested=False)
                elif entry.is_file() and not nested:
                    yield Path(entry.path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed: {(error.strerror or str(error)).lower()}") from None


def _read_split(path: Path, image_suffix: str) -> Split:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        return Split(path, (), "no such split file")
    except (OSError, UnicodeDecodeError) as error:
        return Split(path, (), f"cannot be read as a split file ({error})")
    names = tuple(line for line in lines if line)
    if not names:
        return Split(path, (), "an empty split file")
    for number, line in enumerate(lines, 1):
        if line and (len(line.split()) > 1 or "/" in line or line.endswith(image_suffix)):
            return Split(
                path, (), f"line {number}: expected the name of a picture without {image_suffix}, received {line!r}"
            )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        return Split(path, (), f"expected every name once, {repeated[0]} stands there more than once")
    return Split(path, names)
