"""Class scores P_c of one picture, a few planes at a time: all of them at full size would be 1.4 GB for 171 classes.

Two origins: scores that somebody else made (`DenseScores`), and the cosines of the pipeline (`LogitScores`), from which
any plane at any size follows. Both give the same values however the planes are grouped.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.backbones.precision import at_least_float32
from s2clip.shelter import sheltered

CHUNK = 1 << 21
"""Elements of planes made at a time, 8 MiB in fp32: 21 classes of a VOC picture at half size at once, and one plane of
2048x1024."""


class Summary(NamedTuple):
    """What the regions need of all classes."""

    best: Tensor  # [h,w] max_c P_c
    own: Tensor  # [h,w] P of the pixel's own class, 0 where that does not exist
    peak: Tensor  # [K] max over the picture of P_c


class ScoreMaps:
    """Planes of P_c in at least fp32, on `device`; `classes` is K."""

    classes: int
    device: torch.device
    fine_size: tuple[int, int]
    """(h,w) of the planes that `fine` gives."""

    def planes(self, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
        """P_c at `size` for these classes: [n,h,w]."""
        raise NotImplementedError

    def fine(self, classes: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """For the merging, which resizes them to the picture: (ascending ids, planes [n,*fine_size]) in groups.

        Every class that is asked for is in one group; a group may hold others too.
        """
        rows, columns = self.fine_size
        for group in self.chunks(classes, (-(-rows // 2), columns)):  # twice the elements: each group costs full maps
            yield group, self.planes(group, self.fine_size)

    @sheltered()
    def whole(self, size: tuple[int, int]) -> Tensor:
        """All planes at once [K,*size], to the bit what `summary` sees."""
        groups = self.chunks(range(self.classes), self.largest(size))
        return torch.cat([self.planes(group, size) for group in groups])

    def chunks(self, classes: Sequence[int], size: tuple[int, int]) -> Iterator[Sequence[int]]:
        """The classes in groups whose planes hold at most `CHUNK` elements."""
        step = max(1, CHUNK // (size[0] * size[1]))
        for start in range(0, len(classes), step):
            yield classes[start : start + step]

    @sheltered()
    def summary(self, class_map: Tensor) -> Summary:
        """class_map [h,w] of any integers → `Summary` at its size. A score that is not finite makes `best` so."""
        size = (class_map.shape[0], class_map.shape[1])
        best = own = torch.empty(0)
        peaks: list[Tensor] = []
        for group in self.chunks(range(self.classes), self.largest(size)):
            planes = self.planes(group, size)
            if not peaks:  # fp64 where the planes are
                best, own = planes.new_full(size, float("-inf")), planes.new_zeros(size)
            torch.maximum(best, planes.amax(0) if len(group) > 1 else planes[0], out=best)
            peaks.append(planes.flatten(1).amax(1))
            _take_own(own, planes, class_map, group[0])
        return Summary(best, own, torch.cat(peaks))

    def largest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest plane that making one at `size` holds."""
        return size


class DenseScores(ScoreMaps):
    """Scores [K,h,w] as they are, of any resolution; other sizes by bilinear interpolation."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.classes = scores.shape[0]
        self.device = scores.device
        self.fine_size = (scores.shape[1], scores.shape[2])

    @sheltered()
    def planes(self, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
        consecutive = classes[-1] - classes[0] + 1 == len(classes)
        chosen = self.scores[classes[0] : classes[-1] + 1] if consecutive else take(self.scores, classes)
        chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
        if tuple(size) == self.fine_size:
            return chosen
        return F.interpolate(chosen[None], size, mode="bilinear", align_corners=False)[0]

    def own(self, labels: Tensor) -> Tensor:
        """labels [H,W] → P of each pixel's class at their size, 0 where that does not exist."""
        return self.summary(labels).own

    def fine(self, classes: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """All at once, as they are there anyway."""
        if classes:
            yield range(self.classes), self.scores

    def largest(self, size: tuple[int, int]) -> tuple[int, int]:
        return max((size[0], size[1]), self.fine_size, key=lambda sides: sides[0] * sides[1])


class LogitScores(ScoreMaps):
    """P_c = max over the words q of class c of softmax_q(scale·cosine), as `ops.class_scores`, one plane if need be.

    P_q = exp(scale·cos_q − L) with L = log Σ_q exp(scale·cos_q), made once per size. The merging gets half-size planes,
    which it resizes: a softmax over all words at full size would cost as much as the coarse map did.
    """

    def __init__(self, logits: Tensor, scale: float, class_index: Sequence[int], size: tuple[int, int]) -> None:
        """logits [Q,h,w]; size: (H,W) of the picture."""
        self.logits, self.class_index = at_least_float32(logits) * scale, tuple(class_index)
        self.classes = max(class_index) + 1
        self.device = logits.device
        self.fine_size = half_size(size)
        self._normaliser: dict[tuple[int, int], Tensor] = {}

    @sheltered()
    def planes(self, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
        log_sum = self._log_sum(size)
        position = {index: row for row, index in enumerate(classes)}
        words = [word for word, index in enumerate(self.class_index) if index in position]
        rows = [position[self.class_index[word]] for word in words]
        planes = self.logits.new_zeros(len(classes), *size)
        for strip in self._strips(len(words), size):
            probability = (self._upsampled(words, size, strip) - log_sum[strip]).exp_()
            merge_words(probability, rows, planes[:, strip])
        return planes

    @sheltered()
    def summary(self, class_map: Tensor) -> Summary:
        size = (class_map.shape[0], class_map.shape[1])
        words = range(len(self.logits))
        best, log_sum = self.logits.new_empty(2, *size)
        own, peak = self.logits.new_zeros(size), self.logits.new_zeros(self.classes)
        for strip in self._strips(len(words), size):
            scaled = self._upsampled(words, size, strip)
            torch.logsumexp(scaled, 0, out=log_sum[strip])
            planes = merge_words(scaled.sub_(log_sum[strip]).exp_(), self.class_index)
            torch.amax(planes, 0, out=best[strip])
            torch.maximum(peak, planes.amax((1, 2)), out=peak)
            _take_own(own[strip], planes, class_map[strip], 0)
        self._normaliser[size] = log_sum
        return Summary(best, own, peak)

    def _strips(self, words: int, size: tuple[int, int]) -> Iterator[slice]:
        """Rows for which the planes of so many words hold `CHUNK` elements, or fit a core's cache."""
        step = max(1, CHUNK // (1 if self.device.type == "cuda" else 8) // max(words * size[1], 1))
        for start in range(0, size[0], step):
            yield slice(start, min(start + step, size[0]))

    def _upsampled(self, words: Sequence[int], size: tuple[int, int], rows: slice) -> Tensor:
        """Rows of scale·logits resized to `size`, bilinear: [n,r,W]."""
        chosen = take(self.logits, words) if len(words) < len(self.logits) else self.logits
        last = chosen.shape[1] - 1
        source = torch.arange(rows.start, rows.stop, device=self.device, dtype=chosen.dtype)
        source = ((source + 0.5) * ((last + 1) / size[0]) - 0.5).clamp_(0, last)
        above = source.long()
        upper, lower = chosen.index_select(1, above), chosen.index_select(1, (above + 1).clamp_(max=last))
        stretched = upper.lerp_(lower, (source - above)[:, None])
        return F.interpolate(stretched, size[1], mode="linear", align_corners=False)

    def _log_sum(self, size: tuple[int, int]) -> Tensor:
        size = (size[0], size[1])
        if size not in self._normaliser:
            words, total = range(len(self.logits)), self.logits.new_empty(size)
            for strip in self._strips(len(words), size):
                torch.logsumexp(self._upsampled(words, size, strip), 0, out=total[strip])
            self._normaliser[size] = total
        return self._normaliser[size]


def largest(scores: DenseScores, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Labels [H,W] int64, the first largest class, and its score [H,W]; some classes at a time."""
    best = torch.full(size, -1.0, device=scores.device, dtype=at_least_float32(scores.scores[:0]).dtype)
    labels = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for group in scores.chunks(range(scores.classes), scores.largest(size)):
        value, index = scores.planes(group, size).max(0)
        better = (value > best) | value.isnan()
        torch.where(better, value, best, out=best)
        torch.where(better, index + group[0], labels, out=labels)
    return labels, best


def merge_words(probability: Tensor, rows: Sequence[int], planes: Tensor | None = None) -> Tensor:
    """planes[rows[q]] = max over q of probability[q], into `planes`, which are zero, if there are any."""
    if planes is None:
        if list(rows) == list(range(len(rows))):
            return probability
        planes = probability.new_zeros(max(rows) + 1, *probability.shape[1:])
    elif list(rows) == list(range(len(rows))):
        return planes.copy_(probability)
    for one, row in zip(probability, rows, strict=True):
        torch.maximum(planes[row], one, out=planes[row])
    return planes


def _take_own(own: Tensor, planes: Tensor, class_map: Tensor, first: int) -> None:
    """own[y,x] = planes[c − first, y, x] where the class c at (y,x) has a plane."""
    if len(planes) == 1:  # comparing is a few passes less
        torch.where(class_map == first, planes[0], own, out=own)
        return
    position = class_map.long() - first
    inside = (position >= 0) & (position < len(planes))
    torch.where(inside, planes.gather(0, position.where(inside, 0)[None])[0], own, out=own)


def take(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """tensor[rows] without waiting for a device, as indexing by a list does."""
    return tensor.index_select(0, torch.tensor(rows, dtype=torch.int64).to(tensor.device, non_blocking=True))


def half_size(size: Sequence[int]) -> tuple[int, int]:
    """(⌊H/2⌋, ⌊W/2⌋), at least one pixel."""
    return max(size[0] // 2, 1), max(size[1] // 2, 1)
