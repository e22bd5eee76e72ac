"""`classify_pixels` as peers and careful users run it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.tools import compiled
from s2clip.refinement.sam import Embedding


def published(logits, size, *, scale, class_index):
    """The peers' post-processing: upsample, scale, softmax, maximum over a class's words, argmax; every map held."""
    confidence, labels = probabilities(logits, size, scale, class_index).max(1)
    return labels, confidence


class Coarse(NamedTuple):
    """What a pipeline knows of a picture before SAM refines it."""

    labels: Tensor  # [H,W]
    scores: Tensor  # [K,H,W] probabilities
    embedding: Embedding | None = None
    """SAM's view, where the pipeline has asked SAM already."""


def coarse(logits, size, scale, class_index, embedding=None) -> Coarse:
    """The same for one picture [1,Q,h,w], its probabilities kept."""
    merged = probabilities(logits, size, scale, class_index)[0]
    return Coarse(merged.argmax(0), merged, embedding)


def probabilities(logits, size, scale, class_index):
    probability = (F.interpolate(logits.float(), size, mode="bilinear", align_corners=False) * scale).softmax(1)
    words = torch.as_tensor(class_index, device=logits.device)
    return torch.stack([probability[:, words == index].amax(1) for index in range(max(class_index) + 1)], 1)


@compiled
def compiled_chain(logits, size, *, scale, class_index):
    """The same chain compiled, the classes merged by one scatter."""
    probability = (F.interpolate(logits.float(), size, mode="bilinear", align_corners=False) * scale).softmax(1)
    words = torch.as_tensor(class_index, device=logits.device).view(1, -1, 1, 1).expand_as(probability)
    merged = probability.new_zeros(len(logits), max(class_index) + 1, *size)
    confidence, labels = merged.scatter_reduce(1, words, probability, "amax").max(1)
    return labels, confidence
