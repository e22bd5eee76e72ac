"""Paired, interleaved ratios of every op against what others run in its place.

    python bench/compare.py [--op NAME]... [--without PROVIDER]... [--seconds 1] [--budget 540] [--resume]
                            [--rows FOLDER] [--dry-run] [--table]

Both sides of a pair run in one process, in random order, round after round; a ratio is theirs over s2clip's, its
interval the bootstrap's 95 % of the median over rounds. The provider "s2clip" is s2clip against itself: how far two
equal things differ, the noise floor. Outputs are held to the published formulation in fp32 before anything is timed.
Columns: device time cold and warm (see `timing`), wall clock of a call, memory, share of the floor at the ceilings.

Ops come in the order of `--op`, all in fp16 before any in bf16: what a short run measures is what was asked for first.
On CUDA rows are appended to <gpu>-<torch>-<triton>.jsonl in bench/results or `--rows`. A CPU prints ratios and stores
nothing: its times are no claim. `--table` prints stored rows as Markdown and measures nothing; `--dry-run` prints what
would be measured.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Last: this folder's profile.py must not hide the standard library's.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import cases
import machine
import providers
import ratios
import results
import timing
import torch
from baselines.tools import forget_compiled


def measure(case: cases.Case, dtype: torch.dtype, name: str, seconds: float, rng: random.Random) -> results.Row:
    """The figures of one pair: s2clip and the provider `name`."""
    ours, theirs = (providers.PROVIDERS[case.op][side] for side in (providers.OURS, name))
    row = {
        "op": case.op,
        "shape": case.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "provider": name,
        "kind": theirs.kind,
    }
    forget_compiled()
    arguments = case.make(machine.device(), dtype)
    expected = providers.truth(case.op, arguments)
    for side in dict.fromkeys((ours, theirs)):
        output = timing.call(side.run, arguments)
        if why := providers.disagreement(case.op, arguments, output, expected):
            return row | {"disagreement": f"{'s2clip' if side is ours else name}: {why}"}
    del expected, output

    work = case.work(dtype)
    row |= {"flops": work.tensor_flops or work.lane_operations, "bytes": work.bytes}
    sets = timing.copies(arguments, work.bytes)
    warm_up = (timing.from_outside(side.run, sets) for side in (ours, theirs))
    for timer in (*warm_up,) * 2:
        timer()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        for temperature, inputs in (("cold", sets), ("warm", sets[:1] * timing.CALLS)):
            timers = [_device_timer(side, inputs) for side in (ours, theirs)]
            row[temperature] = ratios.summary(ratios.paired(*timers, seconds, rng), rng)
            del timers  # a graph keeps its memory
        floor = work.floor(machine.ceilings())
        row |= {"floor_us": floor * 1e6, "percent_of_floor": 1e5 * floor / row["cold"]["ours_ms"]["p50"]}
        row["peak_mib"], row["theirs_peak_mib"] = (
            timing.peak_mib(timing.call, side.run, arguments) for side in (ours, theirs)
        )
    timers = [timing.from_outside(side.run, sets) for side in (ours, theirs)]
    row["call"] = ratios.summary(ratios.paired(*timers, seconds, rng), rng)
    return row


def _device_timer(provider: providers.Provider, inputs: list[timing.Arguments]) -> timing.Timer:
    if not provider.on_host:
        try:
            return timing.on_device(provider.run, inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"not captured, so timed from outside, launches included ({str(error).splitlines()[0]})")
    return timing.from_outside(provider.run, inputs)


def pairs(options: argparse.Namespace) -> Iterator[tuple[cases.Case, torch.dtype, str]]:
    """All pairs that were asked for and can run here; the others are named once."""
    told = set()
    ops = options.op or list(dict.fromkeys(case.op for case in cases.CASES))
    chosen = [case for op in ops for case in cases.here() if case.op == op]
    for dtype in dict.fromkeys(dtype for case in chosen for dtype in case.dtypes):
        for case in (case for case in chosen if dtype in case.dtypes):
            for name, provider in providers.PROVIDERS[case.op].items():
                if name in options.without:
                    continue
                obstacle = provider.obstacle()
                if obstacle and (case.op, name) not in told:
                    told.add((case.op, name))
                    print(f"{case.op}, {name}: not measured ({obstacle})")
                if not obstacle:
                    yield case, dtype, name


def describe(row: results.Row) -> str:
    """One line for the screen."""
    head = f"{row['op']}, {row['shape']}, {row['dtype']}, {row['provider']}:"
    if "disagreement" in row:
        return f"{head} not timed, another output ({row['disagreement']})"
    figures = row.get("cold") or row["call"]
    times = " against ".join(f"{figures[side]['p50']:.3f}" for side in ("ours_ms", "theirs_ms"))
    return f"{head} {results.ratio(figures)} x, {times} ms{'' if 'cold' in row else ' on a CPU'}"


def run(options: argparse.Namespace) -> int:
    """0, or 1 where an output was not that of the published formulation."""
    if options.dry_run:
        for case, dtype, name in pairs(options):
            print(f"{case.op}, {case.shape}, {str(dtype).removeprefix('torch.')}, {name}")
        return 0
    shared, rng, status = machine.setup(), random.Random(0), 0
    for line in shared["obstacles"]:
        print(line)
    stop = time.perf_counter() + options.budget
    done = results.stored(shared["commit"], options.rows) if options.resume else set()
    left = 0
    for case, dtype, name in pairs(options):
        if (case.op, case.shape, str(dtype).removeprefix("torch."), name) in done:
            continue
        if time.perf_counter() > stop:
            left += 1
            continue
        try:
            with torch.inference_mode():
                row = measure(case, dtype, name, options.seconds, rng) | shared
        except (ImportError, RuntimeError) as error:  # too little memory is a RuntimeError, too
            machine.give_up(f"{case.op}, {case.shape}, {dtype}, {name}", error)
            continue
        print(describe(row), flush=True)
        status |= "disagreement" in row
        if shared["gpu"] != "cpu":
            results.append(row, options.rows)
    if left:
        print(f"the budget of {options.budget:.0f} s is spent: {left} pairs are left, for --resume")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Paired ratios of every op against what others run in its place.")
    parser.add_argument("--op", action="append", choices=sorted(providers.PROVIDERS), help="default: all")
    parser.add_argument("--without", action="append", default=[], metavar="PROVIDER", help="leave one out")
    parser.add_argument("--seconds", type=float, default=1.0, help="time cap of one figure (default: 1)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="time cap of the whole run, in seconds")
    parser.add_argument("--resume", action="store_true", help="leave out what is stored for this commit")
    parser.add_argument("--rows", type=Path, default=results.FOLDER, metavar="FOLDER", help="default: bench/results")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured, measure nothing")
    parser.add_argument("--table", action="store_true", help="print the stored rows as Markdown, measure nothing")
    options = parser.parse_args(arguments)
    if options.table:
        print(results.tables(results.read(options.rows)))
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
