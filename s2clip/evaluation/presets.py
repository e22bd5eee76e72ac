"""The settings of each method on each benchmark, with where they come from: `s2clip/data/presets.yaml`.

chosen = preset("trident", "voc21")
segmenter = chosen.set_classes(Segmenter.from_pretrained("ViT-B-16", **chosen.options("ViT-B-16")))
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from s2clip.errors import reject
from s2clip.evaluation.benchmarks import Prompts, benchmark, resolve_name
from s2clip.methods.method import Method
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import get_method

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter

BASE = "ViT-B-16"
GEOMETRY = ("short_side", "crop", "stride")


@dataclass(frozen=True)
class Preset:
    """One method on one data set.

    fields: of `Method`, "extension.x" of its extension. refine: fields of `Refinement`. prompts: one entry per class,
    "a; b" for words of one. vfm, sam: models by name, None where the method names none.
    source: public code and commit, or why s2clip chose the values itself; `published` tells which.
    """

    method: str
    dataset: str
    prompts: tuple[str, ...]
    background: int | None
    source: str
    published: bool
    fields: Mapping[str, Any] = field(default_factory=dict)
    refine: Mapping[str, Any] = field(default_factory=dict)
    vfm: str | None = None
    sam: str | None = None

    def resolve(self, model: str) -> Method:
        """The method with these settings; a model that was trained at another size keeps its own windows."""
        kept = {name: value for name, value in self.fields.items() if not (model in RECIPES and name in GEOMETRY)}
        return get_method(self.method, **kept)

    def options(self, model: str, refine: str = "none") -> dict[str, Any]:
        """What `Segmenter.from_pretrained(model, **options)` is to be given; the tiny models go with each other."""
        options: dict[str, Any] = {"method": self.resolve(model), "refine": refine}
        refinement = dict(self.refine)
        if model in RECIPES:
            refinement.pop("minimal_area", None)  # in pixels of larger pictures
        else:
            options |= {name: value for name, value in (("vfm", self.vfm), ("sam", self.sam)) if value}
        if refine != "none":
            options["refine_options"] = refinement
        return options

    def set_classes(self, segmenter: "Segmenter", **more: Any) -> "Segmenter":
        """Ask for the published words as they are, those that stand in two classes too. more: its `progress`."""
        return segmenter.set_classes(self.prompts, background=self.background, allow_repeats=True, **more)


def preset(method: str, dataset: str, model: str = BASE) -> Preset:
    """The settings of a method on a data set for a CLIP. `ValueError` listing the valid names for an unknown one."""
    table = _table()
    if method not in table:
        reject("method", f"one of {', '.join(name for name in table if '/' not in name)}", repr(method))
    facts = benchmark(resolve_name(dataset))
    variants = [name for name in table if name.startswith(f"{method}/")]
    entry = table.get(f"{method}/{model}", table[method])
    own = entry.get("datasets", {}).get(facts.name, {})
    words = facts.prompts(entry["prompts"])
    source = entry.get("source") or f"default: {entry['default']}"
    if variants and model not in (BASE, *(name.split("/")[1] for name in variants)):
        source += f"; the values of {BASE}"
    return Preset(
        method=method,
        dataset=facts.name,
        prompts=words.entries,
        background=facts.background,
        source=source,
        published="source" in entry,
        fields={**entry.get("fields", {}), **own.get("fields", {}), **_negative(words)},
        refine={**entry.get("refine", {}), **own.get("refine", {})},
        vfm=entry.get("vfm"),
        sam=entry.get("sam"),
    )


def _negative(words: Prompts) -> dict[str, Any]:
    """Words of no class are a setting of the one method that has them."""
    return {"extension.background_words": words.negative} if words.negative else {}


@functools.cache
def _table() -> dict[str, Any]:
    return yaml.safe_load((resources.files("s2clip.data") / "presets.yaml").read_text(encoding="utf-8"))
