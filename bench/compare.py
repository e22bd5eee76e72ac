"""Paired, interleaved ratios of every op against its baselines.

    python bench/compare.py [--op NAME]... [--seconds 2] [--table]

Both sides of a pair run in one process, in random order, round after round: what the machine does to one it does to the
other. A ratio is baseline over s2clip, its interval the bootstrap's 95 % of the median over rounds; the pair "s2clip
again" (A/A) shows how far two equal things differ. GPU times are of CUDA events around calls on inputs that rotate
through more than twice the L2 cache ("cold"). Outputs are compared before anything is timed.

On CUDA rows are appended to bench/results/<gpu>-<torch>-<triton>.jsonl. A CPU prints ratios and stores nothing.
"""

import argparse
import json
import random
import re
import statistics
import sys
import time
from pathlib import Path

import cases
import machine
import torch

RESULTS = Path(__file__).parent / "results"
L2_BYTES = 72 << 20  # the largest of the GPUs in question (RTX 4090)
BASELINES = ("careful", "published", "s2clip again")


def measure(case: cases.Case, dtype: torch.dtype, baseline: str, seconds: float, rng: random.Random) -> dict:
    """One row: times of both sides in milliseconds, ratio, interval."""
    device = machine.device()
    rotations = max(2, int(2 * L2_BYTES / max(case.bytes(dtype), 1)) + 1) if device.type == "cuda" else 1
    inputs = [case.make(device, dtype) for _ in range(min(rotations, 16))]
    ours = cases.PROVIDERS[case.op]["s2clip"]
    theirs = cases.PROVIDERS[case.op].get(baseline, ours)
    problem = cases.disagreement(case, inputs[0], _call(theirs, inputs[0]), _call(ours, inputs[0]))
    row = {
        "op": case.op,
        "shape": case.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "provider": baseline,
        "gpu": machine.name(),
        **machine.versions(),
        "flops": case.flops,
        "bytes": case.bytes(dtype),
    }
    if problem:
        return row | {"problem": problem}
    for _ in range(3):
        _call(ours, inputs[0])
        _call(theirs, inputs[0])
    rounds: list[tuple[float, float]] = []
    stop = time.perf_counter() + seconds
    while len(rounds) < 10 or (time.perf_counter() < stop and len(rounds) < 500):
        picture = inputs[len(rounds) % len(inputs)]
        sides = [(0, ours), (1, theirs)]
        rng.shuffle(sides)
        times = [0.0, 0.0]
        for side, run in sides:
            times[side] = _milliseconds(run, picture)
        rounds.append((times[0], times[1]))
    ratios = [b / a for a, b in rounds]
    low, high = _bootstrap(ratios, rng)
    own = sorted(a for a, _ in rounds)
    other = sorted(b for _, b in rounds)
    floor = machine.floor_seconds(case.flops, case.bytes(dtype))
    return row | {
        "rounds": len(rounds),
        "ms": _quantiles(own),
        "baseline_ms": _quantiles(other),
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "share_of_floor": None if floor is None else floor * 1e3 / statistics.median(own),
        "peak_mib": _peak(ours, inputs[0]),
        "baseline_peak_mib": _peak(theirs, inputs[0]),
    }


def _call(run, arguments: cases.Arguments):
    return run(*arguments[0], **arguments[1])


def _milliseconds(run, arguments: cases.Arguments) -> float:
    if not torch.cuda.is_available():
        start = time.perf_counter()
        _call(run, arguments)
        return (time.perf_counter() - start) * 1e3
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    _call(run, arguments)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _peak(run, arguments: cases.Arguments) -> float | None:
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _call(run, arguments)
    machine.finish()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _quantiles(ordered: list[float]) -> dict[str, float]:
    return {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (20, 50, 80)}


def _bootstrap(ratios: list[float], rng: random.Random, draws: int = 1000) -> tuple[float, float]:
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def results_file() -> Path:
    versions = machine.versions()
    parts = (machine.name(), versions["torch"], versions["triton"])
    return RESULTS / ("-".join(re.sub(r"[^A-Za-z0-9.]+", "_", str(part)) for part in parts) + ".jsonl")


def table() -> str:
    """Markdown of the newest stored row of each op, shape, dtype and provider."""
    newest: dict[tuple[str, ...], dict] = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            try:
                row = json.loads(line)
                newest[tuple(row[key] for key in ("gpu", "op", "shape", "dtype", "provider"))] = row
            except (ValueError, KeyError) as error:
                print(f"{path.name}:{number}: broken row skipped ({error})", file=sys.stderr)
    lines = ["| GPU | op | shape | dtype | against | s2clip ms | theirs ms | ratio (95 %) | % of floor | commit |"]
    lines.append("|" + "---|" * 10)
    for row in newest.values():
        cells = [row["gpu"], row["op"], row["shape"], row["dtype"], row["provider"]]
        if "problem" in row:
            cells += ["", "", row["problem"], "", row["commit"]]
        else:
            interval = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
            share = f"{100 * row['share_of_floor']:.0f}"
            cells += [f"{row['ms']['p50']:.3f}", f"{row['baseline_ms']['p50']:.3f}", interval, share, row["commit"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Paired ratios of every op against its baselines.")
    parser.add_argument("--op", action="append", choices=sorted(cases.PROVIDERS), help="default: all")
    parser.add_argument("--seconds", type=float, default=1.0, help="time cap of one pair (default: 1)")
    parser.add_argument("--table", action="store_true", help="print the stored rows as Markdown, measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    on_gpu = torch.cuda.is_available()
    dtypes = (torch.float16, torch.bfloat16) if on_gpu else (torch.float32,)
    rng = random.Random(0)
    for case in cases.CASES:
        if (options.op and case.op not in options.op) or not (on_gpu or case.reduced):
            continue
        for dtype in dtypes[:1] if case.op == "components" else dtypes:
            for baseline in BASELINES:
                try:
                    with torch.inference_mode():
                        row = measure(case, dtype, baseline, options.seconds, rng)
                except (ImportError, torch.OutOfMemoryError) as error:
                    print(f"{case.op}, {case.shape}, {baseline}: not measured ({error})")
                    continue
                if on_gpu:
                    RESULTS.mkdir(exist_ok=True)
                    with results_file().open("a") as file:
                        file.write(json.dumps(row) + "\n")
                figure = row.get("problem") or (
                    f"{row['ratio']:.2f} x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}), "
                    f"{row['ms']['p50']:.3f} against {row['baseline_ms']['p50']:.3f} ms"
                )
                print(f"{row['op']}, {row['shape']}, {row['dtype']}, {baseline}: {figure}", flush=True)


if __name__ == "__main__":
    main()
