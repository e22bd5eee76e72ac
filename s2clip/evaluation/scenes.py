"""The embedded benchmark: methods side by side on painted scenes that no model was trained on."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from s2clip import scenes
from s2clip.errors import reject
from s2clip.evaluation.metrics import confusion_matrix, intersection_over_union, mean_iou, pixel_accuracy
from s2clip.methods.stages import stage_name
from s2clip.refinement.settings import ABLATIONS, refinement_name

SCENES_PER_SEED = 10_000
REFINEMENT_STAGES = ("sam_encoder", "components", "prompts", "decoder", "merge")


def scene_seeds(seed: int, limit: int) -> list[int]:
    """Arguments of `scenes.generate`: scene i of `--seed S` is `generate(10_000 S + i)`; training starts far above.

    Raises:
        ValueError: a limit outside of 1..10,000, or a seed that would reach the scenes of the training.
    """
    if not 1 <= limit <= SCENES_PER_SEED:
        reject("limit", f"1 to {SCENES_PER_SEED}", limit)
    seeds = scenes.FIRST_TRAINING_SEED // SCENES_PER_SEED
    if not 0 <= seed < seeds:
        reject("seed", f"0 to {seeds - 1}, as scenes above were trained on", seed)
    return [SCENES_PER_SEED * seed + index for index in range(limit)]


class Column:
    """What one segmenter has answered so far. done: the scenes that count already."""

    def __init__(self) -> None:
        count = len(scenes.CLASSES)
        self.matrix = torch.zeros(count, count, dtype=torch.int64)
        self.seconds, self.stages, self.done = 0.0, Counter[str](), set[int]()

    def add(self, seed: int, matrix: torch.Tensor, seconds: float, stages: Mapping[str, float]) -> None:
        """The answer to one scene: its confusion matrix, seconds of the call, and the milliseconds of its stages."""
        self.matrix += matrix
        self.seconds += seconds
        self.stages.update(stages)
        self.done.add(seed)


def evaluate(
    segmenters: Sequence[Any],
    seeds: Sequence[int],
    *,
    columns: Sequence[Column] | None = None,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[dict[str, Any]]:
    """One row per segmenter: {"method", "stage", "refine", "miou", "pixel_accuracy", "per_class": {name: iou},
    "ms_per_image", "ms_per_stage": {stage: ms}}.

    Figures are per cent; a class that occurs neither in the scenes nor in the answers has None. Every scene is given to
    all segmenters in turn, so that a slow minute of the machine slows them alike; the time is that of the call, from
    pixels to labels, without painting the scene, after one call that does not count. columns: where the answers of each
    segmenter go, and which of them are there already.
    """
    columns = [Column() for _ in segmenters] if columns is None else columns
    pairs = list(zip(segmenters, columns, strict=True))
    for segmenter, column in pairs:
        segmenter.set_classes(scenes.CLASSES)
        if not column.done.issuperset(seeds):
            segmenter(scenes.generate(seeds[0])[0])
    for seed in progress([seed for seed in seeds if any(seed not in column.done for column in columns)]):
        picture, labels = scenes.generate(seed)
        target = torch.from_numpy(labels)
        for segmenter, column in pairs:
            if seed in column.done:
                continue
            start = time.perf_counter()
            result = segmenter(picture)
            answer = result.segmentation.cpu()
            seconds = time.perf_counter() - start
            column.add(seed, confusion_matrix(answer, target, len(scenes.CLASSES)), seconds, result.timings)
    return [_row(segmenter, column) for segmenter, column in pairs]


def ablations(segmenter: Any) -> list[Any]:
    """The segmenter with each part of its refinement switched off in turn: the source's Table 4."""
    return [segmenter.with_refinement(**switches) for switches in ABLATIONS.values()]


def _row(segmenter: Any, column: Column) -> dict[str, Any]:
    matrix, count = column.matrix, len(column.done)
    per_class = (100 * intersection_over_union(matrix)).tolist()
    return {
        "method": segmenter.method.name,
        "stage": stage_name(segmenter.method),
        "refine": refinement_name(segmenter.settings),
        "miou": round(100 * mean_iou(matrix), 2),
        "pixel_accuracy": round(100 * pixel_accuracy(matrix), 2),
        "per_class": {
            name: round(iou, 2) if iou == iou else None for name, iou in zip(scenes.CLASSES, per_class, strict=True)
        },
        "ms_per_image": round(1000 * column.seconds / count, 2),
        "ms_per_stage": {name: round(value / count, 3) for name, value in column.stages.items()},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as columns side by side: IoU per class, mIoU, pixel accuracy, ms per image."""
    heads = [
        "+".join([row["method"], *(row[key] for key in ("stage", "refine") if row[key] != "none")]) for row in rows
    ]
    lines = [("", heads)]
    lines += [(name, [_figure(row["per_class"][name]) for row in rows]) for name in rows[0]["per_class"]]
    lines += [
        (title, [_figure(row[key]) for row in rows])
        for title, key in (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"), ("ms per image", "ms_per_image"))
    ]
    first = max(len(title) for title, _ in lines)
    width = max(len(cell) for _, cells in lines for cell in cells) + 2
    printed = [title.ljust(first) + "".join(cell.rjust(width) for cell in cells) for title, cells in lines]
    rule = "-" * len(printed[0])
    return "\n".join([printed[0], rule, *printed[1:-3], rule, *printed[-3:]])


def ablation_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per row: mIoU, its gain over the same method unrefined, pixel accuracy, ms per image and per stage."""
    plain = {row["method"]: row["miou"] for row in rows if row["refine"] == "none"}
    heads = ["method", "refine", "mIoU", "gain", "pixel accuracy", "ms", *REFINEMENT_STAGES]
    lines = [heads]
    for row in rows:
        gain = row["miou"] - plain[row["method"]] if row["method"] in plain else None
        figures = [row["miou"], gain, row["pixel_accuracy"], row["ms_per_image"]]
        figures += [row["ms_per_stage"].get(stage) for stage in REFINEMENT_STAGES]
        lines.append([row["method"], row["refine"], *map(_figure, figures)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = 2  # method and refine
    printed = [
        "  ".join(
            cell.ljust(width) if position < texts else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([printed[0], "-" * len(printed[0]), *printed[1:]])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
