"""A table of the source as text: measured beside reported, or the list of what would be run."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from s2clip.evaluation.report import duration
from s2clip.evaluation.tables import FAILED, NO_DATA, NO_METHOD, Cell, Row, Table, average
from s2clip.values import counted

ABSENT = "-"


def page(table: Table, cells: Sequence[Cell], limit: int | None) -> str:
    """mIoU of every cell as "measured (reported)", "-" where there is none, and why cells are empty."""
    head = ["", *table.columns, "average"]
    lines: list[list[str] | str] = []
    for group, rows in groupby(_by_row(table, cells), key=lambda pair: pair[0].group):
        lines.append(group)
        for row, own in rows:
            figures = [_pair(_per_cent(cell.miou), _as_reported(cell.reported)) for cell in own]
            lines.append([row.name, *figures, _pair(_per_cent(average(own)), _as_reported(row.average))])
            if row.time:
                lines.append(["  time", *_times(row, own)])
    widths = [max(len(line[place]) for line in [head, *lines] if isinstance(line, list)) for place in range(len(head))]
    extent = "all pictures" if limit is None else f"the first {limit} pictures of each data set"
    title = f"Table {table.number}: {table.title}. mIoU in per cent, measured (reported), {extent}"
    text = [title, "", _line(head, widths)]
    for line in lines:
        text += ["", line] if isinstance(line, str) else [_line(line, widths)]
    return "\n".join([*text, *_remarks(cells)])


def listing(table: Table, cells: Sequence[Cell]) -> str:
    """What each cell would run: a row's settings, what each data set changes of them, and whether it is there."""
    text = [f"Table {table.number}: {table.title}. {len(cells)} cells, {_computable(cells)} of them s2clip can compute"]
    for row, own in _by_row(table, cells):
        text += ["", f"{row.group}: {row.name}"]
        if row.method is None:
            reported = ", ".join(f"{cell.dataset} {_as_reported(cell.reported) or ABSENT}" for cell in own)
            text.append(f"  not run by s2clip, {row.needs}; reported: {reported}")
            continue
        settings = [cell.settings() for cell in own]
        common = {
            key: value for key, value in settings[0].items() if all(one.get(key, ()) == value for one in settings)
        }
        text += [f"  {_settings(common)}", f"  {row.preset(own[0].dataset).source}"]
        for cell, one in zip(own, settings, strict=True):
            there = f"  [{counted(len(cell.data), 'picture')}]" if cell.data else ""
            changes = _settings({key: value for key, value in one.items() if key not in common})
            text.append(
                f"    {cell.dataset:<12}reported {_as_reported(cell.reported) or ABSENT:>5}  {changes}{there}".rstrip()
            )
    return "\n".join([*text, *_remarks(cells)])


def _times(row: Row, cells: Sequence[Cell]) -> list[str]:
    seconds = [cell.seconds for cell in cells]
    total = None if None in seconds else sum(seconds)
    times = [_pair(_time(cell.seconds), cell.reported_time) for cell in cells]
    return [*times, _pair(_time(total), row.total_time)]


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in settings.items())


def _by_row(table: Table, cells: Sequence[Cell]) -> list[tuple[Row, Sequence[Cell]]]:
    width = len(table.columns)
    return [(row, cells[width * place : width * (place + 1)]) for place, row in enumerate(table.rows)]


def _computable(cells: Sequence[Cell]) -> int:
    return sum(cell.row.method is not None and cell.status != NO_METHOD for cell in cells)


def _remarks(cells: Sequence[Cell]) -> list[str]:
    """One line for each reason why cells are empty or incomplete."""
    remarks = [""]
    missing = {cell.dataset: cell.reason for cell in cells if cell.status == NO_DATA}
    remarks += [f"{dataset}: not run: {reason}" for dataset, reason in missing.items()]
    for status in (NO_METHOD, FAILED):
        empty = [cell for cell in cells if cell.status == status]
        for (name, reason), own in groupby(empty, key=lambda cell: (cell.row.name, cell.reason)):
            where = ", ".join(cell.dataset for cell in own) if status == FAILED else "not run by s2clip"
            remarks.append(f"{name}: {where}: {(reason or '').splitlines()[0]}")
    for cell in cells:
        if cell.failures:
            remarks.append(
                f"{cell.row.name}: {cell.dataset}: {counted(len(cell.failures), 'picture')} failed, {cell.failures[0]}"
            )
    return remarks if len(remarks) > 1 else []


def _pair(measured: str | None, reported: str | None) -> str:
    return f"{measured or ABSENT} ({reported or ABSENT})"


def _per_cent(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _as_reported(value: float | None) -> str | None:
    return None if value is None else str(value)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _short(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    return "  ".join(
        [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
    )
