"""Files are written whole or not at all: a temporary name in the same folder, fsync, rename."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from s2clip.errors import OutputError


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with "~" in its place, as it stands where nobody's home is known: a container's user without account."""
    return Path(os.path.expanduser(path))


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary handle whose bytes appear under `path` when the block ends well, and nowhere when it does not.

    The temporary name is short and of its own, so long names and several writers in one folder are fine.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), UTF-8, indented; bytes of file names that are not text become JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as handle:
        handle.write(text.encode("utf-8", "backslashreplace") + b"\n")


def writable_folder(folder: str | os.PathLike) -> Path:
    """Make the folder if needed and prove that a file can be written there, before any work is spent on its content.

    Raises:
        OutputError: one line with the folder and the reason.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}.tmp"
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file stands where a folder is needed"
        raise OutputError(f"{folder}: cannot write there: {reason}") from None
    return folder


def place(path: str | os.PathLike) -> str:
    """The same for two spellings of one path; links to one file are several pictures, as a Hub snapshot has them."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def append_line(path: Path, line: bytes) -> None:
    """Add one line, given without its end, and wait until it is on the disk. Raises `OutputError`.

    A line that a killed run left half-written is ended first: it stays unreadable, and only that one.
    """
    line += b"\n"
    try:
        with open(path, "ab+") as handle:
            if handle.tell():
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else b"\n" + line
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise OutputError(f"{path}: cannot write there: {error.strerror or error}") from None
