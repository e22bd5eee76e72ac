"""The program `s2clip`: segment, demo, evaluate, doctor.

Exit codes: 0 ok; 1 some inputs failed; 2 usage; 3 environment (weights, device, output folder, an extra).
Results go to stdout, everything else to stderr. torch is imported by the commands, not by `--help`.
"""

import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip import __version__
from s2clip.errors import ImageError, MissingExtraError, OutputError, S2ClipError, WeightsError

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter

logger = logging.getLogger(__name__)

DEMO_SCENE = 24
MEGAPIXELS = 64.0
INPUTS_FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 1, 2, 3, 130


class EnvironmentFailure(click.ClickException):
    exit_code = ENVIRONMENT


class ValueFailure(click.ClickException):
    """A value that no picture can be segmented with: one line, without click's reminder of the syntax."""

    exit_code = USAGE


class Program(click.Group):
    """Turns the library's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (WeightsError, OutputError, MissingExtraError) as error:
            raise EnvironmentFailure(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


class ListOptions(click.Command):
    """Options that may be repeated also take several values at once: `--method clip sclip`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current, values = None, 0
        for token in args:
            if token.startswith("-"):
                current, values = (token if token in lists else None), 0
            elif current:
                if values:
                    spread.append(current)
                values += 1
            spread.append(token)
        return super().parse_args(ctx, spread)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="s2clip")
def main() -> None:
    """Segment pictures by class names, without training."""


def model_options(command: Callable) -> Callable:
    """What `Segmenter.from_pretrained` needs, handed to the command as one dictionary `model_settings`."""
    options = [
        click.option("--model", default="tiny", show_default=True, help="CLIP: tiny, ViT-B-16, ViT-L-14, ViT-H-14."),
        click.option("--vfm", help="Vision foundation model, e.g. dino-b8; default: the one that goes with the model."),
        click.option(
            "--sam", help="SAM for --refine: sam-tiny, sam-vit-b, sam-vit-l, sam-vit-h; default: as the model."
        ),
        click.option("--device", help="cpu, cuda, cuda:1; default: CUDA where there is one."),
        click.option("--weights", default="pretrained", help="'random': real architecture, meaningless output."),
        click.option("--cache-dir", type=click.Path(path_type=Path), help="Where weights lie or are downloaded to."),
        click.option("--local-files-only", is_flag=True, help="Never use the network."),
        click.option("--short-side", type=int, help="Pixels the shorter side is resized to; 0: native size."),
        click.option("--crop", type=int, help="Pixels of a window; 0: the whole picture."),
        click.option("--stride", type=int, help="Pixels between windows."),
    ]
    names = (
        "model",
        "vfm",
        "sam",
        "device",
        "weights",
        "cache_dir",
        "local_files_only",
        "short_side",
        "crop",
        "stride",
    )

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> Any:
        settings = {name: arguments.pop(name) for name in names}
        return command(model_settings=settings, **arguments)

    return _decorated(with_settings, options)


def output_options(command: Callable) -> Callable:
    """--json, --quiet, --verbose; the log of the library goes to stderr for the time of the command."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
        click.option("-v", "--verbose", is_flag=True, help="Say what is loaded and from where."),
    ]

    @functools.wraps(command)
    def with_log(verbose: bool, quiet: bool, **arguments: Any) -> Any:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        logger = logging.getLogger("s2clip")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if verbose else logging.WARNING)
        try:
            return command(show_progress=not quiet and not arguments["as_json"], **arguments)
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    return _decorated(with_log, options)


def _decorated(command: Callable, options: Sequence[Callable]) -> Callable:
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
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
    model_settings: dict[str, Any],
    as_json: bool,
    show_progress: bool,
) -> None:
    """Segment pictures by the class names given; write a label map and an overlay of each."""
    from s2clip.files import writable_folder
    from s2clip.inputs import expand, name_outputs
    from s2clip.result import check_formats, write_classes, write_run
    from s2clip.text import vocabulary

    with usage_errors():
        chosen = check_formats([name.strip() for name in formats.split(",")])
        words = vocabulary(_class_names(classes, classes_file))
        background_id = words.find(background)
        if threshold and background is None:
            raise ValueError("--threshold needs --background: one of the classes")
        if not 0 < max_megapixels <= 1e6:
            raise ValueError(f"--max-megapixels: expected a number up to 1e6, received {max_megapixels:g}")
        pictures, failures = expand(sources)
        stems = name_outputs(pictures, output, chosen)
    done: list[dict[str, Any]] = []
    if pictures:
        writable_folder(output)
        limits = {"max_pixels": round(max_megapixels * 1e6)} | ({} if threshold is None else {"threshold": threshold})
        segmenter = load_segmenter(model_settings, method=method, refine=refine, **limits)
        with usage_errors():
            segmenter.set_classes(words.classes, background=background_id)
        try:
            for picture, stem in progress(list(zip(pictures, stems, strict=True)), show_progress):
                try:
                    result = segmenter(picture)
                    done.append(result.record(result.save(output, chosen, stem=stem, sidecars=False)))
                except (S2ClipError, ValueError, OSError, MemoryError, RuntimeError) as error:
                    logger.info("%s", picture, exc_info=True)
                    failures.append((str(picture), _one_line(error, str(picture))))
                    continue
                if not as_json:
                    say(_summary(done[-1]))
        finally:
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


@main.command()
@click.option("--scene", default=DEMO_SCENE, show_default=True, help="Seed of the painted scene.")
@click.option("--method", default="s2clip", show_default=True)
@click.option("-o", "--output", default="out/demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@output_options
def demo(scene: int, method: str, output: Path, as_json: bool, show_progress: bool) -> None:
    """Segment a bundled scene with the embedded models, offline."""
    from PIL import Image

    from s2clip import scenes
    from s2clip.files import whole_file, writable_folder

    writable_folder(output)
    with usage_errors():
        picture, truth = scenes.generate(scene)
    source = output / f"scene-{scene}.input.png"
    with whole_file(source) as handle:
        Image.fromarray(picture).save(handle, "PNG")
    start = time.perf_counter()
    segmenter = load_segmenter({"model": "tiny"}, method=method)
    segmenter.set_classes(scenes.CLASSES)
    loading = 1000 * (time.perf_counter() - start)
    result = segmenter(source)
    record = result.record({"input": source, **result.save(output, stem=f"scene-{scene}")})
    record["timings_ms"] = {"load": round(loading, 3), **record["timings_ms"]}
    record["pixel_accuracy"] = (result.segmentation.cpu().numpy() == truth).mean().round(4).item()
    if as_json:
        say(json.dumps(record, allow_nan=False))
        return
    click.echo(f"scene {scene}, {record['width']}x{record['height']}, model tiny, method {method}\n")
    for name, share in sorted(record["shares"].items(), key=lambda item: -item[1]):
        if share:
            click.echo(f"  {name:<16}{100 * share:5.1f} %")
    click.echo(f"\n  {100 * record['pixel_accuracy']:.1f} % of the pixels are what was painted\n")
    click.echo("  " + ", ".join(f"{name} {value:.0f} ms" for name, value in record["timings_ms"].items()) + "\n")
    for name, path in record["files"].items():
        say(f"  {name:<9}{path}")


@main.command(cls=ListOptions)
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


@main.command()
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Look for weights here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(cache_dir: Path | None, as_json: bool) -> None:
    """Versions, torch-Triton pairing, GPU and its shared memory, caches, weights; exit code 3 on a problem."""
    from s2clip.doctor import examine, report

    found = examine(cache_dir)
    click.echo(json.dumps(found) if as_json else report(found))
    if found["problems"]:
        sys.exit(ENVIRONMENT)


@contextmanager
def usage_errors() -> Iterator[None]:
    """ValueErrors of the block are the user's arguments: exit code 2."""
    try:
        yield
    except S2ClipError:
        raise
    except ValueError as error:
        raise ValueFailure(str(error)) from error


def load_segmenter(model_settings: dict[str, Any], **more: Any) -> "Segmenter":
    """`Segmenter.from_pretrained`, with a device that is not there told apart from one that does not exist."""
    import torch

    from s2clip import Segmenter

    device = model_settings.get("device")
    if device is not None:
        try:
            kind = torch.device(device).type
        except RuntimeError:
            raise ValueFailure(f"--device must be cpu, cuda or cuda:N, received {device!r}") from None
        if kind == "cuda" and not torch.cuda.is_available():
            raise EnvironmentFailure("--device cuda: torch finds no CUDA device here; s2clip doctor tells more")
    with usage_errors():
        return Segmenter.from_pretrained(**model_settings, **more)


def say(text: str, err: bool = False) -> None:
    """A line of output; of file names that are not text, what cannot be shown becomes "?"."""
    click.echo(text.encode("utf-8", "replace").decode(), err=err)


def progress(items: Sequence[Any], show: bool) -> Iterable[Any]:
    """A bar on stderr where there is a terminal and more than one item."""
    from tqdm import tqdm

    return tqdm(items, disable=not (show and len(items) > 1 and sys.stderr.isatty()), file=sys.stderr, leave=False)


def _class_names(classes: str | None, classes_file: Path | None) -> str | list[str]:
    if (classes is None) == (classes_file is None):
        raise ValueError("give the classes by --classes or by --classes-file")
    if classes is not None:
        return classes
    from s2clip.text import read_classes

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
