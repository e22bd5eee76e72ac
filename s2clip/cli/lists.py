"""Options of the command line as people write them: lists by commas, blanks or repetition; one value given once."""

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from s2clip.cli.program import ValueFailure


class OptionsCommand(click.Command):
    """`--method clip sclip`, `--method clip,sclip` and `--method clip --method sclip` are one; an option that takes one
    value is refused where it is given two."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = self._spread(args)
        self._refuse_repetitions(ctx, rest)
        return super().parse_args(ctx, rest)

    def _refuse_repetitions(self, ctx: click.Context, args: list[str]) -> None:
        _values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for param in set(order):
            single = isinstance(param, click.Option) and not (param.multiple or param.is_flag or param.count)
            if single and order.count(param) > 1:
                raise ValueFailure(f"{param.opts[-1]}: given {order.count(param)} times, and only one value can count")

    def _spread(self, args: list[str]) -> list[str]:
        """Every value of a list behind the name of its option, as click reads them."""
        options = {name: param for param in self.params if isinstance(param, click.Option) for name in param.opts}
        sources = next((p for p in self.params if isinstance(p, click.Argument) and p.nargs == -1), None)
        spread: list[str] = []
        current, values, pending = None, 0, 0
        positional = 0
        for place, token in enumerate(args):
            if token.startswith("-") and token != "-" and not pending:
                name, _, inline = token.partition("=")
                param = options.get(name)
                takes = param is not None and not (param.is_flag or param.count)
                current = name if takes and param.multiple else None
                values = 1 if inline else 0
                pending = 0 if not takes or inline or param.multiple else 1
                spread.append(token)
                continue
            if pending:
                pending -= 1
            elif current is not None:
                words = _any_words(options[current])
                if (
                    values
                    and sources is not None
                    and (
                        (words and _names_data(token, sources))
                        or _is_source(token, current, words, positional, args[place + 1 :])
                    )
                ):
                    current = None
                    positional += 1
                else:
                    if values:
                        spread.append(current)
                    values += 1
            else:
                positional += 1
            spread.append(token)
        return spread


def _any_words(option: click.Option) -> bool:
    """Whether any word may be its value, as with --classes: names of files may be meant then."""
    return not isinstance(option.type, Listed)


def _is_source(token: str, option: str, words: bool, before: int, after: list[str]) -> bool:
    """Whether a word after a list is one of the command's pictures, and none of the list.

    A file, a path or a pattern is; the name of a folder is where no other picture is named, else nobody can tell.
    """
    if not words:
        return False
    if os.path.isfile(token) or os.sep in token or glob.has_magic(token) or Path(token).suffix.lower() in _suffixes():
        return True
    if not os.path.isdir(token):
        return False
    if before or any(os.path.exists(one) for one in after):
        raise ValueFailure(
            f"{token}: a value of {option}, or the folder? Write ./{token} for the folder, or a comma list"
        )
    return True


def _names_data(token: str, sources: click.Argument) -> bool:
    """Whether a word after a list is the name of a data set, of a command that takes some."""
    if not (sources.metavar or "").startswith("DATA"):
        return False
    from s2clip.evaluation.benchmarks import DATASETS

    return token == "scenes" or token.replace("-", "_") in DATASETS


def _suffixes() -> tuple[str, ...]:
    from s2clip.pictures.suffixes import SUFFIXES

    return SUFFIXES


class Listed(click.ParamType):
    """Values of a list of names; each value may hold several, parted by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def names_option(*declarations: str, **attributes: Any) -> Callable:
    """A list of names: by commas, by blanks, by repeating the option."""

    def joined(ctx: click.Context, param: click.Parameter, values: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))

    return click.option(*declarations, **{"multiple": True, "type": Listed(), "callback": joined, **attributes})


def classes_option(help: str) -> Callable:
    """--classes as in segment, handed to the command as a list of entries, or None."""

    def joined(ctx: click.Context, param: click.Parameter, values: Iterable[str]) -> list[str] | None:
        from s2clip.words.lists import parse_classes

        try:
            return [entry for text in values for entry in parse_classes(text)] or None
        except ValueError as error:
            raise ValueFailure(f"--{error}") from None

    return click.option("--classes", multiple=True, metavar="NAMES", callback=joined, help=help)


def numbers_option(*declarations: str, **attributes: Any) -> Callable:
    """The same of whole numbers."""

    def joined(ctx: click.Context, param: click.Parameter, values: Iterable[str]) -> tuple[int, ...]:
        try:
            return tuple(dict.fromkeys(int(one) for value in values for one in value.split(",") if one.strip()))
        except ValueError:
            raise click.BadParameter(f"expected whole numbers, received {' '.join(values)!r}") from None

    return click.option(*declarations, **{"multiple": True, "type": Listed(), "callback": joined, **attributes})
