"""Stored rows: append-only, one file per GPU, torch and triton; tables are made of nothing else."""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FOLDER = Path(__file__).parent / "results"
TEXT = ("op", "shape", "dtype", "provider", "kind", "gpu", "torch", "commit")
"""What every row has. Op "pipeline …" is a whole pipeline, its shape a data set's."""
MEASURES = ("cold", "warm", "call")
"""Device time with the inputs out of cache, device time with them in it, wall clock of a call."""


def problem(row: Any) -> str:
    """What is wrong with a row; empty where it can be believed."""
    if not isinstance(row, dict):
        return "not an object"
    for name in TEXT:
        if not isinstance(row.get(name), str) or not row[name]:
            return f"{name}: expected text, received {row.get(name)!r}"
    if row["gpu"] == "cpu":
        return "gpu: a CPU's times are not stored"
    if "disagreement" in row:
        return ""
    measured = [name for name in MEASURES if row.get(name) is not None]
    if not measured:
        return f"no figures: expected one of {', '.join(MEASURES)}"
    for name in measured:
        try:
            figures = row[name]
            numbers = [*figures["ours_ms"].values(), *figures["theirs_ms"].values(), *figures["ratio"]]
            expected = {"p20", "p50", "p80"}
            sound = set(figures["ours_ms"]) == set(figures["theirs_ms"]) == expected and len(figures["ratio"]) == 3
            sound = sound and all(math.isfinite(number) and number > 0 for number in numbers)
        except (TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            return f"{name}: expected p20, p50, p80 of both sides and three numbers of the ratio, all above 0"
    return ""


def path(row: Row, folder: Path | None = None) -> Path:
    parts = (row["gpu"], row["torch"], row.get("triton"))
    return (folder or FOLDER) / ("-".join(re.sub(r"[^A-Za-z0-9.]+", "_", str(part)) for part in parts) + ".jsonl")


def append(row: Row, folder: Path | None = None) -> None:
    """`ValueError` for a row that could not be read back, and for one of a CPU."""
    if wrong := problem(row):
        raise ValueError(f"row: {wrong}")
    file = path(row, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def read(folder: Path | None = None) -> Iterator[Row]:
    """All rows, oldest first; a broken one is named in a line on stderr and left out."""
    for file in sorted((folder or FOLDER).glob("*.jsonl")):
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
            try:
                row = json.loads(line)
                wrong = problem(row)
            except ValueError as error:
                wrong = str(error)
            if wrong:
                print(f"{file.name}:{number}: broken row skipped ({wrong})", file=sys.stderr)
            else:
                yield row


IDENTITY = ("op", "shape", "dtype", "provider")


def identity(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in IDENTITY)


def stored(commit: str, folder: Path | None = None) -> set[tuple[str, ...]]:
    """What has a row of this commit, for a run that goes on where another stopped."""
    return {identity(row) for row in read(folder) if row["commit"] == commit}


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each GPU, op, shape, dtype and provider, in the order in which these first came."""
    latest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        latest[row["gpu"], *identity(row)] = row
    return list(latest.values())


OP_HEADS = (
    "op",
    "shape",
    "dtype",
    "against",
    "s2clip µs",
    "theirs µs",
    "ratio, cold (95 %)",
    "ratio, warm",
    "ratio, whole call",
    "% of floor",
    "MiB, s2clip / theirs",
)
PIPELINE_HEADS = (
    "pipeline",
    "pictures",
    "dtype",
    "against",
    "images/s",
    "theirs",
    "ratio (95 %)",
    "MiB, s2clip / theirs",
)


def tables(rows: Iterable[Row]) -> str:
    """Markdown of the newest rows: per GPU one table of ops and one of pipelines."""
    by_gpu: dict[str, list[Row]] = {}
    for row in newest(rows):
        by_gpu.setdefault(row["gpu"], []).append(row)
    if not by_gpu:
        return "Nothing has been measured on a GPU yet: no rows are stored."
    parts = []
    for gpu, own in by_gpu.items():
        setups = sorted({f"torch {row['torch']}, triton {row.get('triton')}, commit {row['commit']}" for row in own})
        parts.append(f"**{gpu}** ({'; '.join(setups)})")
        pipelines = [row for row in own if row["op"].startswith("pipeline ")]
        ops = [row for row in own if not row["op"].startswith("pipeline ")]
        if ops:
            parts.append(_markdown(OP_HEADS, map(_op_cells, ops)))
        if pipelines:
            parts.append(_markdown(PIPELINE_HEADS, map(_pipeline_cells, pipelines)))
    return "\n\n".join(parts)


def _markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(heads)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *lines))


def _op_cells(row: Row) -> list[str]:
    cells = [row["op"], row["shape"], row["dtype"], row["provider"]]
    if "disagreement" in row:
        return [*cells, "", "", f"not the same output: {row['disagreement']}", "", "", "", ""]
    device = row.get("cold") or row.get("call")
    times = [f"{1e3 * device[side]['p50']:.1f}" for side in ("ours_ms", "theirs_ms")]
    share = row.get("percent_of_floor")
    cells += [*times, ratio(row.get("cold")), _median(row.get("warm")), _median(row.get("call"))]
    return [*cells, "" if share is None else f"{share:.0f}", _memory(row)]


def _pipeline_cells(row: Row) -> list[str]:
    cells = [row["op"].removeprefix("pipeline "), row["shape"], row["dtype"], row["provider"]]
    if "disagreement" in row:
        return [*cells, "", "", f"not the same output: {row['disagreement']}", ""]
    rates = [f"{1e3 / row['call'][side]['p50']:.1f}" for side in ("ours_ms", "theirs_ms")]
    return [*cells, *rates, ratio(row["call"]), _memory(row)]


def ratio(figures: dict | None) -> str:
    return "" if figures is None else "{:.2f} ({:.2f} to {:.2f})".format(*figures["ratio"])


def _median(figures: dict | None) -> str:
    return "" if figures is None else f"{figures['ratio'][0]:.2f}"


def _memory(row: Row) -> str:
    sides = (row.get("peak_mib"), row.get("theirs_peak_mib"))
    return "" if None in sides else " / ".join(f"{value:.0f}" for value in sides)
