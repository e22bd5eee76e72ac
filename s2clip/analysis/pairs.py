"""Average precision of a question about pairs, from counts: never more than a block of the pairs in memory.

A score s in [-1, 1] falls into bin ⌊(s+1)·bins/2⌋ of two histograms, of the pairs that are alike and of those that are
not. With TP and FP summed from the highest bin down,

    precision = TP/(TP+FP),   recall = TP/P,   AP = Σ_bins (alike in bin / P)·precision.

This is exactly the average precision (scikit-learn's, ties sharing one threshold) of the scores rounded to their bins,
2/bins wide, in integers until the last division. Rounding never swaps two scores, it only ties those within a bin, so
the AP of the scores as they were is enclosed bin by bin: a pair that is alike has at best all alike pairs of
its bin and none of the others before it or tied with it, at worst all of the others and none of the alike:

    Σ_bins p/P · (t+1)/(t+1+f+n)  <=  AP  <=  Σ_bins p/P · (t+p)/(t+p+f)

with p alike and n other pairs in the bin, t and f in the bins above. The two are reported beside the AP.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from s2clip.errors import reject

BINS = 1 << 18
"""Two histograms of 2 MB each; on 100 scenes the enclosure is narrower than 0.0002."""
PAIRS_AT_ONCE = 1 << 20
"""Scores held at a time: 4 MB, and 8 MB of places."""


class PairBlock(NamedTuple):
    """Some rows of the upper triangle of N x N: pairs (i, j), i in `rows` and i < j."""

    rows: slice
    columns: slice
    places: Tensor
    """[P] int64, where the pairs lie in the flattened rows x columns block."""
    alike: Tensor
    """[P] bool, whether the two labels are equal."""


def pair_blocks(labels: Tensor) -> Iterator[PairBlock]:
    """Every pair i < j of the labels [N] once, in blocks of at most `PAIRS_AT_ONCE` places (or one row)."""
    count = len(labels)
    step = max(1, PAIRS_AT_ONCE // max(count, 1))
    for start in range(0, count - 1, step):
        stop = min(start + step, count - 1)
        row, column = torch.triu_indices(stop - start, count - start, 1, device=labels.device)
        alike = labels[start:stop][row] == labels[start:][column]
        yield PairBlock(slice(start, stop), slice(start, count), row * (count - start) + column, alike)


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """One point per bin that holds pairs, from the highest score down; arrays float64."""

    threshold: np.ndarray
    """Lower edge of the bin."""
    precision: np.ndarray
    recall: np.ndarray
    average_precision: float
    bounds: tuple[float, float]
    """What the scores before rounding have lies between these."""
    pairs: int
    alike: int

    @property
    def chance(self) -> float:
        """Share of pairs that are alike: the AP of scores that know nothing."""
        return self.alike / self.pairs


class PairHistogram:
    """Counts of alike and other pairs by score, int64 on `device`."""

    def __init__(self, bins: int = BINS, device: torch.device | str = "cpu") -> None:
        if not 2 <= bins <= 1 << 26:
            reject("bins", f"2 to {1 << 26}", bins)
        self.bins = bins
        self.counts = torch.zeros(2 * bins, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, alike: Tensor) -> None:
        """scores [P] in [-1, 1] (rounding past the ends is brought back), alike [P] bool.

        `ValueError` where a score is not finite.
        """
        if not bool(scores.sum().isfinite()):
            reject("scores", "finite numbers (half precision may have overflowed: try float32)", "NaN or infinity")
        half = self.bins / 2
        bin_of = (scores * half).add_(half).long().clamp_(0, self.bins - 1)
        self.counts.scatter_add_(0, bin_of.add_(alike.long(), alpha=self.bins), torch.ones_like(bin_of))

    def result(self) -> PrecisionRecall:
        """The curve so far. `ValueError` before the first alike pair: precision is about nothing then."""
        other, alike = self.counts.view(2, -1).cpu().numpy()
        held = np.flatnonzero(other + alike)[::-1]
        other, alike = other[held], alike[held]
        true, false = np.cumsum(alike), np.cumsum(other)
        positives = int(alike.sum())
        if positives == 0:
            reject("pairs", "two patches of one class at least", f"{int(other.sum())} pairs, none alike")
        precision, share = true / (true + false), alike / positives
        first = true - alike + 1
        worst = share @ (first / (first + false))
        best = share @ (true / np.maximum(true + false - other, 1))
        return PrecisionRecall(
            threshold=held * (2 / self.bins) - 1,
            precision=precision,
            recall=true / positives,
            average_precision=float(share @ precision),
            bounds=(float(worst), float(best)),
            pairs=int(true[-1] + false[-1]),
            alike=positives,
        )
