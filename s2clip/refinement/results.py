"""Results of a coarse map → results of SAM: of a segmenter's own pictures, or of anybody's coarse map."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2clip.decision.scores import DenseScores, ScoreMaps
from s2clip.encoding.encoded import Encoded
from s2clip.errors import RefinementError, reject
from s2clip.pictures.reading import Picture
from s2clip.results.result import Result
from s2clip.shelter import sheltered
from s2clip.stopwatch import Stopwatch, Timings
from s2clip.values import ignored_id

if TYPE_CHECKING:
    from s2clip.backbones.diffusion_affinity import DiffusionAffinity
    from s2clip.refinement.refiner import Refiner
    from s2clip.results.refined import Refined


def refine_results(
    refiner: "Refiner",
    encoded: Sequence[Encoded],
    coarse: list[Result],
    scores: Sequence[ScoreMaps],
    *,
    smooth: bool,
    threshold: float,
) -> list[Result]:
    """Coarse results of encoded pictures with their scores, all together.

    smooth: let the refiner's Stable Diffusion, if it has one, decide again before SAM; pixels below `threshold` are the
    background then. `RefinementError`, with the coarse results, where the refinement fails.
    """
    watch = Stopwatch(refiner.sam.device)
    embeddings = [one.sam or refiner.embed(one.picture) for one in encoded]
    before = coarse
    try:
        if refiner.diffusion is not None and smooth:
            pairs = [_diffused(refiner.diffusion, *one, threshold, watch) for one in zip(coarse, scores, strict=True)]
            before, scores = [one for one, _ in pairs], [maps for _, maps in pairs]
        refined = refiner(embeddings, [one.segmentation for one in before], scores, watch)
    except (RuntimeError, ValueError) as error:
        raise RefinementError(f"refine: {error}", coarse) from error
    return [
        _with_refined(result, one, Timings((result.timings, 1.0), (watch, 1 / len(encoded))))
        for result, one in zip(before, refined, strict=True)
    ]


def _diffused(
    affinity: "DiffusionAffinity", coarse: Result, scores: ScoreMaps, threshold: float, watch: Stopwatch
) -> tuple[Result, ScoreMaps]:
    """The coarse map and its scores after Stable Diffusion's self-attention."""
    from s2clip.refinement.diffusion import diffuse

    background = ignored_id(len(coarse.classes)) if coarse.background is None else coarse.background
    limits = {"threshold": threshold, "background": background}
    with watch("diffusion"):
        labels, confidence, maps = diffuse(affinity, coarse.image.to(watch.device), scores, **limits)
    return dataclasses.replace(coarse, segmentation=labels.clone(), confidence=confidence.clone()), maps


def refine_given(
    refiner: "Refiner",
    picture: Picture,
    labels: Tensor,
    scores: Tensor,
    classes: Sequence[str],
    settings: dict[str, Any],
) -> Result:
    """A coarse map from anywhere, as `Segmenter.refine` describes it; `classes` are its names if they are K."""
    labels, scores = torch.as_tensor(labels), torch.as_tensor(scores)
    size = tuple(picture.pixels.shape[1:])
    if tuple(labels.shape) != size or labels.is_floating_point() or labels.dtype == torch.bool:
        reject("labels", f"integers [H,W] = {list(size)}", f"{labels.dtype} {list(labels.shape)}")
    if scores.ndim != 3 or not scores.is_floating_point() or 0 in scores.shape:
        reject("scores", "floats [K,h,w], none of them 0", f"{scores.dtype} {list(scores.shape)}")
    device = refiner.sam.device
    watch = Stopwatch(device)
    with sheltered():
        labels, maps = labels.to(device).long(), DenseScores(scores.to(device))
        with watch("sam_encoder"):
            embedding = refiner.embed(picture.pixels)
        if refiner.diffusion is not None:  # the given labels stay: ids that are no class would be lost
            from s2clip.refinement.diffusion import refine_scores

            with watch("diffusion"):
                maps = DenseScores(refine_scores(refiner.diffusion, picture.pixels.float() / 255, maps.scores))
        refined = refiner([embedding], [labels], [maps], watch)[0]
        confidence = maps.own(labels)
    coarse = Result(
        segmentation=labels.clone(),
        confidence=confidence.clone(),
        classes=tuple(classes) if len(classes) == maps.classes else tuple(map(str, range(maps.classes))),
        image=picture.pixels,
        source=picture.source,
        timings=Timings(({"read": picture.milliseconds}, 1.0), (watch, 1.0)),
        settings=settings,
    )
    return _with_refined(coarse, refined, coarse.timings)


def _with_refined(coarse: Result, refined: "Refined", timings: Mapping[str, float]) -> Result:
    """The result after SAM: where a mask decided, its Q is the confidence, elsewhere the coarse one stays."""
    return dataclasses.replace(
        coarse,
        segmentation=refined.labels.clone(),
        confidence=torch.where(refined.score > 0, refined.score.to(coarse.confidence), coarse.confidence),
        timings=timings,
        coarse=coarse.segmentation,
        refined=refined,
    )
