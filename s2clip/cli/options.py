"""Options that several commands share."""

import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from s2clip.backbones.model_table import MODELS
from s2clip.cli.console import LineHandler

SAMS = [name for name, row in MODELS["masks"].items() if row.family in ("sam", "sam2")]
NO_CLIPS = [name for name, row in MODELS["clip"].items() if row.family == "language-radio"]
METHOD_DEFAULT = f"default: s2clip; radseg with {', '.join(NO_CLIPS)}."
_MODELS = {
    "model": click.option(
        "--model",
        default="tiny",
        show_default=True,
        help=f"CLIP: {', '.join(('tiny', *MODELS['clip']))}.",
    ),
    "vfm": click.option(
        "--vfm",
        help="Vision foundation model, e.g. dino-b8 or dinov3-b16; `s2clip models` lists them; default: the one that "
        "goes with the model.",
    ),
    "sam": click.option("--sam", help=f"SAM for --refine: {', '.join(('sam-tiny', *SAMS))}; default: as the model."),
    "regions": click.option(
        "--regions",
        metavar="DIR|sam|eomt-l",
        help="Regions for --method corrclip: PNGs of ids named as the pictures, SAM's masks (default) or EoMT's.",
    ),
    "device": click.option("--device", help="cpu, cuda, cuda:1; default: CUDA where there is one."),
    "weights": click.option(
        "--weights",
        default="pretrained",
        help="Of the CLIP: pretrained; a FILE.safetensors or FILE.pt; random, whose output means nothing.",
    ),
    "cache_dir": click.option(
        "--cache-dir", type=click.Path(path_type=Path), help="Where weights lie or are downloaded to."
    ),
    "local_files_only": click.option("--local-files-only", is_flag=True, help="Never use the network."),
    "short_side": click.option("--short-side", type=int, help="Pixels the shorter side is resized to; 0: native size."),
    "crop": click.option("--crop", type=int, help="Pixels of a window; 0: the whole picture."),
    "stride": click.option("--stride", type=int, help="Pixels between windows."),
    "max_memory": click.option(
        "--max-memory", metavar="SIZE", help='"8GB": work in chunks that fit; default: as fast as it goes.'
    ),
    "text_cache": click.option(
        "--text-cache/--no-text-cache",
        default=None,
        help="Keep word vectors beside the weights; default: not tiny's.",
    ),
}
_LOADING = ("model", "device", "weights", "cache_dir", "local_files_only")


def model_options(command: Callable) -> Callable:
    """What `Segmenter.from_pretrained` needs, handed to the command as one dictionary `model_settings`."""
    return decorated(gathered(command, "model_settings", _MODELS), _MODELS.values())


def loading_options(command: Callable) -> Callable:
    """What `load_clip` and `load_vfm` need, handed to the command as one dictionary `model_settings`."""
    return decorated(gathered(command, "model_settings", _LOADING), [_MODELS[name] for name in _LOADING])


def placing_options(command: Callable) -> Callable:
    """Where models that have a name already are taken from and put, as one dictionary `model_settings`."""
    names = [name for name in _LOADING if name != "model"]
    return decorated(gathered(command, "model_settings", names), [_MODELS[name] for name in names])


_ENGINE = {
    "engine": click.option(
        "--engine", default="local", show_default=True, help="local: this process; ray: actors of Ray (docs/scale.md)."
    ),
    "address": click.option("--address", metavar="HOST:PORT", help="Of a Ray cluster; default: this machine alone."),
    "workers": click.option("--workers", type=int, help="Actors of --engine ray, each with its models; default: 1."),
    "gpus_per_worker": click.option("--gpus-per-worker", type=float, help="May be a part of one; default: 1 if any."),
}


_SHARDS = {
    "column": click.option("--column", help="Of Parquet: the pictures, bytes or paths; default: image."),
    "id_column": click.option("--id-column", help="Of Parquet: what results are named by; default: a hash."),
}
_ROWS = click.option(
    "--rows", metavar="DIR|ADDRESS", help="Rows of Parquet there, of --format png, coco, in place of files in -o."
)


def shard_options(command: Callable) -> Callable:
    """Where pictures stand in shards, handed to the command as one dictionary `shard_settings`; and --rows."""
    return decorated(gathered(command, "shard_settings", _SHARDS), [*_SHARDS.values(), _ROWS])


def engine_options(command: Callable) -> Callable:
    """Where the work is done, handed to the command as one dictionary `engine_settings`."""
    return decorated(gathered(command, "engine_settings", _ENGINE), _ENGINE.values())


def gathered(command: Callable, name: str, names: Iterable[str]) -> Callable:
    """The command with these arguments handed to it as one dictionary under `name`."""
    names = tuple(names)

    @functools.wraps(command)
    def with_dictionary(**arguments: Any) -> Any:
        values = {key: arguments.pop(key) for key in names}
        return command(**{name: values}, **arguments)

    return with_dictionary


def output_options(command: Callable) -> Callable:
    """--json, --quiet, --verbose; the log of the library goes to stderr for the time of the command."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("-q", "--quiet", is_flag=True, help="Neither bars nor a line for each picture."),
        click.option("-v", "--verbose", is_flag=True, help="Say what is loaded and from where."),
    ]

    @functools.wraps(command)
    def with_log(verbose: bool, quiet: bool, **arguments: Any) -> Any:
        handler = LineHandler()
        handler.addFilter(_Once())
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

    return decorated(with_log, options)


class _Once(logging.Filter):
    """Lets a warning pass once: many cells of a table ask for the same words."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        repeated = record.levelno >= logging.WARNING and text in self._said
        self._said.add(text)
        return not repeated


def decorated(command: Callable, options: Iterable[Callable]) -> Callable:
    """The command with click's options in this order."""
    for option in reversed(list(options)):
        command = option(command)
    return command
