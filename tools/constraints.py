"""Write constraints.txt: the newest versions that setup.py's ranges allow and pip gives here, for all that we promise.

    python tools/constraints.py        # or make constraints; commit it after make test-everywhere has passed

One file for Linux on x86_64 and aarch64 and for Python from 3.11 on: uv resolves for all of them at once, and marks
what differs. A cap in pip's own configuration holds here too, or set-up could not go by the file on this machine.
"""

import re
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).parents[1]
HEAD = "# Versions that the tests passed with. make constraints writes this file; setup.py has the ranges.\n"


def caps_of_pip() -> list[str]:
    """Constraint files that pip's configuration or environment names."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    values = re.findall(r"^\S*\.constraint='(.*)'$", listed.stdout, flags=re.MULTILINE)
    return [path for value in values for path in value.replace("\\n", " ").split()]


def resolve(*options: str) -> str:
    """What uv makes of setup.py with its extra `dev`, one `name==version ; marker` a line."""
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--extra", "dev"]
    done = subprocess.run([*command, *options, "setup.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError(f"uv could not resolve setup.py {' '.join(options)}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    caps = [option for path in caps_of_pip() for option in ("--constraint", path)]
    try:
        (ROOT / "constraints.txt").write_text(HEAD + resolve("--universal", "--python-version", "3.11", *caps))
    except LookupError as error:
        sys.exit(str(error))
