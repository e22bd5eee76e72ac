"""What all figures share: size, letters, colours, saving. The extra `plot` brings matplotlib."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from s2clip.errors import MissingExtraError
from s2clip.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS = 8  # points: readable where a figure is a page wide, 7 inches
DOTS_PER_INCH = 160
HEAT = "cividis"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
GREY = "0.35"

# From Paul Tol's "bright", "muted" and "vibrant" schemes, ordered so that neighbours differ in lightness as well as in
# hue: readable with the common colour-vision deficiencies (personal.sron.nl/~pault, "Colour schemes").
COLOURS = (
    (68, 119, 170),
    (204, 187, 68),
    (34, 136, 51),
    (238, 102, 119),
    (102, 204, 238),
    (136, 34, 85),
    (238, 119, 51),
    (51, 34, 136),
    (0, 153, 136),
    (187, 187, 187),
    (170, 68, 153),
    (153, 153, 51),
    (119, 68, 34),
)


def require_matplotlib() -> None:
    """MissingExtraError where matplotlib is not installed.

    A notebook's MPLBACKEND reaches programs in environments that lack its backend, and matplotlib then refuses to be
    imported; figures that are written to files need none.
    """
    try:
        try:
            import matplotlib
        except ValueError:
            backend = os.environ.pop("MPLBACKEND", None)
            for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
                del sys.modules[name]  # what was loaded before the refusal does not fit what is loaded now
            try:
                import matplotlib  # noqa: F401
            finally:
                if backend is not None:
                    os.environ["MPLBACKEND"] = backend
    except ImportError as error:
        raise MissingExtraError("figures are drawn by matplotlib: pip install 's2clip[plot]'") from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that belongs to nobody's pyplot."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, in the format that the name ends in: png, pdf, svg."""
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=DOTS_PER_INCH, facecolor="white")
    with whole_file(path) as handle:
        handle.write(drawn.getvalue())
    return path


def colour(index: int) -> tuple[float, float, float]:
    """Colours of lines and bars as matplotlib takes them."""
    red, green, blue = COLOURS[index % len(COLOURS)]
    return red / 255, green / 255, blue / 255


def shades(count: int) -> np.ndarray:
    """`count` colours [n,4] from dark to light, the lightest dark enough for a line on white."""
    from matplotlib import colormaps

    return colormaps[HEAT](np.linspace(0, 0.85, max(count, 1)))


def name_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Names with units, letters of one size, no frame but the axes themselves."""
    axes.set_xlabel(x, fontsize=LETTERS)
    axes.set_ylabel(y, fontsize=LETTERS)
    axes.set_title(title, fontsize=LETTERS + 1, loc="left")
    axes.tick_params(labelsize=LETTERS - 1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend(axes: Axes, **settings: object) -> None:
    """A legend without a frame."""
    axes.legend(**{"fontsize": LETTERS - 1, "frameon": False, **settings})


def heat_map(axes: Axes, values: np.ndarray, columns: Sequence[object], rows: Sequence[str], digits: int = 2) -> object:
    """values [R,K] as colours with their numbers in them, NaN left white; returns what a colour bar needs."""
    image = axes.imshow(np.ma.masked_invalid(values), cmap=HEAT, aspect="auto")
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            light = high > low and (value - low) / (high - low) > 0.5
            ink = "black" if light else "white"
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=LETTERS - 1)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    return image


def colour_bar(figure: Figure, axes: Sequence[Axes], image: object, label: str) -> None:
    """A colour bar on the right of the axes, which make room for it."""
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=LETTERS)
    bar.ax.tick_params(labelsize=LETTERS - 1)


def first_word(name: str) -> str:
    """ "house; hut" → "house": what a class is called in a figure."""
    return name.split(";")[0].strip()
