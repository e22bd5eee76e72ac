"""What the formats of a whole run share: pictures are added one by one, files appear whole at the end."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from s2clip.errors import OutputError
from s2clip.files import whole_file

if TYPE_CHECKING:
    from s2clip.results.segmented import Segmented


class Spool:
    """Pieces of text kept on disk until the file around them is written, so that a long run needs no memory."""

    def __init__(self, separator: bytes) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._separator = separator

    def append(self, text: str) -> None:
        if self._file.tell():
            self._file.write(self._separator)
        self._file.write(text.encode("utf-8", "backslashreplace"))

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
        self._spools: list[Spool] = []
        self.start()

    @classmethod
    def check(cls, name: str) -> None:
        """OutputError where a package is missing."""
        for package, extra in cls.packages.items():
            if find_spec(package) is None:
                raise OutputError(f"formats: {name!r} needs {package}: pip install 's2clip[{extra}]'")

    def put(self, result: Segmented, stem: str) -> Path:
        """Add a picture; where this fails the others stand."""
        self.add(result, stem)
        self.pictures += 1
        return self.folder / self.file

    def close(self) -> Path | None:
        """Write the files of all pictures added; None where there was none."""
        try:
            if not self.pictures:
                return None
            self.finish()
            return self.folder / self.file
        finally:
            for spool in self._spools:
                spool.close()

    def spool(self, separator: bytes = b",\n") -> Spool:
        self._spools.append(Spool(separator))
        return self._spools[-1]

    def whole(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A handle of a file in the folder that appears whole or not at all."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return whole_file(path)

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def add(self, result: Segmented, stem: str) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...
