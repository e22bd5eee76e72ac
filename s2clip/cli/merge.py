"""`s2clip merge`: the shards of an evaluation that were computed in different places become one result."""

from pathlib import Path

import click

from s2clip.cli.benchmark import announce
from s2clip.cli.console import usage_errors


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER...")
@click.option("--limit", type=int, help="As it was given to the shards.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Result folder; default: the first of them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def merge(folders: tuple[Path, ...], limit: int | None, output: Path | None, as_json: bool) -> None:
    """Add up result folders of one protocol, as s2clip evaluate --shard leaves them on several machines.

    The result is that of a single run, to the last bit. Neither data nor models are needed.
    """
    from s2clip.evaluation.merge import merge_folders

    with usage_errors():
        announce([merge_folders(folders, output or folders[0], limit)], as_json)
