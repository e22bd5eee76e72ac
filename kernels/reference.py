"""Every op in plain torch: the specification of the kernels and the path that CPU tensors take.

`s2clip.ops` has checked and normalised all arguments before they get here: defaults are filled in, class_index and
image_index are int64 tensors on the device of the data, batch axes are present. Each kernel file has launchers that
take exactly the arguments of the reference, under the same names and in the same order:

    recombined_attention   s2clip.kernels.recombined_attention.launch
    affinity_attention     s2clip.kernels.affinity_attention.launch
    progressive_affinity   s2clip.kernels.affinity_attention.launch_progressive
    label_components       s2clip.kernels.connected_components.launch_label
    measure_components     s2clip.kernels.component_statistics.launch_measure
    classify_pixels        s2clip.kernels.classify_pixels.launch
    class_scores           s2clip.kernels.classify_pixels.launch_scores
    merge_masks            s2clip.kernels.merge_masks.launch
    spatial_entropy        s2clip.kernels.spatial_entropy.launch

On CPU tensors merge_masks runs as s2clip.ops.cpu.merge_masks, whose work is bounded by the masks, unless
backend="torch" asks for the definition.

Results are new tensors, never views of an input. Arithmetic is done in at least fp32, and fp64 stays fp64. Attentions
and class_scores return the dtype of their values; confidences, scores and entropies stay in at least fp32. Images are
worked on one by one, so that a result is bitwise the same whatever else is in the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.kernels import precision
from s2clip.kernels.reference_components import label_components, measure_components

__all__ = [
    "affinity_attention",
    "class_scores",
    "classify_pixels",
    "label_components",
    "measure_components",
    "merge_masks",
    "progressive_affinity",
    "recombined_attention",
    "spatial_distribution",
    "spatial_entropy",
]
CHUNK = 1 << 21  # elements of [Q,rows,W] held at a time by the pixel ops: 8 MiB in fp32, about the size of an L2 cache


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[C,h,w] to [C,H,W], bilinear with align_corners=False."""
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


# Attention


def recombined_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: Sequence[str],
    weights: Sequence[float],
    scale: float,
    bias: Tensor | None,
) -> Tensor:
    """Σ_t w_t softmax(scale·X Yᵀ + bias) V over the terms t = "xy"; all [B,H,N,D], bias [N,N]."""
    dtype = precision.at_least_float32(value.dtype)
    output = torch.zeros(value.shape, dtype=dtype, device=value.device)
    offset = 0 if bias is None else bias.to(dtype)
    for image in range(value.shape[0]):
        tokens = {"q": query[image].to(dtype), "k": key[image].to(dtype), "v": value[image].to(dtype)}
        for (left, right), weight in zip(terms, weights, strict=True):
            attention = (scale * tokens[left] @ tokens[right].mT + offset).softmax(-1)
            output[image] += weight * (attention @ tokens["v"])
    return output.to(value.dtype)


def affinity_attention(
    features: Sequence[Tensor],
    value: Tensor,
    weights: Tensor,
    beta: float,
    gamma: float,
    mean: Tensor | None,
) -> Tensor:
    """softmax over {γ(S − β·mean S) ≥ 0} ∪ diagonal, times value resized to the grid of the features.

    features: S maps [B,H,W,C_s] of one dtype; weights [B,S], not negative, each row of sum 1; S = Σ_s w_s f̂^s f̂^sᵀ;
    value [B,h,w,D] bilinear to H×W; mean [B] or None; result [B,H,W,D] in the dtype of value.
    A vector of zeros stays zero. A NaN anywhere in the features of an image makes its whole result NaN.
    """
    batch, height, width = features[0].shape[:3]
    dtype = precision.at_least_float32(value.dtype)
    output = torch.zeros((batch, height, width, value.shape[-1]), dtype=value.dtype, device=value.device)
    if output.numel() == 0:
        return output
    for image in range(batch):
        unit = [_unit_rows(maps[image], dtype) for maps in features]
        similarity = sum(
            weight * (vectors @ vectors.mT) for weight, vectors in zip(weights[image].to(dtype), unit, strict=True)
        )
        centre = similarity.mean() if mean is None else mean[image].to(dtype)
        attention = _kept_softmax(similarity, centre, beta, gamma)
        resized = _resize(value[image].to(dtype).permute(2, 0, 1), (height, width))
        output[image] = (attention @ resized.flatten(1).mT).unflatten(0, (height, width)).to(value.dtype)
    return output


def progressive_affinity(features: Tensor, values: Tensor, scores: Tensor, beta: float, gamma: float) -> Tensor:
    """Σ_l ω_l T_l, ω the softmax of the scores [B,S], T_l the affinity attention of maps up to l on the values of l.

    features [S,B,H,W,C], values [S,B,H,W,D], result [B,H,W,D] in the dtype of values. The weights of the maps up to l
    are the softmax of their scores, so that S_l = (1 − r_l) S_{l−1} + r_l f̂^l f̂^lᵀ with r_l the last of these weights.
    """
    levels, batch, height, width = features.shape[:4]
    dtype = precision.at_least_float32(values.dtype)
    output = torch.zeros((batch, height, width, values.shape[-1]), dtype=values.dtype, device=values.device)
    if output.numel() == 0 or levels == 0:
        return output
    weights = scores.to(dtype).softmax(1)
    shares = (scores.to(dtype) - scores.to(dtype).logcumsumexp(1)).exp()
    for image in range(batch):
        total, similarity = 0, 0
        for level in range(levels):
            unit, share = _unit_rows(features[level, image], dtype), shares[image, level]
            similarity = (1 - share) * similarity + share * (unit @ unit.mT)
            attention = _kept_softmax(similarity, similarity.mean(), beta, gamma)
            total = total + weights[image, level] * (attention @ values[level, image].to(dtype).flatten(0, 1))
        output[image] = total.unflatten(0, (height, width)).to(values.dtype)
    return output


def _unit_rows(maps: Tensor, dtype: torch.dtype) -> Tensor:
    """[H,W,C] to [H·W,C] of length 1; a vector of zeros stays zero."""
    return F.normalize(maps.to(dtype).flatten(0, 1), dim=-1)


def _kept_softmax(similarity: Tensor, centre: Tensor, beta: float, gamma: float) -> Tensor:
    raised = gamma * (similarity - beta * centre)
    removed = raised < 0
    removed.fill_diagonal_(False)
    return raised.masked_fill(removed, float("-inf")).softmax(-1)


# Pixels


def classify_pixels(
    logits: Tensor,
    size: tuple[int, int],
    scale: float,
    class_index: Tensor,
    classes: int,
    threshold: float,
    background: int,
) -> tuple[Tensor, Tensor]:
    """labels int32 and confidence [B,H,W]: first largest of class_scores, `background` where it is below the threshold.

    logits [B,Q,h,w]. Where an upsampled logit is not finite the label is −1 and the confidence NaN.
    """
    shape = (logits.shape[0], *size)
    labels = torch.empty(shape, dtype=torch.int32, device=logits.device)
    confidence = torch.empty(shape, dtype=precision.at_least_float32(logits.dtype), device=logits.device)
    for image, rows, scores in _score_strips(logits, size, scale, class_index, classes):
        best, label = scores.max(0)
        label = label.to(torch.int32).masked_fill(best < threshold, background)
        labels[image, rows] = label.masked_fill(best.isnan(), -1)
        confidence[image, rows] = best
    return labels, confidence


def class_scores(logits: Tensor, size: tuple[int, int], scale: float, class_index: Tensor, classes: int) -> Tensor:
    """[B,K,H,W]: max over the words q of class k of softmax over Q of scale·bilinear(logits [B,Q,h,w]).

    A class without words scores 0. Where an upsampled logit is not finite all scores are NaN.
    """
    output = torch.empty((logits.shape[0], classes, *size), dtype=logits.dtype, device=logits.device)
    for image, rows, scores in _score_strips(logits, size, scale, class_index, classes):
        output[image, :, rows] = scores.to(logits.dtype)
    return output


def _score_strips(logits: Tensor, size: tuple[int, int], scale: float, class_index: Tensor, classes: int):
    """Yields (image, slice of output rows, class scores [K,rows,W]), never more than CHUNK logits at a time."""
    dtype = precision.at_least_float32(logits.dtype)
    words = class_index.tolist()
    height, width = size
    step = max(1, CHUNK // (len(words) * width))
    for image in range(logits.shape[0]):
        maps = logits[image].to(dtype)
        whole = bool(maps.isfinite().all())
        for start in range(0, height, step):
            stop = min(start + step, height)
            strip = _resize(resized_rows(maps, height, start, stop), (stop - start, width))
            probability = (scale * strip).softmax(0)
            if words == list(range(classes)):
                scores = probability
            else:
                scores = probability.new_zeros((classes, *strip.shape[1:]))
                for word, index in enumerate(words):
                    torch.maximum(scores[index], probability[word], out=scores[index])
            if not whole:
                scores.masked_fill_(~strip.isfinite().all(0), float("nan"))
            yield image, slice(start, stop), scores


def resized_rows(maps: Tensor, height: int, start: int, stop: int) -> Tensor:
    """Rows start..stop−1 of maps [C,h,w] resized to `height` rows: [C,stop−start,w], bilinear."""
    rows = maps.shape[1]
    source = torch.arange(start, stop, dtype=maps.dtype, device=maps.device).add(0.5).mul(rows / height).sub(0.5)
    source = source.clamp(0, rows - 1)
    above = source.long()
    below = (above + 1).clamp(max=rows - 1)
    share = (source - above)[:, None]
    return maps[:, above] * (1 - share) + maps[:, below] * share


def merge_masks(
    mask_logits: Tensor,
    class_index: Tensor,
    image_index: Tensor,
    scores: Tensor,
    labels: Tensor,
    input_size: tuple[int, int],
    padded_size: int,
) -> tuple[Tensor, Tensor]:
    """Label map after SAM: (labels [B,H,W] int32, score [B,H,W] in at least fp32).

    mask_logits [R,m,m] → padded_size² → cut to input_size → (H,W), all bilinear: x_r. X_c = max x_r over the regions of
    class c in the image; Q_c = 1[X_c > 0]·σ(X_c)·scores_c, with scores [B,K,h,w] resized to (H,W). The label is the
    first argmax_c Q_c and the score its Q_c; where all Q_c are 0 the label stays and the score is 0. Where an X_c is
    NaN or a Q_c not finite, the label is −1 and the score NaN. Regions whose class or image does not exist are skipped.
    """
    dtype = torch.promote_types(precision.at_least_float32(mask_logits.dtype), scores.dtype)
    batch, classes = scores.shape[:2]
    size = tuple(labels.shape[1:])
    merged = torch.empty(labels.shape, dtype=torch.int32, device=labels.device).copy_(labels)
    best = torch.zeros(labels.shape, dtype=dtype, device=labels.device)
    if labels.numel() == 0:
        return merged, best

    regions: dict[tuple[int, int], list[int]] = {}
    for region, (image, index) in enumerate(zip(image_index.tolist(), class_index.tolist(), strict=True)):
        if 0 <= image < batch and 0 <= index < classes:
            regions.setdefault((image, index), []).append(region)
    for image, index in sorted(regions):  # classes in ascending order, so that the first of equal Q wins
        evidence = torch.full((1, *size), float("-inf"), dtype=dtype, device=labels.device)
        for region in regions[image, index]:
            padded = _resize(mask_logits[region].to(dtype)[None], (padded_size, padded_size))
            evidence = torch.maximum(evidence, _resize(padded[:, : input_size[0], : input_size[1]], size))
        score = _resize(scores[image, index].to(dtype)[None], size)
        quality = torch.where(evidence > 0, evidence.sigmoid() * score, 0)[0]
        quality = quality.masked_fill(evidence[0].isnan() | ~quality.isfinite(), float("nan"))
        better = ((quality > best[image]) | quality.isnan()) & ~best[image].isnan()
        merged[image].masked_fill_(better, index)
        best[image] = torch.where(better, quality, best[image])
    return merged.masked_fill_(best.isnan(), -1), best


# Entropy


def spatial_distribution(features: Tensor) -> Tensor:
    """[C,H,W] to [C,H·W]: per channel a distribution over positions, steps 2 to 8 of Algorithm 1.

    F̂ = (F − μ)/(σ + ε); P = exp(F̂ − max F̂)/(Σ exp + ε), clamped at ε from below and renormalised. μ and σ are those of
    the channel over its positions (σ of the population, not of a sample); ε = max(10⁻²·min σ, 10⁻⁶) with the smallest σ
    of the image's channels. The source takes the smallest σ of the whole batch, so that an image's entropy depends on
    the others in its batch; ours does not. As ε grows with σ, features of large σ (10⁻²·min σ above every P) are all
    clamped, and their entropy is log N.
    """
    flat = features.flatten(1).to(precision.at_least_float32(features.dtype))
    centred = flat - flat.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()  # torch.std_mean takes 20 times as long on the CPU
    epsilon = (deviation.amin() * 1e-2).clamp(min=1e-6)
    standard = centred / (deviation + epsilon)
    power = (standard - standard.amax(1, keepdim=True)).exp()
    probability = torch.maximum(power / (power.sum(1, keepdim=True) + epsilon), epsilon)
    return probability / probability.sum(1, keepdim=True)


def spatial_entropy(features: Tensor) -> Tensor:
    """[B,C,H,W] to [B], at least fp32: mean over channels of −Σ_n P_n log P_n; 0 where that is not finite."""
    entropy = torch.zeros(features.shape[0], dtype=precision.at_least_float32(features.dtype), device=features.device)
    if features.numel() == 0:
        return entropy
    for image in range(features.shape[0]):
        probability = spatial_distribution(features[image])
        entropy[image] = -(probability * probability.log()).sum(1).mean()
    return entropy.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
