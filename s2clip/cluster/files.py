"""Pictures in files that all machines see, read by Ray's own processes, which import neither torch nor models."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data import Dataset


def local_rows(pictures: Sequence[Path], stems: Sequence[str], blocks: int) -> "Dataset":
    """Rows {"key", "path", "stem", "content", "error"} in so many blocks; key: the path as it was given."""
    import ray

    named = zip(pictures, stems, strict=True)
    items = [{"key": str(one), "path": os.path.abspath(one), "stem": stem} for one, stem in named]
    return ray.data.from_items(items, override_num_blocks=blocks).map(with_content, num_cpus=0.25)


def with_content(row: dict) -> dict:
    """The row with the bytes of its file, or with why there are none."""
    try:
        return {**row, "content": Path(row["path"]).read_bytes(), "error": None}
    except OSError as error:
        return {**row, "content": None, "error": error.strerror or str(error)}
