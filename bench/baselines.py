"""What others run in place of an op: the published eager formulation, and the best a careful user writes today.

Restated from the papers and their mathematics. Every function takes the arguments of the public op of `s2clip.ops`, and
returns what the op returns, so that outputs are compared before anything is timed.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS = 12  # ProxyCLIP and Trident repeat their affinity once per attention head


def compiled(function):
    """`torch.compile` on CUDA; eager on the CPU, where compiling costs minutes and is nobody's baseline."""
    best = functools.cache(lambda: torch.compile(function, dynamic=False))

    @functools.wraps(function)
    def call(*arguments, **keywords):
        on_cuda = any(isinstance(argument, Tensor) and argument.is_cuda for argument in arguments)
        return (best() if on_cuda else function)(*arguments, **keywords)

    return call


# recombined_attention


def recombined_attention_published(query, key, value, *, terms):
    """SCLIP: one softmax(bmm) per term, added, one product with the values."""
    tokens = {"q": query, "k": key, "v": value}
    scale = query.shape[-1] ** -0.5
    attention = sum((tokens[x] @ tokens[y].mT * scale).softmax(-1) for x, y in terms)
    return attention @ value / len(terms)


def recombined_attention_careful(query, key, value, *, terms):
    """All terms as heads of one scaled_dot_product_attention; on Hopper cuDNN first."""
    tokens = {"q": query, "k": key, "v": value}
    left = torch.cat([tokens[x] for x, _ in terms], 1)
    right = torch.cat([tokens[y] for _, y in terms], 1)
    values = value.repeat(1, len(terms), 1, 1)
    if query.is_cuda:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        if torch.cuda.get_device_capability(query.device)[0] >= 9:
            order.insert(0, SDPBackend.CUDNN_ATTENTION)
        with sdpa_kernel(order, set_priority=True):
            output = F.scaled_dot_product_attention(left, right, values)
    else:
        output = F.scaled_dot_product_attention(left, right, values)
    return output.unflatten(1, (len(terms), -1)).mean(1)


# affinity_attention


def _similarity(features: Tensor) -> Tensor:
    unit = F.normalize(features.flatten(1, 2), dim=-1)
    return unit @ unit.mT


def affinity_attention_published(features, value, *, beta=1.2, gamma=3.0):
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


@compiled
def affinity_attention_careful(features, value, *, beta=1.2, gamma=3.0):
    """Two matrix products with everything between them fused; one affinity for all heads."""
    height, width = features.shape[1:3]
    resized = F.interpolate(value.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    similarity = _similarity(features)
    raised = gamma * (similarity - beta * similarity.mean((1, 2), keepdim=True))
    attention = raised.masked_fill(raised < 0, float("-inf")).softmax(-1)
    return (attention @ resized.flatten(2).mT).unflatten(1, (height, width))


# label_components and measure_components


def components_published(class_map, scores):
    """Trident and Algorithm 2: a one-hot map per class on the CPU, scikit-image labelling, a mask per region."""
    import numpy as np
    from skimage.measure import label

    rows = []
    for image in range(class_map.shape[0]):
        one_hot = F.one_hot(class_map[image].long(), scores.shape[1]).permute(2, 0, 1).float().cpu().numpy()
        for index, mask in enumerate(one_hot):
            labelled = label(mask, connectivity=2)
            for region in range(1, labelled.max() + 1):
                inside = torch.from_numpy(labelled == region).to(scores.device)
                own = scores[image, index]
                best = torch.where(inside, own, float("-inf")).argmax()
                y, x = np.nonzero(labelled == region)
                rows.append((image, index, x.size, x.min(), y.min(), x.max(), y.max(), own[inside].mean(), best))
    return sorted((int(r[0]), int(r[1]), *map(int, r[2:7]), int(r[8])) for r in rows)


def components_careful(class_map, scores):
    """cc3d's single pass over the whole class map and its statistics; means and peaks by torch on the labels."""
    import cc3d

    rows = []
    for image, labels_of in enumerate(class_map.cpu().numpy()):
        labels, count = cc3d.connected_components(labels_of + 1, connectivity=8, return_N=True)
        statistics = cc3d.statistics(labels)
        flat = torch.from_numpy(labels.astype("int64")).to(scores.device).flatten()
        own = scores[image].flatten(1).gather(0, class_map[image].long().flatten()[None])[0]
        total = torch.zeros(count + 1, dtype=torch.float64, device=scores.device).index_add_(0, flat, own.double())
        peak = torch.full((count + 1,), float("-inf"), device=scores.device).to(own.dtype)
        peak.scatter_reduce_(0, flat, own, "amax")
        pixels = torch.arange(flat.numel(), device=scores.device).where(own == peak[flat], flat.numel())
        first = torch.full((count + 1,), flat.numel(), device=scores.device).scatter_reduce_(0, flat, pixels, "amin")
        mean = (total / torch.from_numpy(statistics["voxel_counts"].astype("float64")).to(total)).tolist()
        classes = class_map[image].flatten()[first[1:]].tolist()
        for region in range(1, count + 1):
            rows_of, columns_of = statistics["bounding_boxes"][region]
            box = (columns_of.start, rows_of.start, columns_of.stop - 1, rows_of.stop - 1)
            area = int(statistics["voxel_counts"][region])
            rows.append((image, classes[region - 1], area, *box, int(first[region])))
        assert len(mean) == count + 1
    return sorted(tuple(map(int, row)) for row in rows)


# classify_pixels


def classify_pixels_published(logits, size, *, scale, class_index):
    """The peers' post-processing: upsample, scale, softmax, maximum over a class's words, argmax; every map held."""
    probability = (F.interpolate(logits.float(), size, mode="bilinear", align_corners=False) * scale).softmax(1)
    words = torch.as_tensor(class_index, device=logits.device)
    classes = max(class_index) + 1
    merged = torch.stack([probability[:, words == index].amax(1) for index in range(classes)], 1)
    confidence, labels = merged.max(1)
    return labels, confidence


@compiled
def classify_pixels_careful(logits, size, *, scale, class_index):
    """The same chain compiled, the classes merged by one scatter."""
    probability = (F.interpolate(logits.float(), size, mode="bilinear", align_corners=False) * scale).softmax(1)
    words = torch.as_tensor(class_index, device=logits.device).view(1, -1, 1, 1).expand_as(probability)
    merged = probability.new_zeros(len(logits), max(class_index) + 1, *size)
    confidence, labels = merged.scatter_reduce(1, words, probability, "amax").max(1)
    return labels, confidence


# merge_masks


def _full_size(mask_logits, size, input_size, padded_size):
    padded = F.interpolate(mask_logits.float(), (padded_size, padded_size), mode="bilinear", align_corners=False)
    valid = padded[..., : input_size[0], : input_size[1]]
    return F.interpolate(valid, size, mode="bilinear", align_corners=False)


def merge_masks_published(mask_logits, class_index, scores, labels, *, input_size, padded_size):
    """Trident: per class the masks at full size, their union and largest sigmoid; a map per class; argmax."""
    size = tuple(labels.shape[1:])
    resized = F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)[0]
    quality = torch.zeros_like(resized)
    for index in range(len(resized)):
        chosen = class_index == index
        if chosen.any():
            logits = _full_size(mask_logits[chosen, None], size, input_size, padded_size)[:, 0]
            covered = (logits > 0).sum(0).bool()
            quality[index] = covered * resized[index] * logits.sigmoid().amax(0)
    best, label = quality.max(0)
    return torch.where(quality.sum(0) == 0, labels[0], label)[None], best[None]


@compiled
def _merge_step(evidence, logits, size, input_size, padded_size):
    return torch.maximum(evidence, _full_size(logits[None, None], size, input_size, padded_size)[0, 0])


def merge_masks_careful(mask_logits, class_index, scores, labels, *, input_size, padded_size):
    """One region at a time with a running maximum per class, and a running argmax over the classes."""
    size = tuple(labels.shape[1:])
    label, best = labels[0].clone(), torch.zeros(size, device=labels.device)
    indices = class_index.tolist()
    for index in sorted(set(indices)):
        evidence = torch.full(size, float("-inf"), device=labels.device)
        for region in (r for r, own in enumerate(indices) if own == index):
            evidence = _merge_step(evidence, mask_logits[region], size, input_size, padded_size)
        score = F.interpolate(scores[:, index : index + 1].float(), size, mode="bilinear", align_corners=False)[0, 0]
        quality = torch.where(evidence > 0, evidence.sigmoid() * score, 0)
        label = torch.where(quality > best, index, label)
        best = torch.maximum(best, quality)
    return label[None], best[None]


# spatial_entropy


def spatial_entropy_published(features):
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
def spatial_entropy_careful(features):
    """The batch at once, compiled."""
    flat = features.float().flatten(2)
    deviation, _ = torch.std_mean(flat, 2, correction=0, keepdim=True)
    epsilon = (deviation.amin(1, keepdim=True) * 1e-2).clamp(min=1e-6)
    power = ((flat - flat.amax(2, keepdim=True)) / (deviation + epsilon)).exp()
    probability = torch.maximum(power / (power.sum(2, keepdim=True) + epsilon), epsilon)
    probability = probability / probability.sum(2, keepdim=True)
    return -(probability * probability.log()).sum(2).mean(1)
