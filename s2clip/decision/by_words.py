"""The decision under a memory cap: cosines of a few words at a time, in a running softmax; [Q,H,W] is never held.

With x_q = α·cos_q at some size, after words 1..q: m = max x, Z = Σ exp(x − m), c = class of the first word that reached
m. In the end log Σ exp(x) = m + log Z, and P of the best class is 1/Z.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.decision.scores import ScoreMaps, half_size

WordMaps = Callable[[Sequence[int]], Tensor]
"""Word numbers → their cosines [n,h,w]."""


class _Best(NamedTuple):
    labels: Tensor
    largest: Tensor
    log_sum: Tensor


class WordScores(ScoreMaps):
    """What `decision.decide` and `LogitScores` give, up to rounding, from `maps` of at most `at_once` words at a time.

    size: (H,W) of the picture; scale α; class_index: the class of each word, ascending.
    """

    def __init__(
        self,
        maps: WordMaps,
        size: tuple[int, int],
        *,
        scale: float,
        class_index: Sequence[int],
        at_once: int,
        device: torch.device,
    ) -> None:
        self.maps, self.size, self.scale = maps, (size[0], size[1]), scale
        self.at_once, self.device = at_once, device
        self.class_index = tuple(class_index)
        self.classes = max(class_index) + 1
        self.fine_size = half_size(size)
        self._log_sums: dict[tuple[int, int], Tensor] = {}
        self._dropped: frozenset[int] = frozenset()

    def decide(
        self, *, threshold: float, background: int | None, area_threshold: float | None
    ) -> tuple[Tensor, Tensor]:
        """Labels [H,W] int64 and confidence [H,W] fp32 by the rules of `Method`; -1 where a cosine is not finite."""
        best = self._best(self.size)
        if area_threshold is not None:
            assert background is not None  # `Segmenter.set_classes` refuses it
            area = torch.bincount(best.labels.flatten(), minlength=self.classes)
            area[background] = 0
            dropped = area <= area_threshold * area.sum()
            dropped[background] = False
            self._dropped = frozenset(dropped.nonzero().flatten().tolist())
            best = self._best(self.size, without=self._dropped)._replace(log_sum=best.log_sum)
        labels, confidence = best.labels, (best.largest - best.log_sum).exp_()
        if threshold:
            assert background is not None  # without one `Predictor` asks with no threshold
            labels = labels.masked_fill(confidence < threshold, background)
        return labels.masked_fill(~confidence.isfinite(), -1), confidence

    def planes(self, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
        rows = {index: row for row, index in enumerate(classes) if index not in self._dropped}
        planes, log_sum = torch.zeros(len(classes), *size, device=self.device), self._log_sum((size[0], size[1]))
        words = [word for word, index in enumerate(self.class_index) if index in rows]
        for word, plane in self._scaled(words, size):
            own = planes[rows[self.class_index[word]]]
            torch.maximum(own, plane.sub_(log_sum).exp_(), out=own)
        return planes

    def chunks(self, classes: Sequence[int], size: tuple[int, int]) -> Iterator[Sequence[int]]:
        """As many as have `maps` made at once: making one costs a look at all windows."""
        step = max(len(next(iter(super().chunks(classes, size)), ())), self.at_once)
        for start in range(0, len(classes), step):
            yield classes[start : start + step]

    def _log_sum(self, size: tuple[int, int]) -> Tensor:
        if size not in self._log_sums:
            self._log_sums[size] = self._best(size).log_sum
        return self._log_sums[size]

    def _scaled(self, words: Sequence[int], size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """(word, x at `size`)."""
        for start in range(0, len(words), self.at_once):
            chosen = words[start : start + self.at_once]
            for word, cosines in zip(chosen, self.maps(chosen), strict=True):
                plane = F.interpolate(cosines[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
                yield word, plane * self.scale

    def _best(self, size: tuple[int, int], without: frozenset[int] = frozenset()) -> _Best:
        """Over the words of all classes but these."""
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        largest = torch.full(size, float("-inf"), device=self.device)
        total = torch.zeros(size, device=self.device)
        words = [word for word, index in enumerate(self.class_index) if index not in without]
        for word, plane in self._scaled(words, size):
            labels.masked_fill_(plane > largest, self.class_index[word])
            higher = torch.maximum(largest, plane)
            total.mul_((largest - higher).exp_()).add_((plane - higher).exp_())
            largest = higher
        return _Best(labels, largest, total.log_().add_(largest))
