"""Files on any filesystem that pyarrow or fsspec knows: found by patterns, read, and put there whole.

An address is a path of this machine or SCHEME://PATH (s3, gs, hdfs, ..), with pyarrow's options after a "?" where it
needs some (`s3://bucket/photos/*.jpg?endpoint_override=10.0.0.1:9000&scheme=http`; the wildcards are *, ? is none).
"""

import contextlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from s2clip.errors import DatasetError
from s2clip.files import whole_file, writable_folder, writing
from s2clip.pictures.suffixes import SUFFIXES

if TYPE_CHECKING:
    import pyarrow.fs

SHARDS = (".parquet", ".tar")
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "oss", "memory"}
"""An object is there when its upload has ended, and what they call a rename is a copy."""


def is_address(source: str) -> bool:
    """Whether it names a place by a scheme."""
    return "://" in source


def opened(source: str) -> "tuple[pyarrow.fs.FileSystem, str]":
    """(filesystem, path in it): of this machine, or by the scheme of an address, s3, gs, hdfs, or one fsspec knows."""
    import pyarrow
    import pyarrow.fs

    if not is_address(source):
        return pyarrow.fs.LocalFileSystem(), source
    try:
        return pyarrow.fs.FileSystem.from_uri(source)
    except pyarrow.ArrowInvalid:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(source)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


def parted(source: str) -> tuple[str, str]:
    """(address, pyarrow's options with their "?") of an address."""
    address, mark, options = source.partition("?")
    return address, mark + options


def public(source: str) -> str:
    """The source as it may be shown and kept: an address without pyarrow's options and without credentials."""
    return re.sub("://[^/@]*@", "://", parted(source)[0]) if is_address(source) else source


def found(source: str) -> list[str]:
    """The pictures and shards that an address stands for, in order: one file, or all below a folder (it ends in "/"),
    or those that match its wildcards, where * does not cross a "/" and ** does.

    Raises `DatasetError` where it cannot be listed, or nothing is there.
    """
    address, options = parted(source)
    if not (address.endswith("/") or "*" in address):
        return [source]
    import pyarrow
    import pyarrow.fs

    scheme, _, whole = address.partition("://")
    fixed = whole.partition("*")[0].rpartition("/")[0]
    try:
        filesystem, path = opened(f"{scheme}://{fixed}{options}")
        listed = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
    except (OSError, pyarrow.ArrowException, ImportError, ValueError) as error:
        raise DatasetError(f"{public(source)}: cannot be listed: {one_line(error)}") from None
    files = sorted(one.path for one in listed if one.type == pyarrow.fs.FileType.File)
    wanted = (*SUFFIXES, *SHARDS)
    below = [file.removeprefix(path).lstrip("/") for file in files if file.lower().endswith(wanted)]
    pattern = whole.removeprefix(fixed).lstrip("/")
    matching = [name for name in below if not pattern or _matches(name.split("/"), pattern.split("/"))]
    if not matching:
        raise DatasetError(f"{public(source)}: no picture or shard is there")
    return [f"{scheme}://{fixed}/{name}{options}" for name in matching]


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Part by part; ** stands for any number of folders."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_matches(name[skip:], pattern[1:]) for skip in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def read_list(source: str) -> list[str]:
    """The lines of a text file, here or at an address; empty ones and those that start with # do not count.

    Paths that are not absolute are taken from where the list lies. Raises `DatasetError`.
    """
    try:
        text = read_whole(source).decode()
    except (OSError, ImportError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise DatasetError(f"{public(source)}: not a list that can be read: {reason(error)}") from None
    lines = [line.strip() for line in text.splitlines()]
    address, options = parted(source) if is_address(source) else (source, "")
    folder = address.rpartition("/")[0]
    listed = []
    for line in lines:
        if line and not line.startswith("#"):
            own = is_address(line) or line.startswith("/") or not folder
            listed.append(line if own else f"{folder}/{line}{options}")
    return listed


def read_whole(source: str) -> bytes:
    """The bytes of a file. Raises OSError."""
    if not is_address(source):
        return Path(source).read_bytes()
    filesystem, path = opened(source)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def reason(error: BaseException) -> str:
    """Why a file cannot be read: the system's words where they are known."""
    return getattr(error, "strerror", None) or one_line(error)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(frozen=True)
class Store:
    """A folder of files that appear whole or not at all, here or at an address."""

    address: str

    def _at(self, name: str) -> "tuple[pyarrow.fs.FileSystem, str]":
        address, options = parted(self.address) if is_address(self.address) else (self.address, "")
        return opened(f"{address.rstrip('/')}/{name}{options}")

    def prepare(self) -> None:
        """Make the folder where there are folders. Raises `OutputError`."""
        if not is_address(self.address):
            writable_folder(self.address)
            return
        filesystem, path = self._at("")
        if not _is_object_store(filesystem):
            with writing(public(self.address)):
                filesystem.create_dir(path.rstrip("/"), recursive=True)

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where there is none. Raises OSError."""
        filesystem, path = self._at(name)
        try:
            with filesystem.open_input_stream(path) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def names(self, suffix: str) -> list[str]:
        """The files right in the folder whose name ends so, in order."""
        import pyarrow.fs

        filesystem, path = self._at("")
        listed = filesystem.get_file_info(pyarrow.fs.FileSelector(path.rstrip("/") or ".", allow_not_found=True))
        return sorted(
            one.base_name for one in listed if one.base_name.endswith(suffix) and one.base_name[0] not in "._"
        )

    def put(self, name: str, content: bytes) -> None:
        """Write a file, or write it again. Raises `OutputError`.

        By a rename where the filesystem has it; an object store shows an object when all of it is there.
        """
        if not is_address(self.address):
            with whole_file(Path(self.address, name)) as handle:
                handle.write(content)
            return
        filesystem, path = self._at(name)
        with writing(f"{public(self.address).rstrip('/')}/{name}"):
            if _is_object_store(filesystem):
                _upload(filesystem, path, content)
                return
            temporary = str(PurePosixPath(path).with_name(f".{secrets.token_hex(8)}.tmp"))
            try:
                _upload(filesystem, temporary, content)
                filesystem.move(temporary, path)
            except NotImplementedError:  # no rename there
                _upload(filesystem, path, content)
            finally:
                with contextlib.suppress(OSError, NotImplementedError):
                    filesystem.delete_file(temporary)


def _is_object_store(filesystem: "pyarrow.fs.FileSystem") -> bool:
    own = getattr(getattr(filesystem, "handler", None), "fs", None)  # of fsspec
    names = filesystem.type_name if own is None else own.protocol
    return not OBJECT_STORES.isdisjoint([names] if isinstance(names, str) else names)


def _upload(filesystem: "pyarrow.fs.FileSystem", path: str, content: bytes) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)
