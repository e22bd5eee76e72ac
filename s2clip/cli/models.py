"""`s2clip models`: every model by name, what it is for, its licence and size, and whether it is on this machine."""

import json
from pathlib import Path
from typing import Any

import click

TITLES = {
    "clip": "--model: pictures and words",
    "vision": "--vfm: vision alone",
    "masks": "--sam, --regions: masks",
    "words": "words alone, for RADIO",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where weights lie or are downloaded to.")
def models(as_json: bool, cache_dir: Path | None) -> None:
    """List the models: what for, parameters, patch, licence, and where their weights are here."""
    from s2clip.backbones.listing import list_models

    rows = list_models(cache_dir)
    if as_json:
        click.echo(json.dumps({"models": rows}))
        return
    for kind, title in TITLES.items():
        own = [row for row in rows if row["kind"] == kind]
        click.echo(f"{title}\n{_table(own)}\n")
    click.echo("* forbids commercial use")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("name", "parameters", "patch", "licence", "gated", "weights")]
    for row in rows:
        licence = row["licence"] + ("" if row["commercial"] else "*")
        lines.append(
            (
                row["name"],
                f"{row['parameters']:.1f} M",
                str(row["patch"] or "-"),
                licence,
                "yes" if row["gated"] else "no",
                row["weights"] or "not here",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"  {text.rstrip()}" for text in texts)
