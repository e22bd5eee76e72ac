"""What the analyses have in common on the command line: pictures in, figures and tables out."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import progress, say, usage_errors
from s2clip.cli.options import decorated, gathered, output_options
from s2clip.cli.program import INPUTS_FAILED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from s2clip.analysis.pictures import Picture, PictureSet

FIGURE_FORMATS = ("png", "pdf", "svg")
KINDS = click.Choice(FIGURE_FORMATS, case_sensitive=False)


@dataclass
class Report:
    """What an analysis reads and writes: sets of pictures in, figures, tables and one summary out."""

    sets: "list[PictureSet]"
    failures: list[tuple[str, str]]
    output: Path
    suffix: str
    as_json: bool
    show_progress: bool
    files: dict[str, str] = field(default_factory=dict)

    def walk(self) -> "dict[str, Iterator[Picture]]":
        """The pictures of each set by its name."""
        return {one.name: self.walk_one(one) for one in self.sets}

    def walk_one(self, pictures: "PictureSet") -> "Iterator[Picture]":
        """Its pictures, those that cannot be read left out and noted once."""
        failures: list[tuple[str, str]] = []
        yield from pictures.readable(failures, progress(range(len(pictures)), self.show_progress))
        self.failures += [one for one in failures if one not in self.failures]

    def figure(self, name: str, drawing: "Figure") -> None:
        from s2clip.analysis.plots.style import save

        self.files[f"{name}.{self.suffix}"] = str(save(drawing, self.output / f"{name}.{self.suffix}"))

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        """Write the table; the same as dictionaries."""
        from s2clip.analysis.tables import plain, write_csv

        path = self.output / f"{name}.csv"
        write_csv(path, header, rows)
        self.files[path.name] = str(path)
        return [dict(zip(header, map(plain, row), strict=True)) for row in rows]

    def tell(self, lines: Sequence[str], **content: Any) -> None:
        """The summary, as lines or as one JSON object."""
        if self.as_json:
            say(json.dumps({**content, "files": self.files}, allow_nan=False))
        else:
            for line in (*lines, "", *self.files.values()):
                say(line)


@contextmanager
def reporting(
    sources: Sequence[str],
    data: Path | None,
    limit: int | None,
    seed: int,
    output: Path,
    suffix: str,
    as_json: bool,
    show_progress: bool,
) -> "Iterator[Report]":
    """A report on the pictures that the arguments name; sources that fail are listed at the end, exit code 1."""
    from s2clip.analysis.pictures import find_pictures
    from s2clip.analysis.plots.style import require_matplotlib
    from s2clip.files import writable_folder

    require_matplotlib()
    with usage_errors():
        sets, failures = find_pictures(sources, data=data, limit=limit, seed=seed)
    try:
        if sets:
            with usage_errors():
                yield Report(sets, failures, writable_folder(output), suffix, as_json, show_progress)
    finally:
        for source, reason in failures:
            say(f"failed: {source}: {reason}", err=True)
    if failures:
        sys.exit(INPUTS_FAILED)


def data_options(command: Callable) -> Callable:
    """What `reporting` needs, handed to the command as one dictionary `request`."""
    options = [
        click.argument("sources", nargs=-1, required=True, metavar="DATA..."),
        click.option("--data", type=click.Path(path_type=Path), help="Folder of the benchmark that DATA names."),
        click.option("--limit", type=int, help="Pictures of each DATA; default: 100 scenes, else all."),
        click.option("--seed", default=0, show_default=True, help="Which scenes; none of them was trained on."),
        click.option("-o", "--output", default="out/analysis", show_default=True, type=click.Path(path_type=Path)),
        click.option("--format", "suffix", default="png", type=KINDS, help="Of the figures."),
    ]
    names = ("sources", "data", "limit", "seed", "output", "suffix", "as_json", "show_progress")
    return output_options(decorated(gathered(command, "request", names), options))
