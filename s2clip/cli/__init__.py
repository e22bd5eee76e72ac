"""The program `s2clip`, a module per command.

Exit codes: 0 ok; 1 some inputs failed; 2 usage; 3 environment (weights, device, output folder, an extra).
Results go to stdout, everything else to stderr. torch is imported by the commands, not by `--help`.

In: arguments. Out: files, lines, an exit code. Everything may be imported here, and nothing imports this.
"""

import click

from s2clip import __version__
from s2clip.cli.analyze import analyze
from s2clip.cli.app import app
from s2clip.cli.check_data import check_data
from s2clip.cli.convert import convert
from s2clip.cli.demo import demo
from s2clip.cli.doctor import doctor
from s2clip.cli.evaluate import evaluate
from s2clip.cli.field import field
from s2clip.cli.merge import merge
from s2clip.cli.models import models
from s2clip.cli.program import Program
from s2clip.cli.segment import segment
from s2clip.cli.serve import serve
from s2clip.cli.table import table


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="s2clip")
def main() -> None:
    """Segment pictures by class names, without training."""


for command in (segment, serve, app, demo, evaluate, merge, table, check_data, convert, models, field, doctor, analyze):
    main.add_command(command)
