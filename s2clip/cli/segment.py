"""`s2clip segment`: pictures to label maps by class names."""

import errno
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from s2clip.cli.console import load_segmenter, progress, say, usage_errors, word_bar
from s2clip.cli.effects import refuse_without_effect
from s2clip.cli.engines import chosen_cluster, chosen_sources, listed, refuse_for_cluster
from s2clip.cli.features import NAME as FEATURES
from s2clip.cli.features import FeatureStream
from s2clip.cli.lists import OptionsCommand, names_option
from s2clip.cli.options import METHOD_DEFAULT, engine_options, model_options, output_options, shard_options
from s2clip.cli.program import INPUTS_FAILED, EnvironmentFailure
from s2clip.cli.rasters import ONLY_RASTERS, Rasters, raster_options, usable_formats
from s2clip.cli.spread import Files, Run, Sink, by_cluster, rows_of
from s2clip.cli.video import parted, segment_film, video_options
from s2clip.errors import ImageError, OutputError, reject
from s2clip.names import match_name
from s2clip.values import counted

logger = logging.getLogger(__name__)

MEGAPIXELS = 64.0
OF_THE_NAME = (None, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)
"""What is one picture's fault of a file that cannot be written; all else is the disk's, which takes no other either."""


@click.command(cls=OptionsCommand)
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|DIR|GLOB|@LIST|FILM|webcam:0...")
@click.option(
    "--classes", multiple=True, metavar="NAMES", help='"sky, house; hut, tree": commas part classes, semicolons words.'
)
@click.option("--classes-file", type=click.Path(path_type=Path), help="One class per line, # starts a comment.")
@click.option("--method", help=f"clip, maskclip, sclip, naclip, ...; {METHOD_DEFAULT}")
@click.option("--refine", default="none", show_default=True, help="What sharpens the map: none, sam, sam+sd, trident.")
@click.option("--threshold", type=float, help="Pixels whose best score is lower become --background, else unlabelled.")
@click.option("--background", metavar="CLASS", help="One of the classes; for --threshold.")
@click.option("-o", "--output", default="out", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@names_option(
    "--format",
    "formats",
    default=("png", "overlay"),
    show_default=True,
    help="Of png, overlay, coco, npz, labelme, features; data sets of the run: coco-dataset, yolo, label-studio, cvat; "
    "of rasters: cog, confidence, gpkg, geojson, overlay (default: cog, overlay).",
)
@click.option("--per", default="region", show_default=True, help="Masks of the data sets: one per region or per class.")
@click.option("--no-names", is_flag=True, help="No names on the overlay's regions.")
@click.option("--recursive", is_flag=True, help="Folders with all that is below them; the output keeps their tree.")
@click.option("--resume", is_flag=True, help="Leave out pictures whose results are in the folder already.")
@click.option("--max-megapixels", default=MEGAPIXELS, show_default=True, help="Larger pictures are refused unread.")
@click.option("--max-seconds-per-picture", default=60.0, show_default=True, help="What decodes longer is refused.")
@raster_options
@video_options
@engine_options
@shard_options
@model_options
@output_options
def segment(
    sources: tuple[str, ...],
    classes: tuple[str, ...],
    classes_file: Path | None,
    method: str | None,
    refine: str,
    threshold: float | None,
    background: str | None,
    output: Path,
    formats: tuple[str, ...],
    per: str,
    no_names: bool,
    recursive: bool,
    resume: bool,
    max_megapixels: float,
    max_seconds_per_picture: float,
    raster_settings: dict[str, Any],
    video_settings: dict[str, Any],
    engine_settings: dict[str, Any],
    shard_settings: dict[str, Any],
    rows: str | None,
    model_settings: dict[str, Any],
    as_json: bool,
    show_progress: bool,
) -> None:
    """Segment pictures by the class names given; write a label map and an overlay of each.

    The output folder takes more pictures of the same classes and settings later, and refuses others. A TIFF that says
    where it lies on the ground, or is larger than --max-megapixels, is a raster: it is read and written window by
    window, and its place is kept (extra geo).
    """
    from s2clip.files import writable_folder
    from s2clip.pictures.inputs import find
    from s2clip.pictures.rasters import require_rasterio
    from s2clip.pictures.reading import Failure
    from s2clip.published.catalogue import default_methods
    from s2clip.results.folder import OutputFolder
    from s2clip.results.formats import DATASETS, open_datasets
    from s2clip.results.formats.pieces import PER
    from s2clip.results.naming import name_outputs
    from s2clip.results.result import check_formats
    from s2clip.results.sidecars import written_in
    from s2clip.words.lists import understood
    from s2clip.words.text import vocabulary

    with usage_errors():
        source = click.get_current_context().get_parameter_source("formats")
        asked_formats = source is not None and source.name != "DEFAULT"
        formats = tuple(name.casefold() for name in formats)
        features = FEATURES in formats
        formats = tuple(name for name in formats if name != FEATURES)
        chosen = check_formats(usable_formats(formats, asked_formats), others=(FEATURES, *ONLY_RASTERS))
        written = (*chosen, FEATURES) if features else chosen
        words = vocabulary(class_names(classes, classes_file))
        background_id = words.find(background)
        if method is None:
            (method,) = default_methods(model_settings["model"], "s2clip")
        refuse_without_effect([(method, refine)], model_settings, threshold=threshold, background=background)
        if not 0 < max_megapixels <= 1e6:
            raise ValueError(f"--max-megapixels: expected a number up to 1e6, received {max_megapixels:g}")
        if not 0 < max_seconds_per_picture <= 86_400:
            raise ValueError(
                f"--max-seconds-per-picture: expected seconds up to a day, received {max_seconds_per_picture:g}"
            )
        rasters = Rasters(raster_settings, formats, asked_formats, round(max_megapixels * 1e6))
        per = match_name("per", per, PER)
        runs = [name for name in chosen if name in DATASETS]
        if resume and runs:
            raise ValueError(
                f"--resume: a data set of the run ({', '.join(runs)}) is written in one go; leave --resume out"
            )
        films, stills = parted(listed(sources), video_settings)
        if films and resume:
            raise ValueError("--resume: a film is segmented in one go; leave --resume out")
        cluster = chosen_cluster(engine_settings, model_settings["device"])
        elsewhere = chosen_sources(stills, cluster, shard_settings)
        found = find(() if any(elsewhere) else stills, recursive=recursive, output=output, results=written_in)
        pictures, failures = found.pictures, found.failures
        large = set(rasters.among(pictures))
        if large:
            require_rasterio()
        if cluster is not None:
            whole = [*runs, *([FEATURES] if features else [])]
            refuse_for_cluster({"--format": whole, "rasters": large, "films": films})
        elif rows is not None:
            reject("--rows", "--engine ray with it", "--engine local")
        folder = OutputFolder(output)
        stems = name_outputs(pictures, output, names=found.names, known=folder.stems)
    for line in found.skipped:
        say(line, err=True)
    done: list[dict[str, Any]] = []
    stopped: OutputError | None = None
    asked = len(pictures)
    limits = {"max_pixels": round(max_megapixels * 1e6), "max_seconds": max_seconds_per_picture}
    limits |= {} if threshold is None else {"threshold": threshold}
    if (pictures or any(elsewhere)) and cluster is not None:
        models = {**model_settings, "method": method, "refine": refine, **limits}
        run = Run(models, words.classes, background_id, None if rows else output, chosen, not no_names, resume)
        sink: Sink
        if rows is None:
            writable_folder(output)
            sink = Files(folder, run)
        else:
            with usage_errors():
                sink, run = rows_of(rows, run, asked_formats)
        told = (lambda record: None) if as_json or not show_progress else lambda record: say(_summary(record))
        how = {"failures": failures, "tell": told, "show_progress": show_progress}
        columns = (shard_settings["column"] or "image", shard_settings["id_column"])
        done = by_cluster(cluster, run, sink, list(zip(pictures, stems, strict=True)), elsewhere, columns, **how)
    elif pictures or films:
        writable_folder(output)
        segmenter = load_segmenter(model_settings, method=method, refine=refine, **limits)
        with usage_errors():
            segmenter.set_classes(words.classes, background=background_id, progress=word_bar(show_progress))
        folder.settle(segmenter.settings, segmenter.classes, background_id)
        todo = [
            (picture, stem)
            for picture, stem in zip(pictures, stems, strict=True)
            if not (resume and (rasters.done(folder, picture) if picture in large else folder.has(picture, written)))
        ]
        if len(todo) < asked:
            say(f"{asked - len(todo)} of {asked} pictures were done before", err=True)
        if not as_json and show_progress:
            say(understood(words.classes))
        small = [picture for picture, _ in todo if picture not in large]
        results: Any = FeatureStream(segmenter, small) if features else segmenter.stream(small, on_error="record")
        datasets = open_datasets(chosen, output, words.classes, per)
        own = [name for name in chosen if name not in datasets]
        try:
            for picture, stem in progress(todo, show_progress):
                try:
                    if picture in large:
                        how = {"resume": resume, "names": not no_names, "show_progress": show_progress}
                        record = rasters.segment(segmenter, picture, folder, stem, **how)
                        folder.add(picture, stem, record)
                    else:
                        result = next(results)
                        if isinstance(result, Failure):
                            raise result.error
                        if not written:
                            raise ValueError(f"a picture, and --format {','.join(rasters.only)} is of rasters")
                        more = {FEATURES: results.write(output, stem)} if features else {}
                        record = folder.put(picture, stem, result, own, datasets, names=not no_names, more=more)
                    done.append(record)
                except Exception as error:  # none of one picture's errors ends the others
                    if isinstance(error, OutputError) and error.errno not in OF_THE_NAME:
                        stopped = error
                        break
                    logger.info("%s", picture, exc_info=True)
                    failures.append((str(picture), _one_line(error, str(picture))))
                    continue
                if not as_json and show_progress:
                    say(_summary(done[-1]))
            for film in films if stopped is None else ():
                how = {"max_pixels": limits["max_pixels"], "names": not no_names, "show_progress": show_progress}
                try:
                    record, problem = segment_film(segmenter, film, output, settings=video_settings, **how)
                except Exception as error:
                    if isinstance(error, OutputError) and error.errno not in OF_THE_NAME:
                        stopped = error
                        break
                    failures.append((film, _one_line(error, film)))
                    continue
                done.append(record)
                failures += [(film, problem)] if problem else []
                if not as_json and show_progress:
                    say(f"{film}: {counted(record['frames'], 'frame')} -> {', '.join(record['files'].values())}")
        except KeyboardInterrupt:
            say(_how_far(asked - len(todo) + len(done), asked, runs), err=True)
            raise
        finally:
            results.close()
            for finish in (partial(folder.finish, _failed(failures)), *(one.close for one in datasets.values())):
                try:
                    finish()
                except OutputError as error:  # what can be written of the rest still is
                    stopped = stopped or error
    if as_json:
        say(json.dumps({"images": done, "failed": _failed(failures)}, allow_nan=False))
    for source, reason in failures:
        say(f"failed: {source}: {reason}", err=True)
    if failures:
        say(f"{len(done)} done, {len(failures)} failed", err=True)
    if stopped is not None:
        raise EnvironmentFailure(f"{stopped}; {_how_far(asked - len(todo) + len(done), asked, runs)}")
    if failures:
        sys.exit(INPUTS_FAILED)


def class_names(classes: Sequence[str], classes_file: Path | None) -> list[str]:
    if (not classes) == (classes_file is None):
        raise ValueError("give the classes by --classes or by --classes-file")
    from s2clip.words.lists import parse_classes, read_classes

    if classes:
        return [entry for text in classes for entry in parse_classes(text)]

    try:
        return read_classes(classes_file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"--classes-file {classes_file}: {reason}") from None


def _failed(failures: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"source": source, "error": reason} for source, reason in failures]


def _how_far(done: int, asked: int, runs: Sequence[str]) -> str:
    """Of a run that ended early."""
    if not asked:
        return "a film is segmented in one go"
    how = f"{', '.join(runs)} of all of them needs them all again" if runs else "--resume does the others"
    return f"{done} of {asked} pictures are done; {how}"


def _summary(record: dict[str, Any]) -> str:
    shares = sorted(((share, name) for name, share in record["shares"].items() if share), reverse=True)
    shown = ", ".join(f"{name.split(';')[0]} {100 * share:.0f} %" for share, name in shares[:6])
    more = f" and {len(shares) - 6} more" if len(shares) > 6 else ""
    if (none := round(100 * (1 - sum(record["shares"].values())))) >= 1:
        more += f"{', ' if shares else ''}no class {none} %"
    files = ", ".join(record["files"].values())
    return f"{record['source']}: {shown}{more} ({sum(record['timings_ms'].values()):.0f} ms) -> {files}"


def _one_line(error: Exception, name: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{name}: ") if isinstance(error, ImageError) else text
