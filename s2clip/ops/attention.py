"""Ops that mix tokens: recombined attention within CLIP, affinity attention between backbones."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s2clip.ops import checks, cpu
from s2clip.ops.registry import Op

TERMS = tuple(left + right for left in "qkv" for right in "qkv")


def recombined_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    terms: Sequence[str] = ("qq", "kk", "vv"),
    weights: Sequence[float] | None = None,
    scale: float | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Σ_t w_t softmax(scale·X Yᵀ + bias) V, the sum over terms t = "xy" with x and y among q, k, v.

    query, key, value: [B,H,N,D] of one dtype, fp16, bf16 or fp32 (fp64 by the reference), D from 16 to 128.
    terms: 1 to 4 different ones of "qq", "qk", "qv", "kq" … "vv".
    weights: one finite number per term; default 1/len(terms).
    scale: default D^(−1/2).
    bias: [N,N], shared by images, heads and terms, any float dtype; default none.
    Returns [B,H,N,D] in the dtype of value. NaN in an input propagates. No N×N matrix is held on the GPU.
    Raises ValueError for other shapes, dtypes, devices, terms or numbers of weights.

    Sources: "kk" of CLIPSurgery and ClearCLIP's "qq", sums of several as in SCLIP (arXiv:2312.01597) and GEM
    (arXiv:2312.00878), bias as in NACLIP (arXiv:2404.08181).
    """
    checks.tensor("query", query, "[B,H,N,D]", checks.FLOATS)
    for name, tensor in (("key", key), ("value", value)):
        checks.tensor(name, tensor, "[B,H,N,D]", checks.FLOATS)
        checks.like(name, tensor, "query", query)
        checks.shape(name, tensor, query.shape, "the shape of query [B,H,N,D]")
    tokens, size = query.shape[2:]
    if not 16 <= size <= 128:
        checks.fail("query", "a head size D from 16 to 128", f"D = {size}")
    terms = tuple(terms)
    if not 1 <= len(terms) <= 4 or len(set(terms)) != len(terms) or not set(terms).issubset(TERMS):
        checks.fail("terms", "1 to 4 different terms out of " + ", ".join(TERMS), terms)
    weights = _numbers("weights", weights, len(terms))
    scale = size**-0.5 if scale is None else checks.number("scale", scale)
    if bias is not None:
        checks.tensor("bias", bias, "[N,N]", checks.FLOATS)
        checks.like("bias", bias, "query", query, dtype=False)
        checks.shape("bias", bias, (tokens, tokens), "[N,N]")
    return _recombined_attention(backend, query, query, key, value, terms, weights, scale, bias)


_recombined_attention: Op[Tensor] = Op(
    "recombined_attention",
    "(Tensor query, Tensor key, Tensor value, str[] terms, float[] weights, float scale, Tensor? bias) -> Tensor",
    fake=lambda query, key, value, terms, weights, scale, bias: value.new_empty(value.shape),
)


def affinity_attention(
    features: Tensor | Sequence[Tensor],
    value: Tensor,
    *,
    weights: Sequence[float] | Tensor | None = None,
    beta: float = 1.2,
    gamma: float = 3.0,
    mean: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """A·resize(value), A = softmax over {j : γ(S_ij − β·mean S) ≥ 0} ∪ {i} of γ(S_ij − β·mean S), S = Σ_s w_s f̂^s f̂^sᵀ.

    features: one map [B,H,W,C] or a sequence of maps [B,H,W,C_s], all of one dtype; f̂ are their unit vectors, and a
        vector of zeros stays zero.
    value: [B,h,w,D] of the same dtype, resized to H×W (bilinear, align_corners=False).
    weights: one per map, or a tensor [B,S] with those of each image; not negative, of sum 1; default 1/S. A tensor on
        the GPU is taken as it is.
    beta, gamma: threshold in multiples of the mean, finite; inverse temperature, positive.
    mean: [B], in place of the mean of S of each image (Trident takes the mean over all windows of an image).
    Returns [B,H,W,D] in the dtype of value. The diagonal is always kept, so a flat image gives its own value and not
    NaN. NaN in the features of an image makes its whole result NaN; NaN in value propagates.
    Raises ValueError for other shapes, dtypes, devices or weights.

    Source: proxy attention of ProxyCLIP (arXiv:2408.04883), with the mean per image and the diagonal guarded.
    """
    features = [features] if isinstance(features, Tensor) else list(features)
    if not features:
        checks.fail("features", "at least one map [B,H,W,C]", "none")
    checks.tensor("value", value, "[B,h,w,D]", checks.FLOATS)
    for index, maps in enumerate(features):
        name = f"features[{index}]"
        checks.tensor(name, maps, "[B,H,W,C]", checks.FLOATS)
        checks.like(name, maps, "value", value)
        checks.shape(name, maps, (*features[0].shape[:3], maps.shape[3]), "[B,H,W,·] of features[0]")
    batch, height, width = features[0].shape[:3]
    if value.shape[0] != batch:
        checks.fail("value", f"[B,h,w,D] with B = {batch} as features", list(value.shape))
    if height * width > 0:
        checks.not_empty("value", value, (1, 2), "h and w")
    beta, gamma = checks.number("beta", beta), checks.number("gamma", gamma, low=0.0)
    if gamma == 0:
        checks.fail("gamma", "a positive number", gamma)
    if mean is not None:
        checks.tensor("mean", mean, "[B]", checks.FLOATS)
        checks.like("mean", mean, "value", value, dtype=False)
        checks.shape("mean", mean, (batch,), "[B]")
    weights = _image_weights(weights, features)
    return _affinity_attention(backend, value, features, value, weights, beta, gamma, mean)


def _image_weights(weights: Sequence[float] | Tensor | None, features: list[Tensor]) -> Tensor:
    """[B,S] on the device of the features, in at least fp32."""
    batch, terms, device = features[0].shape[0], len(features), features[0].device
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    if weights is None:
        return torch.full((batch, terms), 1 / terms, dtype=dtype, device=device)
    if isinstance(weights, Tensor):
        checks.tensor("weights", weights, "[B,S]", checks.FLOATS)
        checks.like("weights", weights, "features", features[0], dtype=False)
        checks.shape("weights", weights, (batch, terms), "[B,S]")
        return weights.to(dtype)
    weights = _numbers("weights", weights, terms)
    if min(weights) < 0 or abs(sum(weights) - 1) > 1e-4:
        checks.fail("weights", "numbers that are not negative and sum to 1", weights)
    return torch.tensor(weights, dtype=dtype).to(device, non_blocking=True).expand(batch, terms)


def _weigh_on_cpu(
    run: Callable[..., Tensor],
    features: list[Tensor],
    value: Tensor,
    weights: Tensor,
    beta: float,
    gamma: float,
    mean: Tensor | None,
) -> Tensor:
    if weights.device.type == "cpu" and weights.numel():
        wrong = (weights < 0).any() | ((weights.sum(1) - 1).abs() > 1e-2).any()
        if wrong or not weights.isfinite().all():
            checks.fail("weights", "rows that are not negative and sum to 1", weights.tolist())
    return run(features, value, weights, beta, gamma, mean)


_affinity_attention: Op[Tensor] = Op(
    "affinity_attention",
    "(Tensor[] features, Tensor value, Tensor weights, float beta, float gamma, Tensor? mean) -> Tensor",
    fake=lambda features, value, weights, beta, gamma, mean: value.new_empty((*features[0].shape[:3], value.shape[3])),
    body=_weigh_on_cpu,
    on_cpu=cpu.affinity_attention,
)


def progressive_affinity(
    features: Tensor | Sequence[Tensor],
    values: Tensor | Sequence[Tensor],
    scores: Tensor,
    *,
    beta: float = 1.2,
    gamma: float = 3.0,
    backend: str = "auto",
) -> Tensor:
    """Σ_l ω_l T_l, T_l the affinity attention of the maps up to l, weighted by their scores' softmax, on values[l].

    In full T_l = affinity_attention(features[:l], values[l], weights=softmax(scores[:, :l])); ω = softmax(scores).

    features: S maps [S,B,H,W,C], or a sequence of S maps [B,H,W,C], from shallow to deep: level l sees those up to l.
    values: S maps [S,B,H,W,D] or a sequence, of the dtype of features.
    scores: [B,S], any float dtype; how much a level counts, in nats.
    beta, gamma: as for `affinity_attention`.
    Returns [B,H,W,D] in the dtype of values. The similarity of level l is that of level l − 1 plus one product: S
    products, where a call of `affinity_attention` per level would take S(S+1)/2. NaN in the features or the scores of
    an image makes its whole result NaN; NaN in values propagates.
    Raises ValueError for other shapes, dtypes or devices.
    """
    features = _stacked("features", features)
    values = _stacked("values", values)
    checks.like("values", values, "features", features)
    levels, batch, height, width = features.shape[:4]
    checks.shape("values", values, (levels, batch, height, width, values.shape[4]), "[S,B,H,W,·] of features")
    if levels == 0:
        checks.fail("features", "at least one map [B,H,W,C]", "none")
    checks.tensor("scores", scores, "[B,S]", checks.FLOATS)
    checks.like("scores", scores, "features", features, dtype=False)
    checks.shape("scores", scores, (batch, levels), "[B,S]")
    beta, gamma = checks.number("beta", beta), checks.number("gamma", gamma, low=0.0)
    if gamma == 0:
        checks.fail("gamma", "a positive number", gamma)
    return _progressive_affinity(backend, features, features, values, scores, beta, gamma)


def _stacked(argument: str, maps: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(maps, Tensor):
        return checks.tensor(argument, maps, "[S,B,H,W,C]", checks.FLOATS)
    if not maps:
        checks.fail(argument, "at least one map [B,H,W,C]", "none")
    for index, one in enumerate(maps):
        checks.tensor(f"{argument}[{index}]", one, "[B,H,W,C]", checks.FLOATS)
        checks.like(f"{argument}[{index}]", one, f"{argument}[0]", maps[0])
        checks.shape(f"{argument}[{index}]", one, maps[0].shape, f"[B,H,W,C] of {argument}[0]")
    return torch.stack(tuple(maps))


_progressive_affinity: Op[Tensor] = Op(
    "progressive_affinity",
    "(Tensor features, Tensor values, Tensor scores, float beta, float gamma) -> Tensor",
    fake=lambda features, values, scores, beta, gamma: values.new_empty(values.shape[1:]),
    launcher="affinity_attention:launch_progressive",
)


def _numbers(argument: str, values: Sequence[float] | None, length: int) -> tuple[float, ...]:
    if values is None:
        return (1 / length,) * length
    if len(values) != length:
        checks.fail(argument, f"{length} numbers, one per term", list(values))
    return tuple(checks.number(argument, value) for value in values)
