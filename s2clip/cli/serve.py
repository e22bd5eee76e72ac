"""`s2clip serve`: an HTTP service on this machine."""

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from s2clip.cli.console import check_device, say, usage_errors
from s2clip.cli.lists import OptionsCommand, names_option
from s2clip.cli.options import METHOD_DEFAULT, model_options
from s2clip.cli.program import EnvironmentFailure, ValueFailure
from s2clip.errors import MissingExtraError, reject

HOSTS = ("127.0.0.1", "0.0.0.0", "::")  # what LitServe binds to
TOKEN = "S2CLIP_TOKEN"


@click.command(cls=OptionsCommand)
@names_option("--method", "methods", help=f"Those that may be asked for; {METHOD_DEFAULT}")
@names_option("--refine", "refinements", default=("none",), show_default=True, help="Those that may be asked for.")
@click.option("--host", default=HOSTS[0], show_default=True, help="0.0.0.0 or :: to be reached from other machines.")
@click.option("--port", default=8000, show_default=True, help="1024 to 65535.")
@click.option("--token-file", type=click.Path(path_type=Path), help=f"Bearer token asked for; also: {TOKEN} is set.")
@click.option("--cache", "cache_size", default="1GB", show_default=True, help="Memory for encoded pictures.")
@click.option("--batch", default=8, show_default=True, help="Requests computed together, at most.")
@click.option("--devices", type=int, help="GPUs, each with a process of its own; default: all.")
@click.option("--workers-per-device", default=1, show_default=True, help="Processes for each, each with its models.")
@click.option("--max-megabytes", default=20.0, show_default=True, help="Of a request.")
@click.option("--max-megapixels", default=64.0, show_default=True, help="Of a picture.")
@click.option("--max-words", default=256, show_default=True, help="Of a request.")
@click.option("--max-queue", default=64, show_default=True, help="Requests at a time; more are answered 503.")
@click.option("--max-seconds", default=20.0, show_default=True, help="For an upload, and to decode a picture.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing.")
@model_options
def serve(
    methods: tuple[str, ...],
    refinements: tuple[str, ...],
    host: str,
    port: int,
    token_file: Path | None,
    cache_size: str,
    batch: int,
    devices: int | None,
    workers_per_device: int,
    max_megabytes: float,
    max_megapixels: float,
    max_words: int,
    max_queue: int,
    max_seconds: float,
    quiet: bool,
    model_settings: dict[str, Any],
) -> None:
    """Answer POST /segment with label maps, overlays, COCO or JSON; see docs/serve.md.

    A picture's features are kept: new words for it cost the decision only. /health, /docs and /metrics are there too.
    """
    if missing := [name for name in ("litserve", "prometheus_client", "python_multipart") if find_spec(name) is None]:
        raise MissingExtraError(f"serve needs {', '.join(missing)}: pip install 's2clip[serve]'")
    from s2clip.memory import parse_size
    from s2clip.published.catalogue import default_methods
    from s2clip.serving.limits import Limits

    check_device(model_settings["device"])
    with usage_errors():
        methods = methods or default_methods(model_settings["model"], "s2clip")
        for option, value, least in (("batch", batch, 1), ("workers-per-device", workers_per_device, 1)):
            if value < least:
                reject(f"--{option}", f"at least {least}", value)
        if devices is not None and devices < 1:
            reject("--devices", "at least 1", devices)
        if host not in HOSTS:
            reject("--host", f"one of {', '.join(HOSTS)}", host)
        if not 1024 <= port <= 65535:
            reject("--port", "1024 to 65535", port)
        bounds = {"max_words": max_words, "max_queue": max_queue, "max_seconds": max_seconds}
        sizes = {"max_bytes": round(max_megabytes * 1e6), "max_pixels": round(max_megapixels * 1e6)}
        limits = Limits(**bounds, **sizes)
        kept = parse_size(cache_size)
    token = _token(token_file)
    _refuse_taken(host, port)
    from s2clip.serving import server as serving

    given = {name: value for name, value in model_settings.items() if name != "device" and value is not None}
    plan = serving.Plan(given, methods, refinements, limits, kept, batch, workers_per_device, token)
    accelerator, chosen = _placed(model_settings["device"], devices)
    with usage_errors():
        _check_models(given, methods, refinements)
    built = serving.build(plan, accelerator=accelerator, devices=chosen)
    if not quiet:
        shown = f"[{host}]" if ":" in host else host
        open_to = "" if token else ("this machine" if host == HOSTS[0] else "EVERYBODY WHO REACHES THIS MACHINE")
        say(
            f"http://{shown}:{port}/segment, /docs, /metrics; "
            + (f"no token: open to {open_to}" if open_to else "by token")
        )
    serving.run(built, plan, host=host, port=port)


def _token(file: Path | None) -> str | None:
    """From the file, else the environment: the command line is everybody's to read."""
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueFailure(f"--token-file {file}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if not token or not token.isascii() or not token.isprintable():
        raise ValueFailure(f"--token-file {file}: expected one line of ASCII")
    return token


def _placed(device: str | None, devices: int | None) -> tuple[str, Any]:
    """LitServe's accelerator and devices."""
    kind, _, index = (device or "auto").partition(":")
    return kind, ([int(index)] if index else devices or "auto")


def _check_models(given: dict[str, Any], methods: tuple[str, ...], refinements: tuple[str, ...]) -> None:
    """`ValueError` for names that no process could load."""
    from s2clip.backbones.model_table import MODELS
    from s2clip.names import match_name
    from s2clip.published.catalogue import get_method
    from s2clip.refinement.settings import check_refinement

    match_name("model", given.get("model", "tiny"), ("tiny", *MODELS["clip"]))
    for method in methods:
        get_method(method)
    for refine in refinements:
        check_refinement(refine)


def _refuse_taken(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EnvironmentFailure(f"--port {port}: {error.strerror}; choose another") from None
