"""What commands do alike: load models, print, show progress."""

import functools
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.program import EnvironmentFailure, ValueFailure
from s2clip.errors import S2ClipError

if TYPE_CHECKING:
    from tqdm import tqdm

    from s2clip.segmenter import Segmenter


WORDS_DELAY = 1.0
"""Seconds before words have a bar: a few are encoded in less."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """ValueErrors of the block are the user's arguments, by the names that he gave them: exit code 2."""
    try:
        yield
    except S2ClipError:
        raise
    except ValueError as error:
        raise ValueFailure(by_option(str(error))) from error


def by_option(message: str) -> str:
    """ "Method.crop: .." → "--crop: .." where the command has that option."""
    context = click.get_current_context(silent=True)
    if context is None or not (found := re.match(r"(?:Method\.)?(\w+)(?=: )", message)):
        return message
    for param in context.command.params:
        name = param.opts[-1] if isinstance(param, click.Option) else ""
        if name.removeprefix("--").replace("-", "_") == found[1] or (name == "--format" and found[1] == "formats"):
            return name + message[found.end() :]
    return message


def check_device(device: str | None) -> None:
    """A device that does not exist is a wrong argument, one that is not there a matter of the machine."""
    import torch

    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda", "mps", "xpu"):
        raise ValueFailure(f"--device must be cpu, cuda, cuda:N, mps or xpu, received {device!r}")
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here += ["mps", "mps:0"]
    if torch.xpu.is_available():
        here += ["xpu", *(f"xpu:{index}" for index in range(torch.xpu.device_count()))]
    if wanted.type != "cpu" and str(wanted) not in here:
        no_cuda = "torch finds no CUDA device here" if wanted.type == "cuda" and "cuda" not in here else "not here"
        raise EnvironmentFailure(f"--device {device}: {no_cuda}; here: {', '.join(here)}; s2clip doctor tells more")


def load_segmenter(model_settings: dict[str, Any], **more: Any) -> "Segmenter":
    """`Segmenter.from_pretrained`, its ValueErrors as the user's."""
    from s2clip import Segmenter

    check_device(model_settings.get("device"))
    with usage_errors():
        segmenter = Segmenter.from_pretrained(**model_settings, **more)
        if model_settings.get("stride") is not None and segmenter.method.crop is None:
            raise ValueError(f"--stride: has no effect, {segmenter.method.name} takes the whole picture at once")
        return segmenter


def say(text: str, err: bool = False) -> None:
    """A line of output; what the stream's code page does not have becomes "?"."""
    stream = sys.stderr if err else sys.stdout
    page = getattr(stream, "encoding", None) or "utf-8"
    if page.lower().replace("-", "") in ("ascii", "usascii", "646"):
        page = "utf-8"  # click takes ASCII for a misunderstanding
    with _above_bars():
        click.echo(text.encode("utf-8", "replace").decode().encode(page, "replace").decode(page), err=err)


def _above_bars() -> AbstractContextManager[None]:
    """Takes bars off the terminal while a line is written, and draws them below it again."""
    if "tqdm" not in sys.modules or not sys.stderr.isatty():
        return nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)


class LineHandler(logging.Handler):
    """The log as lines on stderr that no bar runs into."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


def progress(items: Sequence[Any], show: bool) -> Iterable[Any]:
    """A bar on stderr where there is a terminal and more than one item."""
    return bar(show and len(items) > 1)(items)


def word_bar(show: bool) -> "Callable[..., tqdm]":
    """For `Segmenter.set_classes`: a bar where encoding the words takes a while."""
    return functools.partial(bar(show), desc="words", unit=" words", delay=WORDS_DELAY)


def bar(show: bool) -> "Callable[..., tqdm]":
    """tqdm on stderr, with rate and remaining time; silent where there is no terminal."""
    from tqdm import tqdm

    return functools.partial(tqdm, disable=not (show and sys.stderr.isatty()), file=sys.stderr, leave=False)
