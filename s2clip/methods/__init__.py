"""What a method is, as a value: which terms recombine, which levels join, which windows, which decision.

In: nothing. Out: `Method`, and what a model needs of every method, `Recipe`. Imports errors and values alone:
every step of a picture's way reads methods, so methods read none of the steps. `METHODS` and `get_method` are
the catalogue's (`s2clip.published.catalogue`), named here too because this is where users look for them.
"""

import importlib
from typing import Any

_HOMES = {
    "METHODS": "s2clip.published.catalogue",
    "get_method": "s2clip.published.catalogue",
    "MERGES": "s2clip.methods.method",
    "Method": "s2clip.methods.method",
    "TEMPLATES": "s2clip.methods.method",
    "TERMS": "s2clip.methods.method",
    "RECIPES": "s2clip.methods.recipe",
    "Recipe": "s2clip.methods.recipe",
}
__all__ = ["MERGES", "METHODS", "RECIPES", "TEMPLATES", "TERMS", "Method", "Recipe", "get_method"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 's2clip.methods' has no attribute {name!r}")
