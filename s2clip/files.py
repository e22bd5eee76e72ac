"""Files are written whole or not at all: a temporary name in the same folder, fsync, rename.

Whatever a disk refuses is an `OutputError` of one line with the file's name and the system's number (`errno`).
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from s2clip import temporaries
from s2clip.errors import OutputError, S2ClipError, shown

REASON = 200
"""Letters of what another library says."""
LEAST_FREE = 1 << 16
"""Bytes; a disk with fewer is full."""


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with "~" in its place, as it stands where nobody's home is known: a container's user without account."""
    return Path(os.path.expanduser(path))


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system says against writing `path` becomes an `OutputError`."""
    try:
        yield
    except S2ClipError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file stands where a folder is needed"
        wrong = OutputError(f"{shown(path)}: cannot write there: {reason}")
        wrong.errno = error.errno
        raise wrong from None


@contextmanager
def written_by_others(path: Path) -> Iterator[None]:
    """Around a library that writes by itself and tells of a full disk in words of its own, or in none.

    Whatever it raises is an `OutputError`: it was given nothing but arrays, and what it had written may be gone again,
    and the disk not full any more, by the time that it says so.
    """
    try:
        yield
    except S2ClipError:
        raise
    except Exception as error:
        if shutil.disk_usage(path.parent).free <= LEAST_FREE:
            number, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
        elif isinstance(error, OSError) and error.errno:
            number, reason = error.errno, os.strerror(error.errno)
        else:
            number, reason = errno.EIO, " ".join(str(error.__cause__ or error).split())[:REASON] or type(error).__name__
        with writing(path):
            raise OSError(number, reason) from None


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary handle whose bytes appear under `path` when the block ends well, and nowhere when it does not.

    Several writers in one folder are fine. Raises `OutputError`.
    """
    with writing(path):
        temporary, handle = temporaries.create(path.parent)
        try:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            with contextlib.suppress(OSError):  # a full disk says so once more
                handle.close()


class Together:
    """Files that appear together when the block ends well, and not one of them when it does not.

    with Together() as files:
        files.add(path, content)
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, BinaryIO, Path]] = []
        self._placed: list[Path] = []

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._place()
        except BaseException:
            self.take_back()
            raise
        finally:
            for temporary, handle, _place in self._waiting:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                    handle.close()
            self._waiting.clear()

    def add(self, path: Path, content: bytes) -> None:
        """Write the content, so that nothing but a name is missing. Raises `OutputError`."""
        with writing(path):
            if path.is_dir():
                raise IsADirectoryError(None, "a folder stands where a file is needed")
            temporary, handle = temporaries.create(path.parent)
            self._waiting.append((temporary, handle, path))
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())

    def take_back(self) -> None:
        """Remove the files that have appeared."""
        for path in self._placed:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self._placed.clear()

    def _place(self) -> None:
        for temporary, _, path in self._waiting:
            with writing(path):
                os.replace(temporary, path)
            self._placed.append(path)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), UTF-8, indented; bytes of file names that are not text become JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as handle:
        handle.write(text.encode("utf-8", "backslashreplace") + b"\n")


def writable_folder(folder: str | os.PathLike, *, leftovers: bool = True) -> Path:
    """Make the folder if needed and prove that a file can be written there, before any work is spent on its content.

    leftovers: also remove what killed runs left of files that they were writing there.

    Raises:
        OutputError: one line with the folder and the reason.
    """
    folder = Path(folder)
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if leftovers:
                temporaries.remove_leftovers(folder)
            probe, handle = temporaries.create(folder)
            handle.close()
            probe.unlink()
    except ValueError as error:  # a name that no file can have
        raise OutputError(f"{shown(folder)}: cannot write there: {error}") from None
    return folder


def place(path: str | os.PathLike) -> str:
    """The same for two spellings of one path; links to one file are several pictures, as a Hub snapshot has them."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)
