"""`s2clip evaluate`: methods side by side on the embedded scenes or on a benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.benchmark import Run, announce, evaluate_methods, evaluate_own, evaluate_predictions
from s2clip.cli.console import usage_errors
from s2clip.cli.effects import refuse_beside, refuse_without_effect
from s2clip.cli.engines import chosen_cluster, refuse_for_cluster
from s2clip.cli.lists import OptionsCommand, names_option, numbers_option
from s2clip.cli.options import METHOD_DEFAULT, engine_options, model_options, output_options
from s2clip.cli.program import ValueFailure
from s2clip.cli.scenes import SCENES, SCENES_LIMIT, ScenesRun, evaluate_scenes
from s2clip.cli.segment import class_names
from s2clip.evaluation.ranks import parse_shard

if TYPE_CHECKING:
    from s2clip.cli.benchmark import MethodRun
    from s2clip.evaluation.own import OwnData


@click.command(cls=OptionsCommand)
@click.argument("dataset", required=False, metavar="[DATASET]")
@click.option("--data", type=click.Path(path_type=Path), help="The data set's folder, or the one that holds it.")
@click.option("--images", type=click.Path(path_type=Path), help="Pictures of your own, in place of DATASET.")
@click.option("--labels", type=click.Path(path_type=Path), help="Their label maps: PNGs of the same names, value = id.")
@click.option("--classes", multiple=True, metavar="NAMES", help="What the ids of --labels mean, as in segment.")
@click.option("--classes-file", type=click.Path(path_type=Path), help="The same, a class per line.")
@click.option("--first-id", type=int, help="The first class's value in --labels; default 0.")
@numbers_option("--ignore-id", "ignored", help="Values in --labels that do not count, beside 255.")
@click.option("--background", metavar="CLASS", help="Of --classes: what pixels under --threshold are given.")
@click.option("--threshold", type=float, help="Of the best score of a pixel; with --background.")
@names_option("--method", "methods", help=f"One or several; {METHOD_DEFAULT}")
@names_option(
    "--stage",
    "stages",
    default=("none",),
    show_default=True,
    help="One or several: none, pearl, rotation, freecp, floss.",
)
@names_option("--refine", "refinements", default=("none",), show_default=True, help="One or several.")
@click.option("--ablate", is_flag=True, help="Also --refine sam without each of its parts.")
@click.option("--limit", type=int, help=f"The first pictures only; default: all, of the scenes {SCENES_LIMIT}.")
@click.option("--seed", type=int, help="Which scenes, default: 0; none of them was trained on.")
@click.option("--resume", is_flag=True, help="Go on where a run into the same folder stopped.")
@click.option("--shard", metavar="I/N", help="Part I of N, from 0; the last one to end writes the result.")
@click.option("--predictions", type=click.Path(path_type=Path), help="Score the label PNGs of this folder instead.")
@click.option("--save-predictions", is_flag=True, help="Also write the label PNGs.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of all results; default: out/evaluate; of scenes: none, they are printed.",
)
@engine_options
@model_options
@output_options
def evaluate(
    dataset: str | None,
    images: Path | None,
    labels: Path | None,
    classes: tuple[str, ...],
    classes_file: Path | None,
    first_id: int | None,
    ignored: tuple[int, ...],
    background: str | None,
    threshold: float | None,
    methods: tuple[str, ...],
    stages: tuple[str, ...],
    refinements: tuple[str, ...],
    ablate: bool,
    seed: int | None,
    predictions: Path | None,
    engine_settings: dict[str, Any],
    model_settings: dict[str, Any],
    as_json: bool,
    show_progress: bool,
    **run: Any,
) -> None:
    """mIoU per class and times of several methods side by side, in per cent.

    DATASET is scenes (embedded), voc21, context60, coco-object, voc20, cityscapes, context59, ade20k or coco-stuff.
    On these every method runs with its published settings; options given here replace them. Pictures and label maps of
    your own are given by --images, --labels and --classes.
    """
    mine = {"--images": images, "--labels": labels, "--classes": classes, "--classes-file": classes_file}
    mine |= {"--first-id": first_id, "--ignore-id": ignored, "--background": background, "--threshold": threshold}
    if (dataset is None) == (images is None):
        raise ValueFailure("give a DATASET, or --images DIR --labels DIR --classes NAMES")
    if dataset is not None and (stray := [name for name, value in mine.items() if value not in (None, ())]):
        raise ValueFailure(f"{stray[0]}: of data of your own (--images), not of {dataset}")
    if ablate and "sam" not in refinements:
        raise ValueFailure("--ablate needs --refine sam")
    if predictions is not None and methods:
        raise ValueFailure("--predictions scores what is saved: give it without --method")
    with usage_errors():
        cluster = chosen_cluster(engine_settings, model_settings["device"])
        if cluster is not None:
            given = {"--ablate": ablate, "--shard": run["shard"], "--predictions": predictions}
            given |= {SCENES: dataset == SCENES}
            refuse_for_cluster({name: [value] if value else [] for name, value in given.items()})
    runs = _runs(methods, model_settings["model"], stages, refinements)
    with usage_errors():
        if predictions is not None:
            refuse_beside("--predictions", (*model_settings, "stages", "refinements", "save_predictions"))
        refuse_without_effect([(one.method, one.refine) for one in runs], model_settings)
    if dataset == SCENES:
        for name in ("data", "shard", "save_predictions", "predictions"):
            if predictions if name == "predictions" else run[name]:
                raise ValueFailure(f"--{name.replace('_', '-')}: not of {SCENES}, which are painted as they are scored")
        if run["resume"] and run["output"] is None:
            raise ValueFailure("--resume: of scenes goes with -o FOLDER, where an earlier run wrote")
        limit = SCENES_LIMIT if run["limit"] is None else run["limit"]
        kept = ScenesRun(limit, seed or 0, run["output"], run["resume"], show_progress)
        evaluate_scenes(kept, runs, ablate, model_settings, as_json)
        return
    if seed is not None:
        raise ValueFailure(f"--seed: of {SCENES} only")
    with usage_errors():
        run["shard"] = parse_shard(run["shard"])
    if dataset is None:
        own, rules = _own(images, labels, classes, classes_file, first_id, ignored, background, threshold, run["data"])
        dataset = own.name
    else:
        own, rules = None, {}
    chosen = Run(dataset, own=own, show_progress=show_progress, **run)
    if predictions is not None:
        reports = evaluate_predictions(chosen, predictions)
    elif own is not None:
        reports = evaluate_own(chosen, runs, ablate, model_settings, cluster, **rules)
    else:
        reports = evaluate_methods(chosen, runs, ablate, model_settings, cluster)
    announce(reports, as_json)


def _own(
    images: Path,
    labels: Path | None,
    classes: tuple[str, ...],
    classes_file: Path | None,
    first_id: int | None,
    ignored: tuple[int, ...],
    background: str | None,
    threshold: float | None,
    data: Path | None,
) -> "tuple[OwnData, dict[str, Any]]":
    """The user's data, and what of the methods he sets."""
    from s2clip.evaluation.own import open_own
    from s2clip.words.text import vocabulary

    if labels is None:
        raise ValueFailure("--labels: the folder of the label maps of --images is needed")
    if data is not None:
        raise ValueFailure("--data: of a DATASET, not of --images")
    if (threshold is None) != (background is None):
        raise ValueFailure("--threshold and --background go together: figures count every pixel")
    with usage_errors():
        words = vocabulary(class_names(classes, classes_file))
        number = words.find(background)
        own = open_own(images, labels, words.classes, background=number, first_id=first_id or 0, ignored=ignored)
    return own, ({} if threshold is None else {"threshold": threshold})


def _runs(
    methods: tuple[str, ...], model: str, stages: tuple[str, ...], refinements: tuple[str, ...]
) -> "list[MethodRun]":
    """Every method with every stage and every refinement; exit code 2 for a stage that is unknown or does not fit."""
    from s2clip.cli.benchmark import MethodRun
    from s2clip.methods.stages import STAGES
    from s2clip.names import match_name
    from s2clip.published.catalogue import default_methods, get_method

    runs = []
    with usage_errors():
        for method in dict.fromkeys(methods or default_methods(model, "s2clip")):
            for stage in dict.fromkeys(match_name("stage", name, STAGES) for name in stages):
                get_method(method, **STAGES[stage])
                runs += [MethodRun(method, stage, refine) for refine in dict.fromkeys(refinements)]
    return runs
