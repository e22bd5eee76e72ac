"""Pictures in files that all machines see, read by Ray's own processes, which import neither torch nor models."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2clip.cluster.addresses import public, read_whole, reason
from s2clip.cluster.shards import READER_CPUS, stem_of

if TYPE_CHECKING:
    from ray.data import Dataset


def local_rows(pictures: Sequence[Path], stems: Sequence[str], blocks: int, readers: int) -> "Dataset":
    """Rows {"key", "path", "stem", "content", "error"} in so many blocks, of which so many are read at a time.

    key: the path as it was given.
    """
    named = zip(pictures, stems, strict=True)
    return _rows(
        [{"key": str(one), "path": os.path.abspath(one), "stem": stem} for one, stem in named], blocks, readers
    )


def named_addresses(addresses: Sequence[str], done: Collection[str] = ()) -> list[dict[str, Any]]:
    """{"key", "path", "stem"} of pictures at addresses, without those whose key is in `done`.

    key: the address without options and credentials; stem: its path, with the suffix where two differ in nothing else.
    """
    paths = {public(one): one for one in addresses}
    below = {key: key.partition("://")[2] for key in paths}
    count = Counter(map(stem_of, below.values()))
    return [
        {"key": key, "path": path, "stem": stem_of(below[key], suffix=count[stem_of(below[key])] > 1)}
        for key, path in paths.items()
        if key not in done
    ]


def address_rows(named: Sequence[dict[str, Any]], blocks: int, readers: int) -> "Dataset":
    """As `local_rows`, of `named_addresses`."""
    return _rows(list(named), blocks, readers)


def _rows(items: list[dict[str, Any]], blocks: int, readers: int) -> "Dataset":
    import ray

    found = ray.data.from_items(items, override_num_blocks=blocks)
    return found.map(with_content, num_cpus=READER_CPUS, concurrency=min(readers, blocks))


def with_content(row: dict) -> dict:
    """The row with the bytes of its file, or with why there are none."""
    shown = {**row, "path": public(row["path"])}
    try:
        return {**shown, "content": read_whole(row["path"]), "error": None}
    except (OSError, ImportError, ValueError) as error:
        return {**shown, "content": None, "error": reason(error)}
