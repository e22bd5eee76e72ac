"""What any method may take besides its own mathematics: stages as values, with their published settings.

`Method` has a field for each; `STAGES` names them for `--stage` and for `get_method("naclip", **STAGES["pearl"])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from s2clip.errors import reject
from s2clip.values import is_real, is_whole


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings that must be numbers in a range."""

    def _number(self, field: str, low: float, high: float | None = None, *, whole: bool = False) -> None:
        value = getattr(self, field)
        fits = (is_whole if whole else is_real)(value) and value >= low and (high is None or value <= high)
        if not fits:
            kind = "a whole number" if whole else "a number"
            expected = f"{kind} >= {low}" if high is None else f"{kind} in {low}..{high}"
            reject(f"{type(self).__name__}.{field}", expected, repr(value))


@dataclass(frozen=True, kw_only=True)
class KeyRotation(Stage):
    """PEARL's Procrustes alignment (Pei et al. 2026, arXiv:2603.21528): q(kR)ᵀ + α k̂k̂ᵀ in place of the terms."""

    share: float = 0.08
    """[alpha_kk, α] >= 0: of the centred keys' similarity among themselves."""
    iterations: int = 5
    """[polar_iters] >= 1: Newton-Schulz steps to the rotation."""

    def __post_init__(self) -> None:
        self._number("share", 0)
        self._number("iterations", 1, whole=True)


@dataclass(frozen=True, kw_only=True)
class Propagation(Stage):
    """PEARL's propagation: (diag ρ + τL) F = ρ Z over cells of the picture, see `s2clip.decision.propagation`."""

    grid: int = 80
    """[grid] >= 1: cells that a side of the picture is pooled to, about."""
    strength: float = 1.0
    """[τ] >= 0: of the neighbours' pull."""
    edge: float = 5.0
    """[ke_img] >= 0: how strongly an edge of the picture parts two cells."""
    text_temperature: float = 0.5
    """[tau_S] > 0, of the softmax over the words' similarities."""
    text_diagonal: float = 10.0
    """[diag_boost] >= 0: added to a word's similarity with itself."""
    iterations: int = 25
    """[cg_iters] >= 1: steps of conjugate gradients."""
    between_words: bool = False
    """Let like words support each other: S p in full. Off: what the published code computes is diag(S) p."""

    def __post_init__(self) -> None:
        for field in ("grid", "iterations"):
            self._number(field, 1, whole=True)
        for field in ("strength", "edge", "text_diagonal"):
            self._number(field, 0)
        self._number("text_temperature", 1e-3)
        if not isinstance(self.between_words, bool):
            reject("Propagation.between_words", "True or False", repr(self.between_words))


@dataclass(frozen=True, kw_only=True)
class Purification(Stage):
    """FreeCP's purification of classes (Chen et al. 2025): see `s2clip.decision.purification`."""

    redundancy: float = 0.15
    """[rp_thres] 0..1: a class whose map is less like itself after the affinity is dropped; 0.05 for many classes."""
    ambiguity: float = 0.8
    """[ap_thres] 0..1: classes whose maps are more alike than this are told apart on crops."""
    box_threshold: float = 0.4
    """0..1: of a map's maximum; boxes are around what is above."""

    def __post_init__(self) -> None:
        for field in ("redundancy", "ambiguity", "box_threshold"):
            self._number(field, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TemplateChoice(Stage):
    """FLOSS's choice of templates (Benigmim et al. 2025): see `s2clip.decision.experts`."""

    count: int = 4
    """[top_n] >= 1: templates of a class, those of lowest entropy."""
    chosen: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    """Classes, each with the numbers of its templates, as `Segmenter.choose_templates` gives them; None: of every
    picture its own."""

    def __post_init__(self) -> None:
        self._number("count", 1, whole=True)
        fits = self.chosen is None or all(
            isinstance(name, str) and all(is_whole(number) and number >= 0 for number in numbers)
            for name, numbers in self.chosen
        )
        if not fits:
            reject("TemplateChoice.chosen", "None or (class, numbers of templates) of each class", repr(self.chosen))


STAGES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": MappingProxyType({}),
        "pearl": MappingProxyType({"propagation": Propagation()}),
        "rotation": MappingProxyType({"key_rotation": KeyRotation()}),
        "freecp": MappingProxyType({"purification": Purification()}),
        "floss": MappingProxyType({"template_choice": TemplateChoice()}),
    }
)
"""Name → fields of `Method`."""
FIELDS = {
    "key_rotation": KeyRotation,
    "propagation": Propagation,
    "purification": Purification,
    "template_choice": TemplateChoice,
}


def stage_name(method: Any) -> str:
    """ "none", or the names of the stages that a `Method` takes, or its fields in a mapping do, joined by "+"."""
    fields_of = method.get if isinstance(method, Mapping) else lambda field: getattr(method, field)
    names = [
        name for name, fields in STAGES.items() if fields and all(fields_of(field) is not None for field in fields)
    ]
    return "+".join(names) or "none"
