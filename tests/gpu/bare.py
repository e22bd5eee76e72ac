"""What a bare GPU machine has of Python's packages, and what of the rest is carried there. Standard library only."""

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

ABSENT = """
import re, sys
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires

def plain(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\\w.-]+", name)[0]).lower()

def needs(name):
    try:
        return {plain(line) for line in requires(name) or [] if "extra ==" not in line}
    except PackageNotFoundError:
        return set()

# With what is there comes what it needs itself, in the version of here; and pytest imports all plug-ins that it finds.
there, waiting = set(), set(sys.argv[1].split(","))
waiting |= {plain(plugin.dist.name) for plugin in entry_points(group="pytest11")}
while waiting:
    name = waiting.pop()
    there.add(name)
    waiting |= needs(name) - there
ours = {plain(line) for line in requires("s2clip")}
tops = {top for top, owners in packages_distributions().items() if {plain(owner) for owner in owners} & (ours - there)}
print(",".join(sorted(tops)))
"""


def names(file: str) -> list[str]:
    """The distributions that a list beside this file names."""
    lines = (HERE / file).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def absent(python: str) -> str:
    """Top-level modules of what s2clip or its tests ask for that neither the machine has nor the carried folder."""
    there = ",".join([*names("bare.txt"), *names("carried.txt")])
    return subprocess.run([python, "-c", ABSENT, there], capture_output=True, text=True, check=True).stdout.strip()
