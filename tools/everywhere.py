"""The tests on processors and versions that are not this machine's own, as a table.

    python tools/everywhere.py [ROW ...] [--only PYTEST_ARGUMENT]...     # or make test-everywhere ROWS="..."

Rows by name, `cheap` (those of .ci/run) or all of them; `list` says what each is. Environments lie in .everywhere/,
made by uv from setup.py; a row's whole output lies in .everywhere/logs/. Other instruction sets are chosen by the
libraries' own variables: ATEN_CPU_CAPABILITY (torch's loops), ONEDNN_MAX_CPU_ISA (convolutions), MKL_CBWR (matrix
products; COMPATIBLE is also what MKL takes on processors that are not Intel's). Exit status 1 if a row failed or could
not run.
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from constraints import resolve
from uv import find_uv_bin

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".everywhere"
PLAINEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
FROM_HERE = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")
"""The gigabytes that the environment `light` takes from the one that runs this."""

NUMBERS = ("backbones", "cpu_ops", "features", "methods", "metrics", "ops", "positions", "published_cliper")
NUMBERS += ("published_trident", "reference", "reference_regions", "refine", "refine_segmenter", "result", "segmenter")
NUMBERS += ("windows",)
SEAMS = ("cli", "cli_commands", "cli_names", "datasets", "from_pretrained", "images", "imports", "ops_errors")
SEAMS += ("package", "text", "weights")
"""Where numbers meet other people's, and where a user meets the package."""

LONG = ("-m", "long", "tests/kernels", *(f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py"))))
"""What make test leaves out for its minutes, and every commit has to pass."""


class Row(NamedTuple):
    """One run of the tests, or of the compile gate."""

    about: str
    place: str = "here"
    variables: dict[str, str] = {}  # noqa: RUF012
    threads: int = 1
    triton: str = ""
    tests: tuple[str, ...] = ()
    cheap: bool = False


class Outcome(NamedTuple):
    """What a row gave; `failed` names the tests, or says why nothing ran."""

    versions: str
    counts: str
    seconds: float
    failed: list[str]
    times: dict[str, float]


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_CBWR": "AVX512"}
CHOICE = tuple(f"tests/test_{name}.py" for name in (*NUMBERS, *SEAMS))

# Each environment on a processor of its own: four runs of the suite meet all of both.
ROWS = {
    "here": Row("this processor, this environment"),
    "oldest": Row(
        "lower bounds of setup.py, Python 3.11; no vectors in torch, SSE 4.1 in oneDNN, MKL's common path",
        place="oldest",
        variables=PLAINEST,
    ),
    "newest": Row(
        "newest versions, Python 3.13; AVX2 throughout, two threads", place="newest", variables=AVX2, threads=2
    ),
    "constraints": Row(
        "constraints.txt on Python 3.13; AVX-512 without AMX and bf16", place="constraints", variables=AVX512
    ),
    "light": Row(
        "lower bounds but torch's, the plainest processor: numbers, and where a user meets the package",
        place="light",
        variables=PLAINEST,
        tests=CHOICE,
        cheap=True,
    ),
    "long": Row(
        "every configuration compiled and counted, the quarter of an hour rehearsed, Ray, mypy",
        tests=LONG,
        cheap=True,
    ),
    **{
        f"triton-{version}": Row(f"compile gate, Triton {version}", triton=version, cheap=version in ("3.6", "3.9"))
        for version in ("3.6", "3.7", "3.8", "3.9")
    },
}
# By name only, to tell which half of a row it was.
ALONE = {
    "threads": Row("two threads a process", threads=2),
    "plainest": Row("the plainest processor", variables=PLAINEST),
    "avx2": Row("AVX2 throughout", variables=AVX2),
    "avx512": Row("AVX-512 without AMX and bf16", variables=AVX512),
}


def python_of(version: str) -> str:
    """The interpreter python`version` of PATH."""
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
        raise LookupError(f"python{version} is not on PATH")
    return found


def requirements(place: str) -> tuple[str, str]:
    """(Python's version, the list of packages) of an environment."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if place == "light":
        import torch
        import torchvision

        held = HOME / "light.held.txt"
        held.write_text("".join(f"{m.__name__}=={m.__version__.split('+')[0]}\n" for m in (torch, torchvision)))
        lines = resolve("--resolution", "lowest-direct", "--python-version", here, "--constraint", str(held))
        return here, "".join(line for line in lines.splitlines(keepends=True) if not FROM_HERE.match(line))
    if place == "oldest":
        return "3.11", resolve("--resolution", "lowest-direct", "--python-version", "3.11")
    caps = ["--constraint", "constraints.txt"] if place == "constraints" else []
    return "3.13", resolve("--python-version", "3.13", *caps)


def interpreter(place: str) -> str:
    """The Python of an environment, which is made or brought up to date first."""
    if place == "here":
        return sys.executable
    version, listed = requirements(place)
    folder, file = HOME / place, HOME / f"{place}.txt"
    file.write_text(f"{listed}{(ROOT / 'tests' / 'readers.txt').read_text()}-e {ROOT}\n")
    if not folder.exists():
        subprocess.run([find_uv_bin(), "venv", "--quiet", "--python", python_of(version), folder], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([find_uv_bin(), "pip", "sync", "--quiet", "--python", python, file], check=True)
    if place == "light":
        (site,) = (folder / "lib").glob("python*/site-packages")
        lend_torch(folder / "lent")
        (site / "lent.pth").write_text(f"{folder / 'lent'}\n")
    return python


def lend_torch(folder: Path) -> None:
    """Links to torch of this environment and what it runs on, and to nothing else of it: not even other plugins."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for package in importlib.metadata.distributions():
        if FROM_HERE.match(f"{package.name.lower().replace('_', '-')}=="):
            for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                if not (folder / name).exists():
                    (folder / name).symlink_to(package.locate_file(name))


VERSIONS = """
import importlib.metadata as m, platform
print(platform.python_version(), *(m.version(name).split("+")[0] for name in ("torch", "triton", "numpy")))
"""


class Run:
    """A row under way: commands of one interpreter, whose output goes to .everywhere/logs/NAME.log."""

    def __init__(self, name: str):
        self.name, self.row, self.start = name, (ROWS | ALONE)[name], time.monotonic()
        self.log, self.report = (HOME / "logs" / f"{name}.{ending}" for ending in ("log", "xml"))
        self.log.unlink(missing_ok=True)
        self.python = interpreter(self.row.place)
        self.versions = subprocess.run(
            [self.python, "-c", VERSIONS], capture_output=True, text=True, check=True
        ).stdout.split()

    def call(self, *arguments: str) -> int:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment |= {"OMP_NUM_THREADS": str(self.row.threads), **self.row.variables}
        with self.log.open("a") as output:
            return subprocess.run(
                [self.python, "-m", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            ).returncode

    def done(self, counts: str, failed: list[str], times: dict[str, float]) -> Outcome:
        return Outcome(" | ".join(self.versions), counts, time.monotonic() - self.start, failed, times)

    def gate(self) -> Outcome:
        """The compile gate under the row's Triton."""
        self.versions[2] = self.row.triton
        status = self.call("s2clip.kernels.inspect", "--quiet", "--triton", self.row.triton)
        counts = self.log.read_text().strip().rpartition("\n")[2].rpartition(": ")[2]
        return self.done(counts, [f"see {self.log.relative_to(ROOT)}"] if status else [], {})

    def tests(self, only: list[str]) -> Outcome:
        """The suite and the kernels in Triton's interpreter, or what `only` says."""
        processes = max(1, (os.cpu_count() or 1) // self.row.threads)
        failed: list[str] = []
        outcomes, times = {"passed": 0, "skipped": 0}, {}
        chosen = only or list(self.row.tests)
        for part in [chosen] if chosen else [["tests"], ["tests/kernels"]]:
            self.report.unlink(missing_ok=True)
            status = self.call("pytest", "-q", f"-n{processes}", f"--junitxml={self.report}", *part)
            if status not in (0, 1) or not self.report.exists():
                failed.append(f"pytest {' '.join(part)}: status {status}, see {self.log.relative_to(ROOT)}")
                continue
            for case in ElementTree.parse(self.report).iter("testcase"):
                test = f"{case.get('classname')}::{case.get('name')}"
                times[test] = float(case.get("time", 0))
                tags = {child.tag for child in case}
                if tags & {"failure", "error"}:
                    failed.append(test)
                else:
                    outcomes["skipped" if "skipped" in tags else "passed"] += 1
        counts = f"{outcomes['passed']} passed, {len(failed)} failed, {outcomes['skipped']} skipped"
        return self.done(counts, failed, times)


def run(name: str, only: list[str]) -> Outcome:
    """What a row gives; one whose environment cannot be made has failed, with the reason."""
    try:
        started = Run(name)
    except (LookupError, subprocess.CalledProcessError) as error:
        return Outcome("| | |", "not run", 0.0, [str(error)], {})
    return started.gate() if started.row.triton else started.tests(only)


def show(outcomes: dict[str, Outcome]) -> None:
    """The table, then what failed, then the slowest tests of the first row that ran any."""
    print("\n| row | what | Python | torch | Triton | numpy | result | s |\n|---|---|---|---|---|---|---|---|")
    for name, found in outcomes.items():
        print(f"| {name} | {(ROWS | ALONE)[name].about} | {found.versions} | {found.counts} | {found.seconds:.0f} |")
    for name, found in outcomes.items():
        for failure in found.failed:
            print(f"{name}: {failure}")
    timed = next(((name, found.times) for name, found in outcomes.items() if found.times), None)
    if timed:
        name, times = timed
        print(f"\nslowest of {name}, of {sum(times.values()):.0f} s in all:")
        for identity in sorted(times, key=times.__getitem__, reverse=True)[:15]:
            print(f"{times[identity]:7.1f} s  {identity}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--only", action="append", default=[], metavar="ARGUMENT", help="for pytest, instead of all")
    chosen = parser.parse_args()
    unknown = set(chosen.rows) - {*ROWS, *ALONE, "cheap", "all", "list"}
    if unknown:
        parser.error(
            f"ROW: expected some of {', '.join((*ROWS, *ALONE))}, cheap, all, list; received {', '.join(unknown)}"
        )
    if "list" in chosen.rows:
        for name, row in (ROWS | ALONE).items():
            print(f"{name:12} {row.about}{' (cheap)' if row.cheap else ' (by name only)' if name in ALONE else ''}")
        return 0
    cheap = {name for name, row in ROWS.items() if row.cheap and "cheap" in chosen.rows}
    names = [name for name in ROWS | ALONE if name in chosen.rows or name in cheap]
    if not chosen.rows or "all" in chosen.rows:
        names = list(ROWS)
    (HOME / "logs").mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for name in names:
        print(f"{name}: {ROWS[name].about}", flush=True)
        outcomes[name] = run(name, chosen.only)
        print(f"{name}: {outcomes[name].counts}", flush=True)
    show(outcomes)
    return int(any(found.failed for found in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
