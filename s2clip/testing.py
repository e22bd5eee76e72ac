"""What tests and benches share: inputs, and assertions whose tolerances come from the data.

A kernel is held to three numbers computed from one specification: `truth` is the reference in fp64, `eager` is the same
formula computed by torch in the kernel's own dtype without promotion, and `actual` is the kernel's result.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from s2clip.kernels import precision

# Inputs


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device="cpu") -> Tensor:
    """Standard normal numbers, the same on every device: drawn on the CPU in fp32, rounded to dtype, moved."""
    return torch.randn(shape, generator=generator(seed)).to(device, dtype)


def integers(high: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int64, device="cpu") -> Tensor:
    """Integers 0..high−1."""
    return torch.randint(high, shape, generator=generator(seed)).to(device, dtype)


def probabilities(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device="cpu") -> Tensor:
    """[B,K,H,W] with sums of 1 over K."""
    return normal(*shape, seed=seed).softmax(1).to(device, dtype)


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """The same values in memory orders that a kernel with a wrong stride gets wrong; spare memory is poisoned."""
    last = max(tensor.ndim - 1, 0)
    padded = _poisoned([size + 3 for size in tensor.shape], tensor)
    inner = padded[tuple(slice(1, size + 1) for size in tensor.shape)].copy_(tensor)
    strided = _poisoned([*tensor.shape[:last], 2 * tensor.shape[last]], tensor)[..., ::2].copy_(tensor)
    offset = _poisoned([tensor.numel() + 5], tensor)[5:].view(tensor.shape).copy_(tensor)
    return {
        "contiguous": tensor.contiguous(),
        "transposed": tensor.transpose(0, last).contiguous().transpose(0, last),
        "sliced": inner,
        "strided": strided,
        "offset": offset,
    }


def expanded(tensor: Tensor) -> dict[str, Tensor]:
    """Values that repeat along the first axis, and along all, as views of stride 0 with poison behind them.

    What reads such a view as if it were contiguous gets the poison. Compare with the same call on `.contiguous()`.
    """
    views = {}
    for name, kept in (("one row", tensor[:1]), ("one number", tensor[(slice(0, 1),) * tensor.ndim])):
        store = _poisoned([kept.numel() + tensor.numel()], tensor)
        views[name] = store[: kept.numel()].view(kept.shape).copy_(kept).expand(tensor.shape)
    return views


def _poisoned(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.full(tuple(shape), poison(like.dtype), dtype=like.dtype, device=like.device)


def poison(dtype: torch.dtype) -> float | int | bool:
    """A value that shows: NaN, or an integer far from every label, index and area."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max - 86


def checkerboard(height: int, width: int) -> Tensor:
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2


def comb(height: int, width: int) -> Tensor:
    """Teeth that only the last row joins: every label but one is provisional until the end."""
    map_ = (torch.arange(width) % 2 == 0).long().expand(height, width).clone()
    map_[-1] = 1
    return map_


def snake(height: int, width: int) -> Tensor:
    """One path that runs to and fro over the whole map: length about height·width/2."""
    map_ = torch.zeros(height, width, dtype=torch.int64)
    map_[::2] = 1
    map_[1::4, -1] = 1
    map_[3::4, 0] = 1
    return map_


def spiral(height: int, width: int) -> Tensor:
    """One path from a corner inwards, one pixel wide, with one pixel between its turns."""
    path = np.pad(np.zeros((height, width), dtype=np.int64), 2)
    y, x, dy, dx = 2, 2, 0, 1
    path[y, x] = 1
    turns = 0
    while turns < 2:
        inside = 2 <= y + dy < height + 2 and 2 <= x + dx < width + 2
        if inside and not path[y + dy, x + dx] and not path[y + 2 * dy, x + 2 * dx]:
            y, x, turns = y + dy, x + dx, 0
            path[y, x] = 1
        else:
            dy, dx, turns = dx, -dy, turns + 1
    return torch.from_numpy(path[2:-2, 2:-2].copy())


# Assertions


@contextmanager
def computed_in_own_dtype() -> Iterator[None]:
    """Within, the references do not promote: what torch itself makes of the formula in fp16, bf16 or fp32."""
    promote = precision.at_least_float32
    precision.at_least_float32 = lambda dtype: dtype
    try:
        yield
    finally:
        precision.at_least_float32 = promote


def in_float64(value):
    """Floating tensors in fp64, also within lists and tuples; everything else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(map(in_float64, value)) if isinstance(value, list | tuple) else value


def assert_within_budget(
    actual: Tensor, specification: Callable, *arguments, output: int | None = None, factor: float = 2.0
) -> None:
    """max|actual − truth| ≤ factor·max|eager − truth| + one rounding (ε of actual's dtype) of the largest |truth|.

    specification: a function of `s2clip.kernels.reference`; arguments: what it takes, in the kernel's dtype.
    output: which of several results; default the only one. NaN and infinities have to be where the truth has them.
    """
    truth = specification(*in_float64(list(arguments)))
    with computed_in_own_dtype():
        eager = specification(*arguments)
    if output is not None:
        truth, eager = truth[output], eager[output]
    assert actual.shape == truth.shape, f"shape {list(actual.shape)}, expected {list(truth.shape)}"
    plain = truth.isfinite()
    assert torch.equal(actual.isnan(), truth.isnan()), "NaN in other places than in the fp64 reference"
    assert torch.equal(actual.double()[~plain].nan_to_num(nan=0), truth[~plain].nan_to_num(nan=0)), "other infinities"
    if not plain.any():
        return
    truth = truth[plain]
    kernel_error = (actual.double()[plain] - truth).abs().max().item()
    eager_error = (eager.double()[plain] - truth).abs().nan_to_num(nan=0.0, posinf=0.0).max().item()
    rounding = torch.finfo(actual.dtype).eps * truth.abs().max().item()
    report = f"error {kernel_error:.3e}, of torch in {eager.dtype} {eager_error:.3e}, one rounding {rounding:.3e}"
    print(report)
    assert kernel_error <= factor * eager_error + rounding, report


def assert_same_formula(actual: Tensor, expected: Tensor, *, scale: float | None = None) -> None:
    """max|actual − expected| ≤ 1e-9·scale, of two ways to compute one formula in fp64; scale: default max|expected|.

    1e-9 is 4.5 million roundings of fp64: no order of sums, which is the processor's, comes near (small networks of
    random weights stay under 1e-12), and a formula that differs does not pass for rounding, as it can in fp32.
    """
    for name, tensor in (("actual", actual), ("expected", expected)):
        assert tensor.dtype == torch.float64, f"{name}: expected float64, received {tensor.dtype}"
    scale = expected.abs().max().item() if scale is None and expected.numel() else scale or 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * scale)


def confidence_rounding(logit_scale: float) -> float:
    """4·logit_scale·ε of fp32: how far two orders of sums put a confidence, softmax(logit_scale·cosine), apart.

    A cosine of unit vectors is right to a few ε, and the softmax changes by at most half of what its logits do.
    """
    return 4 * logit_scale * torch.finfo(torch.float32).eps


def assert_labels_equal_by_margin(
    actual: Tensor,
    expected: Tensor,
    scores: Tensor,
    *,
    margin: float,
    threshold: float = 0.0,
    share: float = 0.01,
) -> None:
    """Labels [B,H,W] agree wherever scores [B,K,H,W] (fp64) leave no doubt, and differ on at most `share` of pixels.

    A different label passes if its own score is within margin of the best one, or if the best one is within margin of
    the threshold (the label may then be any background).
    """
    wrong = (actual != expected).nonzero(as_tuple=True)
    if wrong[0].numel() == 0:
        return
    scores = scores.double().movedim(1, -1)[wrong]
    best = scores.amax(-1)
    label = actual[wrong].long()
    known = (label >= 0) & (label < scores.shape[-1])
    own = scores.gather(1, label.where(known, 0)[:, None]).squeeze(1).where(known, -torch.inf)
    doubtful = (best - own <= margin) | ((best - threshold).abs() <= margin)
    report = (
        f"{label.numel()} of {actual.numel()} labels differ, {int((~doubtful).sum())} beyond the margin {margin:.1e}"
    )
    print(report)
    assert doubtful.all(), report
    assert label.numel() <= max(1, share * actual.numel()), report
