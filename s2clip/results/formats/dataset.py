"""What the formats of a whole run share: pictures are added one by one, files appear whole at the end."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from s2clip.errors import OutputError
from s2clip.files import Together, whole_file, writable_folder, writing
from s2clip.temporaries import anonymous

if TYPE_CHECKING:
    from s2clip.results.segmented import Segmented


class Spool:
    """Pieces of text on the output's disk until the file around them is written, so that a long run needs no memory."""

    def __init__(self, folder: Path, separator: bytes) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = anonymous(folder)
        self._folder, self._separator = folder, separator
        self.size = 0

    def append(self, *texts: str) -> None:
        """All of them or none. Raises `OutputError`."""
        pieces = [text.encode("utf-8", "backslashreplace") for text in texts]
        content = self._separator.join([*([b""] if self.size and pieces else []), *pieces])
        with writing(self._folder):
            written = 0
            try:
                while written < len(content):
                    written += self._file.write(content[written:])
            except BaseException:
                self.cut(self.size)
                raise
        self.size += len(content)

    def cut(self, size: int) -> None:
        """As it was at this size."""
        self._file.truncate(size)
        self._file.seek(size)
        self.size = size

    def copy_to(self, handle: BinaryIO) -> None:
        self._file.seek(0)
        shutil.copyfileobj(self._file, handle)

    def close(self) -> None:
        self._file.close()


class Dataset(ABC):
    """Files of one run in `folder`, for classes that are known from the start."""

    file: ClassVar[str]
    """The file or folder, by name in the output folder."""
    packages: ClassVar[dict[str, str]] = {}
    """Packages it needs, and the extra that brings each."""

    def __init__(self, folder: Path, classes: Sequence[str], per: str = "region") -> None:
        self.folder, self.classes, self.per = Path(folder), tuple(classes), per
        self.names = [name.split(";")[0].strip() for name in classes]
        self.pictures = 0
        self.annotations = 0
        self._spools: list[Spool] = []
        self._before: tuple[int, int, list[int]] = (0, 0, [])
        self.start()

    @classmethod
    def check(cls, name: str) -> None:
        """OutputError where a package is missing."""
        for package, extra in cls.packages.items():
            if find_spec(package) is None:
                raise OutputError(f"formats: {name!r} needs {package}: pip install 's2clip[{extra}]'")

    def put(self, result: Segmented, stem: str, files: Together | None = None) -> Path:
        """Add a picture, wholly or not at all. files: what its own files appear with; None: by themselves."""
        if files is None:
            with Together() as files:
                return self.put(result, stem, files)
        self._before = self.pictures, self.annotations, [spool.size for spool in self._spools]
        try:
            self.add(result, stem, files)
        except BaseException:
            self.take_back()
            raise
        self.pictures += 1
        return self.folder / self.file

    def take_back(self) -> None:
        """Be as before the last `put`."""
        self.pictures, self.annotations, sizes = self._before
        for spool, size in zip(self._spools, sizes, strict=False):
            spool.cut(size)

    def close(self) -> Path | None:
        """Write the files of all pictures added; None where there was none."""
        try:
            if not self.pictures:
                return None
            self.finish()
            return self.folder / self.file
        finally:
            self.discard()

    def discard(self) -> None:
        """Write nothing more."""
        for spool in self._spools:
            spool.close()

    def spool(self, separator: bytes = b",\n") -> Spool:
        self._spools.append(Spool(self.folder, separator))
        return self._spools[-1]

    def below(self, name: str) -> Path:
        """A file's path below the folder, whose own folder is there."""
        path = self.folder / name
        writable_folder(path.parent, leftovers=False)
        return path

    def whole(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A handle of a file in the folder that appears whole or not at all."""
        return whole_file(self.below(name))

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def add(self, result: Segmented, stem: str, files: Together) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...
