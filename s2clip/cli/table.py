"""`s2clip table`: the source's tables, what is measured beside what is reported."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import bar, check_device, say, usage_errors
from s2clip.cli.options import output_options, placing_options
from s2clip.cli.program import INPUTS_FAILED, ValueFailure

if TYPE_CHECKING:
    from s2clip.evaluation.tables import Cell


@click.command()
@click.argument("number", type=click.IntRange(1, 4), metavar="1|2|3|4")
@click.option("--data-root", type=click.Path(path_type=Path), help="The folder that holds the data sets.")
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="Label PNGs of the rows that are not run: ROW/DATASET."
)
@click.option(
    "--model", help="Only the rows of this CLIP; with one that no row has, tiny say, all rows are tried on it."
)
@click.option("--limit", type=click.IntRange(min=1), help="The first pictures of each data set only.")
@click.option("--dry-run", is_flag=True, help="List the cells and their settings; compute nothing.")
@click.option(
    "-o", "--output", default="out/tables", show_default=True, type=click.Path(path_type=Path), help="Folder."
)
@placing_options
@output_options
def table(
    number: int,
    data_root: Path | None,
    predictions: Path | None,
    model: str | None,
    limit: int | None,
    dry_run: bool,
    output: Path,
    model_settings: dict[str, Any],
    as_json: bool,
    show_progress: bool,
) -> None:
    """Run every cell of a table whose data set is there; what was computed before is not computed again.

    Data sets that are missing are said, the others run; a figure that was not measured stays empty.
    """
    if data_root is None and not dry_run:
        raise ValueFailure("--data-root: the folder that holds the data sets is needed, or --dry-run")
    if data_root is not None and not data_root.is_dir():
        raise ValueFailure(f"--data-root {data_root}: no such folder")
    from s2clip.evaluation import tables
    from s2clip.evaluation.table_text import listing, page

    with usage_errors():
        _check_model(model)
        chosen = tables.with_model(tables.read_table(number), model)
    cells = tables.plan(chosen, data_root, predictions)
    if not dry_run:
        _measure(cells, output, limit, model_settings, show_progress)
        _write(number, output, cells, page(chosen, cells, limit))
    if as_json:
        click.echo(json.dumps({"table": number, "limit": limit, "cells": [cell.record() for cell in cells]}))
    else:
        say(listing(chosen, cells) if dry_run else page(chosen, cells, limit))
    failed = any(cell.status == tables.FAILED or cell.failures for cell in cells)
    if not dry_run and (failed or not any(cell.report for cell in cells)):
        sys.exit(INPUTS_FAILED)


def _check_model(model: str | None) -> None:
    from s2clip.backbones.clip import CLIP_NAMES
    from s2clip.errors import reject

    if model is not None and model not in CLIP_NAMES:
        reject("--model", f"one of {', '.join(CLIP_NAMES)}", repr(model))


def _measure(
    cells: "Sequence[Cell]", output: Path, limit: int | None, model_settings: dict[str, Any], show_progress: bool
) -> None:
    from s2clip.evaluation.tables import measure
    from s2clip.files import writable_folder

    check_device(model_settings["device"])
    writable_folder(output)

    def announce(cell: "Cell") -> None:
        if show_progress and sys.stderr.isatty():
            say(f"{cell.row.group}: {cell.row.name}, {cell.dataset}", err=True)

    measure(cells, output, limit=limit, loading=model_settings, progress=bar(show_progress), announce=announce)


def _write(number: int, output: Path, cells: "Sequence[Cell]", text: str) -> None:
    from s2clip.files import whole_file, write_json

    write_json(output / f"table-{number}.json", {"table": number, "cells": [cell.record() for cell in cells]})
    with whole_file(output / f"table-{number}.txt") as handle:
        handle.write(f"{text}\n".encode())
