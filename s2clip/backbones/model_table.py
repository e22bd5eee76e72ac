"""Every model by name, as data: `s2clip/data/models.yaml`. A new model of a known family is a row there.

MODELS["clip"]["DFN-H-14"].architecture      "ViT-H-14-quickgelu"
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """What is known of a model before it is loaded."""

    name: str
    kind: str
    """"clip" (pictures and words), "vision" (`--vfm`), "masks" (`--sam`, `--regions`), "words" (text towers alone)."""
    family: str
    """Which code runs it: clip, eva, language-radio; vit, rotary, radio; sam, sam2, eomt; siglip."""
    architecture: str
    """Its name in open_clip, timm or segment_anything; of SAM 2 that of its encoder."""
    parameters: float
    """Millions."""
    licence: str
    """Of the weights."""
    commercial: bool
    """Whether that licence allows commercial use."""
    gated: bool = False
    """Whether its repository is open to those alone who accepted the licence there."""
    patch: int = 0
    native: int = 0
    """Pixels of a side that its position table is for."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """(repository, file) on the Hugging Face Hub, best first."""
    url: str = ""
    sha256: str = ""
    activation: str = ""
    """"quickgelu" or "gelu", which no checkpoint says."""
    positions: str | None = None
    """How its publisher resamples the position table, where that is not for the user to choose."""


def read_table(path: Traversable) -> dict[str, dict[str, ModelRow]]:
    """Kind → name → row of a file such as `s2clip/data/models.yaml`."""
    table = yaml.safe_load(path.read_text())
    statistics, closed = table.pop("statistics"), table.pop("not_commercial")
    return {
        kind: {name: _row(name, kind, row, statistics, closed) for name, row in rows.items()}
        for kind, rows in table.items()
    }


def _row(name: str, kind: str, row: dict[str, Any], statistics: dict[str, Any], closed: list[str]) -> ModelRow:
    chosen = statistics[row.pop("statistics")] if "statistics" in row else {}
    pixels = {key: tuple(values) for key, values in chosen.items()}
    files = tuple(tuple(file.rsplit("/", 1)) for file in row.pop("files", ()))
    return ModelRow(name=name, kind=kind, files=files, commercial=row["licence"] not in closed, **pixels, **row)


MODELS = read_table(resources.files("s2clip.data") / "models.yaml")
"""Kind → name → row, in the order of the table; the embedded models are not in it."""


def find_row(name: str) -> ModelRow | None:
    """The row of this name, of any kind; None for an embedded model."""
    return next((rows[name] for rows in MODELS.values() if name in rows), None)


def say_licence(name: str) -> None:
    """Warn where the licence of the weights forbids commercial use."""
    row = find_row(name)
    if row is not None and not row.commercial:
        logger.warning("%s: the licence of its weights, %s, forbids commercial use", name, row.licence)
