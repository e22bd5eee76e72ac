"""`s2clip evaluate`: methods side by side on a data set."""

import json
from typing import Any

import click

from s2clip.cli.console import load_segmenter, progress, usage_errors
from s2clip.cli.options import model_options, output_options
from s2clip.cli.program import ListOptions


@click.command(cls=ListOptions)
@click.argument("dataset", type=click.Choice(["scenes"]), metavar="DATASET")
@click.option("--method", "methods", multiple=True, default=["s2clip"], show_default=True, help="One or several.")
@click.option("--refine", "refinements", multiple=True, default=["none"], show_default=True, help="One or several.")
@click.option("--ablate", is_flag=True, help="Also --refine sam without each of its parts; one line per variant.")
@click.option("--limit", default=200, show_default=True, help="Number of scenes.")
@click.option("--seed", default=0, show_default=True, help="Which scenes; none of them was trained on.")
@model_options
@output_options
def evaluate(
    dataset: str,
    methods: tuple[str, ...],
    refinements: tuple[str, ...],
    ablate: bool,
    limit: int,
    seed: int,
    model_settings: dict[str, Any],
    as_json: bool,
    show_progress: bool,
) -> None:
    """mIoU per class and milliseconds per image of several methods side by side, in per cent."""
    from s2clip.evaluation.scenes import ablation_table, ablations, scene_seeds, table
    from s2clip.evaluation.scenes import evaluate as run

    with usage_errors():
        seeds = scene_seeds(seed, limit)
        if ablate and "sam" not in refinements:
            raise ValueError("--ablate needs --refine sam")
    pairs = [(method, refine) for method in dict.fromkeys(methods) for refine in dict.fromkeys(refinements)]
    segmenters = [load_segmenter(model_settings, method=method, refine=refine) for method, refine in pairs]
    if ablate:
        refined = [one for one, (_, refine) in zip(segmenters, pairs, strict=True) if refine == "sam"]
        segmenters += [variant for one in refined for variant in ablations(one)]
    rows = run(segmenters, seeds, progress=lambda items: progress(items, show_progress))
    if as_json:
        click.echo(json.dumps({"dataset": dataset, "rows": rows}, allow_nan=False))
    else:
        click.echo(f"{dataset}: {limit} pictures of seed {seed}, model {model_settings['model']}, per cent\n")
        click.echo(ablation_table(rows) if ablate else table(rows))
