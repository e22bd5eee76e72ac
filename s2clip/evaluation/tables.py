"""The source's Tables 1 to 4: which cells s2clip can compute, with which settings, and what it measured in them.

    table = read_table(3)
    cells = plan(table, data_root)              nothing is computed: what each cell would need and whether it is there
    measure(cells, output, limit=...)           one after the other; an interrupted run goes on where it stopped

Figures that the source reports are data (`s2clip/data/tables.yaml`). A measured figure is never filled in from them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from s2clip.errors import DatasetError, MissingExtraError, S2ClipError, WeightsError, reject
from s2clip.evaluation.datasets import Dataset, open_dataset
from s2clip.evaluation.presets import Preset, preset
from s2clip.methods.recipe import RECIPES

if TYPE_CHECKING:
    from s2clip.evaluation.report import Report

NUMBERS = (1, 2, 3, 4)
READY, NO_DATA, NO_METHOD, FAILED, MEASURED = "ready", "no data", "predictions needed", "failed", "measured"
SMALL_VFMS = {"dino-b8": "tiny-dino", "sam-vit-b": "sam-tiny"}
"""What stands for a vision foundation model beside the tiny CLIP."""


@dataclass(frozen=True)
class Row:
    """One row as the source names it, and what s2clip runs for it. `needs`: why it cannot run it by itself.

    miou, time: as reported, in the order of the table's columns; None where the source has none.
    """

    group: str
    name: str
    miou: tuple[float | None, ...]
    model: str
    method: str | None = None
    refine: str = "none"
    vfm: str | None = None
    refine_options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None
    average: float | None = None
    time: tuple[str, ...] | None = None
    total_time: str | None = None

    @property
    def key(self) -> str:
        """A file name for what runs: rows that run the same have the same."""
        if self.method is None:
            return self.name.lower()
        changes = {**self.refine_options, **{name.removeprefix("extension."): v for name, v in self.fields.items()}}
        if self.vfm:
            changes["vfm"] = self.vfm
        name = self.method if self.refine == "none" else f"{self.method}+{self.refine}"
        return ",".join([name, *(f"{change}={value}" for change, value in changes.items())])

    def preset(self, dataset: str) -> Preset:
        """The method's preset with what the row changes."""
        chosen = preset(self.method, dataset, self.model)
        return dataclasses.replace(
            chosen,
            fields={**chosen.fields, **self.fields},
            refine={**chosen.refine, **self.refine_options},
        )

    def options(self, dataset: str) -> dict[str, Any]:
        """What `Segmenter.from_pretrained(model, **options)` is to be given."""
        return self.preset(dataset).options(self.model, self.refine) | ({"vfm": self.vfm} if self.vfm else {})


@dataclass(frozen=True)
class Table:
    """`columns`: data sets, in the source's order."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass
class Cell:
    """One figure. `status` is one of READY, NO_DATA, NO_METHOD, FAILED, MEASURED; `reason` tells why it is none."""

    row: Row
    dataset: str
    reported: float | None
    reported_time: str | None = None
    status: str = READY
    reason: str | None = None
    data: Dataset | None = None
    predictions: Path | None = None
    report: "Report | None" = None

    @property
    def miou(self) -> float | None:
        """As measured, in per cent; None unless it was."""
        return self.report.document["miou"] if self.report else None

    @property
    def seconds(self) -> float | None:
        return self.report.document["timings"]["total_s"] if self.report else None

    @property
    def failures(self) -> list[str]:
        """Why pictures of this cell could not be scored."""
        return [f"{name}: {reason}" for name, reason in self.report.failed] if self.report else []

    @property
    def folder(self) -> Path:
        """Where its result lies below the output."""
        return Path(self.dataset, *([self.row.model] if self.row.method else []), self.row.key)

    def settings(self) -> dict[str, Any]:
        """The preset's fields and what the row changes, as JSON values; empty for predictions."""
        if self.row.method is None:
            return {}
        chosen = self.row.preset(self.dataset)
        settings = {"model": self.row.model, "method": self.row.method, "refine": self.row.refine, **chosen.fields}
        if self.row.refine != "none":
            settings |= {f"refine.{name}": value for name, value in chosen.refine.items()}
        named = {"vfm": self.row.vfm or chosen.vfm, "sam": chosen.sam}
        return settings | {name: value for name, value in named.items() if value and self.row.model not in RECIPES}

    def record(self) -> dict[str, Any]:
        """The cell as JSON values."""
        found = self.report.document if self.report else None
        return {
            "group": self.row.group,
            "row": self.row.name,
            "dataset": self.dataset,
            "settings": self.settings(),
            "source": self.row.preset(self.dataset).source if self.row.method else None,
            "status": self.status,
            "reason": self.reason,
            "reported_miou": self.reported,
            "measured_miou": self.miou,
            "reported_time": self.reported_time,
            "measured_seconds": self.seconds,
            "pictures": found["pictures"] if found else None,
            "folder": str(self.folder),
        }


@functools.cache
def read_table(number: int) -> Table:
    """Table 1, 2, 3 or 4 of the source. `ValueError` for any other."""
    if number not in NUMBERS:
        reject("table", "1, 2, 3 or 4", number)
    content = yaml.safe_load((resources.files("s2clip.data") / "tables.yaml").read_text(encoding="utf-8"))[number]
    rows = []
    for group in content["rows"]:
        for row in group["rows"]:
            values = {**group["common"], **row, "group": group["group"]}
            for name in ("miou", "time"):
                if name in values:
                    values[name] = tuple(values[name])
            rows.append(Row(**values))
    return Table(number, content["title"], tuple(content["columns"]), tuple(rows))


def with_model(table: Table, model: str | None) -> Table:
    """The rows of this CLIP; where no row has it, every row with it in place of its own, and without reported figures.

    Rows that run the same then are one, and those whose vision foundation model has no tiny counterpart are left out.
    """
    if model is None:
        return table
    rows = [row for row in table.rows if row.model == model and row.method]
    if not rows:
        kept: dict[str, Row] = {}
        for row in table.rows:
            vfm = SMALL_VFMS.get(row.vfm) if model in RECIPES else row.vfm
            if row.method and (vfm or not row.vfm):
                blank = {"miou": (None,) * len(table.columns), "average": None, "time": None, "total_time": None}
                other = dataclasses.replace(row, model=model, vfm=vfm, **blank)
                kept.setdefault(other.key, other)
        rows = list(kept.values())
    return dataclasses.replace(table, rows=tuple(rows))


def plan(table: Table, data_root: Path | None = None, predictions: Path | None = None) -> list[Cell]:
    """Every cell of the table, row by row, and what can be done about it.

    data_root: the folder that holds the data sets; None: none is looked for. predictions: a folder of label PNGs of
    methods that s2clip does not run, `<row in lower case>/<data set>/<picture>.png`.
    """
    opened = {name: _open(name, data_root) for name in table.columns}
    cells = []
    for row in table.rows:
        for position, name in enumerate(table.columns):
            cell = Cell(row, name, row.miou[position], row.time[position] if row.time else None)
            _judge(cell, opened[name], data_root, predictions)
            cells.append(cell)
    return cells


def _open(name: str, data_root: Path | None) -> Dataset | str:
    if data_root is None:
        return ""
    try:
        return open_dataset(name, data_root)
    except DatasetError as error:
        return str(error)


def _judge(cell: Cell, opened: Dataset | str, data_root: Path | None, predictions: Path | None) -> None:
    """Set the cell's status, as far as it is known before it runs."""
    row = cell.row
    if row.method is None:
        folder = predictions / row.key / cell.dataset if predictions else None
        if folder is None or not folder.is_dir():
            cell.status, cell.reason = NO_METHOD, f"{row.needs}: give its label maps by --predictions"
            return
        cell.predictions = folder
    if isinstance(opened, Dataset):
        cell.data = opened
    elif data_root is not None:
        cell.status, cell.reason = NO_DATA, opened


def measure(
    cells: Iterable[Cell],
    output: Path,
    *,
    limit: int | None = None,
    loading: Mapping[str, Any] | None = None,
    progress: Callable[..., Any] | None = None,
    announce: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Run the cells that are ready, into `output`/<data set>/<model>/<row>; what is there already is not run again.

    A cell that fails, for want of weights say, is FAILED with its reason, and the others run. limit: pictures of each
    data set. loading: device, weights, cache_dir, local_files_only of `Segmenter.from_pretrained`. announce: called
    with each cell before it runs.
    """
    from s2clip.evaluation.runner import evaluate_dataset

    options = {"limit": limit, "resume": True} | ({} if progress is None else {"progress": progress})
    done: dict[Path, Report] = {}
    hopeless: dict[tuple[str, str], str] = {}
    for cell in cells:
        row = cell.row
        if cell.status != READY or cell.data is None:
            continue
        if (row.model, row.key) in hopeless:
            cell.status, cell.reason = FAILED, hopeless[row.model, row.key]
            continue
        announce(cell)
        try:
            if cell.folder not in done:
                source = row.preset(cell.dataset).source if row.method else None
                answers = _answers(cell, loading or {})
                done[cell.folder] = evaluate_dataset(answers, cell.data, output / cell.folder, source=source, **options)
            cell.status, cell.report = MEASURED, done[cell.folder]
        except (S2ClipError, ValueError) as error:
            cell.status, cell.reason = FAILED, str(error)
            if isinstance(error, WeightsError | MissingExtraError):  # looked for once, not once for each data set
                hopeless[row.model, row.key] = str(error)


def _answers(cell: Cell, loading: Mapping[str, Any]) -> Any:
    if cell.predictions is not None:
        from s2clip.evaluation.answers import SavedAnswers

        return SavedAnswers(cell.predictions, cell.data)
    from s2clip import Segmenter

    segmenter = Segmenter.from_pretrained(cell.row.model, **cell.row.options(cell.dataset), **loading)
    return cell.row.preset(cell.dataset).set_classes(segmenter)


def average(cells: Sequence[Cell]) -> float | None:
    """The mean of a row's measured figures; None unless every one of them was measured."""
    figures = [cell.miou for cell in cells]
    return None if not figures or None in figures else sum(figures) / len(figures)
