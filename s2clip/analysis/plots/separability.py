"""Classes in feature space: bars, scatter and projection (the source's Figure 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from s2clip.analysis.plots.style import (
    GREY,
    HATCHES,
    LETTERS,
    MARKERS,
    colour,
    first_word,
    legend,
    name_axes,
    new_figure,
)
from s2clip.analysis.projection import project
from s2clip.analysis.separability import Separability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 24
LEADERS = ((14, -26), (-34, -22), (22, 4))
"""Points from the three hardest classes of a scatter to their names, which would hide each other beside them."""
"""Classes that are named in a plot, those with the closest neighbours first."""


def plot_bars(axes: Axes, found: Mapping[str, Separability]) -> None:
    """Means over the classes by method: distance (higher is better), variance (lower is better)."""
    places = np.arange(len(found))
    bars = (
        ("inter-class distance", [one.distance.mean() for one in found.values()], colour(2), HATCHES[0]),
        ("intra-class variance", [one.variance.mean() for one in found.values()], colour(0), HATCHES[1]),
    )
    for shift, (name, values, fill, hatch) in zip((-0.2, 0.2), bars, strict=True):
        axes.bar(places + shift, values, 0.38, color=fill, hatch=hatch, edgecolor="white", linewidth=0.5, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(place + shift, value, f"{value:.2f}", ha="center", va="bottom", fontsize=LETTERS - 1)
    axes.set_xticks(places, found)
    axes.set_ylim(0, 1.25 * max(max(values) for _, values, _, _ in bars))
    name_axes(axes, y="of unit features (no unit)", title="mean over the classes")
    legend(axes, loc="upper center", ncols=2)


def plot_scatter(axes: Axes, found: Mapping[str, Separability]) -> None:
    """One point per class and method: tight and far apart is top left."""
    for index, (method, one) in enumerate(found.items()):
        look = {"marker": MARKERS[index % len(MARKERS)], "color": colour(index), "linestyle": "none"}
        axes.plot(one.variance, one.distance, markersize=5, alpha=0.8, label=method, **look)
    method, one = next(reversed(found.items()))
    hardest = np.argsort(one.distance - one.variance, kind="stable")[: len(LEADERS)]
    for index, offset in zip(hardest, LEADERS, strict=False):
        axes.annotate(
            first_word(one.classes[index]),
            (one.variance[index], one.distance[index]),
            offset,
            textcoords="offset points",
            fontsize=LETTERS - 1,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": GREY},
        )
    axes.grid(color=GREY, alpha=0.15)
    title = "classes" if len(found) == 1 else f"classes (named: {method})"
    name_axes(axes, x="intra-class variance", y="mean distance to the other classes", title=title)
    if len(found) > 1:
        legend(axes, loc="lower left")


def plot_projection(axes: Axes, method: str, one: Separability) -> None:
    """Class means on their two principal axes, each joined to its nearest; clustered ones are hard to tell apart."""
    points, share = project(torch.from_numpy(one.means))
    for index, other in enumerate(one.nearest):
        axes.plot(*points[[index, other]].T, color=GREY, linewidth=0.6, alpha=0.6, zorder=1)
    axes.scatter(*points.T, s=22, color=[colour(index) for index in range(len(points))], zorder=2)
    for index in _closest(one):
        axes.annotate(
            first_word(one.classes[index]), points[index], (3, 3), textcoords="offset points", fontsize=LETTERS - 2
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.15)
    axes.grid(color=GREY, alpha=0.15)
    first, second = (f"principal axis {axis} ({100 * value:.0f} %)" for axis, value in enumerate(share, start=1))
    name_axes(axes, x=first, y=second, title=f"{method}: class means")


def _closest(one: Separability) -> np.ndarray:
    """The classes to name: those closest to another."""
    closest = np.sort(one.distances, axis=1)[:, 1]
    return np.argsort(closest, kind="stable")[:NAMED]


def separability_figure(found: Mapping[str, Separability]) -> Figure:
    """Bars and scatter above, a projection for each method below."""
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure = new_figure(max(7, 2.6 * columns), 2.8 + 2.6 * rows)
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.8, 2.6 * rows])
    bars, scatter = top.subplots(1, 2)
    plot_bars(bars, found)
    plot_scatter(scatter, found)
    places = bottom.subplots(rows, columns, squeeze=False).flat
    for axes, (method, one) in zip(places, found.items(), strict=False):
        plot_projection(axes, method, one)
    for axes in list(places)[len(found) :]:
        axes.set_visible(False)
    return figure
