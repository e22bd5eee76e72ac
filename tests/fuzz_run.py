"""`make fuzz`: damaged files in a row, none of which may do anything but be read or be refused in one line.

python tests/fuzz_run.py --mutations 100000 --seed 0

Prints what was tried and what was found; exit code 1 where anything was. The files of findings stay in out/fuzz.
"""

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from fuzz_targets import TARGETS

FINDINGS = Path("out/fuzz")


def run(target, folder, numbers):
    """(read, slowest in seconds, findings)."""
    read, slowest, findings = 0, 0.0, []
    for number in numbers:
        start = time.perf_counter()
        try:
            read += target(folder, number)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            findings.append(number)
            kept = FINDINGS / f"{target.__name__}-{number}"
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            print(f"{target.__name__} {number}: {kept}\n{traceback.format_exc()}", flush=True)
        slowest = max(slowest, time.perf_counter() - start)
    return read, slowest, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[target.__name__ for target in TARGETS])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # what Pillow says of damaged metadata
    logging.disable(logging.WARNING)  # what a damaged log makes us say
    found = 0
    for place, (target, share) in enumerate(TARGETS.items()):
        if arguments.target not in (None, target.__name__):
            continue
        first = (arguments.seed * len(TARGETS) + place) << 32
        count = round(arguments.mutations * (share if arguments.target is None else 1))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            read, slowest, findings = run(target, Path(folder), range(first, first + count))
        found += len(findings)
        seconds = time.perf_counter() - start
        print(
            f"{target.__name__}: {count} mutations, {read} read, {count - read - len(findings)} refused, "
            f"slowest {slowest:.2f} s, {seconds:.0f} s, {len(findings)} findings",
            flush=True,
        )
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
