"""Semantic consistency: average precision of each feature, and its precision-recall curve (the source's Figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from s2clip.analysis.consistency import Consistency
from s2clip.analysis.pairs import PrecisionRecall
from s2clip.analysis.plots.style import GREY, HATCHES, LETTERS, colour, legend, name_axes, new_figure, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 500  # of a curve that are drawn, evenly spaced in recall


def _appearance(features: tuple[str, ...]) -> dict[str, tuple[object, str, str]]:
    """(colour, line style, hatch) by feature: layers from dark to light, the other backbones coloured and hatched."""
    layers = [name for name in features if name.startswith("CLIP ")]
    others = [name for name in features if name not in layers]
    looks = {name: (shade, "-", "") for name, shade in zip(layers, shades(len(layers)), strict=True)}
    styles = ("--", "-.", ":")
    for index, name in enumerate(others):
        looks[name] = (colour(3 - index), styles[index % 3], HATCHES[1 + index % (len(HATCHES) - 1)])
    return looks


def plot_average_precision(axes: Axes, found: Consistency, data: str) -> None:
    """One bar per feature; the line is the share of pairs that are alike, what chance would reach."""
    looks = _appearance(found.features)
    curves = [found.curves[data, name] for name in found.features]
    for place, (name, curve) in enumerate(zip(found.features, curves, strict=True)):
        fill, _, hatch = looks[name]
        value = curve.average_precision
        axes.barh(place, value, color=fill, hatch=hatch, edgecolor="white", linewidth=0.5)
        axes.text(value + 0.01, place, f"{value:.3f}", va="center", fontsize=LETTERS - 1)
        axes.plot([curve.chance] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1)
    axes.set_yticks(range(len(found.features)), found.features)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    name_axes(axes, x="average precision (black: chance)", title=f"{data}: same class or not")


def drawn(curve: PrecisionRecall, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision) at no more than `points` of the curve's own points, its ends among them."""
    wanted = np.linspace(curve.recall[0], 1, points - 1)
    last = len(curve.recall) - 1  # several bins may have recall 1: the pairs that are not alike go on
    places = np.unique(np.append(np.searchsorted(curve.recall, wanted).clip(max=last), last))
    return curve.recall[places], curve.precision[places]


def plot_precision_recall(axes: Axes, found: Consistency, data: str) -> None:
    """One curve per feature."""
    for name, (shade, line, _) in _appearance(found.features).items():
        axes.plot(*drawn(found.curves[data, name]), color=shade, linestyle=line, linewidth=1.3, label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(color=GREY, alpha=0.15)
    name_axes(axes, x="recall", y="precision", title=f"{data}: precision and recall")
    legend(axes, loc="lower left", ncols=2)


def consistency_figure(found: Consistency) -> Figure:
    """A row per data set: bars, curves."""
    height = max(2.8, 0.5 + 0.2 * len(found.features))
    figure = new_figure(7, height * len(found.sets))
    for row, data in zip(figure.subplots(len(found.sets), 2, squeeze=False), found.sets, strict=True):
        plot_average_precision(row[0], found, data)
        plot_precision_recall(row[1], found, data)
    return figure
