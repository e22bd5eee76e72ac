"""What s2clip raises beside `ValueError`: one line each, saying what is wrong and what helps."""

import os
from collections.abc import Sequence
from typing import NoReturn


class S2ClipError(Exception):
    """Base of the errors that are about the user's files or machine, not about a program's arguments."""


class ImageError(S2ClipError, ValueError):
    """A picture that cannot be used: the message is `NAME: reason` in one line."""


class DatasetError(S2ClipError, ValueError):
    """A data set that cannot be read: the file or folder, what is wrong with it, what to do, in one line."""


class WeightsError(S2ClipError, RuntimeError):
    """Weights that are missing or not what their name says: model, where looked, how to get them."""


class OutputError(S2ClipError, OSError):
    """A folder or file that cannot be written, or a format whose extra is not installed."""


class MissingExtraError(S2ClipError, ImportError):
    """A package that only one feature needs and that is not installed: the message names the extra."""


class ClusterError(S2ClipError, RuntimeError):
    """A cluster that is not there, or has less than was asked for."""


class RefinementError(S2ClipError, RuntimeError):
    """The refinement failed; `coarse` holds the results that it was given, one `Result` per picture."""

    def __init__(self, message: str, coarse: list) -> None:
        super().__init__(message)
        self.coarse = coarse


def shown(name: object) -> str:
    """A file's name on one line, whatever it is called."""
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_few(items: Sequence[object], most: int) -> str:
    """ "a, b, c and 4 more": a list that stays on its line."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def reject(argument: str, expected: str, received: object) -> NoReturn:
    """Raise the `ValueError` of a wrong argument: which, what was expected, what was received."""
    raise ValueError(f"{argument}: expected {expected}, received {received}")
