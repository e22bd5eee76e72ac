"""Spatial entropy by layer and data set: the source's Figure 4, with the Gini coefficient and channel correlation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from s2clip.analysis.entropy import LayerEntropy
from s2clip.analysis.plots.style import (
    MARKERS,
    colour,
    heat_map,
    legend,
    name_axes,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "gini": ("Gini coefficient", "inequality over positions"),
    "correlation": ("mean correlation ρ", "channels that peak together"),
}


def plot_entropy(axes: Axes, found: LayerEntropy) -> None:
    """Heat map, data sets x layers; darker is lower entropy, that is more order."""
    heat_map(axes, found.entropy, found.layers, found.sets, digits=3)
    name_axes(axes, x="CLIP layer", title="spatial entropy H (nats), mean over pictures")


def plot_deviation(axes: Axes, found: LayerEntropy) -> None:
    """Entropy below its ceiling log N, by layer, one line per data set; bars: one standard deviation over pictures."""
    for index, name in enumerate(found.sets):
        gap = found.ceiling[index] - found.entropy[index]
        bars = np.nan_to_num(found.deviation[index])
        style = {"color": colour(index), "marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.2}
        axes.errorbar(found.layers, gap, yerr=bars, capsize=2, label=name, **style)
    axes.set_xticks(found.layers)
    axes.set_ylim(bottom=0)
    name_axes(axes, x="CLIP layer", y="log N − H (nats)", title="order: what H lacks")


def plot_by_layer(axes: Axes, found: LayerEntropy, field: str) -> None:
    """`gini` or `correlation` by layer, one line per data set."""
    for index, (name, values) in enumerate(zip(found.sets, getattr(found, field), strict=True)):
        style = {"color": colour(index), "marker": MARKERS[index % len(MARKERS)], "markersize": 4, "linewidth": 1.2}
        axes.plot(found.layers, values, label=name, **style)
    axes.set_xticks(found.layers)
    label, title = NAMES[field]
    name_axes(axes, x="CLIP layer", y=label, title=title)


def entropy_figure(found: LayerEntropy) -> Figure:
    """The heat map above, what else the algorithm computes below."""
    figure = new_figure(7, 2.9 + 0.3 * len(found.sets))
    top, bottom = figure.subfigures(2, 1, height_ratios=[0.7 + 0.3 * len(found.sets), 2.2])
    plot_entropy(top.subplots(), found)
    gap, gini, correlation = bottom.subplots(1, 3)
    plot_deviation(gap, found)
    plot_by_layer(gini, found, "gini")
    plot_by_layer(correlation, found, "correlation")
    if len(found.sets) > 1:
        legend(gap)
    return figure
