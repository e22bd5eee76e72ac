"""Ops that decide on pixels: from logits of words, and from masks of regions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from s2clip.ops import checks, cpu
from s2clip.ops.registry import Op

NO_BACKGROUND = -1


def classify_pixels(
    logits: Tensor,
    size: tuple[int, int],
    *,
    scale: float = 40.0,
    class_index: Sequence[int] | Tensor | None = None,
    threshold: float = 0.0,
    background: int | None = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """label = first argmax_k s_k, confidence = max_k s_k; s_k = max over words q of k of softmax_Q(scale·logit)_q.

    logits: [B,Q,h,w] cosines of Q words, any float dtype; upsampled to size = (H,W) (bilinear, align_corners=False).
    class_index: [Q], the class 0..K−1 of each word, K = the largest + 1; default word q is class q. Give a list or a
        CPU tensor where you can: to check a GPU tensor takes a host read.
    threshold: 0 to 1; where the confidence is below it the label is `background`, the class id of the ground, which
        may lie beyond K (255, say). background=None forbids a threshold above 0.
    Returns labels int32 [B,H,W] and confidence [B,H,W] in at least fp32. [B,Q,H,W] is never held.
    Raises ValueError for other shapes, dtypes, devices, class ids, and on the CPU for logits that are not finite. On
    the GPU pixels touched by such a logit get label −1 and confidence NaN; look for them when the result is copied.
    """
    size = _check_logits(logits, size)
    class_index, classes = _word_classes(class_index, logits)
    threshold = checks.number("threshold", threshold, 0.0, 1.0)
    if background is None:
        if threshold > 0:
            checks.fail("threshold", "0, because background is None", threshold)
        background = NO_BACKGROUND
    else:
        background = checks.class_id("background", background)
    scale = checks.number("scale", scale)
    return _classify_pixels(backend, logits, logits, size, scale, class_index, classes, threshold, background)


def _classify(
    run: Callable[..., tuple[Tensor, Tensor]],
    logits: Tensor,
    size: tuple[int, int],
    scale: float,
    class_index: Tensor | None,
    classes: int | None,
    threshold: float,
    background: int,
) -> tuple[Tensor, Tensor]:
    if logits.device.type == "cpu":
        checks.finite("logits", logits)
    class_index, classes = _resolve_words(class_index, classes, logits)
    return run(logits, size, scale, class_index, classes, threshold, background)


_classify_pixels: Op[tuple[Tensor, Tensor]] = Op(
    "classify_pixels",
    "(Tensor logits, SymInt[] size, float scale, Tensor? class_index, SymInt? classes, float threshold, int background)"
    " -> (Tensor, Tensor)",
    fake=lambda logits, size, *_: (
        logits.new_empty((logits.shape[0], *size), dtype=torch.int32),
        logits.new_empty((logits.shape[0], *size), dtype=torch.promote_types(logits.dtype, torch.float32)),
    ),
    body=_classify,
    on_cpu=cpu.classify_pixels,
)


def class_scores(
    logits: Tensor,
    size: tuple[int, int],
    *,
    scale: float = 40.0,
    class_index: Sequence[int] | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """[B,K,H,W]: the s_k of `classify_pixels`, for its arguments; in the dtype of logits.

    A class without words scores 0. Where an upsampled logit is not finite all scores of the pixel are NaN.
    """
    size = _check_logits(logits, size)
    class_index, classes = _word_classes(class_index, logits)
    return _class_scores(backend, logits, logits, size, checks.number("scale", scale), class_index, classes)


def _scores(
    run: Callable[..., Tensor],
    logits: Tensor,
    size: tuple[int, int],
    scale: float,
    class_index: Tensor | None,
    classes: int | None,
) -> Tensor:
    class_index, classes = _resolve_words(class_index, classes, logits)
    return run(logits, size, scale, class_index, classes)


def _scores_fake(
    logits: Tensor, size: tuple[int, int], scale: float, class_index: Tensor | None, classes: int | None
) -> Tensor:
    planes = torch.library.get_ctx().new_dynamic_size() if classes is None else classes
    return logits.new_empty((logits.shape[0], planes, *size))


_class_scores: Op[Tensor] = Op(
    "class_scores",
    "(Tensor logits, SymInt[] size, float scale, Tensor? class_index, SymInt? classes) -> Tensor",
    fake=_scores_fake,
    body=_scores,
    launcher="classify_pixels:launch_scores",
)


def _check_logits(logits: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    checks.tensor("logits", logits, "[B,Q,h,w]", checks.FLOATS)
    checks.not_empty("logits", logits, (1, 2, 3), "Q, h and w")
    return checks.pair("size", size)


def _word_classes(class_index: Sequence[int] | Tensor | None, logits: Tensor) -> tuple[Tensor | None, int | None]:
    """class_index and K; K is None where it has to be read from a tensor, which is left to the op's body."""
    words = logits.shape[1]
    if class_index is None:
        return None, words
    if isinstance(class_index, Tensor):
        return checks.indices("class_index", class_index, words, "Q"), None
    index = checks.indices("class_index", class_index, words, "Q")
    if min(class_index) < 0:
        checks.fail("class_index", "class ids of at least 0", min(class_index))
    return index, int(max(class_index)) + 1


def _resolve_words(class_index: Tensor | None, classes: int | None, logits: Tensor) -> tuple[Tensor, int]:
    if class_index is None:
        return torch.arange(logits.shape[1], device=logits.device), logits.shape[1]
    if classes is None:
        lowest, highest = (int(bound) for bound in class_index.cpu().long().aminmax())
        if lowest < 0:
            checks.fail("class_index", "class ids of at least 0", lowest)
        classes = highest + 1
    return class_index.to(logits.device, torch.int64, non_blocking=True), classes


def merge_masks(
    mask_logits: Tensor,
    class_index: Tensor | Sequence[int],
    image_index: Tensor | Sequence[int],
    scores: Tensor,
    labels: Tensor,
    *,
    input_size: tuple[int, int],
    padded_size: int = 1024,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """label = first argmax_c Q_c, the old label where all Q_c are 0; Q_c = 1[X_c > 0]·σ(X_c)·scores_c, X_c = max_r x_r.

    mask_logits: [R,m,m], SAM's low-resolution logits of the accepted regions; x_r is the region's map resized to
        padded_size², cut to input_size = (height, width) of SAM's valid area, resized to (H,W); all bilinear.
    class_index, image_index: [R], the class 0..K−1 and the image 0..B−1 of each region; the max is over the regions of
        one class in one image.
    scores: [B,K,h,w], resized (bilinear) to (H,W). labels: [B,H,W], any integer dtype.
    Returns labels int32 [B,H,W] and score [B,H,W], the Q of the new label in at least fp32, 0 where the old one stayed.
    Neither [R,H,W] nor [K,H,W] is held.
    Raises ValueError for other shapes, dtypes, devices, and on the CPU for indices out of range and values that are not
    finite. On the GPU regions out of range are skipped, and pixels where an X_c is NaN or a Q_c is not finite get label
    −1 and score NaN.

    Source: the merging step of Trident (arXiv:2411.09219), without its per-region maps.
    """
    checks.tensor("mask_logits", mask_logits, "[R,m,m]", checks.FLOATS)
    regions, side = mask_logits.shape[:2]
    checks.shape("mask_logits", mask_logits, (regions, side, side), "[R,m,m]")
    checks.not_empty("mask_logits", mask_logits, (1,), "m")
    checks.tensor("scores", scores, "[B,K,h,w]", checks.FLOATS)
    checks.like("scores", scores, "mask_logits", mask_logits, dtype=False)
    checks.not_empty("scores", scores, (1, 2, 3), "K, h and w")
    checks.tensor("labels", labels, "[B,H,W]", checks.INTEGERS)
    checks.like("labels", labels, "mask_logits", mask_logits, dtype=False)
    if labels.shape[0] != scores.shape[0]:
        checks.fail("labels", f"[B,H,W] with B = {scores.shape[0]} as scores", list(labels.shape))
    class_index = checks.indices("class_index", class_index, regions, "R")
    image_index = checks.indices("image_index", image_index, regions, "R")
    for name, index in (("class_index", class_index), ("image_index", image_index)):
        if index.device.type != "cpu":
            checks.like(name, index, "mask_logits", mask_logits, dtype=False)
    padded_size = checks.pair("padded_size", (padded_size, padded_size))[0]
    input_size = checks.pair("input_size", input_size, high=padded_size)
    return _merge_masks(
        backend, mask_logits, mask_logits, class_index, image_index, scores, labels, input_size, padded_size
    )


def _merge(
    run: Callable[..., tuple[Tensor, Tensor]],
    mask_logits: Tensor,
    class_index: Tensor,
    image_index: Tensor,
    scores: Tensor,
    labels: Tensor,
    input_size: tuple[int, int],
    padded_size: int,
) -> tuple[Tensor, Tensor]:
    if mask_logits.device.type == "cpu":
        checks.finite("mask_logits", mask_logits)
        checks.finite("scores", scores)
        for name, index, size in (
            ("class_index", class_index, scores.shape[1]),
            ("image_index", image_index, scores.shape[0]),
        ):
            if bool(((index < 0) | (index >= size)).any()):
                checks.fail(name, f"indices 0..{size - 1}", index.tolist())
    class_index, image_index = (
        index.to(mask_logits.device, torch.int64, non_blocking=True) for index in (class_index, image_index)
    )
    return run(mask_logits, class_index, image_index, scores, labels, input_size, padded_size)


_merge_masks: Op[tuple[Tensor, Tensor]] = Op(
    "merge_masks",
    "(Tensor mask_logits, Tensor class_index, Tensor image_index, Tensor scores, Tensor labels, SymInt[] input_size,"
    " SymInt padded_size) -> (Tensor, Tensor)",
    fake=lambda mask_logits, class_index, image_index, scores, labels, *_: (
        labels.new_empty(labels.shape, dtype=torch.int32),
        scores.new_empty(
            labels.shape, dtype=torch.promote_types(torch.promote_types(mask_logits.dtype, scores.dtype), torch.float32)
        ),
    ),
    body=_merge,
    on_cpu=cpu.merge_masks,
)
