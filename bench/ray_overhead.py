"""`segment --engine ray` with one worker beside `segment` alone: pictures per second once started, start, memory.

    python bench/ray_overhead.py [--pictures 200] [--pairs 3] [OPTION_OF_SEGMENT ...]

The times are those of the files: the start ends with the first label map, the rate is of those that follow the first
batch. The two commands of a pair follow each other, the first of one pair is the second of the next, so that both ways
meet the same machine. Memory is an actor's largest resident set, of which the part that no other process shares.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image

from s2clip import scenes

BATCH = 8  # of `segment`: its label maps come at once
LOOK = 10.0  # seconds between looks at the memory: each stops the actor for a while
CLASSES = "sky, tree, house; hut, meadow"


def run(folder: Path, count: int, options: list[str]) -> tuple[float, float, float, float]:
    """Pictures per second, and seconds to the first; MiB resident in the command's largest actor, and unshared ones."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "s2clip", "segment", str(folder), "--classes", CLASSES, "--quiet"]
        start, looked = time.time(), 0.0
        process = subprocess.Popen([*command, "--device", "cpu", "--format", "png", *options, "-o", out])
        resident, unshared = 0, 0
        while process.poll() is None:
            if "ray" in options and time.time() - start > looked + LOOK:
                looked = time.time() - start
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if "MapWorker" in " ".join(child.cmdline()):
                            used = child.memory_full_info()
                            resident, unshared = max(resident, used.rss), max(unshared, used.uss)
            time.sleep(0.2)
        if process.returncode:
            sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
        written = sorted(file.stat().st_mtime for file in Path(out).glob("**/*.png"))
        if len(written) != count:
            sys.exit(f"expected {count} label maps, {len(written)} were written")
    rate = (count - BATCH) / (written[-1] - written[BATCH - 1])
    return rate, written[0] - start, resident / 2**20, unshared / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    chosen, options = parser.parse_known_args()
    ways = {"alone": options, "ray": [*options, "--engine", "ray", "--workers", "1"]}
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(chosen.pictures):
            Image.fromarray(scenes.generate(index)[0]).save(folder / f"{index}.jpg")
        for pair in range(chosen.pairs):
            rates = {}
            for way in sorted(ways, reverse=pair % 2 == 1):
                rates[way], start, resident, unshared = run(folder, chosen.pictures, ways[way])
                memory = f", {resident:.0f} MiB in its actor ({unshared:.0f} its own)" if resident else ""
                print(f"{pair} {way}: {rates[way]:.2f} pictures/s after {start:.1f} s{memory}", flush=True)
            ratios.append(rates["ray"] / rates["alone"])
    print(f"ray / alone: {statistics.median(ratios):.3f}, median of {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
