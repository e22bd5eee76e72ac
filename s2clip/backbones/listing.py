"""The models as JSON values, with where their weights are on this machine."""

import math
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import safe_open

from s2clip.backbones.checkpoints import find_local
from s2clip.backbones.model_table import MODELS

EMBEDDED = {"clip": ("tiny", "clip", 8), "vision": ("tiny-dino", "dino", 4), "masks": ("sam-tiny", "sam", 8)}
"""Kind → (name, file, patch)."""


def list_models(cache_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """One row per model: {"kind", "name", "family", "parameters" (millions), "patch", "native", "licence",
    "gated", "commercial", "source", "weights": file, "embedded" or None}. Opens no socket."""
    rows = []
    for kind, models in MODELS.items():
        if kind in EMBEDDED:
            rows.append(_embedded(kind, *EMBEDDED[kind]))
        for name, row in models.items():
            facts = {
                field: getattr(row, field) for field in ("family", "parameters", "patch", "native", "licence", "gated")
            }
            source = "/".join(row.files[0]) if row.files else row.url
            path = find_local(name, cache_dir)
            where = None if path is None else str(path)
            rows.append(
                {"kind": kind, "name": name, **facts, "commercial": row.commercial, "source": source, "weights": where}
            )
    return rows


def _embedded(kind: str, name: str, part: str, patch: int) -> dict[str, Any]:
    with resources.as_file(resources.files("s2clip.data") / "tiny" / f"{part}.safetensors") as path:
        count = _parameters(path)
    facts = {"family": "embedded", "parameters": round(count / 1e6, 1), "patch": patch, "native": None}
    facts |= {"licence": "Apache-2.0", "commercial": True, "gated": False, "source": "s2clip", "weights": "embedded"}
    return {"kind": kind, "name": name, **facts}


def _parameters(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
