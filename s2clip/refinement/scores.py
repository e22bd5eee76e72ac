"""Class scores P_c of one picture, a few planes at a time: all of them at full size would be 1.4 GB for 171 classes.

Two origins: scores that somebody else made (`DenseScores`), and the cosines of the pipeline (`LogitScores`), from which
any plane at any size follows. Both give the same values however the planes are grouped.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
        for group in self.chunks(classes, self.fine_size):
            yield group, self.planes(group, self.fine_size)

    def whole(self, size: tuple[int, int]) -> Tensor:
        """All planes at once [K,*size], to the bit what `summary` sees."""
        groups = self.chunks(range(self.classes), self.largest(size))
        return torch.cat([self.planes(group, size) for group in groups])

    def chunks(self, classes: Sequence[int], size: tuple[int, int]) -> Iterator[Sequence[int]]:
        """The classes in groups whose planes hold at most `CHUNK` elements."""
        step = max(1, CHUNK // (size[0] * size[1]))
        for start in range(0, len(classes), step):
            yield classes[start : start + step]

    def summary(self, class_map: Tensor) -> Summary:
        """class_map [h,w] of any integers → `Summary` at its size. A score that is not finite makes `best` so."""
        size = (class_map.shape[0], class_map.shape[1])
        best = torch.full(size, float("-inf"), device=self.device)
        own = torch.zeros(size, device=self.device)
        peaks = []
        for group in self.chunks(range(self.classes), self.largest(size)):
            planes = self.planes(group, size)
            best = torch.maximum(best, planes.amax(0))
            peaks.append(planes.flatten(1).amax(1))
            position = class_map.long() - group[0]
            inside = (position >= 0) & (position < len(group))
            own = torch.where(inside, planes.gather(0, position.where(inside, 0)[None])[0], own)
        return Summary(best, own, torch.cat(peaks))

    def best(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(the first class of the largest P_c at `size`, int64; that P_c), each [H,W], a few planes at a time."""
        confidence = torch.full(size, float("-inf"), device=self.device)
        labels = torch.zeros(size, dtype=torch.int64, device=self.device)
        for group in self.chunks(range(self.classes), size):
            planes = self.planes(group, size)
            first = planes.argmax(0)
            largest = planes.gather(0, first[None])[0]
            better = largest > confidence
            labels, confidence = torch.where(better, first + group[0], labels), torch.where(better, largest, confidence)
        return labels, confidence

    def extremes(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(smallest, largest) of each P_c at `size`, [K] each, a few planes at a time."""
        groups = self.chunks(range(self.classes), size)
        low, high = zip(*(self.planes(group, size).flatten(1).aminmax(dim=1) for group in groups), strict=True)
        return torch.cat(low), torch.cat(high)

    def largest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest plane that making one at `size` holds."""
        return size


class DenseScores(ScoreMaps):
    """Scores [K,h,w] as they are, of any resolution; other sizes by bilinear interpolation."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.classes = scores.shape[0]
        self.device = scores.device
        self.fine_size = tuple(scores.shape[1:])

    def planes(self, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
        consecutive = classes[-1] - classes[0] + 1 == len(classes)
        chosen = self.scores[classes[0] : classes[-1] + 1] if consecutive else self.scores[list(classes)]
        chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
        if tuple(size) == self.fine_size:
            return chosen
        return F.interpolate(chosen[None], size, mode="bilinear", align_corners=False)[0]

    def own(self, labels: Tensor) -> Tensor:
        """labels [H,W] → P of each pixel's class at their size, 0 where that does not exist."""
        return self.summary(labels).own

    def fine(self, classes: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Neighbours as views, which cost nothing but a byte per value where they are looked through: 8 to a group."""
        for ids in self.chunks(range(self.classes), (self.fine_size[0], -(-self.fine_size[1] // 8))):
            if any(index in ids for index in classes):
                yield ids, self.scores[ids[0] : ids[-1] + 1]

    def largest(self, size: tuple[int, int]) -> tuple[int, int]:
        return max(tuple(size), self.fine_size, key=lambda sides: sides[0] * sides[1])


class LogitScores(ScoreMaps):
    """P_c = max over the words q of class c of softmax_q(scale·cosine), as `ops.class_scores`, one plane if need be.

    P_q = exp(scale·cos_q − L) with L = log Σ_q exp(scale·cos_q), made once per size. The merging gets half-size planes,
    which it resizes: a softmax over all words at full size would cost as much as the coarse map did.
    """

    def __init__(self, logits: Tensor, scale: float, class_index: Sequence[int], size: tuple[int, int]) -> None:
        """logits [Q,h,w]; size: (H,W) of the picture."""
        self.logits, self.scale, self.class_index = logits.float(), scale, tuple(class_index)
        self.classes = max(class_index) + 1
        self.device = logits.device
        self.fine_size = half_size(size)
        self._normaliser: dict[tuple[int, int], Tensor] = {}

    def planes(self, classes: Sequence[int], size: tuple[int, int]) -> Tensor:
        position = {index: row for row, index in enumerate(classes)}
        words = [word for word, index in enumerate(self.class_index) if index in position]
        rows = [position[self.class_index[word]] for word in words]
        if rows == list(range(len(classes))):
            return self._probability(words, size)
        planes = self.logits.new_zeros(len(classes), *size)
        for group in self.chunks(list(zip(words, rows, strict=True)), size):
            probability = self._probability([word for word, _ in group], size)
            for plane, (_, row) in zip(probability, group, strict=True):
                torch.maximum(planes[row], plane, out=planes[row])
        return planes

    def _probability(self, words: Sequence[int], size: tuple[int, int]) -> Tensor:
        return (self._scaled(words, size) - self._log_sum(size)).exp_()

    def _scaled(self, words: Sequence[int], size: tuple[int, int]) -> Tensor:
        chosen = self.logits[list(words)] if len(words) < len(self.logits) else self.logits
        return F.interpolate(chosen[None], size, mode="bilinear", align_corners=False)[0].mul_(self.scale)

    def _log_sum(self, size: tuple[int, int]) -> Tensor:
        size = tuple(size)
        if size not in self._normaliser:
            total = torch.full(size, float("-inf"), device=self.device)
            for words in self.chunks(range(len(self.logits)), size):
                total = torch.logaddexp(total, self._scaled(words, size).logsumexp(0))
            self._normaliser[size] = total
        return self._normaliser[size]


def half_size(size: Sequence[int]) -> tuple[int, int]:
    """(⌊H/2⌋, ⌊W/2⌋), at least one pixel."""
    return max(size[0] // 2, 1), max(size[1] // 2, 1)
