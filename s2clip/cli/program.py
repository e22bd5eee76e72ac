"""The frame of every command: errors of the library become one line and an exit code.

Exit codes: 0 ok; 1 some inputs failed; 2 usage; 3 environment (weights, device, output folder, an extra, a cluster).
"""

import errno
import os
import sys
from typing import Any

import click

from s2clip.errors import ClusterError, DatasetError, MissingExtraError, OutputError, WeightsError

INPUTS_FAILED, USAGE, ENVIRONMENT, INTERRUPTED = 1, 2, 3, 130


class EnvironmentFailure(click.ClickException):
    exit_code = ENVIRONMENT


class InputFailure(click.ClickException):
    exit_code = INPUTS_FAILED


class ValueFailure(click.ClickException):
    """A value that no picture can be segmented with: one line, without click's reminder of the syntax."""

    exit_code = USAGE


class Program(click.Group):
    """Turns the library's errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (WeightsError, OutputError, MissingExtraError, ClusterError) as error:
            raise EnvironmentFailure(str(error)) from error
        except DatasetError as error:
            raise InputFailure(str(error)) from error
        except MemoryError as error:
            raise EnvironmentFailure(
                f"out of memory: {' '.join(str(error).split()) or 'this machine has no more'}"
            ) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click's: who read the output has gone
                raise
            _let_stdout_go()
            where = f"{error.filename}: " if error.filename else "what is printed cannot be written: "
            raise EnvironmentFailure(f"{where}{error.strerror or error}") from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def _let_stdout_go() -> None:
    """Send what was printed and could not be written nowhere, so that Python's end does not try it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
