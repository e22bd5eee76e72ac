"""Pictures that lie in shards: rows of Parquet, members of tar files (WebDataset), on any filesystem pyarrow knows.

A picture of a shard has a key that says where it lies, and results named by it; two shards' pictures never meet:

    photos.parquet   KEY/ID, by the column of ids, else by the hash of the bytes; pictures as bytes or as paths
    shards-0001.tar  KEY/MEMBER; in a sample of several files, each one that is a picture

where KEY is the shard's name without its suffix, with as many of the folders above as it takes to tell shards apart.
"""

import hashlib
import tarfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from s2clip.cluster.addresses import SHARDS, one_line, opened, public, read_whole, reason
from s2clip.errors import DatasetError
from s2clip.pictures.suffixes import SUFFIXES

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

BUFFER = 1 << 23
"""Bytes that are asked of a store at once; a tar is read in pieces of 10 kB, each of which would be a request."""
READER_CPUS = 0
"""Of Ray's: readers wait for disks and networks, and where actors have all processors (a machine was lost, or as many
were asked for as there are) they must still read, or the actors would wait for ever."""


class Columns(NamedTuple):
    """Of Parquet: which one holds the pictures (bytes, or paths), and which one their ids."""

    picture: str = "image"
    id: str | None = None


def is_shard(source: str) -> bool:
    """Whether a word of the command line names shards rather than pictures."""
    return public(source).lower().endswith(SHARDS)


def shard_rows(sources: Sequence[str], columns: Columns, done: Collection[str], rows: int, readers: int) -> "Dataset":
    """Rows {"key", "path", "stem", "content", "error"} of all pictures in the shards but those with a key in `done`.

    Ray reads so many shards at a time, one process each; only pictures in work are in memory. Raises `DatasetError` for
    a shard that is not there or has no such column.
    """
    import ray

    shards = [{"shard": source, "name": name} for source, name in zip(sources, shard_names(sources), strict=True)]
    for one in shards:
        _check(one["shard"], columns)
    read = partial(_read, columns=columns, done=frozenset(done), rows=rows)
    found = ray.data.from_items(shards, override_num_blocks=len(shards))
    return found.map_batches(
        read,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=READER_CPUS,
        concurrency=min(readers, len(shards)),
    )


def shard_names(sources: Sequence[str]) -> list[str]:
    """A name for each shard, without suffix: its own, or with folders above where that is not enough."""
    paths = [PurePosixPath(public(source).split("://")[-1]).with_suffix("") for source in sources]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(sources)):
        depth += 1
    return ["/".join(part for part in path.parts[-depth:] if part != "/") for path in paths]


def _check(source: str, columns: Columns) -> None:
    import pyarrow.fs
    import pyarrow.parquet

    try:
        filesystem, path = opened(source)
        if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
            raise DatasetError(f"{public(source)}: no such file")
        if not public(source).lower().endswith(".parquet"):
            return
        names = pyarrow.parquet.read_schema(path, filesystem=filesystem).names
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{public(source)}: cannot be read: {one_line(error)}") from None
    for wanted in filter(None, columns):
        if wanted not in names:
            raise DatasetError(f"{public(source)}: no column {wanted!r}; it has {', '.join(names)}")


def _read(table: "pyarrow.Table", columns: Columns, done: frozenset[str], rows: int) -> "Iterator[pyarrow.Table]":
    """In one of Ray's readers: the pictures of one shard, some at a time."""
    shard = table.to_pylist()[0]
    source, name = shard["shard"], shard["name"]
    try:
        pictures = _members(source) if public(source).lower().endswith(".tar") else _records(source, columns)
        waiting: list[dict[str, Any]] = []
        stems: set[str] = set()
        for own, content, error in pictures:
            key = f"{name}/{own}"
            stem = stem_of(key, suffix=stem_of(key) in stems)  # a.jpg and a.png in one shard
            stems.add(stem)
            if key in done:
                continue
            path = f"{public(source)}#{own}"
            waiting.append({"key": key, "path": path, "stem": stem, "content": content, "error": error})
            if len(waiting) == rows:
                yield _table(waiting)
                waiting = []
        yield _table(waiting)
    except (OSError, tarfile.TarError, ValueError) as error:  # what came before it is done
        why = f"cannot be read on: {one_line(error)}"
        yield _table([{"key": name, "path": public(source), "stem": "", "content": None, "error": why}])


def _table(rows: Sequence[dict[str, Any]]) -> "pyarrow.Table":
    import pyarrow

    text = {name: pyarrow.string() for name in ("key", "path", "stem", "error")}
    schema = pyarrow.schema({**text, "content": pyarrow.large_binary()})
    return pyarrow.Table.from_pylist(list(rows), schema=schema)


def _members(source: str) -> Iterator[tuple[str, bytes | None, str | None]]:
    filesystem, path = opened(source)
    with (
        filesystem.open_input_stream(path, buffer_size=BUFFER) as stream,
        tarfile.open(fileobj=stream, mode="r|*") as shard,
    ):
        for member in shard:
            file = shard.extractfile(member) if member.name.lower().endswith(SUFFIXES) else None
            if file is not None:
                yield member.name.removeprefix("./"), file.read(), None


def _records(source: str, columns: Columns) -> Iterator[tuple[str, bytes | None, str | None]]:
    import pyarrow.parquet

    filesystem, path = opened(source)
    wanted = list(filter(None, columns))
    with pyarrow.parquet.ParquetFile(path, filesystem=filesystem) as file:
        for batch in file.iter_batches(batch_size=16, columns=wanted):
            for row in batch.to_pylist():
                content, error = _content(row[columns.picture])
                own = row[columns.id] if columns.id else hashlib.sha256(content or b"").hexdigest()[:32]
                yield str(own), content, error


def _content(value: Any) -> tuple[bytes | None, str | None]:
    """Of bytes, of a path, or of the struct {"bytes", "path"} that the datasets library writes."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, str):
        return None, f"expected bytes or a path, received {type(value).__name__}"
    try:
        return read_whole(value), None
    except (OSError, ImportError, ValueError) as error:
        return None, f"{public(value)}: {reason(error)}"


def stem_of(key: str, *, suffix: bool = False) -> str:
    """The key as a path below the output, and never above it; without the picture's suffix unless it is asked for."""
    path = PurePosixPath(key)
    parts = [part for part in path.parts if part not in ("/", "..", ".")]
    if path.suffix.lower() in SUFFIXES and not suffix:
        parts[-1] = parts[-1][: -len(path.suffix)] or parts[-1]
    return "/".join(parts)
