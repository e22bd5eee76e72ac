"""`classify_pixels` as peers and careful users run it. `sizes` says how many words each class has, in order."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.tools import compiled
from s2clip.backbones.sam import Embedding


def published(logits, size, *, scale, class_index, sizes):
    """The peers' post-processing: upsample, scale, softmax, maximum over a class's words, argmax; every map held."""
    confidence, labels = probabilities(logits, size, scale, sizes).max(1)
    return labels, confidence


class Coarse(NamedTuple):
    """What a pipeline knows of a picture before SAM refines it."""

    labels: Tensor  # [H,W]
    scores: Tensor  # [K,H,W] probabilities
    embedding: Embedding | None = None
    """SAM's view, where the pipeline has asked SAM already."""


def coarse(logits, size, scale, sizes, embedding=None) -> Coarse:
    """The same for one picture [1,Q,h,w], its probabilities kept."""
    merged = probabilities(logits, size, scale, sizes)[0]
    return Coarse(merged.argmax(0), merged, embedding)


def probabilities(logits: Tensor, size: tuple[int, int], scale: float, sizes: Sequence[int]) -> Tensor:
    """[1,K,H,W]. The peers multiply all words with a one-hot map of every class, K times as much memory as this."""
    probability = (F.interpolate(logits.float(), size, mode="bilinear", align_corners=False) * scale).softmax(1)
    if max(sizes) == 1:
        return probability
    return torch.stack([words.amax(1) for words in probability.split(list(sizes), 1)], 1)


@compiled
def compiled_chain(logits, size, *, scale, class_index, sizes):
    """The same chain compiled, the classes merged by one scatter."""
    probability = (F.interpolate(logits.float(), size, mode="bilinear", align_corners=False) * scale).softmax(1)
    merged = probability
    if max(sizes) > 1:
        words = class_index.view(1, -1, 1, 1).expand_as(probability)
        merged = probability.new_zeros(len(logits), len(sizes), *size)
        merged = merged.scatter_reduce(1, words, probability, "amax")
    confidence, labels = merged.max(1)
    return labels, confidence
