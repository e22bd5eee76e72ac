"""What a quarter of an hour on a GPU is spent on: parts of steps, each with its share of the part's time.

A part is one call on a machine that may be taken away: steps come in the order of their worth, the last ones shrink or
fall away when the first ones were slow, and what is done is on disk at once. Standard library only: this runs before
anything was installed.
"""

from collections.abc import Callable
from typing import NamedTuple


class Step(NamedTuple):
    """One command. `{python}` and `{out}` are filled in."""

    name: str
    command: tuple[str, ...]
    seconds: float
    """At most; a step whose turn comes with less left takes what is left."""
    rehearsal: tuple[str, ...] = ()
    """The command without a GPU: imports what it imports and names what it would do. Empty: the step is left out."""
    least: float = 15.0
    """With less than this there is no use in starting."""
    host_may_lack: bool = False
    """An outside tool that some hosts refuse: its absence is said and is no failure."""


class Part(NamedTuple):
    """Steps, and what they may take in all, the starts of their processes included."""

    about: str
    limit: float
    steps: tuple[Step, ...]


class Done(NamedTuple):
    """What became of a step."""

    name: str
    status: str
    """ok, failed, stopped, unavailable or not run."""
    seconds: float


def _pytest(*arguments: str) -> tuple[str, ...]:
    # Not the project's own options: warnings of other versions are no errors here, and nothing is written to the tree.
    options = ("-q", "-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider")
    return ("{python}", "-m", "pytest", *options, *arguments)


def _sanitize(tool: str, seconds: float) -> Step:
    command = f"compute-sanitizer --tool {tool} --error-exitcode 1 {{python}} tests/gpu/components_program.py"
    return Step(tool, tuple(command.split()), seconds, host_may_lack=True)


def _bench(program: str, *arguments: str) -> tuple[str, ...]:
    return ("{python}", f"bench/{program}.py", *arguments)


def _tests(name: str, seconds: float, *arguments: str) -> Step:
    return Step(name, _pytest("--tb=short", *arguments), seconds, _pytest("--collect-only", *arguments[-1:]))


def _rows(name: str, seconds: float, *command: str) -> Step:
    command = _bench(*command, "--rows", "{out}/rows", "--resume")
    return Step(name, (*command, "--budget", "{seconds}"), seconds, (*command, "--dry-run"))


CLAIMED = ("affinity_attention", "classify_pixels", "merge_masks", "spatial_entropy", "components")
"""Ops that are said to be faster than anything, before the attention, which may at best draw level."""
FIRST = tuple(word for op in (*CLAIMED, "recombined_attention") for word in ("--op", op))

PARTS = {
    "check": Part(
        "kernels on the device: fp64, layouts, repeats, past 2^31, graphs, the pipeline against the CPU, bounds",
        420.0,
        (
            _tests("ops and pipeline", 200.0, "-m", "gpu", "tests/gpu"),
            _sanitize("memcheck", 60.0),
            # What only compiles, or counts what would be compiled, needs no GPU and is left to make test.
            _tests(
                "kernels' own tests",
                160.0,
                "-n",
                "8",
                "-m",
                "not slow",
                "-k",
                "not compile and not machine_code",
                "tests/kernels",
            ),
        ),
    ),
    "measure": Part(
        "every op against every rival, what is claimed first; then one pipeline",
        360.0,
        (
            _rows("ops", 250.0, "compare", "--without", "autotuned", "--seconds", "0.2", *FIRST),
            _rows("pipelines", 100.0, "pipelines", "--setting", "VOC", "--pipeline", "proxyclip", "--seconds", "8"),
        ),
    ),
    "pipelines": Part(
        "whole pipelines at every data set's size",
        570.0,
        (_rows("pipelines", 560.0, "pipelines", "--seconds", "12"),),
    ),
    "profile": Part(
        "the pipeline stage by stage",
        570.0,
        tuple(
            Step(
                f"profile {name}",
                _bench("profile", *options, "--output", "{out}/profile.txt", "--trace", f"{{out}}/trace-{name}"),
                180.0,
            )
            for name, options in (
                ("voc", ("--setting", "VOC")),
                ("voc-sam", ("--setting", "VOC", "--refine", "sam")),
                ("cityscapes", ("--setting", "Cityscapes", "--method", "proxyclip")),
            )
        ),
    ),
    "autotuned": Part(
        "the rival that takes minutes to tune",
        570.0,
        (_rows("autotuned", 560.0, "compare", "--op", "affinity_attention", "--seconds", "0.3"),),
    ),
    "races": Part(
        "racecheck of the kernels whose programs meet in one place",
        300.0,
        (_sanitize("racecheck", 290.0),),
    ),
}
DEFAULT = ("check", "measure")

Call = Callable[[Step, float], str]
"""Runs a step for at most so many seconds and returns its status."""


def conduct(part: Part, call: Call, clock: Callable[[], float], told: Callable[[Done], None]) -> list[Done]:
    """Runs the steps of a part inside its limit; each one's outcome is told when it is known."""
    end, outcomes = clock() + part.limit, []
    for step in part.steps:
        start = clock()
        left = min(step.seconds, end - start)
        status = call(step, left) if left >= step.least else "not run"
        outcomes.append(Done(step.name, status, clock() - start))
        told(outcomes[-1])
    return outcomes
