"""Results as CSV: a header, one row per case, numbers in full precision, an empty cell where there is no number."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from s2clip.files import whole_file


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """UTF-8, comma, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    with whole_file(path) as handle:
        handle.write(text.getvalue().encode())


def plain(value: Any) -> Any:
    """A NumPy number as Python's, NaN as None: what JSON can say."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    value = plain(value)
    return "" if value is None else value
