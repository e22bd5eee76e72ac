"""`s2clip convert`: published annotations to the label files that the benchmarks are read from."""

import json
import sys
from pathlib import Path

import click

from s2clip.cli.console import progress, say, usage_errors
from s2clip.cli.options import output_options
from s2clip.cli.program import INPUTS_FAILED

SHOWN = 5


@click.command()
@click.argument("name", metavar="cityscapes|coco-object|coco-stuff|context")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Its folder, or the one that holds it.")
@click.option("--source", type=click.Path(path_type=Path), help="trainval_merged.json, where it lies elsewhere.")
@click.option("--overwrite", is_flag=True, help="Make those label files anew that are there.")
@output_options
def convert(name: str, data: Path, source: Path | None, overwrite: bool, as_json: bool, show_progress: bool) -> None:
    """Make the label files of the validation split; what is there already is left, so it can be interrupted."""
    from s2clip.evaluation.converters import convert as run

    with usage_errors():
        done = run(
            name, data, source=source, overwrite=overwrite, progress=lambda items: progress(items, show_progress)
        )
    if as_json:
        record = {"root": str(done.root), "written": done.written, "present": done.present, "failed": done.failed}
        click.echo(json.dumps(record))
    else:
        say(f"{done.root}: {done.written} label files written, {done.present} were there")
        for reason in done.failed[:SHOWN]:
            say(reason, err=True)
        if len(done.failed) > SHOWN:
            say(f"and {len(done.failed) - SHOWN} more", err=True)
    if done.failed:
        sys.exit(INPUTS_FAILED)
