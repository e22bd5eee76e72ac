"""Where modules of 0.1.0 went: who imports an old path is told the new one.

Two still answer, with a `DeprecationWarning`: people's scripts read pictures and label maps by `read_image`,
`picture_size` and `read_label_map`, which moved as they are.
"""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

FORWARDED = {
    "s2clip.images": "s2clip.pictures.images",
    "s2clip.evaluation.label_maps": "s2clip.pictures.label_maps",
}

MOVED = {
    **{f"s2clip.{name}": f"s2clip.pictures.{name}" for name in ("inputs", "reading", "windows")},
    **{f"s2clip.{name}": f"s2clip.words.{name}" for name in ("text", "text_cache")},
    **{f"s2clip.{name}": f"s2clip.backbones.{name}" for name in ("checkpoints", "weights")},
    **{f"s2clip.{name}": f"s2clip.encoding.{name}" for name in ("encoder", "features")},
    **{f"s2clip.{name}": f"s2clip.decision.{name}" for name in ("by_words", "graphs", "pamr")},
    **{f"s2clip.{name}": f"s2clip.results.{name}" for name in ("result", "visualize")},
    "s2clip.diffusion": "s2clip.backbones.diffusion_affinity and s2clip.refinement.diffusion",
    "s2clip.regions": "s2clip.refinement.regions",
    "s2clip.refinement.scores": "s2clip.decision.scores",
    "s2clip.refinement.full_size": "s2clip.decision.full_size",
}


class _Signpost(MetaPathFinder):
    """Asked last, of names that nothing else knows; it answers for s2clip's own old ones alone."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname in MOVED:
            raise ImportError(f"{fullname} has moved: import {MOVED[fullname]}", name=fullname)
        return ModuleSpec(fullname, _Forward(FORWARDED[fullname])) if fullname in FORWARDED else None


class _Forward(Loader):
    """The module at its new place, under the old name too."""

    def __init__(self, place: str) -> None:
        self.place = place

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} has moved: import {self.place}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(self.place)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # the import system has put the old name's in its place


def put_up() -> None:
    """Once a process, however often the package is loaded."""
    if not any(type(finder).__qualname__ == _Signpost.__qualname__ for finder in sys.meta_path):
        sys.meta_path.append(_Signpost())
