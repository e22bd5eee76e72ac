"""The facts of the eight benchmarks, read from `s2clip/data/datasets/<name>.yaml`."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from s2clip.errors import reject

IGNORE = 255
DATASETS = ("voc21", "context60", "coco_object", "voc20", "cityscapes", "context59", "ade20k", "coco_stuff")
"""In the order of the source's tables: with background first, then without."""


@dataclass(frozen=True)
class Layout:
    """Where a data set's files lie below its root, as MMSegmentation expects them.

    `roots`: what the root is called below a folder that holds several data sets. `split_file`: one stem per line, None
    where the folders themselves are the split. `nested`: the files lie in one folder further down, per city.
    """

    roots: tuple[str, ...]
    image_folder: str
    image_suffix: str
    annotation_folder: str
    annotation_suffix: str
    split_file: str | None
    nested: bool = False


@dataclass(frozen=True)
class Prompts:
    """One entry per class, "a; b" for words of one; `negative`: words of no class, whose probability is dropped."""

    entries: tuple[str, ...]
    negative: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """What is fixed about a data set, whoever evaluates on it.

    `images`: pictures of the official split. `background`: the class that pixels without a sure class are given, None
    where there is none. `values`: lowest and highest label in the files beside 255, which is ignored everywhere;
    `reduce_zero_label`: label 0 is ignored, k is class k-1. `download`, `convert`: how to get it. `palette`: its usual
    colours, [K] of RGB or "voc", the Pascal VOC palette; None where there are none.
    """

    name: str
    title: str
    split: str
    images: int
    background: int | None
    classes: tuple[str, ...]
    layout: Layout
    values: tuple[int, int]
    reduce_zero_label: bool
    download: str
    convert: str | None
    palette: str | tuple[tuple[int, int, int], ...] | None
    raw_labels: Mapping[str, Any]
    prompt_families: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The name as the command line writes it."""
        return self.name.replace("_", "-")

    def prompts(self, family: str) -> Prompts:
        """What the methods of a family ask for: "trident", "sclip", "clearclip", "corrclip", "cliper"; "names": the
        class names themselves. `ValueError` listing them for any other."""
        if family == "names":
            return Prompts(self.classes)
        if family not in self.prompt_families:
            reject("prompts", f"one of {', '.join(self.prompt_families)}, names", repr(family))
        found = self.prompt_families[family]
        if isinstance(found, str):
            return self.prompts(found)
        words = dict(found.get("words", {}))
        if self.background is not None:
            words[self.classes[self.background]] = found["background"]
        entries = tuple("; ".join(words.get(name, [name])) for name in self.classes)
        return Prompts(entries, tuple(found.get("negative", ())))


def resolve_name(name: str) -> str:
    """ "COCO-Object" → "coco_object". `ValueError` listing the valid names for an unknown one."""
    key = name.strip().lower().replace("-", "_")
    if key not in DATASETS:
        reject("dataset", f"one of {', '.join(DATASETS)}", repr(name))
    return key


def benchmark(name: str) -> Benchmark:
    """The facts of one data set; hyphens and capitals are fine. `ValueError` for an unknown name."""
    return _read(resolve_name(name))


@functools.cache
def _read(name: str) -> Benchmark:
    text = (resources.files("s2clip.data") / "datasets" / f"{name}.yaml").read_text(encoding="utf-8")
    facts = yaml.safe_load(text)
    layout, labels, palette = facts["layout"], facts["labels"], facts["palette"]
    return Benchmark(
        name=name,
        title=facts["title"],
        split=facts["split"],
        images=facts["images"],
        background=facts["background"],
        classes=tuple(facts["classes"]),
        layout=Layout(**{**layout, "roots": tuple(layout["roots"])}),
        values=tuple(labels["values"]),
        reduce_zero_label=labels["reduce_zero_label"],
        download=facts["obtain"]["download"],
        convert=facts["obtain"]["convert"],
        palette=palette if palette is None or isinstance(palette, str) else tuple(map(tuple, palette)),
        raw_labels=facts.get("raw_labels", {}),
        prompt_families=facts["prompts"],
    )
