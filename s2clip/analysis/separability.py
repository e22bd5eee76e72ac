"""How tight the classes are in feature space, and how far apart: intra-class variance, inter-class distance.

Vectors are a method's unit features z/‖z‖ of all patches of a set, in the space where they meet the text. With μ_c the
mean of the n_c vectors whose patch has class c in the masks,

    variance V_c = (1/n_c) Σ ‖x − μ_c‖²            0 (all equal) to 1; no unit
    distance D_cd = ‖μ_c − μ_d‖                    0 to 2; that of a class is the mean over the other classes
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.analysis.patches import patch_labels
from s2clip.analysis.pictures import IGNORE, Picture
from s2clip.errors import reject
from s2clip.pictures.windows import nearest

if TYPE_CHECKING:
    from s2clip.encoding.encoded import Encoded
    from s2clip.segmenter import Segmenter

MASKS = ("predicted", "true")


@dataclass(frozen=True, eq=False)
class Separability:
    """The K classes that have at least two patches; arrays float64 unless said otherwise."""

    classes: tuple[str, ...]
    patches: np.ndarray
    """[K] int64"""
    variance: np.ndarray
    """[K] V_c"""
    distances: np.ndarray
    """[K,K] D_cd, 0 on the diagonal"""
    means: np.ndarray
    """[K,C] μ_c"""

    @property
    def distance(self) -> np.ndarray:
        """[K] mean distance to the other classes."""
        return self.distances.sum(1) / (len(self.classes) - 1)

    @property
    def nearest(self) -> np.ndarray:
        """[K] int64, the other class whose mean is closest: the one it is most easily taken for."""
        return (self.distances + np.diag(np.full(len(self.classes), np.inf))).argmin(1)

    def rows(self) -> tuple[list[str], list[list]]:
        """Column names and one row per class."""
        header = ["class", "patches", "variance", "distance", "nearest", "nearest_distance"]
        rows = []
        for index, name in enumerate(self.classes):
            other = self.nearest[index]
            figures = self.variance[index], self.distance[index], self.classes[other], self.distances[index, other]
            rows.append([name, self.patches[index], *figures])
        return header, rows


class ClassMoments:
    """Counts and sums of vectors by class, in float64: they are added up part by part, in order."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.squares = torch.zeros(classes, dtype=torch.float64)
        self.sums: Tensor | None = None

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """vectors [N,C], labels [N] from 0 to classes-1; 255 does not count."""
        known = labels != IGNORE
        vectors, labels = vectors[known].double().cpu(), labels[known].cpu()
        member = F.one_hot(labels, self.classes).double()
        sums = member.T @ vectors  # a product, because sums by index have no fixed order on a GPU
        self.sums = sums if self.sums is None else self.sums + sums
        self.counts += member.sum(0)
        self.squares += member.T @ vectors.square().sum(1)

    def result(self, names: tuple[str, ...]) -> Separability:
        """V_c and D_cd so far. `ValueError` where fewer than two classes have two vectors."""
        held = self.counts >= 2
        if int(held.sum()) < 2:
            found = ", ".join(name for name, one in zip(names, held.tolist(), strict=True) if one) or "none"
            reject("pictures", "two classes with two patches each at least", f"masks with {found}")
        counts = self.counts[held]
        means = self.sums[held] / counts[:, None]
        variance = (self.squares[held] / counts - means.square().sum(1)).clamp(min=0)
        distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
        classes = tuple(name for name, one in zip(names, held.tolist(), strict=True) if one)
        arrays = counts.long(), variance, distances, means
        return Separability(classes, *(array.numpy() for array in arrays))


def window_labels(labels: Tensor, encoded: "Encoded") -> Iterator[Tensor]:
    """The class of each cell of each of the encoded picture's maps, [h,w] int64; padding has 255."""
    canvas = nearest(labels, encoded.canvas)
    grid = tuple(encoded.features.shape[-2:])
    inner = encoded.inner
    for box in encoded.boxes:
        window = labels.new_full(encoded.padded, IGNORE)
        window[inner.top : inner.bottom, inner.left : inner.right] = canvas[box.top : box.bottom, box.left : box.right]
        yield patch_labels(window, grid)


def separability(pictures: Iterable[Picture], segmenter: "Segmenter", *, masks: str = "predicted") -> Separability:
    """Variance and distance of the classes that were set on the segmenter, over all pictures.

    Args:
        pictures: walked through once, one at a time; with labels, in the numbers of the segmenter's classes, where
            `masks` is "true".
        segmenter: its method's features are measured, before any refinement. Where windows are not spliced, the patches
            of every window count.
        masks: which class a patch has: "predicted", what the segmenter says (after its refinement, if it has one), or
            "true", the label map.

    Raises:
        ValueError: no classes were set, no label map where one is needed, a method with several features per patch, or
            fewer than two classes in the masks.
    """
    if masks not in MASKS:
        reject("masks", f"one of {', '.join(MASKS)}", repr(masks))
    if not segmenter.classes:
        reject("segmenter", "one with classes: set_classes(...)", "none")
    moments = ClassMoments(len(segmenter.classes))
    for picture in pictures:
        if masks == "true" and picture.labels is None:
            reject("pictures", "pictures with label maps, for masks='true'", f"{picture.name} without one")
        encoded = segmenter.encode(picture.pixels)
        if encoded.features.ndim != 4:
            reject("method", "one feature per patch", f"{segmenter.method.name} with {encoded.features.shape[1]}")
        labels = picture.labels if masks == "true" else segmenter.segment(encoded).segmentation.cpu()
        for features, classes in zip(encoded.features, window_labels(labels, encoded), strict=True):
            moments.add(features.flatten(1).T, classes.flatten())
    return moments.result(segmenter.classes)


def by_method(found: Mapping[str, Separability]) -> tuple[list[str], list[list]]:
    """Column names and one row per method and class."""
    rows = [[method, *row] for method, one in found.items() for row in one.rows()[1]]
    return ["method", *next(iter(found.values())).rows()[0]], rows
