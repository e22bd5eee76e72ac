"""`s2clip app`: a web page on this machine."""

from importlib.util import find_spec

import click

from s2clip.cli.console import check_device, say, usage_errors
from s2clip.cli.program import EnvironmentFailure
from s2clip.errors import MissingExtraError, reject


@click.command()
@click.option("--model", default="tiny", show_default=True, help="CLIP by name, as of segment.")
@click.option("--device", metavar="DEVICE", help="cpu or cuda; default: CUDA where there is one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from other machines.")
@click.option("--port", default=7860, show_default=True, help="1 to 65535.")
def app(model: str, device: str | None, host: str, port: int) -> None:
    """A page around segment: pick a picture, name the classes, see and download the map (extra demo)."""
    if find_spec("gradio") is None:
        raise MissingExtraError("app needs gradio: pip install 's2clip[demo]'")
    check_device(device)
    with usage_errors():
        if not 1 <= port <= 65535:
            reject("--port", "1 to 65535", port)
        from s2clip.backbones.model_table import MODELS
        from s2clip.names import match_name

        model = match_name("model", model, ("tiny", *MODELS["clip"]))
    _refuse_taken(host, port)
    from s2clip.cli import page

    say(f"loading {model}, then http://{host}:{port}", err=True)
    page.serve(model, device, host, port)


def _refuse_taken(host: str, port: int) -> None:
    """Before models are loaded for nothing."""
    import socket

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        raise EnvironmentFailure(f"--host {host} --port {port}: {error.strerror or error}") from None
