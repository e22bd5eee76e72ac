"""What is asked of all class scores at the picture's size, a few planes at a time."""

import torch
from torch import Tensor

from s2clip.decision.scores import ScoreMaps


def best_class(scores: ScoreMaps, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(the first class of the largest P_c, int64; that P_c), each [H,W] for `size`."""
    confidence = torch.full(size, float("-inf"), device=scores.device)
    labels = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for group in scores.chunks(range(scores.classes), size):
        planes = scores.planes(group, size)
        first = planes.argmax(0)
        largest = planes.gather(0, first[None])[0]
        better = largest > confidence
        labels, confidence = torch.where(better, first + group[0], labels), torch.where(better, largest, confidence)
    return labels, confidence


def extremes(scores: ScoreMaps, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(smallest, largest) of each P_c at `size`, [K] each."""
    groups = scores.chunks(range(scores.classes), size)
    low, high = zip(*(scores.planes(group, size).flatten(1).aminmax(dim=1) for group in groups), strict=True)
    return torch.cat(low), torch.cat(high)
