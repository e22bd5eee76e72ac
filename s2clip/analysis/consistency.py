"""Semantic consistency: do two patches of one class look more alike than two of different ones?

For every pair of patches of a picture the score is the cosine of their features, the truth whether their labels are
equal; the pairs of all pictures of a set are ranked together, and a feature is as good as its average precision.
Pairs are within pictures, as in the affinity that the method computes. A patch has the most frequent label of its
pixels; patches that are mostly unlabelled (255) do not take part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from s2clip.analysis.layers import picture_maps
from s2clip.analysis.pairs import BINS, PairHistogram, PrecisionRecall, pair_blocks
from s2clip.analysis.patches import patch_labels
from s2clip.analysis.pictures import IGNORE, Picture
from s2clip.errors import reject
from s2clip.shelter import sheltered


@dataclass(frozen=True, eq=False)
class Consistency:
    """One precision-recall curve per data set and feature."""

    sets: tuple[str, ...]
    features: tuple[str, ...]
    """"CLIP l" for its layers, then the names of the vision foundation models."""
    curves: Mapping[tuple[str, str], PrecisionRecall]
    """By (data set, feature)."""

    @property
    def average_precision(self) -> np.ndarray:
        """[S,F] float64, 0..1."""
        return np.array(
            [[self.curves[name, feature].average_precision for feature in self.features] for name in self.sets]
        )

    def rows(self) -> tuple[list[str], list[list]]:
        """Column names and one row per data set and feature."""
        header = ["data", "features", "average_precision", "at_least", "at_most", "chance", "pairs", "alike"]
        rows = []
        for (name, feature), curve in self.curves.items():
            figures = curve.average_precision, *curve.bounds, curve.chance, curve.pairs, curve.alike
            rows.append([name, feature, *figures])
        return header, rows


def add_pairs(histograms: Mapping[str, PairHistogram], maps: Mapping[str, Tensor], labels: Tensor) -> None:
    """Count one picture's pairs: maps [h,w,C] of one grid, labels [h,w] → into the histogram of each map's name."""
    labels = labels.flatten()
    known = (labels != IGNORE).nonzero()[:, 0]
    if len(known) < len(labels):
        labels = labels[known]
        maps = {name: one.flatten(0, 1).index_select(0, known) for name, one in maps.items()}
    unit = {name: _unit(one.reshape(len(labels), -1).float()) for name, one in maps.items()}
    for block in pair_blocks(labels):
        for name, vectors in unit.items():
            cosines = vectors[block.rows] @ vectors[block.columns].T
            histograms[name].add(cosines.flatten().index_select(0, block.places), block.alike)


def _unit(rows: Tensor) -> Tensor:
    """Rows over their norms; half the time of `F.normalize` on the CPU."""
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)


@sheltered()
def semantic_consistency(
    sets: Mapping[str, Iterable[Picture]],
    clip,
    vfms: Mapping[str, nn.Module] | None = None,
    *,
    layers: Sequence[int] | None = None,
    short_side: int | None = None,
    bins: int = BINS,
) -> Consistency:
    """Precision and recall of "same class or not" by cosine, for CLIP's layers and vision foundation models.

    Args:
        sets: name → labelled pictures; they are walked through once, one at a time.
        clip: `s2clip.backbones.clip.CLIPBackbone`. vfms: name → `s2clip.backbones.vfm.VisionFeatures`, each on its own
            grid, so that its pairs are its own.
        layers: blocks 1..L; None: all.
        short_side: pixels every picture is resized to, whole, ratio kept; None: 336 (tiny: 64), 0: its own size.
        bins: of the histograms: see `s2clip.analysis.pairs` for what is exact.

    Raises:
        ValueError: a picture without labels, a layer that does not exist, a set where no two patches are of one class.
    """
    curves: dict[tuple[str, str], PrecisionRecall] = {}
    for name, pictures in sets.items():
        histograms: dict[str, PairHistogram] = {}
        for picture in pictures:
            if picture.labels is None:
                reject("pictures", "pictures with label maps", f"{picture.name} without one")
            maps = picture_maps(picture.pixels, clip, vfms, layers=layers, short_side=short_side)
            by_grid: dict[tuple[int, int], dict[str, Tensor]] = {}
            for feature, one in maps.items():
                by_grid.setdefault(tuple(one.shape[:2]), {})[feature] = one
                histograms.setdefault(feature, PairHistogram(bins, one.device))
            for grid, shared in by_grid.items():
                add_pairs(histograms, shared, patch_labels(picture.labels, grid).to(clip.device))
        if not histograms:
            reject("sets", "at least one picture in each", f"none in {name}")
        for feature, histogram in histograms.items():
            curves[name, feature] = histogram.result()
    features = tuple(dict.fromkeys(feature for _, feature in curves))
    return Consistency(tuple(sets), features, curves)
