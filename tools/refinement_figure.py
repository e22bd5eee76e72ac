"""Draw docs/images/refinement.png: scenes before and after `refine="sam"`: `python tools/refinement_figure.py`.

A row per scene and method: the picture, its true labels, the coarse map, the refined map; prints both mIoU of each row.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from s2clip import Segmenter
from s2clip.evaluation.metrics import confusion_matrix, mean_iou
from s2clip.files import whole_file
from s2clip.results.visualize import overlay
from s2clip.scenes import CLASSES, generate

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "refinement.png"
GAP = 6


def quality(labels: torch.Tensor, truth: torch.Tensor) -> float:
    """mIoU in per cent, over the classes that are in either map."""
    return 100 * mean_iou(confusion_matrix(labels, truth, len(CLASSES)))


def row(segmenter: Segmenter, seed: int) -> tuple[list[Image.Image], float, float]:
    """(picture, truth, coarse, refined) and the mIoU of the last two."""
    pixels, labels = generate(seed)
    picture, truth = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)
    result = segmenter(picture)
    maps = (torch.full_like(truth, 255), truth, result.coarse, result.segmentation)
    cells = [overlay(picture, each, CLASSES, opacity=0.65, legend=False) for each in maps]
    return cells, quality(result.coarse, truth), quality(result.segmentation, truth)


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    across, down = len(rows[0]), len(rows)
    sheet = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), "white")
    for y, cells in enumerate(rows):
        for x, cell in enumerate(cells):
            sheet.paste(cell.resize((width, height)), (x * (width + GAP), y * (height + GAP)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", default=["naclip:7", "naclip:4", "s2clip-source:6"], metavar="METHOD:SCENE"
    )
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args()
    rows = []
    for method, _, seed in (name.partition(":") for name in options.rows):
        segmenter = Segmenter.from_pretrained("tiny", method=method, refine="sam").set_classes(CLASSES)
        cells, before, after = row(segmenter, int(seed))
        print(f"{method}, scene {seed}: {before:.1f} coarse, {after:.1f} refined", flush=True)
        rows.append(cells)
    sheet = grid(rows)
    sheet.thumbnail((1200, 1200))
    sheet = sheet.quantize(256)  # a quarter of the bytes
    with whole_file(options.output) as file:
        sheet.save(file, "PNG", optimize=True)


if __name__ == "__main__":
    main()
