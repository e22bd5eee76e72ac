"""Every op in plain torch: the specification of the kernels and the path that CPU tensors take.

`s2clip.ops` has checked and normalised all arguments before they get here: defaults are filled in, class_index and
image_index are int64 tensors on the device of the data, batch axes are present. Each kernel file has launchers that
take exactly the arguments of the reference, under the same names and in the same order:

    recombined_attention   s2clip.kernels.recombined_attention.launch
    affinity_attention     s2clip.kernels.affinity_attention.launch
    label_components       s2clip.kernels.connected_components.launch_label
    measure_components     s2clip.kernels.component_statistics.launch_measure
    classify_pixels        s2clip.kernels.classify_pixels.launch
    class_scores           s2clip.kernels.classify_pixels.launch_scores
    merge_masks            s2clip.kernels.merge_masks.launch
    spatial_entropy        s2clip.kernels.spatial_entropy.launch

On CPU tensors merge_masks runs as s2clip.kernels.cpu.merge_masks, whose work is bounded by the masks, unless
backend="torch" asks for the definition.

Results are new tensors, never views of an input. Arithmetic is done in at least fp32, and fp64 stays fp64. Attentions
and class_scores return the dtype of their values; confidences, scores and entropies stay in at least fp32. Images are
worked on one by one, so that a result is bitwise the same whatever else is in the batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 21  # elements of [Q,rows,W] held at a time by the pixel ops: 8 MiB in fp32, about the size of an L2 cache


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


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
    dtype = _at_least_float32(value.dtype)
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
    dtype = _at_least_float32(value.dtype)
    output = torch.zeros((batch, height, width, value.shape[-1]), dtype=value.dtype, device=value.device)
    if output.numel() == 0:
        return output
    for image in range(batch):
        unit = [F.normalize(maps[image].to(dtype).flatten(0, 1), dim=-1) for maps in features]
        similarity = sum(
            weight * (vectors @ vectors.mT) for weight, vectors in zip(weights[image].to(dtype), unit, strict=True)
        )
        centre = similarity.mean() if mean is None else mean[image].to(dtype)
        raised = gamma * (similarity - beta * centre)
        removed = raised < 0
        removed.fill_diagonal_(False)
        attention = raised.masked_fill(removed, float("-inf")).softmax(-1)
        resized = _resize(value[image].to(dtype).permute(2, 0, 1), (height, width))
        output[image] = (attention @ resized.flatten(1).mT).unflatten(0, (height, width)).to(value.dtype)
    return output


# Components


def label_components(class_map: Tensor, connectivity: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Components of equal class, numbered per image in raster order of first pixels: labels [B,H,W], count [B], int32.

    Horizontal runs of one class are the nodes; two runs of neighbouring rows that touch are an edge. In each round
    every root takes the smallest root it shares an edge with as parent, then pointers are doubled until all point to
    roots: rounds grow with the logarithm of the number of runs, not with the length of a spiral. The root of a
    component is its first run in raster order, so counting the roots numbers the components.

    An image with a negative class other than ignore_index gets count −1 and labels 0; `ops` raises where it can look.
    """
    batch = class_map.shape[0]
    device = class_map.device
    if class_map.numel() == 0:
        return torch.zeros(class_map.shape, dtype=torch.int32, device=device), torch.zeros(
            batch, dtype=torch.int32, device=device
        )

    flat = class_map.flatten()
    starts = torch.ones(class_map.shape, dtype=torch.bool, device=device)
    starts[..., 1:] = class_map[..., 1:] != class_map[..., :-1]
    runs = starts.flatten().cumsum(0) - 1
    roots = _union(*_touching_runs(class_map, runs, starts, connectivity), nodes=int(runs[-1]) + 1)

    first = starts.flatten().nonzero().squeeze(1)
    run_class = flat[first]
    run_image = first // class_map[0].numel()
    counted = roots == torch.arange(roots.numel(), device=device)
    if ignore_index is not None:
        counted &= run_class != ignore_index
    count = run_image[counted].bincount(minlength=batch)
    before = count.cumsum(0) - count
    label = torch.where(counted, counted.cumsum(0) - before[run_image], 0)[roots].to(torch.int32)

    if class_map.dtype.is_signed:
        wrong = run_class < 0 if ignore_index is None else (run_class < 0) & (run_class != ignore_index)
        wrong = run_image[wrong].bincount(minlength=batch) > 0
        count = count.masked_fill(wrong, -1)
        label = label.masked_fill(wrong[run_image], 0)
    return label.index_select(0, runs).view(class_map.shape), count.to(torch.int32)


def _touching_runs(class_map: Tensor, runs: Tensor, starts: Tensor, connectivity: int) -> tuple[Tensor, Tensor]:
    """Pairs (run, run of the row above) that hold the same class and touch; every touching pair at least once."""
    width = class_map.shape[2]
    vertical, falling, rising = torch.zeros((3, *class_map.shape), dtype=torch.bool, device=class_map.device)
    vertical[:, 1:] = class_map[:, 1:] == class_map[:, :-1]
    touching = [(vertical & (starts | starts.roll(1, 1)), width)]  # once per pair: where the later of the two starts
    if connectivity == 8:  # a diagonal counts only where the pixel above has not made the pair already
        falling[:, 1:, 1:] = (class_map[:, 1:, 1:] == class_map[:, :-1, :-1]) & ~vertical[:, 1:, 1:]
        rising[:, 1:, :-1] = (class_map[:, 1:, :-1] == class_map[:, :-1, 1:]) & ~vertical[:, 1:, :-1]
        touching += [(falling, width + 1), (rising, width - 1)]
    pixels = [(mask.flatten().nonzero().squeeze(1), back) for mask, back in touching]
    return torch.cat([runs[pixel] for pixel, _ in pixels]), torch.cat([runs[pixel - back] for pixel, back in pixels])


def _union(left: Tensor, right: Tensor, nodes: int) -> Tensor:
    """The smallest node of each node's component, from edges (left, right)."""
    parent = torch.arange(nodes, device=left.device)
    while left.numel():
        parent.scatter_reduce_(0, torch.maximum(left, right), torch.minimum(left, right), "amin")
        while True:
            grandparent = parent[parent]
            if torch.equal(grandparent, parent):
                break
            parent = grandparent
        left, right = parent[left], parent[right]
        apart = left != right
        left, right = left[apart], right[apart]
    return parent


def measure_components(
    labels: Tensor, class_map: Tensor, scores: Tensor, count: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(image_index, class_index, label, area, box, score, point) of labels 1..count[b] of each image, rows = Σ count.

    labels, class_map [B,H,W]; scores [B,C,H,W]; count [B]. A pixel's own score is scores[b, class_map[b,y,x], y, x],
    and NaN where that class is not in 0..C−1. score [rows] is the mean of the own scores, in at least fp32, each first
    rounded to a multiple of 2^−s with s = 47 − bit length of H·W, at most 32: the sum of integers is the same in every
    order, and H·W of them up to 2^16 fit 63 bits. It is NaN if an own score is not finite or beyond ±65,504. point
    [rows,2] is the (x, y) of the largest finite own score, first in raster order on ties; the first pixel if none is
    finite. box [rows,4] is x0, y0, x1, y1, inclusive. All but score are int32. Labels outside 1..count are skipped. A
    label without pixels has area 0, class −1, box (W, H, −1, −1), score NaN, point (−1, −1). A label over several
    classes, which label_components never makes, gets the largest class.

    What is scattered to the labels are horizontal runs, of which there are far fewer than pixels.
    """
    batch, height, width = labels.shape
    device = labels.device
    count = count.long()
    offset = count.cumsum(0) - count
    image_index = torch.arange(batch, device=device).repeat_interleave(count, output_size=rows)

    def column(start: float, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.full((rows + 1,), start, dtype=dtype, device=device)  # the last row takes what is skipped

    area, classes, right, bottom = column(0), column(-1), column(-1), column(-1)
    left, top, first = column(width), column(height), column(height * width)
    total, unusable, peak = column(0), column(0), column(float("-inf"), _at_least_float32(scores.dtype))
    bits = min(32, 47 - (height * width).bit_length())
    for image in range(batch if labels.numel() else 0):
        start, length = _runs(labels[image], class_map[image])
        own = _own_scores(scores[image], class_map[image].flatten()).to(peak.dtype)
        usable = own.abs() <= 65_504
        fixed = (own.double() * 2.0**bits + 0.5).floor().masked_fill(~usable, 0).long()
        own = own.masked_fill(~own.isfinite(), float("-inf"))

        label = labels[image].flatten()[start].long()
        row = torch.where((label >= 1) & (label <= count[image]), label - 1 + offset[image], rows)
        area.index_add_(0, row, length)
        total.index_add_(0, row, _sums(fixed, start))
        unusable.index_add_(0, row, _sums((~usable).long(), start))
        classes.scatter_reduce_(0, row, class_map[image].flatten()[start].long(), "amax")
        left.scatter_reduce_(0, row, start % width, "amin")
        right.scatter_reduce_(0, row, (start + length - 1) % width, "amax")
        top.scatter_reduce_(0, row, start // width, "amin")
        bottom.scatter_reduce_(0, row, start // width, "amax")
        peak.scatter_reduce_(0, row, torch.segment_reduce(own, "max", lengths=length), "amax")
        best = (own == peak[row].repeat_interleave(length)).nonzero().squeeze(1)
        first.scatter_reduce_(0, row[torch.searchsorted(start, best, right=True) - 1], best, "amin")

    everything = (area, classes, left, top, right, bottom, first, total, unusable)
    area, classes, left, top, right, bottom, first, total, unusable = (values[:rows] for values in everything)
    label = torch.arange(rows, device=device) - offset[image_index] + 1
    box = torch.stack([left, top, right, bottom], 1)
    point = torch.stack([first % max(width, 1), first // max(width, 1)], 1).where(area[:, None] > 0, -1)
    integers = [column.to(torch.int32) for column in (image_index, classes, label, area, box, point)]
    mean = (total.double() / area / 2.0**bits).masked_fill(unusable > 0, float("nan"))
    return *integers[:5], mean.to(peak.dtype), integers[5]


def _runs(labels: Tensor, class_map: Tensor) -> tuple[Tensor, Tensor]:
    """(first pixels, lengths) of the stretches of a row on which both maps [H,W] are constant."""
    starts = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
    starts[:, 1:] = (labels[:, 1:] != labels[:, :-1]) | (class_map[:, 1:] != class_map[:, :-1])
    first = starts.flatten().nonzero().squeeze(1)
    return first, first.diff(append=first.new_tensor([starts.numel()]))


def _own_scores(scores: Tensor, class_map: Tensor) -> Tensor:
    """scores [C,H,W] of each pixel's class [H·W]; NaN where that is not in 0..C−1."""
    known = (class_map >= 0) & (class_map < len(scores))
    if len(scores) == 1:
        own = scores.flatten()
    else:
        own = scores.flatten(1).gather(0, class_map.long().where(known, 0)[None]).squeeze(0)
    return own.masked_fill(~known, float("nan"))


def _sums(values: Tensor, start: Tensor) -> Tensor:
    """Sums of int64 values [n] from each start to the next: differences of one running sum, exact as integers are."""
    until = F.pad(values.cumsum(0), (1, 0))
    return until[start].diff(append=until[-1:])


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
    confidence = torch.empty(shape, dtype=_at_least_float32(logits.dtype), device=logits.device)
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
    dtype = _at_least_float32(logits.dtype)
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
    dtype = torch.promote_types(_at_least_float32(mask_logits.dtype), scores.dtype)
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
    flat = features.flatten(1).to(_at_least_float32(features.dtype))
    centred = flat - flat.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()  # torch.std_mean takes 20 times as long on the CPU
    epsilon = (deviation.amin() * 1e-2).clamp(min=1e-6)
    standard = centred / (deviation + epsilon)
    power = (standard - standard.amax(1, keepdim=True)).exp()
    probability = torch.maximum(power / (power.sum(1, keepdim=True) + epsilon), epsilon)
    return probability / probability.sum(1, keepdim=True)


def spatial_entropy(features: Tensor) -> Tensor:
    """[B,C,H,W] to [B], at least fp32: mean over channels of −Σ_n P_n log P_n; 0 where that is not finite."""
    entropy = torch.zeros(features.shape[0], dtype=_at_least_float32(features.dtype), device=features.device)
    if features.numel() == 0:
        return entropy
    for image in range(features.shape[0]):
        probability = spatial_distribution(features[image])
        entropy[image] = -(probability * probability.log()).sum(1).mean()
    return entropy.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
