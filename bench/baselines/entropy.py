"""`spatial_entropy` as its source writes it and as careful users would."""

import torch

from baselines.tools import compiled


def published(features):
    """Algorithm 1 line by line, without the two figures it computes and does not return; one image at a time."""
    result = []
    for image in features.float().flatten(2):
        centre, deviation = image.mean(1, keepdim=True), image.std(1, correction=0, keepdim=True)
        epsilon = torch.clamp(deviation.min() * 1e-2, min=1e-6)
        standard = (image - centre) / (deviation + epsilon)
        power = torch.exp(standard - standard.max(1, keepdim=True).values)
        probability = torch.clamp(power / (power.sum(1, keepdim=True) + epsilon), min=epsilon.item())
        probability = probability / probability.sum(1, keepdim=True)
        result.append(-(probability * torch.log(probability)).sum(1).mean())
    return torch.stack(result)


@compiled
def compiled_batch(features):
    """The batch at once, compiled."""
    flat = features.float().flatten(2)
    deviation, _ = torch.std_mean(flat, 2, correction=0, keepdim=True)
    epsilon = (deviation.amin(1, keepdim=True) * 1e-2).clamp(min=1e-6)
    power = ((flat - flat.amax(2, keepdim=True)) / (deviation + epsilon)).exp()
    probability = torch.maximum(power / (power.sum(2, keepdim=True) + epsilon), epsilon)
    probability = probability / probability.sum(2, keepdim=True)
    return -(probability * probability.log()).sum(2).mean(1)
