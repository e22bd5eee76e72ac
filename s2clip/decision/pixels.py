"""Encoded picture and text vectors to a label map: cosines, softmax over the words, the choice of a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.decision import pamr, propagation, purification
from s2clip.decision.by_words import WordScores
from s2clip.decision.decided import Decision
from s2clip.decision.scores import DenseScores, LogitScores, ScoreMaps, take
from s2clip.encoding.encoded import Encoded
from s2clip.errors import reject
from s2clip.methods.method import Method
from s2clip.pictures.windows import resize


def decide_picture(
    encoded: Encoded,
    text: Tensor,
    class_index: tuple[int, ...],
    background: int | None,
    method: Method,
    *,
    with_scores: bool,
    clip=None,
    canvas: Tensor | None = None,
) -> Decision:
    """The shared decision about one picture: cosines with the text's unit rows [Q,C], PAMR, stages, then `decide`.

    clip: the `CLIPBackbone`, which the stages ask. canvas: the picture as windows were cut from it, for purification.
    """

    def maps(words: Sequence[int]) -> Tensor:
        cosines = cosine_maps(encoded, text if len(words) == len(text) else take(text, words))
        return along_edges(cosines, encoded, method) if method.pamr_iterations else cosines

    if method.purification is not None:
        assert canvas is not None, "the encoder keeps it for purification"
        of_windows = purification.window_cosines(encoded, text, method, clip.patch_size)
        return purification.decide(
            encoded, of_windows, text, class_index, background, method, clip, canvas, with_scores=with_scores
        )
    settings = (encoded.size, class_index, method, background)
    if method.propagation is not None:
        step = min(encoded.words_at_once or len(text), len(text))
        groups = [range(len(text))[start : start + step] for start in range(0, len(text), step)]
        cells = [propagation.pooled(maps(group)[0], encoded.size, method.propagation.grid) for group in groups]
        cosines = propagation.propagate(
            torch.cat(cells), encoded, text, method.propagation, clip.std, rounded=method.round_pixels
        )[None]
        labels, confidence = decide(cosines, *settings)
        return Decision(labels, confidence, score_maps(cosines, *settings) if with_scores else None)
    if encoded.words_at_once is not None and encoded.words_at_once < len(text):
        scores = WordScores(
            lambda words: maps(words)[0],
            encoded.size,
            scale=method.logit_scale,
            class_index=class_index,
            at_once=encoded.words_at_once,
            device=text.device,
        )
        labels, confidence = scores.decide(
            threshold=method.threshold, background=background, area_threshold=method.area_threshold
        )
        return Decision(labels, confidence, scores if with_scores else None)
    cosines = maps(range(len(text)))
    labels, confidence = decide(cosines, *settings)
    return Decision(labels, confidence, score_maps(cosines, *settings) if with_scores else None)


def cosine_maps(encoded: Encoded, text: Tensor) -> Tensor:
    """Cosines [1,Q,h,w] with the text's unit rows [Q,C]: on the grid where windows were spliced, else per canvas pixel.

    Per pixel: each window's cosines, upsampled to its pixels (bilinear), cut to what is picture, and averaged.
    """
    if encoded.spliced:
        return _cosines(encoded.features[0], text)[None]
    total = text.new_zeros(len(text), *encoded.canvas)
    hits = text.new_zeros(encoded.canvas)
    inner = encoded.inner
    for features, box in zip(encoded.features, encoded.boxes, strict=True):
        features = features.to(text.device, non_blocking=True)
        window = F.interpolate(_cosines(features, text)[None], encoded.padded, mode="bilinear", align_corners=False)[0]
        total[:, box.top : box.bottom, box.left : box.right] += window[
            :, inner.top : inner.bottom, inner.left : inner.right
        ]
        hits[box.top : box.bottom, box.left : box.right] += 1
    return total.div_(hits)[None]


def along_edges(cosines: Tensor, encoded: Encoded, method: Method) -> Tensor:
    """Cosines [1,Q,h,w] → [1,Q,H,W] at the picture's size, refined by PAMR.

    Its edges are those of the picture as the windows saw it, at the canvas' resolution, as published.
    """
    image = resize(encoded.picture.to(cosines.device, non_blocking=True), encoded.canvas, rounded=method.round_pixels)
    image = F.interpolate(image[None], encoded.size, mode="bilinear", align_corners=False)[0]
    iterations, dilations = method.pamr_iterations, method.pamr_dilations
    return pamr.refine_maps(cosines[0], encoded.size, image, iterations=iterations, dilations=dilations)[None]


def _cosines(features: Tensor, text: Tensor) -> Tensor:
    return (text @ features.flatten(1)).unflatten(1, features.shape[1:])


def decide(
    cosines: Tensor, size: tuple[int, int], class_index: tuple[int, ...], method: Method, background: int | None
) -> tuple[Tensor, Tensor]:
    """Cosines [1,Q,h,w] → labels [H,W] int64 and confidence [H,W] float32 at `size`.

    Where a cosine is not finite the CPU raises, and a GPU marks the pixels -1 for `check_labels`.

    P = softmax over the words of α·cos, upsampled; P_c = max over the words of class c; the label is the first largest,
    or `background` where that is below the threshold. With `area_threshold` θ, foreground classes with at most θ of the
    foreground's pixels get P_c = 0 first.
    """
    if method.area_threshold is None:
        labels, confidence = ops.classify_pixels(
            cosines,
            size,
            scale=method.logit_scale,
            class_index=class_index,
            threshold=method.threshold,
            background=background,
        )
        return labels[0].long(), confidence[0]
    scores = _without_small_classes(cosines, size, class_index, method, background)
    labels = scores.argmax(0)
    confidence = scores.gather(0, labels[None])[0]
    assert background is not None  # as for the classes' area
    return labels.masked_fill(confidence < method.threshold, background), confidence


def check_labels(labels: Sequence[Tensor]) -> None:
    """Raise `ValueError` where a kernel marked a pixel as not finite. Waits for the device, once for all maps."""
    if labels and bool(torch.stack([(one < 0).any() for one in labels]).any()):
        reject("cosines", "finite numbers (half precision may have overflowed: try dtype=torch.float32)", "NaN")


def score_maps(
    cosines: Tensor, size: tuple[int, int], class_index: tuple[int, ...], method: Method, background: int | None
) -> ScoreMaps:
    """The P_c of `decide`, for what follows: not at once where they can be made plane by plane."""
    if method.area_threshold is None:
        return LogitScores(cosines[0], method.logit_scale, class_index, size)
    return DenseScores(_without_small_classes(cosines, size, class_index, method, background))


def _without_small_classes(
    cosines: Tensor, size: tuple[int, int], class_index: tuple[int, ...], method: Method, background: int | None
) -> Tensor:
    assert method.area_threshold is not None  # who calls has looked
    assert background is not None  # `Segmenter.set_classes` refuses it
    scores = ops.class_scores(cosines, size, scale=method.logit_scale, class_index=class_index)[0]
    area = torch.bincount(scores.argmax(0).flatten(), minlength=len(scores))
    area[background] = 0
    dropped = area <= method.area_threshold * area.sum()
    dropped[background] = False
    scores[dropped] = 0
    return scores
