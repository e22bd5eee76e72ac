"""`s2clip analyze`: the analyses that the method rests on, as figures and tables."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import check_device, progress, say, usage_errors
from s2clip.cli.options import decorated, gathered, loading_options, output_options
from s2clip.cli.program import INPUTS_FAILED, ListOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from s2clip.analysis.pictures import Picture, PictureSet

FIGURE_FORMATS = ("png", "pdf", "svg")


@click.group()
def analyze() -> None:
    """See why it works: entropy, consistency, separability, features.

    DATA is `scenes`, the name of a benchmark with --data, a picture, a folder or a pattern.
    """


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
        """The pictures of each set by its name, those that cannot be read left out and noted."""
        return {
            one.name: one.readable(self.failures, progress(range(len(one)), self.show_progress)) for one in self.sets
        }

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
        click.option("--format", "suffix", default="png", type=click.Choice(FIGURE_FORMATS), help="Of the figures."),
    ]
    names = ("sources", "data", "limit", "seed", "output", "suffix", "as_json", "show_progress")
    return output_options(decorated(gathered(command, "request", names), options))


SHORT_SIDE = click.option(
    "--short-side", type=int, help="Pixels the shorter side is resized to; default 336 (tiny: 64); 0: native size."
)
LAYERS = click.option("--layers", type=int, multiple=True, help="Blocks of CLIP, from 1; default: all of them.")


@analyze.command(cls=ListOptions)
@LAYERS
@SHORT_SIDE
@loading_options
@data_options
def entropy(
    layers: tuple[int, ...], short_side: int | None, model_settings: dict[str, Any], request: dict[str, Any]
) -> None:
    """Spatial entropy of CLIP's layers (Algorithm 1), Gini coefficient and channel correlation."""
    from s2clip.analysis.entropy import layer_entropy
    from s2clip.analysis.plots.entropy import entropy_figure

    with reporting(**request) as report:
        clip = _load_clip(model_settings)
        found = layer_entropy(report.walk(), clip, layers=layers or None, short_side=short_side)
        report.figure("entropy", entropy_figure(found))
        rows = report.table("entropy", *found.rows())
        lines = [
            f"{row['data']}, layer {row['layer']}: entropy {row['entropy_nats']:.3f} of {row['ceiling_nats']:.3f} nats,"
            f" Gini {row['gini']:.3f}, channel correlation {row['correlation']:.3f} ({row['pictures']} pictures)"
            for row in rows
        ]
        report.tell(lines, entropy=rows)


@analyze.command(cls=ListOptions)
@LAYERS
@click.option(
    "--vfm", "vfms", multiple=True, help="Beside CLIP's layers; default: tiny-dino, sam-tiny, or dino-b8, dinov2-b14."
)
@click.option("--bins", type=int, help="Of the cosines' histograms; default 262144.")
@SHORT_SIDE
@loading_options
@data_options
def consistency(
    layers: tuple[int, ...],
    vfms: tuple[str, ...],
    bins: int | None,
    short_side: int | None,
    model_settings: dict[str, Any],
    request: dict[str, Any],
) -> None:
    """Average precision of "same class or not" for pairs of patches, by the cosine of their features.

    For every layer of CLIP and for vision foundation models. Needs label maps: scenes, or a benchmark.
    """
    from s2clip.analysis.consistency import semantic_consistency
    from s2clip.analysis.pairs import BINS
    from s2clip.analysis.plots.consistency import consistency_figure, drawn

    with reporting(**request) as report:
        _require_labels(report.sets, "consistency")
        clip, models = _load_clip(model_settings), _load_vfms(vfms, model_settings)
        options = {"layers": layers or None, "short_side": short_side, "bins": bins or BINS}
        found = semantic_consistency(report.walk(), clip, models, **options)
        report.figure("consistency", consistency_figure(found))
        rows = report.table("consistency", *found.rows())
        points = [[*key, *point] for key, curve in found.curves.items() for point in zip(*drawn(curve), strict=True)]
        report.table("consistency-curves", ["data", "features", "recall", "precision"], points)
        lines = [
            f"{row['data']}, {row['features']}: average precision {row['average_precision']:.4f}, "
            f"chance {row['chance']:.4f} ({row['pairs']:,} pairs)"
            for row in rows
        ]
        report.tell(lines, consistency=rows)


def _load_clip(model_settings: dict[str, Any]) -> Any:
    from s2clip.backbones.clip import load_clip

    check_device(model_settings["device"])
    settings = dict(model_settings)
    return load_clip(settings.pop("model"), **settings)


def _load_vfms(names: Sequence[str], model_settings: dict[str, Any]) -> dict[str, Any]:
    from s2clip.backbones.vfm import load_vfm

    settings = dict(model_settings)
    default = ("tiny-dino", "sam-tiny") if settings.pop("model") == "tiny" else ("dino-b8", "dinov2-b14")
    return {name: load_vfm(name, **settings) for name in dict.fromkeys(names or default)}


def _require_labels(sets: "Sequence[PictureSet]", kind: str) -> None:
    for one in sets:
        if one.classes is None:
            raise ValueError(f"{kind} needs label maps: scenes, or a benchmark with --data; received {one.name}")
