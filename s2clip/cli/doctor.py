"""`s2clip doctor`: what is installed here, and what is wrong with it."""

import json
import sys
from pathlib import Path

import click

from s2clip.cli.program import ENVIRONMENT


@click.command()
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Look for weights here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(cache_dir: Path | None, as_json: bool) -> None:
    """Versions, torch-Triton pairing, GPU and its shared memory, caches, weights; exit code 3 on a problem."""
    from s2clip.doctor import examine, report

    found = examine(cache_dir)
    click.echo(json.dumps(found) if as_json else report(found))
    if found["problems"]:
        sys.exit(ENVIRONMENT)
