"""One picture in several views: colours by principal axes, a patch's likes, class heat maps (the source's Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from s2clip.analysis.plots.style import HEAT, LETTERS, colour_bar, first_word, new_figure
from s2clip.analysis.stages import HeatMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
INCHES = 1.75  # of a panel


def plot_picture(axes: Axes, picture: Tensor, title: str = "picture") -> None:
    """uint8 [3,H,W], pixels as squares."""
    axes.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    _panel(axes, title)


def plot_colours(axes: Axes, colours: np.ndarray, title: str, *, size: tuple[int, int] | None = None) -> None:
    """Colours [h,w,3] in 0..1 over a picture of `size` (H, W)."""
    axes.imshow(colours, extent=_extent(size or colours.shape[:2]), interpolation="nearest")
    _panel(axes, title)


def plot_heat(
    axes: Axes,
    values: np.ndarray,
    title: str,
    *,
    limits: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    mark: tuple[float, float] | None = None,
) -> object:
    """values [h,w] over a picture of `size` (H, W); `mark`: a pixel (x, y) to point out. Returns the image."""
    low, high = limits or (float(values.min()), float(values.max()))
    extent = _extent(size or values.shape)
    image = axes.imshow(values, cmap=HEAT, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    if mark:
        _mark(axes, mark)
    _panel(axes, title)
    return image


def plot_class(axes: Axes, found: HeatMaps, index: int, title: str) -> object:
    """P_c in 0..1, with a line around what was labelled c. Returns the image."""
    image = plot_heat(axes, found.scores[index], title, limits=(0, 1))
    own = found.segmentation == index
    if own.any() and not own.all():
        for shade, width in (("white", 1.6), ("black", 0.6)):  # seen on dark and on light
            axes.contour(own, levels=[0.5], colors=shade, linewidths=width)
    return image


def colours_figure(picture: Tensor, colours: Mapping[str, np.ndarray]) -> Figure:
    """The picture, then each view's principal colours [h,w,3]."""
    figure, places = _panels(1 + len(colours), picture, 0.2)
    plot_picture(places[0], picture)
    for axes, (name, one) in zip(places[1:], colours.items(), strict=True):
        plot_colours(axes, one, name, size=tuple(picture.shape[1:]))
    return figure


def patch_figure(
    picture: Tensor, heats: Mapping[str, np.ndarray], mark: tuple[float, float], *, unit: str = "cosine"
) -> Figure:
    """The picture with the patch marked, then what each view [h,w] says of it, each in its own range."""
    figure, places = _panels(1 + len(heats), picture, 0.35)
    plot_picture(places[0], picture)
    _mark(places[0], mark)
    for axes, (name, heat) in zip(places[1:], heats.items(), strict=True):
        low, high = float(heat.min()), float(heat.max())
        title = f"{name}\n{unit} {low:.2g} to {high:.2g}"
        plot_heat(axes, heat, title, size=tuple(picture.shape[1:]), mark=mark)
    return figure


def classes_figure(picture: Tensor, found: Mapping[str, HeatMaps], shown: Sequence[int]) -> Figure:
    """A row per class, a column per method or stage."""
    height, width = picture.shape[1:]
    inches = INCHES * min(max(height / width, 0.5), 2)
    figure = new_figure(INCHES * (1 + len(found)) + 0.5, 0.92 * inches * len(shown) + 0.35)
    rows = figure.subplots(len(shown), 1 + len(found), squeeze=False)
    for place, (row, index) in enumerate(zip(rows, shown, strict=True)):
        plot_picture(row[0], picture, "" if place else "picture")
        for axes, (name, one) in zip(row[1:], found.items(), strict=True):
            image = plot_class(axes, one, index, "" if place else name)
        row[0].set_ylabel(first_word(next(iter(found.values())).classes[index]), fontsize=LETTERS + 1)
    colour_bar(figure, list(rows[:, -1]), image, "class score P (line: labelled so)")
    return figure


def _panels(count: int, picture: Tensor, title: float) -> tuple[Figure, list[Axes]]:
    height, width = picture.shape[1:]
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    inches = INCHES * min(max(height / width, 0.5), 2) + title
    figure = new_figure(INCHES * columns, inches * rows)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in places[count:]:
        axes.set_visible(False)
    return figure, places[:count]


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, right, bottom, top of a picture whose pixels have their middles at whole numbers."""
    return -0.5, size[1] - 0.5, size[0] - 0.5, -0.5


def _panel(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=LETTERS)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _mark(axes: Axes, place: tuple[float, float]) -> None:
    axes.plot(*place, marker="o", markersize=7, markerfacecolor="none", markeredgecolor="black", markeredgewidth=2.4)
    axes.plot(*place, marker="o", markersize=7, markerfacecolor="none", markeredgecolor="white", markeredgewidth=1.1)
