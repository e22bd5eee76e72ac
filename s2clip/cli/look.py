"""`s2clip analyze features`: single pictures, view by view."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import load_segmenter, word_bar
from s2clip.cli.lists import OptionsCommand, classes_option, names_option
from s2clip.cli.options import METHOD_DEFAULT, model_options
from s2clip.cli.report import Report, data_options, reporting
from s2clip.values import counted

if TYPE_CHECKING:
    from s2clip.analysis.pictures import Picture
    from s2clip.analysis.views import FeatureMap, View
    from s2clip.segmenter import Segmenter

CLASSES_SHOWN = 4
TERMS_SHOWN = ("qk", "qq", "kk", "vv")


@click.command(cls=OptionsCommand)
@names_option("--view", "views", help="Blocks (4), terms (qq, kk@3), backbones (dino-b8), methods.")
@click.option("--patch", metavar="ROW,COL", help="A patch of CLIP's grid: what is like it, in every view.")
@click.option("--at", metavar="X,Y", help="The same by a pixel of the picture.")
@click.option("--near", metavar="CLASS", help="The same by the pixel where this class scores highest.")
@click.option("--attention", is_flag=True, help="What the patch attends to, not its cosines; for views of terms.")
@click.option("--shared-colours", is_flag=True, help="Principal axes of all pictures together; they are all held.")
@names_option("--method", "methods", help=f"Of the heat maps; {METHOD_DEFAULT}")
@click.option("--stages", "staged", is_flag=True, help="Heat maps before and after each stage of the first --method.")
@click.option("--refine", default="none", show_default=True, help="As in segment; a last stage of the heat maps.")
@classes_option("As in segment; default: those of the data.")
@names_option("--show", metavar="CLASS", help="Classes of the heat maps; default: the 4 largest.")
@model_options
@data_options
def features(
    views: tuple[str, ...],
    patch: str | None,
    at: str | None,
    near: str | None,
    attention: bool,
    shared_colours: bool,
    methods: tuple[str, ...],
    staged: bool,
    refine: str,
    classes: list[str] | None,
    show: tuple[str, ...],
    model_settings: dict[str, Any],
    request: dict[str, Any],
) -> None:
    """Look at single pictures: principal colours, likes of a patch, heat maps of classes.

    For every picture NAME: NAME.colours, NAME.patch (with --patch, --at or --near), and NAME.classes (where classes are
    known). Give few pictures, or --limit.
    """
    from s2clip.published.catalogue import default_methods

    with reporting(**request) as report:
        if sum(option is not None for option in (patch, at, near)) > 1:
            raise ValueError("--patch, --at and --near name one place: give one of them")
        if attention and patch is at is near is None:
            raise ValueError("--attention needs a place: --patch, --at or --near")
        pair = {"patch": _pair("--patch", patch, int), "at": _pair("--at", at, float)}
        methods = methods or default_methods(model_settings["model"], "s2clip")
        segmenters = {
            name: load_segmenter(model_settings, method=name, refine=refine) for name in dict.fromkeys(methods)
        }
        first = next(iter(segmenters.values()))
        chosen = _views(views, first, attention)
        models = _models(chosen, segmenters, model_settings)
        if shared_colours:
            _draw_colours_together(report, chosen, models, first, model_settings)
        for data in report.sets:
            names = classes or data.classes
            if near is not None and names is None:
                raise ValueError("--near needs --classes")
            for one in segmenters.values():
                if names is not None:
                    background, shown = None if classes else data.background, word_bar(report.show_progress)
                    one.set_classes(names, background=background, progress=shown)
            for name, picture in _named(report, data):
                maps = _maps(picture, chosen, models, first, model_settings)
                if near is not None:
                    pair["at"] = _peak(first, picture, near)
                if any(value is not None for value in pair.values()):
                    _draw_patch(report, name, picture, maps, pair, attention)
                if not shared_colours:
                    _draw_colours(report, name, picture, maps)
                if names is not None:
                    _draw_classes(report, name, picture, segmenters, staged, show)
        report.tell([counted(len(report.files), "figure")])


def _pair(option: str, text: str | None, kind: Callable[[str], Any]) -> tuple[Any, Any] | None:
    if text is None:
        return None
    try:
        first, second = (kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: expected two numbers with a comma, received {text!r}") from None
    return first, second


def _views(names: Sequence[str], segmenter: "Segmenter", attention: bool) -> "list[View]":
    from s2clip.analysis.views import parse_view

    if not names:
        other = () if attention else (str(segmenter.clip.layers), segmenter.vfm.name if segmenter.vfm else "")
        names = [*TERMS_SHOWN, *filter(None, other)]
    views = [parse_view(name, segmenter.clip) for name in dict.fromkeys(names)]
    if attention and any(view.kind != "term" for view in views):
        raise ValueError("--attention: expected views of terms, two of q, k, v, received " + ", ".join(names))
    return views


def _models(
    views: "Sequence[View]", segmenters: "Mapping[str, Segmenter]", model_settings: dict[str, Any]
) -> dict[str, Any]:
    """What the views need beside CLIP, by name; nothing is loaded twice that the heat maps have."""
    from s2clip.backbones.vfm import load_vfm

    known = {one.vfm.name: one.vfm for one in segmenters.values() if one.vfm is not None}
    settings = {key: model_settings[key] for key in ("device", "weights", "cache_dir", "local_files_only")}
    vfms = {
        view.name: known[view.name] if view.name in known else load_vfm(view.name, **settings)
        for view in views
        if view.kind == "vfm"
    }
    methods = {
        view.name: segmenters[view.name]
        if view.name in segmenters
        else load_segmenter(model_settings, method=view.name)
        for view in views
        if view.kind == "method"
    }
    return {"vfms": vfms, "segmenters": methods}


def _named(report: Report, data: Any) -> "Iterator[tuple[str, Picture]]":
    """The pictures of a set, each with a file name of its own."""
    taken = {file.partition(".")[0] for file in report.files}
    for picture in report.walk_one(data):
        name, number = picture.name, 1
        while name in taken:
            number += 1
            name = f"{picture.name}-{number}"
        taken.add(name)
        yield name, picture


def _maps(
    picture: "Picture",
    views: "Sequence[View]",
    models: dict[str, Any],
    segmenter: "Segmenter",
    model_settings: dict[str, Any],
) -> "list[FeatureMap]":
    from s2clip.analysis.views import feature_maps

    return feature_maps(picture.pixels, views, segmenter.clip, **models, short_side=model_settings["short_side"])


def _draw_colours(report: Report, name: str, picture: "Picture", maps: "Sequence[FeatureMap]") -> None:
    from s2clip.analysis.plots.features import colours_figure
    from s2clip.analysis.projection import principal_colours

    colours = {one.name: principal_colours([one.features])[0] for one in maps}
    report.figure(f"{name}.colours", colours_figure(picture.pixels, colours))


def _draw_colours_together(
    report: Report,
    views: "Sequence[View]",
    models: dict[str, Any],
    segmenter: "Segmenter",
    model_settings: dict[str, Any],
) -> None:
    from s2clip.analysis.plots.features import colours_figure
    from s2clip.analysis.projection import principal_colours

    held = [
        (name, picture, _maps(picture, views, models, segmenter, model_settings))
        for data in report.sets
        for name, picture in _named(report, data)
    ]
    colours = [
        principal_colours([one.features for one in of_view])
        for of_view in zip(*(maps for *_, maps in held), strict=True)
    ]
    for index, (name, picture, maps) in enumerate(held):
        shown = {one.name: of_view[index] for one, of_view in zip(maps, colours, strict=True)}
        report.figure(f"{name}.colours", colours_figure(picture.pixels, shown))


def _peak(segmenter: "Segmenter", picture: "Picture", name: str) -> tuple[float, float]:
    """The pixel where a class scores highest."""
    from s2clip.words.text import vocabulary

    index = vocabulary(segmenter.classes).find(name, "near")
    encoded = segmenter.encode(picture.pixels)
    best = int(segmenter.scores(encoded).planes([index], encoded.size).argmax())
    return float(best % encoded.size[1]), float(best // encoded.size[1])


def _draw_patch(
    report: Report,
    name: str,
    picture: "Picture",
    maps: "Sequence[FeatureMap]",
    place: dict[str, Any],
    attention: bool,
) -> None:
    from s2clip.analysis.patches import patch_at
    from s2clip.analysis.plots.features import patch_figure
    from s2clip.analysis.views import pixel_of

    size = tuple(picture.pixels.shape[1:])
    at = pixel_of(size, **place, grid=maps[0].grid)
    heats = {}
    for one in maps:
        patch = patch_at(*at, size, one.grid)
        heats[one.name] = one.attention(patch) if attention else one.affinity(patch)
    report.figure(f"{name}.patch", patch_figure(picture.pixels, heats, at, unit="attention" if attention else "cosine"))


def _draw_classes(
    report: Report,
    name: str,
    picture: "Picture",
    segmenters: "Mapping[str, Segmenter]",
    staged: bool,
    show: Sequence[str],
) -> None:
    import numpy as np

    from s2clip.analysis.plots.features import classes_figure
    from s2clip.analysis.stages import heat_maps, stages
    from s2clip.words.text import vocabulary

    found = heat_maps(stages(next(iter(segmenters.values()))) if staged else segmenters, picture.pixels)
    last = list(found.values())[-1]
    if show:
        chosen = [vocabulary(last.classes).find(one, "show") for one in show]
    else:
        areas = np.bincount(last.segmentation.ravel(), minlength=len(last.classes))[: len(last.classes)]
        chosen = [int(index) for index in np.argsort(-areas, kind="stable")[:CLASSES_SHOWN] if areas[index]]
    report.figure(f"{name}.classes", classes_figure(picture.pixels, found, chosen))
