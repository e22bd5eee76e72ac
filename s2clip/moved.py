"""Where modules of 0.1.0 went: who imports an old path is told the new one."""

import sys
from importlib.abc import MetaPathFinder

MOVED = {
    **{f"s2clip.{name}": f"s2clip.pictures.{name}" for name in ("images", "inputs", "reading", "windows")},
    **{f"s2clip.{name}": f"s2clip.words.{name}" for name in ("text", "text_cache")},
    **{f"s2clip.{name}": f"s2clip.backbones.{name}" for name in ("checkpoints", "weights")},
    **{f"s2clip.{name}": f"s2clip.encoding.{name}" for name in ("encoder", "features")},
    **{f"s2clip.{name}": f"s2clip.decision.{name}" for name in ("by_words", "graphs", "pamr")},
    **{f"s2clip.{name}": f"s2clip.results.{name}" for name in ("result", "visualize")},
    "s2clip.diffusion": "s2clip.backbones.diffusion_affinity and s2clip.refinement.diffusion",
    "s2clip.regions": "s2clip.refinement.regions",
    "s2clip.refinement.scores": "s2clip.decision.scores",
    "s2clip.refinement.full_size": "s2clip.decision.full_size",
    "s2clip.evaluation.label_maps": "s2clip.pictures.label_maps and s2clip.evaluation.label_tables",
}


class _Signpost(MetaPathFinder):
    """Asked last, of names that nothing else knows; it answers for s2clip's own old ones alone."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in MOVED:
            raise ImportError(f"{fullname} has moved: import {MOVED[fullname]}", name=fullname)


def put_up() -> None:
    """Once a process, however often the package is loaded."""
    if not any(type(finder).__qualname__ == _Signpost.__qualname__ for finder in sys.meta_path):
        sys.meta_path.append(_Signpost())
