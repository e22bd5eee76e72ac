"""A class's heat map before and after each stage of a method, and by several methods side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from s2clip.published.catalogue import METHODS

if TYPE_CHECKING:
    from s2clip.pictures.images import Source
    from s2clip.segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """What one method, or one stage of it, makes of a picture."""

    classes: tuple[str, ...]
    scores: np.ndarray
    """[K,H,W] float32, P_c in 0..1 at the picture's size"""
    segmentation: np.ndarray
    """[H,W] int64"""


def stages(segmenter: "Segmenter") -> dict[str, "Segmenter"]:
    """The method built up: what each stage is called → a segmenter that ends there, with the same models and classes.

    CLIP's last block as trained, in this method's windows; the recombined last block; the levels; the affinity; the
    refinement. Stages that a method does not have are left out; one with an extension is one stage.
    """
    method = segmenter.method
    trained = METHODS["clip"]
    plain = replace(
        method,
        name="clip",
        **{name: getattr(trained, name) for name in ("terms", "weights", "residual", "feed_forward", "cls_token")},
        gaussian_sigma=None,
        levels=(),
        vfm_weight=None,
        extension=None,
    )
    ladder = {"last block as trained": plain}
    if method.extension is None:
        ladder["recombined: " + ("+".join(method.terms) or "v alone")] = replace(method, levels=(), vfm_weight=None)
        if method.uses_levels:
            ladder["with levels"] = replace(method, vfm_weight=None)
        if method.vfm_weight is not None:
            ladder["with affinity"] = method
    else:
        ladder[method.name] = method
    distinct = {}
    for name, stage in ladder.items():
        if stage not in distinct.values():
            distinct[name] = stage
    built = {name: _ending_at(segmenter, stage) for name, stage in distinct.items()}
    if segmenter.refiner is not None:
        built[f"refined: {segmenter.refiner.refine}"] = segmenter
    return built


def _ending_at(segmenter: "Segmenter", stage) -> "Segmenter":
    if stage == segmenter.method and segmenter.refiner is None:
        return segmenter
    return segmenter.with_method(stage)


def heat_maps(segmenters: Mapping[str, "Segmenter"], source: "Source") -> dict[str, HeatMaps]:
    """Scores and labels of one picture by each segmenter. Classes must have been set on all of them.

    After a refinement a pixel's own class has its confidence, and the other classes 0 there.
    """
    found = {}
    for name, segmenter in segmenters.items():
        encoded = segmenter.encode(source)
        result = segmenter.segment(encoded)
        labels = result.segmentation.cpu().numpy()
        if segmenter.refiner is None:
            scores = segmenter.scores(encoded).whole(encoded.size).float().cpu().numpy()
        else:
            own = np.arange(len(segmenter.classes))[:, None, None] == labels
            scores = np.where(own, result.confidence.cpu().numpy(), np.float32(0))
        found[name] = HeatMaps(segmenter.classes, scores, labels)
    return found
