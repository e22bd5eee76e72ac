"""`s2clip field`: what is published about the field, filtered."""

import json

import click

from s2clip.cli.console import usage_errors
from s2clip.cli.lists import OptionsCommand


@click.command(cls=OptionsCommand)
@click.option("--method", "methods", multiple=True, help="One or several, in any case of letters.")
@click.option("--model", help="CLIP, e.g. ViT-B-16.")
@click.option("--dataset", help="Only rows with a figure for it, e.g. voc21.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print the page docs/field.md, whole.")
def field(methods: tuple[str, ...], model: str | None, dataset: str | None, as_json: bool, markdown: bool) -> None:
    """List published mIoU by method, model and data set, in per cent, with source and what each figure needs."""
    from s2clip.evaluation.published_figures import cells, choose, page, published_rows

    methods = tuple(name.strip() for value in methods for name in value.split(","))  # a name may hold a blank
    with usage_errors():
        rows = choose(published_rows(), methods=methods, model=model, dataset=dataset)
    if markdown:
        click.echo(page(), nl=False)
    elif as_json:
        click.echo(json.dumps({"rows": rows}, ensure_ascii=False))
    else:
        lines = cells(rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
