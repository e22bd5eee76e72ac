"""`segment --engine ray` with one worker beside `segment` alone: pictures per second once started, start, memory.

    python bench/ray_overhead.py [--pictures 200] [--pairs 3] [OPTION_OF_SEGMENT ...]

A command is timed whole over few pictures and over so many more; the difference is what the pictures took, the rest of
the short one is the start. The four commands of a pair follow each other, so that both ways meet the same machine.
Memory is an actor's largest resident set, of which the part that no other process shares.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image

from s2clip import scenes

FEW = 32  # a worker's first block
CLASSES = "sky, tree, house; hut, meadow"


def run(folder: Path, count: int, options: list[str]) -> tuple[float, float, float]:
    """Seconds of one command over the first `count` pictures; MiB resident in its largest actor, and unshared ones."""
    listed = folder / f"{count}.txt"
    listed.write_text("".join(f"{folder / f'{index}.jpg'}\n" for index in range(count)))
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "s2clip", "segment", f"@{listed}", "--classes", CLASSES, "--quiet"]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--device", "cpu", "--format", "png", *options, "-o", out])
        resident, unshared = 0, 0
        while process.poll() is None:
            if "ray" in options:
                for child in psutil.Process(process.pid).children(recursive=True):
                    try:
                        if "MapWorker" in " ".join(child.cmdline()):
                            used = child.memory_full_info()
                            resident, unshared = max(resident, used.rss), max(unshared, used.uss)
                    except psutil.Error:
                        continue
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        if process.returncode:
            sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
        written = len(list(Path(out).glob("**/*.png")))
        if written != count:
            sys.exit(f"expected {count} label maps, {written} were written")
    return seconds, resident / 2**20, unshared / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    chosen, options = parser.parse_known_args()
    ways = {"alone": options, "ray": [*options, "--engine", "ray", "--workers", "1"]}
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(FEW + chosen.pictures):
            Image.fromarray(scenes.generate(index)[0]).save(folder / f"{index}.jpg")
        for pair in range(chosen.pairs):
            rates = {}
            for way, arguments in ways.items():
                short, *_ = run(folder, FEW, arguments)
                long, resident, unshared = run(folder, FEW + chosen.pictures, arguments)
                rates[way] = chosen.pictures / (long - short)
                start = short - FEW / rates[way]
                memory = f", {resident:.0f} MiB in its actor ({unshared:.0f} its own)" if resident else ""
                print(f"{pair} {way}: {rates[way]:.2f} pictures/s after {start:.1f} s{memory}", flush=True)
            ratios.append(rates["ray"] / rates["alone"])
    print(f"ray / alone: {statistics.median(ratios):.3f}, median of {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
