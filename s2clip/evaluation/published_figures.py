"""What is published of the field, to filter and print: `s2clip/data/published.yaml`, the source's Table 1."""

import functools
from importlib import resources
from typing import Any

import yaml

from s2clip.errors import reject

Row = dict[str, Any]
TITLE = "Published figures"


@functools.cache
def datasets() -> tuple[str, ...]:
    """The data sets of a row's figures, in order."""
    return tuple(_table()["datasets"])


@functools.cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((resources.files("s2clip.data") / "published.yaml").read_text())


def published_rows() -> list[Row]:
    """Rows {"method", "model", "with", "miou": {data set: per cent}, "average", "read", "licence", "source"}.

    Those of one method and model stand together. A figure that is not printed is left out, or None.
    """
    order: dict[tuple[str, str], int] = {}
    rows = [_row(one, one.get("miou", []), datasets()) for one in _table()["rows"]] + _source_rows()
    for row in rows:
        order.setdefault((row["method"], row["model"]), len(order))
    return sorted(rows, key=lambda row: order[row["method"], row["model"]])


def _row(one: Row, figures: list[float | None], names: tuple[str, ...]) -> Row:
    miou = {name: figure for name, figure in zip(names, figures, strict=False) if figure is not None}
    rest = {key: one.get(key) for key in ("average", "read", "licence", "source")}
    return {"method": one["method"], "model": one["model"], "with": one["with"], "miou": miou, **rest}


def _source_rows() -> list[Row]:
    """Table 1 of the source, which runs its peers again."""
    table = yaml.safe_load((resources.files("s2clip.data") / "tables.yaml").read_text())[1]
    names, rows = tuple(table["columns"]), []
    for group in table["rows"]:
        for one in group["rows"]:
            given = {**group.get("common", {}), **one}
            refined = given.get("refine", "none") != "none" or given.get("fields")
            facts = {
                "method": given["method"],
                "model": given["model"],
                "with": "with post-processing" if refined else "without post-processing",
                "average": given["average"],
                "read": "paper",
                "source": "the source of s2clip, Table 1",
            }
            rows.append(_row(facts, given["miou"], names))
    return rows


def choose(
    rows: list[Row], *, methods: tuple[str, ...] = (), model: str | None = None, dataset: str | None = None
) -> list[Row]:
    """Those of the methods, of the model, with a figure for the data set; `ValueError` for an unknown name."""
    known = {row["method"].lower(): row["method"] for row in rows}
    for method in methods:
        if method.lower() not in known:
            reject("--method", f"one of {', '.join(known.values())}", repr(method))
    models = sorted({row["model"] for row in rows if row["model"]})
    if model is not None and model not in models:
        reject("--model", f"one of {', '.join(models)}", repr(model))
    if dataset is not None and dataset.replace("-", "_") not in datasets():
        reject("--dataset", f"one of {', '.join(datasets())}", repr(dataset))
    wanted = {method.lower() for method in methods}
    return [
        row
        for row in rows
        if (not wanted or row["method"].lower() in wanted)
        and (model is None or row["model"] == model)
        and (dataset is None or dataset.replace("-", "_") in row["miou"])
    ]


def published_for(method: str, model: str | None, dataset: str) -> tuple[float, ...]:
    """All figures of a method, model and data set, in rising order."""
    return tuple(
        sorted(
            row["miou"][dataset]
            for row in published_rows()
            if row["method"] == method and row["model"] == model and dataset in row["miou"]
        )
    )


@functools.cache
def measured() -> dict[str, float]:
    """Method → its mIoU on the scenes with the embedded models, as docs/scenes.md has it."""
    return dict(_table()["measured"]["scenes"])


def cells(rows: list[Row]) -> list[list[str]]:
    """A table with its header: one line per row, "-" where nothing is printed, "scenes" measured by us."""
    header = ["method", "model", "with", *datasets(), "average", "scenes", "read", "licence", "source"]
    return [header] + [
        [
            row["method"],
            row["model"] or "-",
            row["with"] or "-",
            *(_figure(row["miou"].get(name)) for name in datasets()),
            _figure(row["average"]),
            _figure(measured().get(row["method"])),
            row["read"],
            row["licence"] or "-",
            row["source"],
        ]
        for row in rows
    ]


def page() -> str:
    """docs/field.md."""
    lines = cells(published_rows())
    table = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return PREFACE + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


PREFACE = f"""# {TITLE}

What papers and repositories print about open-vocabulary segmentation without training: mIoU in per cent, as printed,
with what each figure needs. `s2clip field --markdown` writes this page from `s2clip/data/published.yaml` and the
source's Table 1; `s2clip field --method trident cliper --dataset voc21` shows a part of it.

* Sources that disagree stand below each other: CLIPer with ViT-B/16, the whole picture and Stable Diffusion reads 66.4
  on VOC21 in its repository, 65.9 in the source.
* Figures of one column are comparable where "with" is: masks of another model, a bank of other pictures, a second
  network.
* `read` says where: "code", a README or result file at that commit; "paper", a table or an abstract; "second hand",
  quoted by somebody else and not checked.
* None of these was measured by s2clip, but for "scenes": mIoU of the method on painted scenes with the embedded
  models, whatever model the row is of ([scenes.md](scenes.md) says which); methods that s2clip does not have show "-".
* `s2clip evaluate` on a benchmark prints what is published for its method and model below what it measures.

"""
