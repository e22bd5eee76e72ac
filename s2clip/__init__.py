"""s2clip: open-vocabulary segmentation without training.

    from s2clip import Segmenter, ops

Names are loaded when they are first used: importing the package loads no model library and no Triton, and touches
no GPU.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2clip import ops as ops
    from s2clip.methods import Method as Method
    from s2clip.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"
__all__ = ["Method", "Segmenter", "__version__", "ops"]

_HOMES = {"Method": "s2clip.methods", "Segmenter": "s2clip.segmenter"}


def __getattr__(name: str):
    if name == "ops":
        return importlib.import_module("s2clip.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 's2clip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
