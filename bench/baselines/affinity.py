"""`affinity_attention` as peers and careful users run it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.tools import compiled

HEADS = 12  # ProxyCLIP and Trident repeat their affinity once per attention head


def _similarity(features: Tensor) -> Tensor:
    unit = F.normalize(features.flatten(1, 2), dim=-1)
    return unit @ unit.mT


def published(features, value, *, beta=1.2, gamma=3.0):
    """ProxyCLIP: values resized per head, similarity shifted and masked, softmax, repeated for every head."""
    batch, height, width = features.shape[:3]
    resized = F.interpolate(value.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    heads = resized.flatten(2).unflatten(1, (HEADS, -1)).mT.flatten(0, 1)
    similarity = _similarity(features)
    raised = (similarity - similarity.mean((1, 2), keepdim=True) * beta) * gamma
    raised = torch.where(raised < 0, float("-inf"), raised)
    attention = raised.unsqueeze(1).repeat(1, HEADS, 1, 1).flatten(0, 1).softmax(-1)
    output = torch.bmm(attention, heads).unflatten(0, (batch, HEADS))
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
