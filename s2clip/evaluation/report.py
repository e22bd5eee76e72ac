"""A result and its three files: result.json for programs, result.md for people, result.csv for tables."""

import csv
import hashlib
import io
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from s2clip.evaluation.doubts import shift_doubt
from s2clip.evaluation.metrics import (
    class_accuracy,
    intersection_over_union,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from s2clip.evaluation.published_figures import published_for
from s2clip.evaluation.records import Tally
from s2clip.files import whole_file, write_json
from s2clip.methods.stages import stage_name
from s2clip.refinement.settings import refinement_name

logger = logging.getLogger(__name__)

MODELS = "models"
PARTS = ("wait", MODELS, "metric", "write")
MEANS = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy"}


@dataclass(frozen=True, eq=False)
class Report:
    """The figures of one data set under one protocol; per cent, None where a class does not occur.

    asked: how many pictures should be in it. folder: where its files lie or will lie.

    Everything but "timings" and "peak_memory_mib" of `document` depends on the answers alone: the same to the last bit
    in however many runs, shards or ranks they were computed.
    """

    protocol: dict[str, Any]
    tally: Tally
    asked: int
    folder: Path

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(name, reason) of the pictures that could not be scored, in the order of the data set."""
        return list(self.tally.failed.values())

    @property
    def tried(self) -> int:
        """How many pictures were scored or failed."""
        return len(self.tally.done) + len(self.tally.failed)

    @property
    def complete(self) -> bool:
        """Whether every picture asked for was tried."""
        return self.tried == self.asked

    @property
    def title(self) -> str:
        """What answered: method, stage and refinement."""
        method = self.protocol["method"]
        added = (stage_name(method), refinement_name(self.protocol))
        return "+".join([method["name"], *(name for name in added if name != "none")])

    @property
    def published(self) -> tuple[float, ...]:
        """What is printed for this method, model and data set, in rising order: every figure of `s2clip field`,
        whatever it needs. Nothing is where a stage was added."""
        method, dataset = self.protocol["method"], self.protocol["dataset"]["name"]
        if stage_name(method) != "none":
            return ()
        return published_for(method["name"], self.protocol.get("clip"), dataset)

    @cached_property
    def document(self) -> dict[str, Any]:
        """result.json."""
        matrix, dataset = self.tally.matrix, self.protocol["dataset"]
        return {
            "dataset": dataset["name"],
            "method": self.protocol["method"]["name"],
            "stage": stage_name(self.protocol["method"]),
            "refine": refinement_name(self.protocol),
            "published_miou": list(self.published),
            "model": self.protocol.get("clip"),
            "pictures": {"in_dataset": dataset["pictures"], "asked": self.asked, "scored": len(self.tally.done)},
            "failed": [{"name": name, "error": error} for name, error in self.failed],
            "miou": _per_cent(mean_iou(matrix)),
            "mean_accuracy": _per_cent(mean_accuracy(matrix)),
            "pixel_accuracy": _per_cent(pixel_accuracy(matrix)),
            "per_class": [
                {"name": name, "iou": _per_cent(iou), "accuracy": _per_cent(accuracy), "pixels": true, "given": given}
                for name, iou, accuracy, true, given in zip(
                    dataset["classes"],
                    intersection_over_union(matrix).tolist(),
                    class_accuracy(matrix).tolist(),
                    matrix.sum(1).tolist(),
                    matrix.sum(0).tolist(),
                    strict=True,
                )
            ],
            "doubts": [odd] if (odd := shift_doubt(matrix)) else [],
            "confusion_matrix_sha256": _digest(matrix),
            "timings": self._timings(),
            "peak_memory_mib": {name: round(value, 1) for name, value in self.tally.peak_mib.items()},
        }

    def _timings(self) -> dict[str, Any]:
        """The parts of the total in "ms_per_picture"; in "ms_per_stage" what the models are made of, and decoding,
        which runs beside them."""
        tried = max(self.tried, 1)
        seconds, stages = self.tally.seconds, self.tally.stages_ms
        mean = {name: round(value / tried, 3) for name, value in stages.items()}
        return {
            "total_s": round(seconds, 3),
            "pictures_per_s": round(tried / seconds, 3) if seconds else None,
            "share_in_models": round(stages.get(MODELS, 0.0) / 1000 / seconds, 4) if seconds else None,
            "ms_per_picture": {name: value for name, value in mean.items() if name in PARTS},
            "ms_per_stage": {name: value for name, value in mean.items() if name not in PARTS},
        }

    def write(self) -> None:
        """The three files, each whole or not at all, and the confusion matrix as CSV."""
        for odd in self.document["doubts"]:
            logger.warning("%s: %s", self.folder, odd)
        write_json(self.folder / "result.json", self.document)
        for name, text in (
            ("result.md", self.markdown()),
            ("result.csv", self.csv()),
            ("confusion.csv", self._cells()),
        ):
            with whole_file(self.folder / name) as handle:
                handle.write(text.encode())

    def markdown(self) -> str:
        """The figures as a page: what was evaluated, the means, time and memory, a row per class, what failed."""
        found = self.document
        pictures, timings = found["pictures"], found["timings"]
        lines = [
            f"# {found['dataset']}: {self.title}" + (f", {found['model']}" if found["model"] else ""),
            "",
            f"{pictures['scored']} of {pictures['asked']} pictures scored, {pictures['in_dataset']} in the data set. "
            f"Settings: protocol.json.",
            "",
            "| figure | per cent |",
            "|---|---:|",
            *(f"| {name} | {figure(found[key])} |" for name, key in MEANS.items()),
            *([f"| mIoU in print, `s2clip field` | {joined(self.published)} |"] if self.published else []),
            "",
            f"{duration(timings['total_s'])} on {self.device}"
            + "".join(f", {name} memory at most {value:.0f} MiB" for name, value in found["peak_memory_mib"].items())
            + ".",
            "",
            "| class | IoU | accuracy |",
            "|---|---:|---:|",
            *(f"| {row['name']} | {figure(row['iou'])} | {figure(row['accuracy'])} |" for row in found["per_class"]),
        ]
        lines += [f"\n{odd[0].upper()}{odd[1:]}." for odd in found["doubts"]]
        if found["failed"]:
            lines += ["", "Failed:", "", *(f"* {one['name']}: {one['error']}" for one in found["failed"])]
        return "\n".join(lines) + "\n"

    @property
    def device(self) -> str:
        """The machine the protocol names: a GPU's name, or "cpu"."""
        return self.protocol.get("machine", {}).get("device", "cpu")

    def csv(self) -> str:
        """class, iou, accuracy, pixels, given: a row per class, then one of the means."""
        found = self.document
        rows = [[row["name"], row["iou"], row["accuracy"], row["pixels"], row["given"]] for row in found["per_class"]]
        total = int(self.tally.matrix.sum())
        rows.append(["mean", found["miou"], found["mean_accuracy"], total, total])
        return _table([["class", "iou", "accuracy", "pixels", "given"], *rows])

    def _cells(self) -> str:
        """The confusion matrix, true classes in rows, given ones in columns."""
        names = self.protocol["dataset"]["classes"]
        cells = self.tally.matrix.tolist()
        return _table([["true/given", *names], *([name, *row] for name, row in zip(names, cells, strict=True))])


def side_by_side(reports: list[Report]) -> str:
    """The reports of one data set as columns: IoU per class, the means, time."""
    found = [report.document for report in reports]
    names = [row["name"] for row in found[0]["per_class"]]
    lines = [["", *(report.title for report in reports)]]
    lines += [[name, *(figure(one["per_class"][index]["iou"], 1) for one in found)] for index, name in enumerate(names)]
    lines += [[title, *(figure(one[key], 1) for one in found)] for title, key in MEANS.items()]
    lines.append(["mIoU in print", *(joined(report.published) for report in reports)])
    lines.append(["total time", *(duration(one["timings"]["total_s"]) for one in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    rule = "-" * len(printed[0])
    return "\n".join([printed[0], rule, *printed[1:-5], rule, *printed[-5:]])


def duration(seconds: float) -> str:
    """ "96 min 52 s", as the source's Table 4 writes it; "3.2 s" below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def joined(figures: tuple[float, ...]) -> str:
    """ "58.9 to 64.1" of what several sources print, "-" of nothing."""
    if not figures:
        return "-"
    first, last = figure(figures[0], 1), figure(figures[-1], 1)
    return first if first == last else f"{first} to {last}"


def figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _per_cent(share: float) -> float | None:
    return round(100 * share, 4) if share == share else None


def _digest(matrix: torch.Tensor) -> str:
    return hashlib.sha256(matrix.numpy().astype("<i8").tobytes()).hexdigest()


def _table(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
