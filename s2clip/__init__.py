"""s2clip: open-vocabulary segmentation without training.

    from s2clip import Segmenter, ops

Names are loaded when they are first used: importing the package loads no model library and no Triton, and touches
no GPU.

In: pictures and class names. Out: label maps. What stands in this folder is what users name and what conducts; every
other folder is a step of a picture's way (docs/architecture.md), and its first lines say which.
"""

import importlib
from typing import TYPE_CHECKING

from s2clip import moved
from s2clip.version import __version__

if TYPE_CHECKING:
    from s2clip import ops as ops
    from s2clip.methods.method import Method as Method
    from s2clip.results.result import Result as Result
    from s2clip.segmenter import Segmenter as Segmenter

__all__ = ["Method", "Result", "Segmenter", "__version__", "ops"]

moved.put_up()

_HOMES = {"Method": "s2clip.methods", "Result": "s2clip.results.result", "Segmenter": "s2clip.segmenter"}


def __getattr__(name: str):
    if name == "ops":
        return importlib.import_module("s2clip.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 's2clip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
