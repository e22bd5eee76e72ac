"""Where the time of the pipeline goes, stage by stage: one picture, then a stream of them.

    python bench/profile.py [--model ViT-B-16] [--method s2clip] [--refine sam] [--setting VOC] [--pictures 16]
                            [--trace FOLDER] [--output FILE] [--marks-only]

Per stage and picture: milliseconds (events on CUDA, which do not stop the device), share, kernel launches (operators on
a CPU, where nothing is launched), bytes and arithmetic of the operators, and the share of the roofline: the time that
arithmetic or memory would take at this device's ceilings, over the time it took. The ceilings of an RTX 4090 are in a
table, any other device's are measured at start. `--trace` also writes a Chrome trace of the stream, for
chrome://tracing or ui.perfetto.dev. `--marks-only` runs the stream once inside cudaProfilerStart/Stop with NVTX ranges
and prints nothing else: for nsys and ncu, see docs/profiling.md.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

# Last: this file must not hide the standard library's module of the same name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import machine
import models
import stages
import torch

from s2clip import Segmenter

ROUNDS = 3
FIRST_CLASS = "NVIDIA GeForce RTX 4090"


class Profile(NamedTuple):
    """A run over some pictures; all figures are per picture."""

    milliseconds: float
    by_stage: dict[str, float]
    loads: dict[str, stages.Load]
    launches: Counter
    costliest: dict[str, list[tuple[str, float]]]
    peak_mib: float
    """Of the device's memory, weights included; on a CPU the process's largest resident size."""


def profile(run: Callable[[], list], pictures: int, trace: Path | None = None) -> Profile:
    """run: segments `pictures` pictures and gives their results."""
    run()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    walls, spent = [], []
    for _ in range(ROUNDS):
        machine.finish()
        begin = time.perf_counter()
        results = run()
        machine.finish()
        walls.append((time.perf_counter() - begin) * 1e3)
        totals: Counter = Counter()
        for result in results:
            totals.update(result.timings)
        spent.append(totals)
        del results
    by_stage = {stage: statistics.median(one[stage] for one in spent) / pictures for stage in spent[0]}
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident_mib()
    with stages.marked(), stages.Count() as count:
        run()
    events = _traced(run, trace)
    main_costs = sorted(by_stage, key=by_stage.get, reverse=True)[:3]
    return Profile(
        statistics.median(walls) / pictures,
        by_stage,
        {stage: _shared(load, pictures) for stage, load in count.loads.items()},
        Counter({stage: number / pictures for stage, number in stages.launches(events).items()}),
        {stage: [(name, ms / pictures) for name, ms in stages.costliest(events, stage)] for stage in main_costs},
        peak,
    )


def _traced(run: Callable[[], list], trace: Path | None):
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler, stages.marked():
        run()
        machine.finish()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    return profiler.events()


def _shared(load: stages.Load, pictures: int) -> stages.Load:
    return stages.Load(*(value / pictures for value in vars(load).values()))


def _resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def table(profile: Profile, ceilings: machine.Ceilings) -> str:
    """Stages as lines, the costliest first; the 4090's floor stands beside the time that was measured here."""
    on_gpu = torch.cuda.is_available()
    first_class = machine.CEILINGS[FIRST_CLASS]
    heads = [
        "stage",
        "ms",
        "share",
        "launches" if on_gpu else "operators",
        "MB",
        "GFLOP",
        "% of roofline",
        "4090 floor ms",
    ]
    total = sum(profile.by_stage.values())
    lines = []
    known = [*sorted(profile.by_stage, key=profile.by_stage.get, reverse=True), stages.ELSEWHERE]
    for stage in known:
        load = profile.loads.get(stage, stages.Load())
        ms = profile.by_stage.get(stage)
        number = profile.launches[stage] if on_gpu else load.operators
        if ms is None and not number:
            continue
        floor = load.floor(ceilings) * 1e3
        lines.append(
            [
                stage,
                "" if ms is None else f"{ms:.2f}",
                "" if ms is None else f"{100 * ms / total:.1f} %",
                f"{number:.0f}",
                f"{load.bytes / 1e6:.1f}",
                f"{load.flops / 1e9:.2f}",
                "" if not ms or not floor else f"{100 * floor / ms:.1f}",
                f"{load.floor(first_class) * 1e3:.3f}",
            ]
        )
    loads = profile.loads.values()
    lines.append(
        [
            "sum of stages",
            f"{total:.2f}",
            "100 %",
            f"{sum(profile.launches.values()) if on_gpu else sum(load.operators for load in loads):.0f}",
            f"{sum(load.bytes for load in loads) / 1e6:.1f}",
            f"{sum(load.flops for load in loads) / 1e9:.2f}",
            f"{100 * sum(load.floor(ceilings) for load in loads) * 1e3 / total:.1f}",
            f"{sum(load.floor(first_class) for load in loads) * 1e3:.3f}",
        ]
    )
    return columns([heads, *lines])


def columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def ceilings_table(here: machine.Ceilings) -> str:
    """The 4090's ceilings first, then this device's."""
    rows = {FIRST_CLASS: machine.CEILINGS[FIRST_CLASS], machine.name(): here}
    lines = [["ceilings", "half TFLOP/s", "fp32 TFLOP/s", "GB/s", "from"]]
    for name, one in rows.items():
        figures = (one.tensor / 1e12, one.single / 1e12, one.memory / 1e9)
        lines.append([name, *(f"{figure:.4g}" for figure in figures), one.source])
    return columns(lines)


def report(title: str, profile: Profile, ceilings: machine.Ceilings) -> str:
    largest = [
        f"{rank}. {stage}: {profile.by_stage[stage]:.2f} ms; {', '.join(f'{name} {ms:.2f}' for name, ms in costs)}"
        for rank, (stage, costs) in enumerate(profile.costliest.items(), start=1)
    ]
    memory = "device memory, weights included" if torch.cuda.is_available() else "resident size of the process"
    return "\n".join(
        [
            f"\n{title}: {profile.milliseconds:.2f} ms a picture, {1e3 / profile.milliseconds:.2f} pictures a second, "
            f"at most {profile.peak_mib:.0f} MiB ({memory})",
            table(profile, ceilings),
            "largest costs, with the operators that take most of them (ms under the profiler):",
            *largest,
        ]
    )


def segmenter(options: argparse.Namespace, paths: Sequence[Path]) -> Segmenter:
    tiny = options.model == "tiny"
    setting = models.SETTINGS[options.setting]
    default_vfm = "dino-b16" if options.method == "trident" else "dino-b8"
    vfm = options.vfm or ("tiny-dino" if tiny else default_vfm)
    sam = ("sam-tiny" if tiny else "sam-vit-b") if options.refine == "sam" or options.method == "trident" else None
    loaded = models.load(options.model, vfm, sam, options.weights, machine.device())
    method = models.method_for(loaded, options.method, setting)
    refinement = models.refinement_for(loaded) if options.refine == "sam" else None
    return loaded.segmenter(method, refinement).set_classes(models.set_words(loaded, setting, paths[0]))


def marks_only(run: Callable[[], list]) -> None:
    """One stream between cudaProfilerStart and Stop, its stages as NVTX ranges."""
    run()
    machine.finish()
    torch.cuda.profiler.start()
    with stages.marked(nvtx=True):
        run()
        machine.finish()
    torch.cuda.profiler.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description="Where the time of the pipeline goes, stage by stage.")
    parser.add_argument("--model", default="ViT-B-16" if on_gpu else "tiny", help="default: %(default)s")
    parser.add_argument("--weights", default="random", help="random (default) or pretrained; tiny has its own")
    parser.add_argument("--vfm", help="default: the method's published one, tiny-dino for tiny")
    parser.add_argument("--method", default="s2clip")
    parser.add_argument("--refine", choices=("none", "sam"), default="none")
    parser.add_argument("--setting", choices=list(models.SETTINGS), default="VOC", help="pictures and classes of")
    parser.add_argument(
        "--pictures", type=int, default=16 if on_gpu else 4, help="of the stream (default: %(default)s)"
    )
    parser.add_argument("--trace", type=Path, metavar="FOLDER", help="write a Chrome trace here")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append the report to this file, too")
    parser.add_argument("--marks-only", action="store_true", help="for nsys and ncu; needs a GPU")
    options = parser.parse_args(arguments)
    if options.marks_only and not on_gpu:
        sys.exit("--marks-only: needs a GPU")
    if options.pictures < 1:
        sys.exit(f"--pictures: expected at least 1, received {options.pictures}")
    with tempfile.TemporaryDirectory() as folder:
        paths = models.paint(Path(folder), models.SETTINGS[options.setting].size, options.pictures)
        own = segmenter(options, paths)
        if options.marks_only:
            marks_only(lambda: list(own.stream(paths)))
            return
        ceilings = machine.ceilings()
        parts = [*machine.obstacles(), ceilings_table(ceilings)]
        name = f"{options.model}, {options.method}, refine {options.refine}, {options.setting}"
        parts.append(report(f"one picture ({name})", profile(lambda: [own(paths[0])], 1), ceilings))
        trace = options.trace and options.trace / "stream.json"
        stream = profile(lambda: list(own.stream(paths)), len(paths), trace)
        parts.append(report(f"a stream of {len(paths)} ({name})", stream, ceilings))
        parts += [f"trace: {trace}"] if trace else []
    print("\n".join(parts))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with options.output.open("a") as file:
            print(*parts, sep="\n", end="\n\n", file=file)


if __name__ == "__main__":
    main()
