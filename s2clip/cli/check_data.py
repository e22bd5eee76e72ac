"""`s2clip check-data`: is a data set complete, before hours are spent on it."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s2clip.cli.console import progress, say, usage_errors
from s2clip.cli.options import output_options
from s2clip.cli.program import INPUTS_FAILED
from s2clip.errors import first_few

if TYPE_CHECKING:
    from s2clip.evaluation.check import Check


@click.command("check-data")
@click.argument("name", metavar="DATASET")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Its folder, or the one that holds it.")
@click.option("--full", is_flag=True, help="Read every picture and every label, not a sample.")
@output_options
def check_data(name: str, data: Path, full: bool, as_json: bool, show_progress: bool) -> None:
    """What is missing or wrong in a data set and what to do about it; exit code 1 if anything is."""
    from s2clip.evaluation.check import check

    with usage_errors():
        found = check(name, data, full=full, progress=lambda items: progress(items, show_progress))
    if as_json:
        click.echo(json.dumps(found.record()))
    else:
        _report(found, full)
    if found.problems:
        sys.exit(INPUTS_FAILED)


def _report(found: "Check", full: bool) -> None:
    facts, counts = found.facts, found.counts
    say(f"{facts.title}, {facts.split}: {facts.images} pictures, {len(facts.classes)} classes")
    say(f"  root         {found.root}")
    if counts:
        source = facts.layout.split_file or "the folders"
        say(f"  pictures     {counts['pictures']} in {facts.layout.image_folder}")
        say(f"  annotations  {counts['annotations']} in {facts.layout.annotation_folder}")
        say(f"  pairs        {counts['complete']} of {counts['named']} named by {source}")
    if found.read:
        extent = "all" if full else f"{found.read} pictures; --full reads all"
        absent = found.absent
        missing = f"; no pixel of {first_few(absent, 3)}" if full and absent else ""
        say(f"  labels       {len(facts.classes) - len(absent)} classes seen in {extent}{missing}")
    for problem in found.problems:
        say(f"\n{problem}")
    if not found.problems:
        say(f"\nnothing is wrong: s2clip evaluate {facts.name} --data {found.root}")
