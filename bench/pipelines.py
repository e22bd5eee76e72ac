"""Whole pipelines, s2clip against the published formulations, end to end from files on the same models.

    python bench/pipelines.py [--model ViT-B-16] [--setting VOC]... [--pipeline NAME]... [--seconds 20] [--budget 540]
                              [--resume] [--rows FOLDER] [--dry-run]

Pairs as in `compare.py`: both sides in one process, interleaved, in random order; a round is a handful of JPEG files,
decoded by each side itself. Label maps are compared before anything is timed: at most `DIFFERING` of the pixels may
differ, because matrix products of other shapes round otherwise and an affinity's threshold is a step.

On CUDA rows go to bench/results/ or to `--rows`, for `compare.py --table`. A CPU prints ratios of one run and stores
nothing.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# Last: this folder's profile.py must not hide the standard library's.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import machine
import models
import ratios
import results
import timing
import torch
from baselines.proxyclip import ProxyCLIP
from baselines.trident import Refined, Trident
from torch import Tensor

PUBLISHED = {"proxyclip": ProxyCLIP, "trident": Trident}
PIPELINES = {
    "proxyclip": "published",
    "proxyclip+sam": "published",
    "trident+sam": "published",
    "s2clip": "s2clip",
    "s2clip+sam": "s2clip",
}
"""What each is held against. s2clip's own method was published by nobody else: it is its own noise floor."""
DIFFERING = {torch.float32: 0.005, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Share of pixels whose labels may differ, by the dtype of the backbones."""
DIFFERING_MASKS = 0.015
"""And more of it after SAM: its prompts come from probabilities that the published code makes at full size and halves,
and s2clip makes at half size. A region that is one pixel smaller moves its mask."""
PICTURES = 8
"""A round's, on a GPU; a CPU has two."""

Side = Callable[[Sequence[Path]], list[Tensor]]
"""Paths → label maps."""


class Pair(NamedTuple):
    """One pipeline on one setting, ready to run."""

    name: str
    shape: str
    against: str
    ours: Side
    theirs: Side
    paths: list[Path]


def build(name: str, setting_name: str, setting: models.Setting, loaded: models.Models, folder: Path) -> Pair:
    """Both sides of a pipeline with the same models and words, and the pictures."""
    method_name, _, refined = name.partition("+")
    folder = folder / setting_name
    folder.mkdir(exist_ok=True)
    paths = models.paint(folder, setting.size, PICTURES if torch.cuda.is_available() else 2)
    entries = models.set_words(loaded, setting, paths[0])
    method = models.method_for(loaded, method_name, setting)
    refinement = models.refinement_for(loaded) if refined else None
    segmenter = loaded.segmenter(method, refinement).set_classes(entries)

    def ours(paths: Sequence[Path]) -> list[Tensor]:
        return [result.segmentation for result in segmenter.stream(paths)]

    theirs = ours
    if PIPELINES[name] == "published":
        pipeline = PUBLISHED[method_name](loaded, method, *models.text_vectors(loaded, method, entries))
        if refinement:
            pipeline = Refined(pipeline, loaded.sam, refinement)

        def theirs(paths: Sequence[Path]) -> list[Tensor]:
            return [pipeline(path).labels for path in paths]

    words = sum(len(entry.split(";")) for entry in entries)
    shape = f"{setting_name} {setting.size[0]}x{setting.size[1]} Q{words} K{len(entries)}"
    return Pair(name, shape, PIPELINES[name], ours, theirs, paths)


def names(pair: Pair, dtype: torch.dtype) -> results.Row:
    """What a row of the pair is found by."""
    return {
        "op": f"pipeline {pair.name}",
        "shape": pair.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "provider": pair.against,
    }


def measure(pair: Pair, dtype: torch.dtype, seconds: float, rng: random.Random) -> results.Row:
    """The row of a pair; times are per picture."""
    row = names(pair, dtype) | {"kind": pair.against}
    row["differing"] = differing(pair)
    if row["differing"] > allowed(pair, dtype):
        return row | {"disagreement": f"{row['differing']:.2%} of the labels differ"}
    timers = [_per_picture(side, pair.paths) for side in (pair.ours, pair.theirs)]
    fewest = ratios.FEWEST if torch.cuda.is_available() else 3
    row["call"] = ratios.summary(ratios.paired(*timers, seconds, rng, fewest), rng)
    row["peak_mib"], row["theirs_peak_mib"] = (peak_mib(side, pair.paths) for side in (pair.ours, pair.theirs))
    return row


def differing(pair: Pair) -> float:
    """Share of the pixels to which the two sides give another label."""
    maps = zip(pair.ours(pair.paths), pair.theirs(pair.paths), strict=True)
    return sum((a.cpu() != b.cpu()).float().mean().item() for a, b in maps) / len(pair.paths)


def allowed(pair: Pair, dtype: torch.dtype) -> float:
    return DIFFERING[dtype] + DIFFERING_MASKS * ("+" in pair.name)


def peak_mib(side: Side, paths: list[Path]) -> float | None:
    """Of the whole device, weights included: what a card must have."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    side(paths)
    machine.finish()
    return torch.cuda.max_memory_allocated() / 2**20


def _per_picture(side: Side, paths: list[Path]) -> timing.Timer:
    timer = timing.from_outside(side, [((paths,), {})])
    return lambda: timer() / len(paths)


def describe(row: results.Row) -> str:
    head = f"{row['op']}, {row['shape']}, {row['dtype']}, against {row['provider']}:"
    if "disagreement" in row:
        return f"{head} not timed, {row['disagreement']}"
    rates = " against ".join(f"{1e3 / row['call'][side]['p50']:.2f}" for side in ("ours_ms", "theirs_ms"))
    memory = "" if row["peak_mib"] is None else f", {row['peak_mib']:.0f} against {row['theirs_peak_mib']:.0f} MiB"
    where = " on a CPU" if row["gpu"] == "cpu" else ""
    return f"{head} {results.ratio(row['call'])} x, {rates} images/s{memory}, {row['differing']:.2%} differ{where}"


def settings_of(options: argparse.Namespace) -> dict[str, models.Setting]:
    """Those that were asked for; else all data sets on a GPU, the smallest on a CPU."""
    published = [name for name in models.SETTINGS if name != models.REDUCED]
    names = options.setting or (published if torch.cuda.is_available() else published[:1])
    return {name: models.SETTINGS[name] for name in names}


def loads(options: argparse.Namespace) -> Iterator[tuple[models.Models, list[str]]]:
    """Models and the pipelines that run on them: Trident's DINO has patches of 16, the others' of 8."""
    wanted = options.pipeline or list(PIPELINES)
    if options.model == "tiny":
        yield models.load("tiny", "tiny-dino", "sam-tiny", "pretrained", machine.device()), wanted
        return
    for vfm, own in (("dino-b8", ("proxyclip", "s2clip")), ("dino-b16", ("trident",))):
        names = [name for name in wanted if name.partition("+")[0] in own]
        if names:
            sam = "sam-vit-b" if any("+" in name for name in names) else None
            yield models.load(options.model, vfm, sam, options.weights, machine.device()), names


def run(options: argparse.Namespace) -> int:
    if options.dry_run:
        for setting_name in settings_of(options):
            for name in options.pipeline or PIPELINES:
                print(f"pipeline {name}, {setting_name}, {options.model} with {options.weights} weights")
        return 0
    shared, rng, status = machine.setup(), random.Random(0), 0
    for line in shared["obstacles"]:
        print(line)
    stop = time.perf_counter() + options.budget
    done = results.stored(shared["commit"], options.rows) if options.resume else set()
    left = 0
    with tempfile.TemporaryDirectory() as folder:
        for loaded, chosen in loads(options):
            for setting_name, setting in settings_of(options).items():
                for name in chosen:
                    if time.perf_counter() > stop:
                        left += 1
                        continue
                    try:
                        pair = build(name, setting_name, setting, loaded, Path(folder))
                        if results.identity(names(pair, loaded.clip.dtype)) in done:
                            continue
                        row = measure(pair, loaded.clip.dtype, options.seconds, rng) | shared
                    except (ImportError, RuntimeError, ValueError) as error:  # too little memory is a RuntimeError, too
                        machine.give_up(f"pipeline {name}, {setting_name}", error)
                        continue
                    print(describe(row), flush=True)
                    status |= "disagreement" in row
                    if shared["gpu"] != "cpu":
                        results.append(row, options.rows)
    if left:
        print(f"the budget of {options.budget:.0f} s is spent: {left} pipelines are left, for --resume")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Whole pipelines against the published formulations, end to end.")
    parser.add_argument("--model", default="ViT-B-16" if on_gpu else "tiny", help="default: %(default)s")
    parser.add_argument("--weights", default="random", help="random (default) or pretrained; tiny has its own")
    parser.add_argument("--setting", action="append", choices=list(models.SETTINGS), help="default: all, on a CPU VOC")
    parser.add_argument("--pipeline", action="append", choices=list(PIPELINES), help="default: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="time cap of one pair (default: 20)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="time cap of the whole run, in seconds")
    parser.add_argument("--resume", action="store_true", help="leave out what is stored for this commit")
    parser.add_argument("--rows", type=Path, default=results.FOLDER, metavar="FOLDER", help="default: bench/results")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured, measure nothing")
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
