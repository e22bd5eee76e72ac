"""Options that several commands share."""

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


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
