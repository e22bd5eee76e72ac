"""`s2clip evaluate scenes`: the embedded scenes, printed, and with -o kept as a benchmark's results are."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from s2clip.cli.benchmark import variants
from s2clip.cli.console import load_segmenter, progress, say, usage_errors

if TYPE_CHECKING:
    from s2clip.cli.benchmark import MethodRun

SCENES = "scenes"
SCENES_LIMIT = 200


class ScenesRun(NamedTuple):
    """What the command line says of a run beside methods and models."""

    limit: int
    seed: int
    output: Path | None
    resume: bool
    show_progress: bool


def evaluate_scenes(
    run: ScenesRun, runs: "list[MethodRun]", ablate: bool, model_settings: dict[str, Any], as_json: bool
) -> None:
    """The table on stdout; with an output folder also <output>/scenes/<model>/<method>+<stage>+<refine>."""
    from s2clip.evaluation.kept_scenes import KeptColumn
    from s2clip.evaluation.scenes import Column, ablation_table, evaluate, scene_seeds, table

    with usage_errors():
        seeds = scene_seeds(run.seed, run.limit)
    segmenters, names = [], []
    for one in runs:
        segmenter = load_segmenter(model_settings, method=one.method, refine=one.refine, **one.fields)
        for variant, name in variants(segmenter, ablate and one.refine == "sam"):
            segmenters.append(variant)
            names.append(name)
    columns: list[Column] = [Column() for _ in segmenters]
    if run.output is not None:
        folder = Path(run.output, SCENES, str(model_settings["model"]))
        columns = [
            KeptColumn(folder / name, segmenter, run.seed, seeds, resume=run.resume)
            for segmenter, name in zip(segmenters, names, strict=True)
        ]
    try:
        rows = evaluate(segmenters, seeds, columns=columns, progress=lambda items: progress(items, run.show_progress))
    except KeyboardInterrupt:
        kept = "--resume does the others" if run.output is not None else "-o FOLDER would keep them for --resume"
        say(f"{min(len(one.done) for one in columns)} of {len(seeds)} scenes are done; {kept}", err=True)
        raise
    folders = [column.write() for column in columns if isinstance(column, KeptColumn)]
    if as_json:
        rows = [row | {"folder": str(path)} for row, path in zip(rows, folders, strict=True)] if folders else rows
        click.echo(json.dumps({"dataset": SCENES, "rows": rows}, allow_nan=False))
        return
    click.echo(f"{SCENES}: {run.limit} pictures of seed {run.seed}, model {model_settings['model']}, per cent\n")
    click.echo(ablation_table(rows) if ablate else table(rows))
    for path in folders:
        say(str(path))
