"""Calls of every launcher that between them reach each configuration it can choose: what the compile gate compiles.

On meta tensors, with the memory orders and dtypes of the pipeline and of the documented calls. Sizes stand for a
bucket: `launch` picks tiles by them and compiles nothing for their value.
"""

import itertools
from collections.abc import Callable, Iterator

import torch

from s2clip.kernels import (
    affinity_attention,
    classify_pixels,
    component_statistics,
    connected_components,
    merge_masks,
    recombined_attention,
    spatial_entropy,
)

Calls = Iterator[tuple[str, Callable[[], object]]]
HALF, LONG = torch.float16, torch.int64
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
OPERATORS = (
    *("affinity_attention", "classify_pixels", "component_statistics", "connected_components"),
    *("merge_masks", "recombined_attention", "spatial_entropy"),
)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(operator: str) -> Calls:
    """(name, call) of one kernel module."""
    return globals()[f"_{operator}"]()


def _recombined_attention() -> Calls:
    """Four terms, and several with a bias, of fp32 or of wide heads, are a launch per term into fp32.

    442 tokens fill most of their last tile, 577 and 4097 leave one to it.
    """
    terms = ("qq", "kk", "vv", "qk")
    rows = [
        (size, dtype, count, False) for size, dtype in ((64, HALF), (80, HALF), (128, HALF)) for count in (1, 2, 3, 4)
    ]
    rows += [(size, HALF, count, True) for size in (64, 80, 128) for count in (1, 2)]
    rows += [(64, torch.bfloat16, 3, False), *((size, torch.float32, 1, True) for size in (64, 80, 128))]
    for (size, dtype, count, has_bias), tokens in itertools.product(rows, (442, 577, 4097)):
        query, key, value = meta(2, tokens, 3, 12, size, dtype=dtype).permute(2, 0, 3, 1, 4)
        bias = meta(tokens, tokens) if has_bias else None
        name = f"T{count} D{size} {NAMES[dtype]}{' bias' * has_bias} N{tokens}"
        yield (
            name,
            lambda given=(query, key, value, terms[:count], (0.5,) * count, 0.125, bias): recombined_attention.launch(
                *given
            ),
        )


def _affinity_attention() -> Calls:
    for dtype, name in NAMES.items():
        for side in (42, 64):
            features, fine, coarse = (meta(2, grid, grid, 768, dtype=dtype) for grid in (side, side, side // 2))
            for value, kind in ((fine, ""), (coarse, " folded")):
                yield (
                    f"{name} N{side**2}{kind}",
                    lambda given=([features], value): affinity_attention.launch(*given, meta(2, 1), 1.2, 3.0, None),
                )
        large = meta(1, 128, 128, 768, dtype=dtype)
        yield (
            f"{name} strips",
            lambda given=([large], large): affinity_attention.launch(*given, meta(1, 1), 1.2, 3.0, meta(1)),
        )
        levels = meta(7, 2, 442, 768, dtype=dtype)[:, :, 1:].unflatten(2, (21, 21))
        yield (
            f"{name} progressive",
            lambda levels=levels: affinity_attention.launch_progressive(levels, levels, meta(2, 7), 1.2, 3.0),
        )


def _classify_pixels() -> Calls:
    for dtype, name in NAMES.items():
        for size in ((375, 500), (42, 56)):  # four rows of pixels between two of logits, and fewer
            given = (meta(1, 46, 21, 28, dtype=dtype), size, 40.0, meta(46, dtype=LONG), 21)
            kind = f"{name} {size[0]}x{size[1]}"
            yield kind, lambda given=given: classify_pixels.launch(*given, 0.0, 0)
            yield kind, lambda given=given: classify_pixels.launch_scores(*given)


def _connected_components() -> Calls:
    """Class maps as the pipeline makes them (int32), torch.argmax (int64) and datasets (uint8)."""
    dtypes = {"i32": torch.int32, "i64": LONG, "u8": torch.uint8}
    for (name, dtype), ignore, connectivity in itertools.product(dtypes.items(), (None, 0), (8, 4)):
        given = (meta(2, 64, 64, dtype=dtype), connectivity, ignore)
        label = f"{name} {connectivity}{'' if ignore is None else ' ignore'}"
        yield label, lambda given=given: connected_components.launch_label(*given)


def _component_statistics() -> Calls:
    labels, count = meta(2, 64, 64, dtype=torch.int32), meta(2, dtype=torch.int32)
    kinds = [(dtype, torch.int32) for dtype in NAMES] + [(torch.float32, LONG), (torch.float32, torch.uint8)]
    for scores, class_map in kinds:
        given = (labels, meta(2, 64, 64, dtype=class_map), meta(2, 3, 64, 64, dtype=scores), count, 10)
        yield f"{NAMES[scores]} {class_map}", lambda given=given: component_statistics.launch_measure(*given)
    yield "moments", lambda: component_statistics.launch_moments(labels, count, 10)


def _merge_masks() -> Calls:
    """Labels as `classify_pixels` writes them, or as the pipeline hands them on: in int64, with scores in fp32."""
    sizes = {"4 rows": ((225, 300), 1024), "8 rows": ((768, 1024), 1024), "own taps": ((225, 300), 300)}
    for (dtype, name), (kind, valid) in itertools.product(NAMES.items(), sizes.items()):
        for scores, labels in ((dtype, torch.int32), (torch.float32, LONG)):
            given = (
                *(meta(10, 256, 256, dtype=dtype), meta(10, dtype=LONG), meta(10, dtype=LONG)),
                *(meta(1, 21, 187, 250, dtype=scores), meta(1, 375, 500, dtype=labels), *valid),
            )
            yield f"{name} {kind}, labels {labels}", lambda given=given: merge_masks.launch(*given)


def _spatial_entropy() -> Calls:
    for dtype, name in NAMES.items():
        maps = meta(2, 768, 21, 21, dtype=dtype)
        yield f"{name} maps", lambda maps=maps: spatial_entropy.launch(maps)
        tokens = meta(2, 442, 768, dtype=dtype)[:, 1:].unflatten(1, (21, 21)).permute(0, 3, 1, 2)
        yield f"{name} tokens", lambda tokens=tokens: spatial_entropy.launch(tokens)
