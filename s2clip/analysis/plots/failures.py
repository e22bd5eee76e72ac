"""The pictures that a method understands least: truth, answer, and what is wrong (the source's Figure 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from s2clip.analysis.failures import Answered, Failures
from s2clip.analysis.pictures import IGNORE
from s2clip.analysis.plots.features import INCHES, plot_picture
from s2clip.analysis.plots.style import LETTERS, first_word, new_figure
from s2clip.results.colours import class_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_labels(axes: Axes, labels: np.ndarray, classes: int, title: str) -> None:
    """Class numbers [H,W] in the overlay's colours; 255 stays white."""
    colours = np.append(class_colours(classes), [[255, 255, 255]], 0)
    axes.imshow(colours[np.where(labels == IGNORE, classes, labels)], interpolation="nearest")
    axes.set_title(title, fontsize=LETTERS)
    axes.set_xticks([])
    axes.set_yticks([])


def plot_errors(axes: Axes, one: Answered, title: str) -> None:
    """Wrong pixels in black over the grey picture."""
    grey = one.picture.pixels.float().mean(0).numpy() / 255 * 0.4 + 0.6
    truth = one.picture.labels.numpy()
    wrong = (one.segmentation != truth) & (truth != IGNORE)
    axes.imshow(np.where(wrong, 0, grey), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=LETTERS)
    axes.set_xticks([])
    axes.set_yticks([])


def failures_figure(found: Failures) -> Figure:
    """A row per picture: itself, the truth, the answer, the errors; the classes' colours below."""
    from matplotlib.patches import Patch

    height, width = found.worst[0].picture.pixels.shape[1:]
    inches = 1.25 * INCHES * min(max(height / width, 0.5), 2) + 0.25
    figure = new_figure(5 * INCHES, inches * len(found.worst) + 0.6)
    shown: set[int] = set()
    for row, one in zip(figure.subplots(len(found.worst), 4, squeeze=False), found.worst, strict=True):
        truth = one.picture.labels.numpy()
        plot_picture(row[0], one.picture.pixels, one.picture.name)
        plot_labels(row[1], truth, len(found.classes), "truth")
        plot_labels(row[2], one.segmentation, len(found.classes), f"answer: mIoU {100 * one.miou:.0f} %")
        plot_errors(row[3], one, f"wrong: {100 * (1 - one.accuracy):.0f} % of the pixels")
        shown |= set(np.unique(truth)) | set(np.unique(one.segmentation))
    palette = class_colours(len(found.classes)) / 255
    entries = [
        Patch(facecolor=palette[index], label=first_word(found.classes[index])) for index in sorted(shown - {IGNORE})
    ]
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(len(entries), 8), fontsize=LETTERS, frameon=False
    )
    return figure
