"""Class scores smoothed by Stable Diffusion's self-attention, and the coarse map decided from them again (CLIPer)."""

from torch import Tensor

from s2clip.backbones.diffusion_affinity import EPSILON, DiffusionAffinity
from s2clip.decision.full_size import best_class
from s2clip.decision.scores import DenseScores, ScoreMaps
from s2clip.shelter import sheltered


def refine_scores(affinity: DiffusionAffinity, image: Tensor, scores: Tensor) -> Tensor:
    """P'_c = R_c / (max R_c + 1e-5) · (max R_c + max P_c)/2, [K,g,g]: the shape from R, the height from both.

    image [3,H,W] in [0,1]; scores P [K,h,w], probabilities. A class that is nowhere likely stays so, though R is
    stretched to 1. Maxima are taken on the grid, not at the picture's size: no [K,H,W] is made.
    """
    refined = affinity.refine(image, scores)
    peak = refined.flatten(1).amax(1)
    height = (peak + scores.to(refined).flatten(1).amax(1)) / 2
    return refined * (height / (peak + EPSILON))[:, None, None]


@sheltered()
def diffuse(
    affinity: DiffusionAffinity, picture: Tensor, scores: ScoreMaps, *, threshold: float, background: int | None
) -> tuple[Tensor, Tensor, DenseScores]:
    """The coarse map again from P' in place of P: (labels [H,W] int64, confidence [H,W] fp32, P').

    picture uint8 [3,H,W]. P' is resized to the picture a few classes at a time; the label is the first largest, or
    `background` where that is below the threshold.
    """
    coarse = scores.planes(range(scores.classes), affinity.grid)
    maps = DenseScores(refine_scores(affinity, picture.float() / 255, coarse))
    labels, confidence = best_class(maps, (picture.shape[1], picture.shape[2]))
    if background is not None:
        labels.masked_fill_(confidence < threshold, background)
    return labels, confidence, maps
