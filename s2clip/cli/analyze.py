"""`s2clip analyze`: the analyses that the method rests on, as figures and tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import check_device, load_segmenter, word_bar
from s2clip.cli.lists import OptionsCommand, classes_option, names_option, numbers_option
from s2clip.cli.look import features
from s2clip.cli.options import METHOD_DEFAULT, loading_options, model_options
from s2clip.cli.report import data_options, reporting
from s2clip.values import counted

if TYPE_CHECKING:
    from s2clip.analysis.pictures import PictureSet


@click.group()
def analyze() -> None:
    """See why it works, and where it does not.

    DATA is `scenes`, the name of a benchmark with --data, a picture, a folder or a pattern.
    """


analyze.add_command(features)

SHORT_SIDE = click.option(
    "--short-side", type=int, help="Pixels the shorter side is resized to; default 336 (tiny: 64); 0: native size."
)
LAYERS = numbers_option("--layers", help="Blocks of CLIP, from 1; default: all of them.")


@analyze.command(cls=OptionsCommand)
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
            f" Gini {row['gini']:.3f}, channel correlation {row['correlation']:.3f} "
            f"({counted(row['pictures'], 'picture')})"
            for row in rows
        ]
        report.tell(lines, entropy=rows)


@analyze.command(cls=OptionsCommand)
@LAYERS
@names_option("--vfm", "vfms", help="Beside CLIP's layers; default: tiny-dino, sam-tiny, or dino-b8, dinov2-b14.")
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


@analyze.command(cls=OptionsCommand)
@names_option("--method", "methods", help=f"Side by side; {METHOD_DEFAULT.replace('default:', 'default: clip,')}")
@click.option("--masks", help="Which class a patch has: predicted, true; default: true where there are label maps.")
@classes_option("As in segment; default: those of the data.")
@model_options
@data_options
def separability(
    methods: tuple[str, ...],
    masks: str | None,
    classes: list[str] | None,
    model_settings: dict[str, Any],
    request: dict[str, Any],
) -> None:
    """How tight the classes are in feature space, and how far apart: variance, distance, projection."""
    from s2clip.analysis.plots.separability import separability_figure
    from s2clip.analysis.separability import by_method
    from s2clip.analysis.separability import separability as measure
    from s2clip.published.catalogue import default_methods

    with reporting(**request) as report:
        methods = methods or default_methods(model_settings["model"], "clip", "s2clip")
        if masks == "true":
            _require_labels(report.sets, "separability --masks true")
        tables = {}
        for one in report.sets:
            names, own = classes_of(one, classes)
            chosen = masks or ("true" if own else "predicted")
            if chosen == "true" and not own:
                raise ValueError("--masks true goes by the classes of the data: leave --classes out")
            found = {}
            for method in dict.fromkeys(methods):
                segmenter = load_segmenter(model_settings, method=method)
                shown = word_bar(report.show_progress)
                segmenter.set_classes(names, background=one.background, progress=shown)
                found[method] = measure(report.walk_one(one), segmenter, masks=chosen)
            name = "separability" if len(report.sets) == 1 else f"separability-{one.name}"
            report.figure(name, separability_figure(found))
            tables[one.name] = report.table(name, *by_method(found))
        lines = [
            f"{data}, {row['method']}, {row['class']}: variance {row['variance']:.3f}, distance {row['distance']:.3f}, "
            f"nearest {row['nearest']} at {row['nearest_distance']:.3f} ({row['patches']:,} patches)"
            for data, rows in tables.items()
            for row in rows
        ]
        report.tell(lines, separability=tables)


@analyze.command(cls=OptionsCommand)
@click.option("--method", help=METHOD_DEFAULT)
@click.option("--refine", default="none", show_default=True, help="As in segment.")
@click.option("--worst", default=4, show_default=True, help="Pictures to show of each DATA.")
@model_options
@data_options
def failures(
    method: str | None, refine: str, worst: int, model_settings: dict[str, Any], request: dict[str, Any]
) -> None:
    """The pictures with the lowest mIoU, and which class was taken for which. Needs label maps."""
    from s2clip.analysis.failures import find_failures
    from s2clip.analysis.plots.failures import failures_figure

    with reporting(**request) as report:
        _require_labels(report.sets, "failures")
        segmenter = load_segmenter(model_settings, method=method, refine=refine)
        tables, lines = {}, []
        for one in report.sets:
            shown = word_bar(report.show_progress)
            segmenter.set_classes(one.classes, background=one.background, progress=shown)
            found = find_failures(report.walk_one(one), segmenter, count=worst)
            name = "failures" if len(report.sets) == 1 else f"failures-{one.name}"
            report.figure(name, failures_figure(found))
            tables[one.name] = report.table(name, *found.rows())
            lines += [
                f"{one.name}, {counted(number, 'picture')} with {counted(classes, 'class')}: "
                f"mean mIoU {100 * mean:.1f} %"
                for classes, (mean, number) in found.crowds.items()
            ]
            lines += [f"{one.name}, {each.picture.name}: mIoU {100 * each.miou:.1f} %" for each in found.worst]
            lines += [
                f"{one.name}: {100 * row['share_of_true']:.1f} % of {row['true']} given to {row['given']}"
                for row in tables[one.name][:worst]
            ]
        report.tell(lines, failures=tables)


def classes_of(pictures: "PictureSet", classes: list[str] | None) -> tuple[Any, bool]:
    """(classes to set, whether they are the data's own)."""
    if classes is None and pictures.classes is None:
        raise ValueError(f"{pictures.name} has no classes of its own: name them by --classes")
    return (classes, False) if classes is not None else (pictures.classes, True)


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
