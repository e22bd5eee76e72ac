"""`s2clip segment`: pictures to label maps by class names."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from s2clip.cli.console import load_segmenter, progress, say, usage_errors
from s2clip.cli.options import model_options, output_options
from s2clip.cli.program import INPUTS_FAILED
from s2clip.errors import ImageError

logger = logging.getLogger(__name__)

MEGAPIXELS = 64.0


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|DIR|GLOB...")
@click.option("--classes", metavar="NAMES", help='"sky, house; hut, tree": commas part classes, semicolons words.')
@click.option("--classes-file", type=click.Path(path_type=Path), help="One class per line, # starts a comment.")
@click.option("--method", default="s2clip", show_default=True, help="clip, maskclip, sclip, clearclip, naclip, ...")
@click.option("--refine", default="none", show_default=True, help="What sharpens the map: none, sam, sam+sd, trident.")
@click.option("--threshold", type=float, help="Pixels whose best score is lower become --background.")
@click.option("--background", metavar="CLASS", help="One of the classes.")
@click.option("-o", "--output", default="out", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--format", "formats", default="png,overlay", show_default=True, help="Of png, overlay, coco, npz.")
@click.option("--max-megapixels", default=MEGAPIXELS, show_default=True, help="Larger pictures are refused unread.")
@click.option("--max-seconds-per-picture", default=60.0, show_default=True, help="What decodes longer is refused.")
@model_options
@output_options
def segment(
    sources: tuple[str, ...],
    classes: str | None,
    classes_file: Path | None,
    method: str,
    refine: str,
    threshold: float | None,
    background: str | None,
    output: Path,
    formats: str,
    max_megapixels: float,
    max_seconds_per_picture: float,
    model_settings: dict[str, Any],
    as_json: bool,
    show_progress: bool,
) -> None:
    """Segment pictures by the class names given; write a label map and an overlay of each."""
    from s2clip.files import writable_folder
    from s2clip.pictures.inputs import expand
    from s2clip.pictures.reading import Failure
    from s2clip.results.naming import name_outputs
    from s2clip.results.result import check_formats, write_classes, write_run
    from s2clip.words.text import vocabulary

    with usage_errors():
        chosen = check_formats([name.strip() for name in formats.split(",")])
        words = vocabulary(_class_names(classes, classes_file))
        background_id = words.find(background)
        if threshold and background is None:
            raise ValueError("--threshold needs --background: one of the classes")
        if not 0 < max_megapixels <= 1e6:
            raise ValueError(f"--max-megapixels: expected a number up to 1e6, received {max_megapixels:g}")
        if not 0 < max_seconds_per_picture <= 86_400:
            raise ValueError(
                f"--max-seconds-per-picture: expected seconds up to a day, received {max_seconds_per_picture:g}"
            )
        pictures, failures = expand(sources)
        stems = name_outputs(pictures, output, chosen)
    done: list[dict[str, Any]] = []
    if pictures:
        writable_folder(output)
        limits = {"max_pixels": round(max_megapixels * 1e6), "max_seconds": max_seconds_per_picture}
        limits |= {} if threshold is None else {"threshold": threshold}
        segmenter = load_segmenter(model_settings, method=method, refine=refine, **limits)
        with usage_errors():
            segmenter.set_classes(words.classes, background=background_id)
        results = segmenter.stream(pictures, on_error="record")
        try:
            for picture, stem in progress(list(zip(pictures, stems, strict=True)), show_progress):
                try:
                    result = next(results)
                    if isinstance(result, Failure):
                        raise result.error
                    done.append(result.record(result.save(output, chosen, stem=stem, sidecars=False)))
                except Exception as error:  # none of one picture's errors ends the others
                    logger.info("%s", picture, exc_info=True)
                    failures.append((str(picture), _one_line(error, str(picture))))
                    continue
                if not as_json:
                    say(_summary(done[-1]))
        finally:
            results.close()
            if done:
                write_classes(output, segmenter.classes, background_id)
                write_run(output, segmenter.settings, done, failed=_failed(failures))
    if as_json:
        say(json.dumps({"images": done, "failed": _failed(failures)}, allow_nan=False))
    for source, reason in failures:
        say(f"failed: {source}: {reason}", err=True)
    if failures:
        say(f"{len(done)} done, {len(failures)} failed", err=True)
        sys.exit(INPUTS_FAILED)


def _class_names(classes: str | None, classes_file: Path | None) -> str | list[str]:
    if (classes is None) == (classes_file is None):
        raise ValueError("give the classes by --classes or by --classes-file")
    if classes is not None:
        return classes
    from s2clip.words.text import read_classes

    try:
        return read_classes(classes_file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"--classes-file {classes_file}: {reason}") from None


def _failed(failures: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"source": source, "error": reason} for source, reason in failures]


def _summary(record: dict[str, Any]) -> str:
    shares = sorted(((share, name) for name, share in record["shares"].items() if share), reverse=True)
    shown = ", ".join(f"{name.split(';')[0]} {100 * share:.0f} %" for share, name in shares[:6])
    more = f" and {len(shares) - 6} more" if len(shares) > 6 else ""
    files = ", ".join(record["files"].values())
    return f"{record['source']}: {shown}{more} ({sum(record['timings_ms'].values()):.0f} ms) -> {files}"


def _one_line(error: Exception, name: str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.removeprefix(f"{name}: ") if isinstance(error, ImageError) else text
