"""Files that are being written, under names of their own: a running writer's can be told from a killed one's.

A writer holds a lock (`flock`) on its temporary file, which ends with its process, however that ends. So a temporary
file whose lock can be had belongs to nobody. Windows has no such locks, and removes no file that is open.
"""

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import IO, BinaryIO

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")


def create(folder: Path) -> tuple[Path, BinaryIO]:
    """A new file in the folder, locked, open for writing. The name is short, so long names beside it are no trouble."""
    while True:
        path = folder / f".{secrets.token_hex(8)}.tmp"
        handle = open(path, "xb")  # noqa: SIM115 - the caller's
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle.fileno()).st_nlink:  # else taken for a leftover, in the moment before it was locked
            return path, handle
        handle.close()


def remove_leftovers(folder: Path) -> int:
    """Remove what killed writers left in the folder, and nothing that is still being written; how many files."""
    removed = 0
    try:
        with os.scandir(folder) as entries:
            found = [one.path for one in entries if _NAME.fullmatch(one.name) and one.is_file(follow_symlinks=False)]
    except OSError:
        return 0
    for path in found:
        with contextlib.suppress(OSError), open(path, "r+b") as handle:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
            removed += 1
    return removed


def anonymous(folder: Path) -> IO[bytes]:
    """A file without a name on the folder's disk, unbuffered; it is gone with its process."""
    return tempfile.TemporaryFile(dir=folder, buffering=0)


class Room:
    """Bytes of a disk kept for what has to be written last, when it may be full. As far as the disk has them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._size = 0

    def hold(self, size: int) -> None:
        """Keep so many bytes free."""
        if size <= self._size:
            return
        self._size = size
        with contextlib.suppress(OSError, AttributeError):  # AttributeError: macOS, Windows
            self._file = self._file or anonymous(self._folder)
            os.posix_fallocate(self._file.fileno(), 0, size)

    def release(self) -> None:
        """Give them to who comes next."""
        if self._file is not None:
            self._file.close()
        self._file, self._size = None, 0
