"""`affinity_attention` as peers and careful users run it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.tools import compiled

HEADS = 12  # ProxyCLIP and Trident repeat their affinity once per attention head


def _similarity(features: Tensor) -> Tensor:
    unit = F.normalize(features.flatten(1, 2), dim=-1)
    return unit @ unit.mT


def published(features, value, *, beta=1.2, gamma=3.0, heads=HEADS, batch_mean=False, keep_diagonal=False):
    """ProxyCLIP: values resized per head, similarity shifted and masked, softmax, repeated for every head.

    batch_mean: of the similarities of all maps, Trident's. keep_diagonal: whole pipelines meet flat windows, whose rows
    the published code leaves without any entry.
    """
    batch, height, width = features.shape[:3]
    resized = F.interpolate(value.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    values = resized.flatten(2).unflatten(1, (heads, -1)).mT.flatten(0, 1)
    similarity = _similarity(features)
    mean = similarity.mean() if batch_mean else similarity.mean((1, 2), keepdim=True)
    raised = (similarity - mean * beta) * gamma
    cut = raised < 0
    if keep_diagonal:
        cut.diagonal(dim1=1, dim2=2).fill_(False)
    raised = torch.where(cut, float("-inf"), raised)
    attention = raised.unsqueeze(1).repeat(1, heads, 1, 1).flatten(0, 1).softmax(-1)
    output = torch.bmm(attention, values).unflatten(0, (batch, heads))
    return output.permute(0, 2, 1, 3).flatten(2).unflatten(1, (height, width))


def two_products(features, value, *, beta=1.2, gamma=3.0):
    """Two matrix products; one affinity for all heads, so the second has all of the values' channels."""
    height, width = features.shape[1:3]
    resized = F.interpolate(value.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    similarity = _similarity(features)
    raised = gamma * (similarity - beta * similarity.mean((1, 2), keepdim=True))
    attention = raised.masked_fill(raised < 0, float("-inf")).softmax(-1)
    return (attention @ resized.flatten(2).mT).unflatten(1, (height, width))


compiled_products = compiled(two_products)
autotuned_products = compiled(two_products, mode="max-autotune-no-cudagraphs")
