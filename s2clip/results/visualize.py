"""Label maps for eyes: the overlay, the names on it, its legend. Drawn with Pillow alone."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from s2clip.results.colours import class_colours
from s2clip.results.letters import Letters
from s2clip.results.places import find_places

OVERLAY_SIDES = (768, 2048)  # an overlay is for looking: its longer side is brought into this range
LEGEND_ROWS = 40


def overlay(
    image: Tensor,
    segmentation: Tensor,
    classes: Sequence[str],
    *,
    opacity: float = 0.5,
    legend: bool = True,
    names: bool = True,
) -> Image.Image:
    """The picture tinted by class, with thin borders between regions and a legend of names and pixel shares below.

    Names stand on the larger regions that have room for them, white in a dark outline.

    Args:
        image: uint8 [3,H,W], RGB.
        segmentation: integer [H,W], class ids; ids outside of `classes` (255, ignored) are left untinted.
        classes: names; of synonyms "house; hut" the first is shown.
        opacity: of the tint, 0 to 1.
        legend, names: whether to draw them.
    """
    labels = segmentation.cpu().numpy()
    palette = class_colours(len(classes))
    width, height = _shown_size(labels.shape[1], labels.shape[0])
    photo = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((width, height), Image.Resampling.BICUBIC)
    shown = _resize_nearest(labels, height, width)
    picture = Image.fromarray(_tint(np.asarray(photo), shown, palette, opacity))
    first_words = [name.split(";")[0].strip() for name in classes]
    if names:
        _write_names(picture, shown, first_words)
    if not legend:
        return picture
    counts = np.bincount(labels[(labels >= 0) & (labels < len(classes))].ravel(), minlength=len(classes))
    return _with_legend(picture, first_words, counts / labels.size, palette)


def _shown_size(width: int, height: int) -> tuple[int, int]:
    """Small pictures grow by a whole factor, so that each of their pixels stays a square; large ones shrink."""
    low, high = OVERLAY_SIDES
    longer = max(width, height)
    factor = high / longer if longer > high else max(1, low // longer)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = (np.arange(height) * labels.shape[0] + labels.shape[0] // 2) // height
    columns = (np.arange(width) * labels.shape[1] + labels.shape[1] // 2) // width
    rows, columns = rows.clip(0, labels.shape[0] - 1), columns.clip(0, labels.shape[1] - 1)
    shown: np.ndarray = labels[rows][:, columns]
    return shown


def _tint(photo: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float) -> np.ndarray:
    known = (labels >= 0) & (labels < len(palette))
    colours = palette[np.where(known, labels, 0)] if len(palette) else photo
    alpha = np.where(known, np.float32(opacity), np.float32(0))[..., None]
    tinted = photo * (1 - alpha) + colours * alpha
    border = _borders(labels, thickness=max(1, round(max(labels.shape) / 800)))[..., None]
    shown: np.ndarray = np.where(border, 0.15 * tinted + 0.85 * 255, tinted).round().astype(np.uint8)
    return shown


def _borders(labels: np.ndarray, thickness: int) -> np.ndarray:
    """True on both sides of every change of class, `thickness` pixels in all."""
    border = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        change = np.diff(labels, axis=axis) != 0
        for shift in range(thickness):
            start = (thickness - 1) // 2 - shift + 1  # 0 is the pixel before the change, 1 the pixel after
            view = np.moveaxis(border, axis, 0)
            edge = np.moveaxis(change, axis, 0)
            low, high = max(start, 0), min(len(edge) + start, len(view))
            view[low:high] |= edge[low - start : high - start]
    return border


def _write_names(picture: Image.Image, labels: np.ndarray, names: list[str]) -> None:
    size = min(max(round(max(picture.size) / 40), 14), 40)
    draw = ImageDraw.Draw(picture)

    def box(index: int, scale: float) -> tuple[float, float]:
        letters = Letters(round(size * scale))
        return letters.length(names[index]) + 0.8 * letters.size, 1.5 * letters.size

    for place in find_places(labels, len(names), box):
        letters = Letters(round(size * place.scale))
        outline = {"stroke_width": max(2, letters.size // 9), "stroke_fill": (20, 20, 20)}
        letters.draw(draw, (place.x, place.y), names[place.class_index], "m", fill=(255, 255, 255), **outline)


def _with_legend(picture: Image.Image, names: list[str], shares: np.ndarray, palette: np.ndarray) -> Image.Image:
    present = [int(index) for index in np.argsort(-shares, kind="stable") if shares[index] > 0]
    if not present:
        return picture
    entries = [(palette[index], names[index], f"{100 * shares[index]:.1f} %") for index in present[:LEGEND_ROWS]]
    if len(present) > LEGEND_ROWS:
        entries.append(((255, 255, 255), f"and {len(present) - LEGEND_ROWS} more", ""))
    letters = Letters(min(max(max(picture.size) // 52, 15), 30))
    em = letters.size
    name_width = max(letters.length(name) for _, name, _ in entries)
    share_width = letters.length("100.0 %")
    cell_width, cell_height = round(1.6 * em + name_width + 0.8 * em + share_width + 2 * em), round(1.7 * em)
    columns = max(1, min(len(entries), (picture.width - em) // cell_width))
    rows = -(-len(entries) // columns)
    width = max(picture.width, columns * cell_width + em)
    canvas = Image.new("RGB", (width, picture.height + rows * cell_height + em), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for place, (colour, name, share) in enumerate(entries):
        column, row = divmod(place, rows)
        x, y = em + column * cell_width, picture.height + em // 2 + row * cell_height
        middle = y + cell_height // 2
        box = (x, middle - 0.45 * em, x + 0.9 * em, middle + 0.45 * em)
        draw.rounded_rectangle(box, radius=em // 5, fill=tuple(int(value) for value in colour))
        letters.draw(draw, (x + 1.6 * em, middle), name, "l", fill=(30, 30, 30))
        right = x + 1.6 * em + name_width + 0.8 * em + share_width
        letters.draw(draw, (right, middle), share, "r", fill=(110, 110, 110))
    return canvas
