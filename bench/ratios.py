"""Two timers in pairs: what the machine does to one side of a pair it does to the other."""

import random
import statistics
import time
from collections.abc import Callable, Sequence

Rounds = list[tuple[float, float]]
"""(ours, theirs) in milliseconds, one entry a round."""
LEAST, FEWEST, MOST = 3, 10, 500
PATIENCE = 4
"""Times as long as was asked for are spent on a pair that takes seconds a round, for `FEWEST` rounds of it."""
ENOUGH = 0.005
"""Relative standard error of the mean ratio at which a pair is done."""


def paired(
    ours: Callable[[], float], theirs: Callable[[], float], seconds: float, rng: random.Random, fewest: int = FEWEST
) -> Rounds:
    """Rounds of both sides in random order, until the ratio is known or the time is up and there are `fewest`.

    With slow sides there are less, but never below `LEAST`.
    """
    rounds: Rounds = []
    start = time.perf_counter()

    def wanted() -> bool:
        spent = time.perf_counter() - start
        if len(rounds) < fewest:
            return len(rounds) < min(LEAST, fewest) or spent < PATIENCE * seconds
        return spent < seconds and len(rounds) < MOST and not _settled(rounds)

    while wanted():
        times = [0.0, 0.0]
        for side in rng.sample((0, 1), 2):
            times[side] = (ours, theirs)[side]()
        rounds.append((times[0], times[1]))
    return rounds


def _settled(rounds: Rounds) -> bool:
    ratios = [theirs / ours for ours, theirs in rounds]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return len(rounds) >= 3 * FEWEST and error < ENOUGH * statistics.mean(ratios)


def summary(rounds: Rounds, rng: random.Random) -> dict:
    """Quantiles of both sides and the median of theirs/ours with its 95 % interval: above 1 is faster than they."""
    ratios = [theirs / ours for ours, theirs in rounds]
    return {
        "ours_ms": quantiles([ours for ours, _ in rounds]),
        "theirs_ms": quantiles([theirs for _, theirs in rounds]),
        "ratio": [statistics.median(ratios), *bootstrap(ratios, rng)],
        "rounds": len(rounds),
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (20, 50, 80)}


def bootstrap(ratios: Sequence[float], rng: random.Random, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of the median, by drawing as many rounds again with replacement."""
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]
